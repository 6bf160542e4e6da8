"""The command line: `condinst VERB ...`.

Exit status: 0 done; 1 some images failed, or two files differ; 2 the command can't be carried
out, with one line on stderr; 130 interrupted.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from condinst_infer import __version__
from condinst_infer.errors import CondInstError, ParityError

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
        self.exit(2, f"condinst: {sentence}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: that of the process) and return its exit status."""
    try:
        run, options = parse(sys.argv[1:] if argv is None else argv)
        status = run(options)
        sys.stdout.flush()  # a broken pipe shows here, not at shutdown
        return status
    except CondInstError as error:
        print(f"condinst: {' '.join(str(error).split())}", file=sys.stderr)
        return 1 if isinstance(error, ParityError) else 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # the reader went away; Python would complain again while it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


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
    return verb.run, verb.options(**values)
