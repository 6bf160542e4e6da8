"""Mutated files of every kind that comes from outside end in exit status 0 or 2, in time.

Each is read by `condinst` or by the function behind it, in one process with 4 GB of addresses, and
has 2 s of processor time: tests/support/hostile_files.py.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.support.hostile_files import run_hostile_files
from tests.support.hostile_kinds import KINDS

pytest.importorskip("resource", reason="limits of memory are those of POSIX")
pytest.importorskip("yaml")


def assert_survived(report: dict[str, Any], tried: int) -> None:
    """Nothing failed, and the files were neither all refused nor all taken."""
    failures = [(kind, *f) for kind, facts in report.items() for f in facts["failures"]]
    assert not failures, "\n".join(map(str, failures[:5]))
    assert report.keys() == KINDS.keys()
    assert sum(facts["tried"] for facts in report.values()) >= tried
    refused = sum(facts["refused"] for facts in report.values())
    assert 0.5 * tried < refused < 0.98 * tried


def test_five_hundred_mutated_files(tmp_path: Path) -> None:
    assert_survived(run_hostile_files(tmp_path, 500), 500)


@pytest.mark.slow
def test_five_thousand_mutated_files(tmp_path: Path) -> None:
    """With texts of 10 MB, lists of a million entries and a million brackets."""
    assert_survived(run_hostile_files(tmp_path, 5000, huge=True), 5000)


@pytest.mark.long
def test_every_nasty_value_in_every_place(tmp_path: Path) -> None:
    assert_survived(run_hostile_files(tmp_path, 0, everywhere=True), 40_000)
