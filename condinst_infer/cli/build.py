"""`condinst build`."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from condinst_infer.cli.sources import check_suffix
from condinst_infer.trt.build import Built, engine_from_onnx
from condinst_infer.trt.sidecar import replacing_engine, sidecar_path
from condinst_infer.verification.self_test import check, golden_from_props


def build(args: argparse.Namespace) -> int:
    """Write an engine and its sidecar, after a run of the engine where there is a GPU for it."""
    check_suffix(args.output, ".engine")
    with replacing_engine(args.output) as part:
        part.touch()  # what can't be written is better known before minutes of building
        with tqdm(total=100, desc="building", unit="%", disable=None, delay=2) as bar:
            built = engine_from_onnx(
                args.model,
                runtime=args.runtime,
                least=args.min,
                usual=args.opt,
                most=args.max,
                workspace_mib=args.workspace,
                timing_cache=args.timing_cache,
                plugin=not args.no_plugin,
                progress=lambda share: bar.update(int(100 * share) - bar.n),
            )
        sidecar = built.sidecar
        part.write_bytes(built.engine)
        sidecar_path(part).write_text(sidecar.to_json())
        sidecar = replace(sidecar, smoke_run=_smoke_run(built, part))
        sidecar_path(part).write_text(sidecar.to_json())
    if args.json:
        print(json.dumps({**sidecar.to_dict(), "notes": built.notes}))
        return 0
    for note in built.notes:
        print(f"note: {note}")
    for name, value in sidecar.lines().items():
        print(f"{name + ':':16}{value}")
    print(f"-> {args.output}")
    return 0


def _smoke_run(built: Built, part: Path) -> str:
    """What a run on the golden input said; ParityError if the engine computes something else."""
    if not built.runs_here:
        return built.sidecar.smoke_run
    golden = golden_from_props(built.sidecar.props, part)
    if golden is None:
        return "not made: the file was exported without golden outputs"
    if not built.sidecar.profile.takes(golden.shape):
        size = "x".join(map(str, golden.shape))
        return f"not made: its input of {size} is not one the engine takes"
    from condinst_infer.runtimes.tensorrt import TrtSession

    session = TrtSession(part)
    try:
        check(session, golden)
    finally:
        session.close()
    return f"passed {golden.proof}"
