"""Build steps beyond pyproject.toml: native sources in the package, a description without links."""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# code, which stays as it is, or a link without a scheme
LINK = re.compile(r"```.*?```|`[^`\n]+`|(!?)\[([^\]]*)\]\((?![a-z]+:)[^)\s]+\)", re.DOTALL)


class BuildPy(build_py):
    """Copies engines/capi and export/triton to condinst_infer/data; a clone has them in place."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in (ROOT / "engines" / "capi", ROOT / "export" / "triton"):
            for path in sorted(folder.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    inside = path.relative_to(folder.parent)
                    target = Path(self.build_lib, "condinst_infer/data", inside)
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
