"""Files that come with the package."""

from pathlib import Path

from condinst_infer.errors import ConfigError

PACKAGE = Path(__file__).parents[1]
_IN_A_CLONE = {"capi": "engines/capi", "triton": "export/triton"}


def native_sources(name: str) -> Path:
    """The folder of native sources "capi" or "triton": in the package, else in the clone."""
    for folder in (PACKAGE / "data" / name, PACKAGE.parent / _IN_A_CLONE[name]):
        if folder.is_dir():
            return folder
    raise ConfigError(
        f"{PACKAGE} came without its {name} sources. Install it again: pip install condinst-infer"
    )
