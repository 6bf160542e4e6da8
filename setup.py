"""What pyproject.toml can't say: engines/ in the package, and a description without dead links."""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# code, which stays as it is, or a link without a scheme
LINK = re.compile(r"```.*?```|`[^`\n]+`|(!?)\[([^\]]*)\]\((?![a-z]+:)[^)\s]+\)", re.DOTALL)


class BuildPy(build_py):
    """Copies engines/capi and /triton to condinst_infer/data; a clone reads them where they are."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        engines = ROOT / "engines"
        for path in sorted(p for name in ("capi", "triton") for p in (engines / name).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                target = Path(self.build_lib, "condinst_infer/data", path.relative_to(engines))
                self.mkpath(str(target.parent))
                self.copy_file(str(path), str(target))


def description() -> str:
    """README.md with the words of relative links and pictures, which no package index can show.

    `.ci/release --url` makes them absolute before; then nothing is left to do here.
    """

    def words(match: re.Match[str]) -> str:
        picture, text = match.groups()
        if text is None:
            return match[0]
        return f"*{text}*" if picture else text

    return LINK.sub(words, (ROOT / "README.md").read_text(encoding="utf-8"))


setup(
    cmdclass={"build_py": BuildPy},
    long_description=description(),
    long_description_content_type="text/markdown",
)
