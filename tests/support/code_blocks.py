"""The code blocks of a Markdown page, and the command lines in a block of shell code.

A page is read from top to bottom and its blocks belong to one story, in one folder:

* `sh` blocks are commands for bash, `python` blocks one program that grows.
* `cpp`, `c` and `cmake` blocks are files. The first line names the file in a comment:
  `// main.cpp`, `// main.c`, `# CMakeLists.txt`. The commands of the page compile them.
* `json` and `text` blocks are shown only: output, file trees, content of files.
* `<!-- not run: needs a GPU -->` on the line above a fence says why a block cannot run where the
  tests run. NEEDS has every reason. Such a block is checked as far as that works without running.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

PROGRAM_LANGUAGES = ("sh", "python", "cpp", "c", "cmake")
LANGUAGES = (*PROGRAM_LANGUAGES, "json", "text")
NEEDS = (
    "a GPU",
    "Triton",
    "a cluster",
    "Docker",
    "a registry",
    "a camera",
    "published weights",
    "the COCO data set",
    "hours",
)

_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})(?P<info>.*)")
_REASON = re.compile(r"<!-- not run: needs (?P<needs>.+) -->")
_LIST_ITEM = re.compile(r"(?P<before>\s*(?:[-*+]|\d{1,9}[.)])\s+)\S")
_HERE_DOCUMENT = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")


@dataclass(frozen=True)
class Block:
    """One fenced block of code."""

    page: str  # name of the page, for messages
    line: int  # number of the first line of the code, from 1
    language: str
    code: str  # ends with a line break unless empty
    needs: str | None = None  # why it cannot run here

    @property
    def runs(self) -> bool:
        """Whether a test runs this block."""
        return self.language in PROGRAM_LANGUAGES and self.needs is None

    @property
    def place(self) -> str:
        """Where the block is, as PAGE:LINE."""
        return f"{self.page}:{self.line}"


@dataclass
class Page:
    """The blocks of a page, and what is wrong with the form of the page, as PAGE:LINE: text."""

    name: str
    blocks: list[Block] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def parse_page(text: str, name: str) -> Page:
    """Find the blocks of a page; a form that the rules do not allow is a problem of the page."""
    page, lines, prose = Page(name), text.splitlines(), _Prose()
    reason: tuple[int, str] | None = None  # line and text of a comment, until the next line
    number = 0
    while number < len(lines):
        line, number = lines[number], number + 1
        fence = _FENCE.fullmatch(line)
        if reason and not fence:
            page.problems.append(_loose(name, reason[0]))
        if fence is None:
            reason = _reason(line, page, number)
            if problem := prose.problem(line):
                page.problems.append(f"{name}:{number}: {problem}")
            continue
        end = _end_of_block(lines, number, fence["fence"])
        if end is None:
            page.problems.append(f"{name}:{number}: the fence is never closed")
            return page
        code = [_without_indent(row, len(fence["indent"])) for row in lines[number:end]]
        _add_block(page, number, fence["info"].strip(), code, reason and reason[1])
        reason, number = None, end + 1
        prose.problem("")
    if reason:
        page.problems.append(_loose(name, reason[0]))
    return page


def _loose(name: str, number: int) -> str:
    return f"{name}:{number}: this comment is not directly above a fence"


class _Prose:
    """The lines between blocks, which may hold no code block of another form."""

    def __init__(self) -> None:
        self._previous = ""
        self._list_indent = 0  # of the text of the list item that a line may belong to
        self._in_code = False  # of an indented or quoted block, which is reported once

    def problem(self, line: str) -> str | None:
        """What is wrong with the next line."""
        previous, self._previous = self._previous, line
        if not line.strip():
            return None
        expanded = line.expandtabs(4)
        indent = len(expanded) - len(expanded.lstrip())
        item = _LIST_ITEM.match(expanded)
        code_indent = self._list_indent + 4
        if item and indent < code_indent:
            self._list_indent = len(item["before"])
        elif indent < min(self._list_indent, 2):
            self._list_indent = 0
        if line.startswith(">"):
            fence, quoted = _FENCE.match(line.lstrip("> ")), previous.startswith(">")
            before, self._in_code = quoted and self._in_code, bool(fence) or self._in_code
            return "a code block in a quotation is not run" if fence and not before else None
        starts = not previous.strip() or previous.startswith("#")
        before = self._in_code
        self._in_code = indent >= code_indent and (starts or before)
        return "a code block by indentation; use a fence" if self._in_code > before else None


def _end_of_block(lines: list[str], start: int, fence: str) -> int | None:
    """Index of the line that closes a fence."""
    for index in range(start, len(lines)):
        row = lines[index].strip()
        if len(row) >= len(fence) and not row.strip(fence[0]):
            return index
    return None


def _without_indent(line: str, width: int) -> str:
    """A line of a block whose fence is indented."""
    return line[width:] if not line[:width].strip() else line.lstrip()


def _reason(line: str, page: Page, number: int) -> tuple[int, str] | None:
    """The reason in a comment that says why the block below does not run."""
    if not re.search(r"<!--\s*not[ -]run", line, re.IGNORECASE):
        return None
    match = _REASON.fullmatch(line.strip())
    needs = match["needs"] if match else ""
    if not match or not set(re.split(r" and |, ", needs)) <= set(NEEDS):
        allowed = ", ".join(NEEDS)
        page.problems.append(
            f"{page.name}:{number}: {line.strip()} is not <!-- not run: needs X --> with X of: "
            f"{allowed}"
        )
    return number, needs


def _add_block(page: Page, number: int, info: str, code: list[str], needs: str | None) -> None:
    """Add the block below the fence on line `number`."""
    if info not in LANGUAGES:
        allowed = ", ".join(LANGUAGES)
        page.problems.append(f"{page.name}:{number}: the fence says {info!r}, not one of {allowed}")
        return
    text = "".join(f"{row}\n" for row in code)
    block = Block(page.name, number + 1, info, text, needs)
    page.blocks.append(block)
    if needs and info not in PROGRAM_LANGUAGES:
        page.problems.append(f"{page.name}:{number}: {info} is never run, so it needs no reason")
    if block.runs and info in ("cpp", "c", "cmake") and file_name(block) is None:
        page.problems.append(
            f"{block.place}: the first line does not name the file, such as // main.cpp"
        )


def file_name(block: Block) -> str | None:
    """The name of the file that a block is, from the comment in its first line."""
    match = re.match(r"(?://|#|/\*) ?([\w-][\w./-]*\.(?:cpp|c|h|hpp|txt|cmake))\b", block.code)
    return match[1] if match else None


# Shell code


@dataclass(frozen=True)
class ShellLine:
    """One line of shell code with the lines that continue it."""

    line: int  # number of its first line, on the page
    text: str  # all lines, as they are
    words: tuple[str, ...]  # as the shell sees them; operators are words too, comments are not

    @property
    def commands(self) -> list[list[str]]:
        """The simple commands of this line, each as its words, without redirections."""
        result: list[list[str]] = [[]]
        words = iter(self.words)
        for word in words:
            if set(word) & set("<>") and set(word) <= set("<>&|"):
                next(words, None)  # the file
                if result[-1] and result[-1][-1] in ("1", "2"):
                    result[-1].pop()
            elif word and set(word) <= set(";&|()"):
                result.append([])
            else:
                result[-1].append(word)
        return [_without_prefix(command) for command in result if _without_prefix(command)]


_PREFIX_WORDS = {
    *("{", "}", "!", "do", "done", "then", "else", "fi", "if", "while", "until"),
    *("time", "exec", "sudo", "nohup", "command"),
}


def _without_prefix(command: list[str]) -> list[str]:
    """A command without shell words and variables before the name of the program."""
    start = 0
    while start < len(command) and (
        command[start] in _PREFIX_WORDS or re.match(r"[A-Za-z_]\w*=", command[start])
    ):
        start += 1
    return command[start:]


def shell_lines(block: Block) -> Iterator[ShellLine]:
    """The lines of shell code, each with the lines that continue it; empty ones are left out."""
    lines, start = block.code.splitlines(), 0
    while start < len(lines):
        end, words = start + 1, None
        while words is None:
            words = _words("\n".join(lines[start:end]))
            if end == len(lines):
                words = words or ()
            elif lines[end - 1].endswith("\\") or words is None:
                end, words = end + 1, None
        if here := _HERE_DOCUMENT.search(lines[end - 1]):
            end = next((n + 1 for n in range(end, len(lines)) if lines[n] == here[2]), len(lines))
        if words:
            yield ShellLine(block.line + start, "\n".join(lines[start:end]), words)
        start = end


def _words(text: str) -> tuple[str, ...] | None:
    """The words of a command line; None where a quotation is still open."""
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        return tuple(lexer)
    except ValueError:
        return None


def condinst_arguments(command: list[str], verbs: tuple[str, ...]) -> list[str] | None:
    """What follows `condinst` in a simple command; None if the command does not run it."""
    words = [word for word in command if not re.match(r"\$(@|\*|\{[@*])", word)]
    if words and words[0].rpartition("/")[2] == "condinst":
        return words[1:]
    for index in range(1, len(words)):
        if words[index - 1 : index + 1] == ["-m", "condinst_infer"]:
            return words[index + 1 :]
        if words[index - 1].rpartition("/")[2] == "condinst" and words[index] in verbs:
            return words[index:]
    return None
