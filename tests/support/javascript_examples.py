"""The examples in JavaScript with their packages, as a person has them who copied the folders."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.examples import EXAMPLES

_NO_NETWORK = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH")


def install_example(name: str, folder: Path) -> Path:
    """Copy both examples to `folder` and install the packages of one; its place there.

    Skips the test where node or npm is missing, or where npm reaches no registry.
    """
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing")
    for example in ("node", "web"):  # the code that both share is in the second
        ignored = shutil.ignore_patterns("node_modules")
        shutil.copytree(EXAMPLES / example, folder / example, ignore=ignored)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
    done = subprocess.run(command, cwd=folder / name, capture_output=True, text=True)
    if done.returncode and any(code in done.stderr for code in _NO_NETWORK):
        pytest.skip("npm reaches no package registry")
    assert done.returncode == 0, done.stderr
    return folder / name
