"""Environment of a measurement: machine, packages, peak memory, and the result file."""

import importlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from condinst_infer.system.hardware import gpus, usable_cores
from condinst_infer.system.outputs import write_json
from condinst_infer.system.paths import exists


def environment() -> dict[str, Any]:
    """The machine and the software a measurement was taken on."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "gpus": gpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name, version in package_versions().items() if version},
        "commit": _commit(),
    }


def package_versions() -> dict[str, str | None]:
    """Version of this package and of each that it or an extra but `dev` needs; None if missing.

    The list is the one in the installed package's record.
    """
    try:
        lines = metadata.requires("condinst-infer") or []
    except Exception:  # no record, or a damaged one
        lines = []
    names = [re.match(r"[\w.-]+", line) for line in lines if not re.search("extra == .dev", line)]
    known = ["condinst-infer", *(name[0].lower() for name in names if name)]
    return {name: _version(name) for name in dict.fromkeys(known)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except Exception:  # no record, or a damaged one: the report goes on without
        return None


class PeakMemory:
    """The most memory this process holds at once, from now on where the system can tell."""

    def __init__(self) -> None:
        self._before = _proc_mib("VmRSS")
        try:
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back, see proc(5)
            self._since = "from before the model was loaded"
        except OSError:
            self._since = "from the start of the process"

    def read(self) -> dict[str, Any]:
        """MiB at most and before, and what of."""
        peak, name = _proc_mib("VmHWM"), "VmHWM"
        if peak is None:
            resource = importlib.import_module("resource")  # Windows has none
            unit = 1 if sys.platform == "darwin" else 1024  # bytes of what it counts in
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
            name = "ru_maxrss"
        return {"peak_mib": peak, "before_mib": self._before, "how": f"{name}, {self._since}"}


def _proc_mib(name: str) -> float | None:
    """A line of /proc/self/status; None where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    kib = {line.partition(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    return int(kib[name]) / 1024 if name in kib else None


def write_result(path: str | os.PathLike[str], result: Mapping[str, Any]) -> None:
    """Write `result` as JSON; the file is there whole or not at all."""
    write_json(Path(path), result, indent=2)


def _cpu_model() -> str:
    """The processor's name; `platform` alone gives the architecture on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    if exists(cpuinfo):
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of this source tree, with "+" where files differ from it; None outside git."""
    root = Path(__file__).parents[2]
    if not exists(root / ".git"):
        return None
    try:
        git = ["git", "-C", str(root)]
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")
