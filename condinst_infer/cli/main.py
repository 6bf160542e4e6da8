"""The command line: `condinst VERB ...`.

Exit status: 0 done; 1 some images failed, or two files differ; 2 the command can't be carried
out or its standard output can't be written, with one line on stderr; 130 and 143 after SIGINT and
SIGTERM.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

from condinst_infer import __version__
from condinst_infer.errors import CondInstError, ConfigError, ParityError
from condinst_infer.system.paths import printable

VERBS = {  # verb: (module of its options and its function, what it does)
    "demo": ("condinst_infer.cli.demo", "find the nuclei in the bundled micrograph"),
    "predict": (
        "condinst_infer.cli.predict",
        "find the instances in images and videos; write overlays and COCO results",
    ),
    "convert": (
        "condinst_infer.cli.convert",
        "write the annotations of a data set as COCO files",
    ),
    "train": ("condinst_infer.cli.train", "train a model on images with COCO annotations"),
    "eval": (
        "condinst_infer.cli.eval",
        "measure the average precision or panoptic quality of a model file or of results",
    ),
    "export": (
        "condinst_infer.cli.export",
        "write a checkpoint as ONNX, and check the file against PyTorch",
    ),
    "build": (
        "condinst_infer.cli.build",
        "build a TensorRT engine from an exported file and verify it",
    ),
    "import": (
        "condinst_infer.cli.import_",
        "convert AdelaiDet or mmdetection weights into a checkpoint",
    ),
    "info": ("condinst_infer.cli.info", "show what is inside a model file"),
    "presets": ("condinst_infer.cli.presets", "list the models of the papers"),
    "compare": ("condinst_infer.cli.compare", "show, stage by stage, how two model files differ"),
    "capi": (
        "condinst_infer.cli.capi",
        "build the library for C and C++, or print how to compile against it",
    ),
    "serve": (
        "condinst_infer.cli.serve",
        "find the instances in images sent over HTTP, and show a page to try it",
    ),
    "bench": (
        "condinst_infer.cli.bench",
        "measure latency by stage, memory and accuracy of a model file",
    ),
    "doctor": (
        "condinst_infer.cli.doctor",
        "show versions, GPUs, what works here and how to get the rest",
    ),
}


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command in one line instead of the whole usage."""

    words: Sequence[str] = ()  # of the whole command line

    def error(self, message: str) -> NoReturn:
        from condinst_infer.cli.foreign_options import advice

        sentence = advice(self.words) or f"{message}. See: {self.prog} --help"
        self.exit(2, f"condinst: {printable(sentence)}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status.

    Args:
        argv: words after `condinst`, from a program whose streams and signals stay its own; None
            is the command line of the process.
    """
    if argv is not None:
        return _status(argv)
    from condinst_infer.system.signals import interruptible
    from condinst_infer.system.streams import PatientStream, open_standard_streams

    open_standard_streams()
    output = PatientStream(sys.stdout)
    with (
        interruptible(),
        redirect_stdout(output),  # pyright: ignore[reportArgumentType]
        redirect_stderr(PatientStream(sys.stderr)),  # pyright: ignore[reportArgumentType]
    ):
        try:
            status = _status(sys.argv[1:])
        except SystemExit as end:  # of argparse, after a help text or a wrong word
            status = int(end.code or 0)
        output.flush()
        if output.error is None:
            return status
        reason = output.error.strerror
        print(f"condinst: standard output can't be written: {reason}.", file=sys.stderr)
        return status or 2


def _status(argv: Sequence[str]) -> int:
    """Run one command line; what goes wrong is a line on stderr."""
    try:
        _check_working_folder()
        run, options = parse(argv)
        return run(options)
    except CondInstError as error:
        print(f"condinst: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 1 if isinstance(error, ParityError) else 2
    except KeyboardInterrupt as error:
        facts = [*map(str, error.args), *getattr(error, "__notes__", [])]
        print(f"condinst: {'; '.join(['interrupted', *filter(None, facts)])}.", file=sys.stderr)
        return getattr(error, "exit_status", 130)


def _check_working_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise ConfigError("the working folder was deleted; go to another one: cd") from None


def parse(argv: Sequence[str]) -> tuple[Any, Any]:
    """Read a command line: the function of its verb, and the verb's options object.

    Only the module of this verb is imported.
    """
    parser = _Parser(
        prog="condinst",
        description="CondInst instance segmentation: train, export, run a model, look inside.",
        epilog="Start here: condinst demo",
        allow_abbrev=False,
    )
    parser.words = argv
    parser.add_argument("--version", action="version", version=f"condinst {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", dest="verb", required=True)
    wanted = next((word for word in argv if not word.startswith("-")), None)
    verb: Any = None
    for name, (module, summary) in VERBS.items():
        child = verbs.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name == wanted:
            verb = importlib.import_module(module).VERB
            child.words = argv
            child.epilog = f"example:\n  {verb.example}"
            verb.add_options(child)
    values = vars(parser.parse_args(argv))
    del values["verb"]
    options = verb.options(**values)
    verb.check_places(options)
    return verb.run, options
