"""What pyproject.toml can't say: the C sources travel inside the package."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Copies engines/capi to condinst_infer/data/capi; a clone reads it where it is."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        source = Path(__file__).parent / "engines" / "capi"
        for path in sorted(source.rglob("*")):
            if path.is_file():
                target = Path(self.build_lib, "condinst_infer/data/capi", path.relative_to(source))
                self.mkpath(str(target.parent))
                self.copy_file(str(path), str(target))


setup(cmdclass={"build_py": BuildPy})
