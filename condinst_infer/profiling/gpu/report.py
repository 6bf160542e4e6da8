"""Results of the GPU check so far, in a file that is whole at any moment."""

from pathlib import Path
from typing import Any

from condinst_infer.profiling.environment import environment, write_result


class Report:
    """Checks, rows of times and errors of all groups; written at every change.

    Args:
        output: the JSON file; None keeps the results in memory.
        small: whether the sizes are those for the CPU.
    """

    def __init__(self, output: Path | None, *, small: bool) -> None:
        self.output = output
        self.data: dict[str, Any] = {
            "complete": False,
            "small": small,
            "device": None,
            "environment": environment(),
            "groups": {},  # seconds of each that is done
            "checks": [],
            "results": [],
            "errors": [],
        }
        self.write()

    def add(self, name: str, record: dict[str, Any]) -> None:
        """Add a check, a row of "results" or one of "errors", and write the file."""
        self.data[name].append(record)
        self.write()

    def set(self, **values: Any) -> None:
        """Set entries of the file, and write it."""
        self.data |= values
        self.write()

    def failures(self) -> list[dict[str, Any]]:
        """Checks that failed, rows without a time, and errors of groups."""
        checks = [check for check in self.data["checks"] if not check["ok"]]
        rows = [row for row in self.data["results"] if "error" in row]
        return checks + rows + self.data["errors"]

    @property
    def status(self) -> int:
        """Exit status: 1 if anything failed or is missing."""
        return int(bool(self.failures()) or not self.data["complete"])

    def write(self) -> None:
        """Write the file; what was there before stays until it is whole."""
        if self.output is not None:
            write_result(self.output, self.data)
