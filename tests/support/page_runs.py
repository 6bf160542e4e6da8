"""Run the code blocks of a page from top to bottom, in one folder.

One bash and one Python process live as long as the page, so variables and the current folder stay
from block to block. A block is a file with as many empty lines before it as there are lines above
the block on the page: line numbers in tracebacks and messages of bash are those of the page.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from condinst_infer.cli.main import VERBS, parse
from tests.support.block_checks import ROOT, line_problems
from tests.support.code_blocks import (
    Block,
    Page,
    ShellLine,
    condinst_arguments,
    file_name,
    shell_lines,
)

LIMIT_S = 240  # for one block; an export takes 20 to 40 s on two cores
OUTPUT_LINES = 20  # of a block that failed

# What a page says, made short: words that the `condinst` of the tests adds. The first win over the
# words of the page, the second give way to them.
SHORT: dict[str, list[str]] = {
    # two iterations of two small images
    "train": [
        *("--iterations", "2", "--images-per-batch", "2", "--set", "workers=0"),
        *("--set", "short_side=96", "--set", "long_side=128", "--set", "short_sides=[96]"),
    ],
    # each scope once
    "bench": ["--repeats", "1", "--warmup", "1"],
}
DEFAULTS: dict[str, list[str]] = {
    # not into the Python environment that runs the tests
    "capi": ["-o", "$HOME/condinst"],
}

# Lines with these programs are checked, not run
NOT_RUN = {
    "docker": "it downloads images",
    "kubectl": "it needs a cluster",
    "ray": "it starts services that outlive the page",
    "tensorboard": "it runs until it is interrupted",
    "torchrun": "it would start a process per GPU",
    "trtexec": "it needs a GPU",
    "tritonserver": "it runs until it is interrupted",
    "git": "nothing is published to clone",
    "apt-get": "it changes the machine",
    "nvidia-smi": "it needs a GPU",
}
RUN_IF_PRESENT = ("ffmpeg",)  # a page is complete without what they write
# Without these a page is skipped
NEEDED = ("bash", "c++", "cc", "cmake", "curl", "g++", "gcc", "make", "pkg-config")

_BASH = """
set -eEuo pipefail
trap 'printf "%s\\n%s\\n" "$LINENO" "$BASH_COMMAND" > "$STATUS_FILE"' ERR
wait_for_server() { # PORT PID: until /health says 200
    local status
    until status=$( {
        exec 9<> "/dev/tcp/127.0.0.1/$1"
        printf 'GET /health HTTP/1.0\\r\\n\\r\\n' >&9
        head -n 1 <&9
    } 2> /dev/null) && [[ $status == *" 200 "* ]]; do
        kill -0 "$2" || return
        sleep 0.1
    done
}
while read -r STATUS_FILE block; do
    source "$block" < /dev/null
    echo done > "$STATUS_FILE"
done
"""
_PYTHON = """
import json, pathlib, sys, traceback
names = {"__name__": "__main__"}
for line in sys.stdin:
    status, block, page = json.loads(line)
    try:
        exec(compile(pathlib.Path(block).read_text(), page, "exec"), names)
        sys.stdout.flush()
    except BaseException as error:
        traceback.print_exc()
        frames = traceback.extract_tb(error.__traceback__)
        numbers = [frame.lineno for frame in frames if frame.filename == page]
        number = numbers[0] if numbers else getattr(error, "lineno", None) or 0
        pathlib.Path(status).write_text(f"{number}\\n")
        sys.exit(1)
    pathlib.Path(status).write_text("done")
"""


class BlockFailure(Exception):
    """A block that failed: page, line, command and the end of its output."""


def missing_programs(page: Page) -> list[str]:
    """Programs that the page runs and this machine does not have."""
    words = {word for block in page.blocks for word in _programs(block)}
    return sorted(word for word in words & set(NEEDED) if shutil.which(word) is None)


def uses_c_library(page: Page) -> bool:
    """Whether the page builds the library for C."""
    return any(
        block.runs and block.language == "sh" and "condinst capi" in block.code
        for block in page.blocks
    )


def _programs(block: Block) -> list[str]:
    """Names of the programs that a block runs."""
    if not block.runs or block.language != "sh":
        return []
    lines = [line for line in shell_lines(block) if reason_not_to_run(line) is None]
    return [command[0] for line in lines for command in line.commands]


def reason_not_to_run(line: ShellLine) -> str | None:
    """Why a line of a block that runs is left out; None if the line runs."""
    for command in line.commands:
        program = command[0].rpartition("/")[2]
        if "install" in command and any(re.search(r"\bpip3?$", word) for word in command):
            return "it installs"
        if command[1:3] == ["-m", "venv"] or command[-1].endswith("bin/activate"):
            return "it makes a Python environment"
        if program in NOT_RUN:
            return NOT_RUN[program]
        if program in RUN_IF_PRESENT and shutil.which(program) is None:
            return "it is not installed"
    return None


class PageRun:
    """Two processes, bash and Python, in a folder with files.

    Args:
        folder: where the blocks run.
        scratch: an empty folder for what the run itself writes.
        limit_s: seconds that one block may take.
    """

    def __init__(self, folder: Path, scratch: Path, limit_s: float = LIMIT_S) -> None:
        self._folder, self._scratch, self._limit_s = folder, scratch, limit_s
        self._log = scratch / "output.txt"
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._ports: dict[int, int] = {}  # on the page -> free one
        programs = _write_programs(scratch / "bin")
        (scratch / "home").mkdir()
        # a response that says 404 fails the block, and no progress hides what else is printed
        (scratch / "home" / ".curlrc").write_text("fail\nsilent\nshow-error\n")
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._environment = {
            **os.environ,
            "HOME": str(scratch / "home"),
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONUNBUFFERED": "1",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End both processes and all that they started."""
        for process in self._processes.values():
            _end(process)

    def run(self, block: Block) -> None:
        """Run a block, or write the file that it is.

        Raises:
            BlockFailure: a command or a line of Python failed, or took too long.
        """
        if not block.runs:
            return
        if block.language == "sh":
            self._run_in("sh", block, self._runnable(block))
        elif block.language == "python":
            self._run_in("python", block, self._with_free_ports(block.code))
        else:
            name = file_name(block)
            if name is None:
                raise BlockFailure(f"{block.place}: the first line does not name the file")
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code)

    def _runnable(self, block: Block) -> str:
        """Shell code with free ports, servers that are waited for, and without some lines."""
        rows = block.code.splitlines()
        for line in shell_lines(block):
            text, count = line.text, len(line.text.splitlines())
            served = [
                arguments
                for command in line.commands
                if (arguments := condinst_arguments(command, tuple(VERBS)))
                and arguments[0] == "serve"
                and "--help" not in arguments
            ]
            if reason_not_to_run(line):
                problems = line_problems(line, block.page)
                if problems:
                    raise BlockFailure("\n".join(problems))
                text = ":"
            elif served:
                text = self._server(line, served[0], block.page)
            start = line.line - block.line
            rows[start : start + count] = [*text.splitlines(), *[""] * count][:count]
        return self._with_free_ports("\n".join(rows) + "\n")

    def _server(self, line: ShellLine, arguments: list[str], page: str) -> str:
        """The line that starts a server in the background, and waits until it is ready."""
        problems = line_problems(line, page)
        if line.words[-1] != "&":
            problems.append(f"{page}:{line.line}: a server must end with & or nothing follows it")
        if problems:
            raise BlockFailure("\n".join(problems))
        port = parse(arguments)[1].port
        free = self._ports.setdefault(port, _free_port())
        command = re.sub(r"&\s*(#.*)?$", "", line.text)
        option = "" if "--port" in line.text else f"--port {free} "
        return f"{command}{option}& wait_for_server {free} $!"

    def _with_free_ports(self, code: str) -> str:
        """Code in which the ports of servers are the ones they really have."""
        for port, free in self._ports.items():
            code = re.sub(rf"(?<=:){port}\b|(?<=port[ =]){port}\b", str(free), code)
        return code

    def _run_in(self, language: str, block: Block, code: str) -> None:
        """Give a block to the process of its language and wait for it."""
        process = self._processes.get(language) or self._start(language)
        source = self._scratch / f"{block.line}.{language}"
        status = self._scratch / f"{block.line}.{language}.status"
        source.write_text("\n" * (block.line - 1) + code)
        start = self._log.stat().st_size
        if language == "sh":
            request = shlex.join([str(status), str(source)])
        else:
            request = json.dumps([str(status), str(source), block.page])
        assert process.stdin is not None
        process.stdin.write(request + "\n")
        process.stdin.flush()
        end = time.monotonic() + self._limit_s
        while process.poll() is None and not _is_written(status):
            if time.monotonic() > end:
                _end(process)
                raise self._failure(block, f"took longer than {self._limit_s:g} s", 0, start)
            time.sleep(0.01)
        words = status.read_text().splitlines() if status.exists() else ["0"]
        if words != ["done"]:
            text = " ".join(words[1:]) if len(words) > 1 else ""
            _end(process)
            raise self._failure(block, text, int(words[0]), start)

    def _start(self, language: str) -> subprocess.Popen[str]:
        """Start bash or Python."""
        driver = self._scratch / f"driver.{language}"
        driver.write_text(_BASH if language == "sh" else _PYTHON)
        program = ["bash"] if language == "sh" else [sys.executable]
        with self._log.open("a") as output:
            process = subprocess.Popen(
                [*program, str(driver)],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # a group, which ends with the page
            )
        self._processes[language] = process
        return process

    def _failure(self, block: Block, command: str, line: int, start: int) -> BlockFailure:
        """The error of a block: where, which command, the end of the output."""
        count = len(block.code.splitlines())
        line = line if block.line <= line < block.line + count else block.line
        row = block.code.splitlines()[line - block.line].strip()
        with self._log.open("rb") as log:
            log.seek(start)
            lines = log.read().decode(errors="replace").rstrip("\n").split("\n")
        output = [row.rstrip("\r").rpartition("\r")[2] for row in lines[-OUTPUT_LINES:]]
        text = f"{row}\n{command}" if command and command != row else row
        return BlockFailure("\n".join([f"{block.page}:{line}: {text}", *output]))


def run_page(page: Page, folder: Path, scratch: Path, blocks: list[Block] | None = None) -> None:
    """Run the blocks of a page, or the first ones."""
    with PageRun(folder, scratch) as run:
        for block in page.blocks if blocks is None else blocks:
            run.run(block)


def _write_programs(folder: Path) -> Path:
    """Write `condinst` and `python` of this interpreter and this working tree."""
    folder.mkdir(parents=True)
    python = shlex.quote(sys.executable)
    cases = [
        f'{verb}) shift; set -- {verb} {" ".join(map(_quoted, before))} "$@"'
        f" {' '.join(map(_quoted, after))} ;;"
        for verb, before, after in (
            *((verb, words, []) for verb, words in DEFAULTS.items()),
            *((verb, [], words) for verb, words in SHORT.items()),
        )
    ]
    text = f'exec {python} -m condinst_infer "$@"'
    case = "\n".join(['case "${1-}" in', *cases, "esac"])
    contents = {"condinst": f"{case}\n{text}", "python": f'exec {python} "$@"'}
    for name, content in (*contents.items(), ("python3", contents["python"])):
        (folder / name).write_text(f"#!/usr/bin/env bash\n{content}\n")
        (folder / name).chmod(0o755)
    return folder


def _quoted(word: str) -> str:
    """A word for bash, in which variables have their value."""
    return f'"{word}"'


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _is_written(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and its group: politely, then for good."""
    if process.stdin is not None:
        process.stdin.close()
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
        except ProcessLookupError:
            break
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
