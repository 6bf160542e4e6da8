"""Exit with 1 if the tests run too few lines: .ci/quick_coverage.py quick.coverage slow.coverage

Two bounds: the lines of the package that all tests of .ci/run run, and the share of these lines
that the quick tests run alone.
"""

import sys
from io import StringIO

from coverage import Coverage, CoverageData

MIN_TOTAL = 96.0  # per cent of the package's lines, by the quick and the slow tests together
MIN_QUICK_SHARE = 90.0  # per cent of what the quick and the slow tests run, by the quick ones


def lines(path: str) -> set[tuple[str, int]]:
    """(file, line) of every line that was run."""
    data = CoverageData(path)
    data.read()
    return {(file, line) for file in data.measured_files() for line in data.lines(file) or ()}


def total(paths: list[str]) -> tuple[float, list[str]]:
    """Per cent of the lines that run with all files together, and a line of each worst file."""
    coverage = Coverage(data_file=None)  # in memory
    coverage.combine(paths, keep=True)
    table = StringIO()
    per_cent = coverage.report(file=table, sort="-miss", skip_covered=True)
    return per_cent, table.getvalue().splitlines()[2:22]


def main(quick_path: str, slow_path: str) -> str | None:
    """Print both figures; return the reason if one is too low."""
    quick, slow = lines(quick_path), lines(slow_path)
    share = 100 * len(quick) / len(quick | slow)
    per_cent, worst = total([quick_path, slow_path])
    print(f"all tests run {per_cent:.1f} % of the package's lines")
    print(f"the quick tests run {len(quick)} of {len(quick | slow)} of them: {share:.1f} %")
    if per_cent < MIN_TOTAL:
        print(*worst, sep="\n")
        return f"at least {MIN_TOTAL} % of all lines are needed: test the files listed above"
    if share < MIN_QUICK_SHARE:
        missing = [file for file, _ in slow - quick]
        for file in sorted(set(missing), key=missing.count, reverse=True)[:20]:
            print(f"  {missing.count(file):4} lines of {file}")
        return (
            f"at least {MIN_QUICK_SHARE} % are needed of the quick tests: "
            "give a quick test to what is listed above"
        )
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
