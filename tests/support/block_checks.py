"""Checks of code blocks and command lines that are not run: options, extras, files, names."""

import ast
import contextlib
import importlib
import inspect
import io
import re
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import condinst_infer
from condinst_infer.cli.main import VERBS, parse
from condinst_infer.config.model import SECTION_OF
from condinst_infer.config.presets import preset_names
from condinst_infer.errors import CondInstError
from tests.support.code_blocks import (
    Block,
    Page,
    ShellLine,
    condinst_arguments,
    shell_lines,
)

ROOT = Path(__file__).parents[2]
OURS = ("condinst_infer", "benchmarks", "engines", "export")  # packages of this repository


def unrun_problems(page: Page) -> list[str]:
    """What is wrong in the blocks of a page that do not run, as PAGE:LINE: text."""
    names, problems = PythonNames(), []
    for block in page.blocks:
        if block.language == "python":
            problems += names.problems(block)  # also of blocks that run: later ones use them
        elif not block.runs and block.language == "sh":
            problems += syntax_problems(block)
            for line in shell_lines(block):
                problems += line_problems(line, block.page)
        elif not block.runs and block.language in ("c", "cpp"):
            problems += header_problems(block)
    return problems


# Command lines


def line_problems(line: ShellLine, page: str) -> list[str]:
    """What is wrong in one command line: `condinst` commands, extras of pip, files named."""
    problems = []
    for command in line.commands:
        arguments = condinst_arguments(command, tuple(VERBS))
        if arguments is not None:
            problems.append(arguments_problem(arguments))
        if "install" in command and any(re.search(r"\bpip3?$", word) for word in command):
            problems += map(_requirement_problem, command)
            files = [b for a, b in zip(command, command[1:], strict=False) if a == "-r"]
            problems += [f"there is no {file}" for file in files if not (ROOT / file).exists()]
        problems += map(_path_problem, command)
    return [
        f"{page}:{line.line}: {line.text.strip()}: {problem}" for problem in problems if problem
    ]


def arguments_problem(arguments: list[str]) -> str | None:
    """What `condinst ARGUMENTS` would say before it reads a file."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
            _, options = parse(arguments)
    except SystemExit as stop:  # argparse; 0 after --help
        return stderr.getvalue().strip() if stop.code else None
    except CondInstError as error:
        return str(error)
    return _training_problem(options) if arguments[0] == "train" else None


def _training_problem(options: Any) -> str | None:
    """A preset or a field that `condinst train` does not know."""
    from condinst_infer.train.settings import field_names

    known = {*SECTION_OF, *field_names()}
    wrong = [text for text in options.set if text.partition("=")[0] not in known]
    if options.preset not in preset_names():
        return f"there is no preset {options.preset}"
    return f"there is no field {wrong[0].partition('=')[0]}" if wrong else None


@cache
def _extras() -> frozenset[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return frozenset(project["optional-dependencies"])


def _requirement_problem(word: str) -> str | None:
    """An extra that pyproject.toml does not have, as in condinst-infer[cpu] and .[cpu]."""
    match = re.fullmatch(r"(?:condinst[-_]infer|\.)\[([^]]*)\].*", word)
    unknown = {extra.strip() for extra in match[1].split(",")} - _extras() if match else set()
    return f"pyproject.toml has no extra {', '.join(sorted(unknown))}" if unknown else None


def _path_problem(word: str) -> str | None:
    """A file of this repository that is not there."""
    path = re.search(
        r"(?:^|[=:])(?:\./)?((?:benchmarks|condinst_infer|engines|export)/[^:]*)", word
    )
    return f"there is no {path[1]}" if path and not (ROOT / path[1]).exists() else None


def syntax_problems(block: Block) -> list[str]:
    """What bash says of shell code that it reads and does not run."""
    done = subprocess.run(["bash", "-n"], input=block.code, capture_output=True, text=True)
    if done.returncode == 0:
        return []
    number = re.search(r"line (\d+): (.*)", done.stderr)
    line, text = (int(number[1]), number[2]) if number else (1, done.stderr)
    line = min(line, len(block.code.splitlines()))
    return [f"{block.page}:{block.line + line - 1}: {text}"]


def header_problems(block: Block) -> list[str]:
    """Functions of the C library that its header does not declare."""
    header = (ROOT / "engines" / "capi" / "condinst.h").read_text()
    problems = []
    for number, line in enumerate(block.code.splitlines(), block.line):
        for name in re.findall(r"\b(condinst_\w+)\s*\(", line):
            if not re.search(rf"\b{name}\b", header):
                problems.append(f"{block.page}:{number}: condinst.h has no {name}")
    return problems


# Python


@dataclass(frozen=True)
class _Object:
    """An object of a known class; a module, class or function stands for itself."""

    cls: type


@dataclass(frozen=True)
class _Method:
    """A function of a class, reached from an object."""

    function: Callable[..., Any]


class PythonNames(ast.NodeVisitor):
    """Names and keyword arguments of this package in the Python code of one page.

    The code is a program that grows, block by block. What a variable is follows from imports,
    calls of classes and the return types of functions; where it is unknown nothing is checked.
    """

    def __init__(self) -> None:
        from condinst_infer.pipeline import Pipeline

        self._values: dict[str, Any] = {"pipeline": _Object(Pipeline)}
        self._found: list[tuple[int, str]] = []

    def problems(self, block: Block) -> list[str]:
        """What is wrong in the next block, as PAGE:LINE: text."""
        self._found = []
        try:
            tree = ast.parse(block.code)
        except SyntaxError as error:
            return [f"{block.page}:{block.line + (error.lineno or 1) - 1}: {error.msg}"]
        self.visit(tree)
        return [f"{block.page}:{block.line + line - 1}: {text}" for line, text in self._found]

    # Names that get a value

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name.partition(".")[0] in OURS:
                module = self._module(node, alias.name)
                name = alias.asname or alias.name.partition(".")[0]
                self._values[name] = module if alias.asname else importlib.import_module(name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = self._module(node, node.module) if node.module else None
        if module is None:
            return
        for alias in node.names:
            if not hasattr(module, alias.name):
                with contextlib.suppress(ModuleNotFoundError):
                    importlib.import_module(f"{node.module}.{alias.name}")
            if hasattr(module, alias.name):
                self._values[alias.asname or alias.name] = _known(getattr(module, alias.name))
            else:
                self._found.append((node.lineno, f"{node.module} has no {alias.name}"))

    def _module(self, node: ast.stmt, name: str) -> Any:
        if name.partition(".")[0] not in OURS:
            return None
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            self._found.append((node.lineno, str(error)))
            return None

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self._assign(target, self._value(node.value))

    def visit_withitem(self, node: ast.withitem) -> None:
        self.visit(node.context_expr)
        if node.optional_vars is not None:
            self._assign(node.optional_vars, self._value(node.context_expr))

    def visit_For(self, node: ast.For) -> None:
        self._assign(node.target, None)
        self.generic_visit(node)

    def _assign(self, target: ast.expr, value: Any) -> None:
        for node in ast.walk(target):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self._values[node.id] = value if node is target else None

    # Names that are used

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in ("ci", "condinst_infer") and node.id not in self._values:
            self._found.append((node.lineno, f"{node.id} is not imported above"))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.visit(node.value)
        owner = self._value(node.value)
        if owner is None or isinstance(owner, _Method) or _has(owner, node.attr):
            return
        name = owner.cls if isinstance(owner, _Object) else owner
        self._found.append((node.lineno, f"{name.__name__} has no {node.attr}"))

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        function = _function(self._value(node.func))
        unpacked = any(isinstance(argument, ast.Starred) for argument in node.args)
        if function is None or unpacked or any(keyword.arg is None for keyword in node.keywords):
            return
        positional = [None] * len(node.args)
        if isinstance(function, _Method):
            positional.append(None)  # self
            function = function.function
        try:
            signature = inspect.signature(function)
        except ValueError:  # of an exception
            return
        try:
            keywords = {str(keyword.arg): None for keyword in node.keywords}
            signature.bind(*positional, **keywords)
        except TypeError as error:
            self._found.append((node.lineno, f"{ast.unparse(node.func)}: {error}"))

    def _value(self, node: ast.expr) -> Any:
        """What an expression is, as far as it is known; else None."""
        if isinstance(node, ast.Name):
            return self._values.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._value(node.value)
            if owner is None or isinstance(owner, _Method) or not _has(owner, node.attr):
                return None
            if not isinstance(owner, _Object):
                return _known(getattr(owner, node.attr))
            value = inspect.getattr_static(owner.cls, node.attr, None)
            if isinstance(value, property) and value.fget is not None:
                return _returned(value.fget, [])
            return _Method(value) if inspect.isfunction(value) else None
        if isinstance(node, ast.Call):
            function = _function(self._value(node.func))
            if inspect.isclass(function):
                return _Object(function)
            inner = function.function if isinstance(function, _Method) else function
            return _returned(inner, node.args) if inner is not None else None
        return None


def _known(value: Any) -> Any:
    """A module, class or function of this repository; else None."""
    kinds = inspect.ismodule(value) or inspect.isclass(value) or inspect.isfunction(value)
    module = getattr(value, "__module__", None) or getattr(value, "__name__", "")
    return value if kinds and module.partition(".")[0] in OURS else None


def _has(owner: Any, name: str) -> bool:
    """Whether an object, module or class has an attribute."""
    if not isinstance(owner, _Object):
        return hasattr(owner, name)
    annotated = any(name in vars(cls).get("__annotations__", {}) for cls in owner.cls.__mro__)
    if annotated or hasattr(owner.cls, name):
        return True
    return re.search(rf"\bself\.{name}\b", inspect.getsource(owner.cls)) is not None


def _function(value: Any) -> Any:
    """What a call of a value runs: a function, a class or a `_Method`."""
    if isinstance(value, _Object):
        call = inspect.getattr_static(value.cls, "__call__", None)
        return _Method(call) if inspect.isfunction(call) else None
    return None if inspect.ismodule(value) else value


def _returned(function: Any, arguments: list[ast.expr]) -> Any:
    """The object that a function returns, if that is of a class of this repository."""
    annotation = inspect.signature(function).return_annotation
    if isinstance(annotation, str):
        public = {name: getattr(condinst_infer, name) for name in condinst_infer.__all__}
        with contextlib.suppress(NameError):  # a name that only a type checker imports
            annotation = eval(annotation, public | function.__globals__)
    if isinstance(annotation, UnionType) and arguments and isinstance(arguments[0], ast.Constant):
        single = [kind for kind in get_args(annotation) if get_origin(kind) is None]
        annotation = single[0] if len(single) == 1 else None  # of one image, not of a list
    cls = get_origin(annotation) or annotation
    return _Object(cls) if inspect.isclass(cls) and _known(cls) else None
