""".ci/quick_coverage.py: the share of the package that tests run, and that quick tests run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci/quick_coverage.py"
FUNCTION = "def {name}() -> None:\n{lines}\n\n"


def recorded(folder: Path, *functions: str) -> Path:
    """The coverage of a program that calls `functions` of the package `p`."""
    program = folder / "program.py"
    program.write_text("import p\n" + "".join(f"p.{name}()\n" for name in functions))
    data = folder / f"{'-'.join(functions)}.coverage"
    command = ["-m", "coverage", "run", f"--data-file={data}", "--source=p", program]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    subprocess.run([sys.executable, *command], cwd=folder, env=environment, check=True)
    return data


@pytest.mark.parametrize(
    ("quick", "slow", "status", "words"),
    [
        (["large", "small"], ["small"], 0, "all tests run 100.0 % of the package's lines"),
        (["large"], ["small"], 0, "the quick tests run 42 of 43 of them: 97.7 %"),
        (["small"], ["large"], 1, "give a quick test to what is listed above"),
        (["small"], ["small"], 1, "at least 96.0 % of all lines are needed"),
    ],
)
def test_both_bounds_are_kept(
    tmp_path: Path, quick: list[str], slow: list[str], status: int, words: str
) -> None:
    (tmp_path / "p").mkdir()
    text = FUNCTION.format(name="large", lines="    len([])\n" * 40)
    (tmp_path / "p/__init__.py").write_text(text + FUNCTION.format(name="small", lines="    id(1)"))
    paths = [recorded(tmp_path, *names) for names in (quick, slow)]
    command = [sys.executable, SCRIPT, *paths]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status and words in done.stdout + done.stderr, done
    assert all(path.exists() for path in paths)  # combined in memory
