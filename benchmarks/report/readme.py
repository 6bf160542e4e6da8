"""Write the generated parts of README.md: presets, the help text and measured results.

    python -m benchmarks.report.readme

A part stands between `<!-- name -->` and `<!-- /name -->`. A test says when README.md is stale.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import plots, tables
from benchmarks.report.tables import markdown
from condinst_infer.cli.presets import preset_rows

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def parts() -> dict[str, str]:
    """Every generated part by name, in Markdown."""
    nuclei = json.loads((RESULTS / "accuracy" / "nuclei.json").read_text())
    training = nuclei["training"]
    return {
        "presets": preset_table(),
        "help": help_text(),
        "results": result_table(),
        "gpu": gpu_tables(),
        "accuracy": accuracy_table(nuclei["artefacts"]),
        "groups": group_table(nuclei["groups"]),
        "training": training_line(training, training.get("environment", nuclei["environment"])),
        **tables.parts(),
    }


def preset_table() -> str:
    """One row per preset."""
    rows = preset_rows()
    heads = [head for head in rows[0] if head != "P"]
    return markdown(heads, [[str(row[head]) for head in heads] for row in rows])


def help_text() -> str:
    """Output of `condinst --help`."""
    command = [sys.executable, "-m", "condinst_infer", "--help"]
    environment = {"COLUMNS": "100", "PATH": "", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return f"```\n{run.stdout.rstrip()}\n```"


def result_table() -> str:
    """One row per comparison in the result files."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        data = json.loads(path.read_text())
        for case in data.get("results", [data]):
            rows.append(_result_row(case, data["environment"]))
    return markdown(["what", "ours, ms", "beside", "its ms", "ratio", "machine"], rows)


def gpu_tables() -> str:
    """Results of `python -m benchmarks.gpu.pipelines` on each card."""
    parts = []
    for path in sorted((RESULTS / "gpu").glob("*.json")):
        data = json.loads(path.read_text())
        environment = data["environment"]
        failed = sum(not check["ok"] for check in data["checks"])
        parts.append(
            f"{data['device']}, driver for CUDA {data['driver_cuda']}, torch "
            f"{environment['packages']['torch']}: {len(data['checks'])} checks, {failed} failed.\n"
        )
        rows = []
        for case in data["results"]:
            (_, ours), *others = case["times_ms"].items()
            beside, its = ("", "")
            if others:
                beside, its = others[0][0], f"{others[0][1]['p50'] * 1000:.0f}"
            rate = f"{case['gb_per_s']:.0f}" if "gb_per_s" in case else ""
            rows.append([case["what"], f"{ours['p50'] * 1000:.0f}", beside, its, rate])
        parts.append(markdown(["what", "ours, us", "beside", "its us", "GB/s"], rows))
    return "\n".join(parts) or "Times on a GPU: none yet."


def accuracy_table(artefacts: Sequence[Mapping[str, Any]]) -> str:
    """One row per artefact of one model."""
    names = ("AP", "AP50", "AP75", "APS", "APM")
    rows = []
    for artefact in artefacts:
        masks = [artefact["mask"][name] for name in (*names, "AR")]
        numbers = [f"{value:.2f}" for value in (artefact["box"]["AP"], *masks)]
        rows.append([artefact["artefact"], *numbers])
    return markdown(["artefact", "box AP", *(f"mask {name}" for name in names), "mask AR"], rows)


def group_table(groups: Sequence[Mapping[str, Any]]) -> str:
    """One row per kind of image."""
    rows = []
    for group in groups:
        numbers = [f"{group[name]:.1f}" for name in ("AP", "AP50")]
        rows.append([group["group"], str(group["images"]), str(group["nuclei"]), *numbers])
    return markdown(["images", "how many", "nuclei", "mask AP", "mask AP50"], rows)


def training_line(training: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """Time and memory of a training."""
    return (
        f"{training['iterations']} batches of {training['images_per_batch']} crops, "
        f"{training['images_per_second']:.1f} crops a second, {training['minutes']:.0f} minutes "
        f"and {training['memory_gb']:.1f} GB beside two loader processes ({environment['cpu']}, "
        f"{environment['cores']} cores, torch {environment['packages']['torch']})."
    )


def _result_row(case: dict[str, Any], environment: dict[str, Any]) -> list[str]:
    times = {name: summary["p50"] for name, summary in case["times_ms"].items()}
    ours, theirs = times.values()
    machine = f"{environment['cpu']}, torch {environment['packages']['torch']}"
    cells = [case["what"], f"{ours:.1f}", case["against"], f"{theirs:.1f}"]
    return [*cells, f"{theirs / ours:.1f}x", machine]


def written(text: str, made: dict[str, str]) -> str:
    """`text` with each part between its markers replaced."""
    for name, part in made.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, count = re.subn(pattern, lambda m, p=part: f"{m[1]}{p}\n{m[2]}", text, flags=re.S)
        assert count == 1, f"README.md needs one part {name}"
    return text


def main() -> None:
    """Draw the plots and rewrite README.md."""
    plots.write()
    path = ROOT / "README.md"
    path.write_text(written(path.read_text(), parts()))


if __name__ == "__main__":
    main()
