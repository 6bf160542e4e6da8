"""Files made of an exported file, checked against the file they were made of."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import onnx

from condinst_infer.contract.metadata import Metadata, metadata_from_props, model_props
from condinst_infer.contract.tensors import contract_outputs
from condinst_infer.contract.weights_sha256 import add_weights_sha256
from condinst_infer.errors import ModelFileError, ParityError
from condinst_infer.export.standard_ops import has_own_nodes, with_standard_ops
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.verification import self_test
from condinst_infer.verification.compare import ComparisonReport, compare
from condinst_infer.verification.intermediates import load_proto


def write_standard_ops(
    source: Path, path: Path, *, size: tuple[int, int] | None = None, batch: int | None = None
) -> ComparisonReport:
    """Write the exported file `source` in standard operators to `path`, and compare both.

    The self-test stays. Where the file is of another size now, ONNX Runtime makes a new one of
    `source`, which has passed the old one.

    Args:
        size: (height, width) to fix; None leaves it.
        batch: images per run to fix; None leaves it.

    Raises:
        ConfigError: `source` is of another size or batch, or its functions are gone already.
        ModelFileError: `source` is not ours, or changed after export.
        ParityError: the two files compute different things.
    """
    proto = load_proto(source)
    stored = self_test.self_test_from_props(model_props(proto), source)
    model = with_standard_ops(proto, size=size, batch=batch)
    metadata = metadata_from_props(model_props(model), path)
    shape = stored and (metadata.batch or stored.shape[0], *(metadata.size or stored.shape[1:]))
    if stored is not None and shape != stored.shape:
        onnx.helper.set_model_props(
            model, {k: v for k, v in model_props(model).items() if self_test.KEY not in k}
        )
    add_weights_sha256(model)
    onnx.save(model, str(path))
    report = compare(source, path)
    if not report.ok:
        raise ParityError(f"the file computes something else than {source}:\n{report}")
    if stored is None:
        return report
    with closing(OrtSession(path)) as session:
        if shape == stored.shape:
            self_test.check(session, stored)
            return report
        with closing(OrtSession(source)) as before:
            self_test.check(before, stored)
            self_test.store(path, before, session)
    return report


def write_with_metadata(stripped: Path, source: Path, path: Path) -> self_test.SelfTest:
    """Write `stripped`, a file that lost its metadata, with that of `source` to `path`.

    Returns:
        The self-test of `source`, which the written file has passed.

    Raises:
        ModelFileError: one of the files is not ONNX, or `source` is not ours or has no self-test.
        ParityError: the file computes something else than `source` did at export.
    """
    props = model_props(load_proto(source))
    metadata = metadata_from_props(props, source)
    stored = self_test.self_test_from_props(props, source)
    if stored is None:
        raise ModelFileError(
            f"{source} was exported without a self-test, so nothing tells whether {stripped} is "
            "the same model."
        )
    model = load_proto(stripped)
    onnx.helper.set_model_props(model, props | _as_found(metadata, model).to_props())
    add_weights_sha256(model)
    onnx.save(model, str(path))
    with closing(OrtSession(path)) as session:
        self_test.check(session, stored)
    return stored


def _as_found(metadata: Metadata, model: onnx.ModelProto) -> Metadata:
    """`metadata` with what a tool may have changed and the graph shows: sizes and operators."""
    images = next((value for value in model.graph.input if value.name == "images"), None)
    if images is None or not {value.name for value in model.graph.output} >= {
        *contract_outputs(metadata)
    }:
        return metadata  # the session says what is missing
    batch, height, width, *_ = (dim.dim_value for dim in images.type.tensor_type.shape.dim)
    return replace(
        metadata,
        batch=batch or None,
        size=(height, width) if height and width else None,
        standard_ops=not has_own_nodes(model),
    )
