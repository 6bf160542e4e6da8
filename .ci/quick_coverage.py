"""Exit with 1 if the quick tests run less than 90 % of the lines that all tests of `.ci/run` run.

.ci/quick_coverage.py quick.coverage slow.coverage
"""

import sys

from coverage import CoverageData

LEAST = 0.9


def lines(path: str) -> set[tuple[str, int]]:
    """(file, line) of every line that was run."""
    data = CoverageData(path)
    data.read()
    return {(file, line) for file in data.measured_files() for line in data.lines(file) or ()}


quick, slow = map(lines, sys.argv[1:])
share = len(quick) / len(quick | slow)
print(f"the quick tests run {len(quick)} of {len(quick | slow)} lines: {100 * share:.1f} %")
missing = sorted(slow - quick)
if share < LEAST:
    files = sorted({file for file, _ in missing}, key=lambda f: -sum(f == x for x, _ in missing))
    for file in files[:20]:
        print(f"  {sum(file == other for other, _ in missing):4} lines of {file}")
    sys.exit(f"at least {100 * LEAST:.0f} % are needed: give a quick test to what is listed above")
