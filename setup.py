"""What pyproject.toml can't say: some of engines/ travels inside the package."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Copies engines/capi and /triton to condinst_infer/data; a clone reads them where they are."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        engines = Path(__file__).parent / "engines"
        for path in sorted(p for name in ("capi", "triton") for p in (engines / name).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                target = Path(self.build_lib, "condinst_infer/data", path.relative_to(engines))
                self.mkpath(str(target.parent))
                self.copy_file(str(path), str(target))


setup(cmdclass={"build_py": BuildPy})
