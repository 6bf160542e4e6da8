"""Sources of `engines/` that users get with the package."""

from pathlib import Path

from condinst_infer.errors import ConfigError

PACKAGE = Path(__file__).parent


def shipped(name: str) -> Path:
    """The folder engines/`name`: inside an installed package, else in the clone."""
    for folder in (PACKAGE / "data" / name, PACKAGE.parent / "engines" / name):
        if folder.is_dir():
            return folder
    raise ConfigError(
        f"{PACKAGE} came without its {name} sources. Install it again: pip install condinst-infer"
    )
