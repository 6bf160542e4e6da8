"""README.md says what is true."""

import json
import re
from pathlib import Path

from benchmarks.report import accuracy
from condinst_infer.contract.metadata import file_sha256

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()


def test_the_accuracy_is_that_of_the_files_that_ship(demo_folder: Path) -> None:
    result = json.loads(accuracy.RESULT.read_text())
    measured = {entry["sha256"] for entry in result["artefacts"]}
    assert {file_sha256(demo_folder / f"nuclei.{s}") for s in ("onnx", "safetensors")} <= measured


def test_links_lead_somewhere() -> None:
    for page in ("README.md", *ROOT.glob("*/README.md"), *ROOT.glob("e*/*/README.md")):
        text = (ROOT / page).read_text()
        for target in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_ci_runs_the_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    command = next(line for line in TEXT.splitlines() if "requirements-dev.txt" in line)
    for step in command.strip().split(" && "):
        assert step in script, step


def test_it_is_read_in_two_minutes() -> None:
    """Its code is run by tests/docs/test_code_blocks.py."""
    assert len(TEXT.encode()) <= 12_288
    block = re.search(r"```python\n(.*?)```", TEXT, re.S)
    assert block is not None and len(block[1].splitlines()) <= 10


def test_the_package_data_is_what_the_demo_and_gpus_need(demo_folder: Path) -> None:
    names = {"nuclei.onnx", "nuclei.safetensors", "nuclei.jpg"}
    assert {path.name for path in demo_folder.iterdir()} == names | {"ptx", "gpu_expectations.npz"}
    models = [path for path in demo_folder.iterdir() if path.suffix in (".onnx", ".safetensors")]
    assert sum(path.stat().st_size for path in models) <= 10_000_000
