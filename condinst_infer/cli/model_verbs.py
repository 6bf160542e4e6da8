"""The options of the verbs that turn model files into others, look inside or list them."""

from pathlib import Path

from condinst_infer.cli import options
from condinst_infer.cli.options import Parser, Verbs, add_json, add_output, add_verb
from condinst_infer.cli.serve_options import add_serve
from condinst_infer.config.model import DetectConfig
from condinst_infer.config.validation import CHOICES


def _export(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "export",
        "write a checkpoint as ONNX, and check the file against PyTorch",
        "condinst export model.safetensors -o model.onnx --precision fp16\n"
        "  condinst export model.safetensors -o int8.onnx --precision int8 --calibration photos/\n"
        "  condinst export model.onnx --triton models/",
    )
    _export_files(verb)
    verb.add_argument(
        "--graph",
        choices=("full", "detector"),
        default="full",
        help="the whole model, or up to NMS for our CUDA kernels (default: %(default)s)",
    )
    verb.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="of weights and features; int8 needs --calibration (default: %(default)s)",
    )
    verb.add_argument(
        "--size",
        type=options.size,
        metavar="HxW",
        help="static canvas in pixels, multiples of 32 (default: dynamic)",
    )
    verb.add_argument(
        "--batch",
        type=options.batch,
        metavar="N",
        help="static batch, or dynamic (default: dynamic)",
    )
    _detections(verb)
    _int8(verb)
    add_json(verb)
    verb.set_defaults(command="condinst_infer.cli.export:export")


def _export_files(verb: Parser) -> None:
    verb.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="a .safetensors checkpoint of ours; with --triton also an .onnx or .engine file",
    )
    written = verb.add_mutually_exclusive_group(required=True)
    written.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="the .onnx file to write"
    )
    written.add_argument(
        "--triton",
        type=Path,
        metavar="DIR",
        help="instead a model repository for NVIDIA Triton: a new folder, in which a model takes "
        "images and gives boxes and masks as COCO RLE",
    )


def _detections(verb: Parser) -> None:
    default = DetectConfig()
    verb.add_argument(
        "--max-detections",
        type=options.positive,
        metavar="K",
        help=f"most instances per image (default: the checkpoint's, usually "
        f"{default.max_detections})",
    )
    verb.add_argument(
        "--score-threshold",
        type=float,
        metavar="S",
        help="lowest score the file can report, 0 to 1 (default: the checkpoint's, usually "
        f"{default.score_threshold**0.5:.3f})",
    )
    verb.add_argument(
        "--nms",
        choices=CHOICES["nms"],
        help="duplicates are found by the overlap of boxes, or of masks, which needs no box "
        "branch (default: the checkpoint's, usually box)",
    )


def _int8(verb: Parser) -> None:
    only = verb.add_argument_group("int8", "convolutions in 8 bits, measured beside fp32")
    only.add_argument(
        "--for",
        dest="target",
        choices=("cpu", "tensorrt"),
        help="where the file will run: ONNX Runtime and OpenVINO, or TensorRT (default: cpu)",
    )
    only.add_argument(
        "--calibration",
        nargs="+",
        metavar="IMAGES",
        help="image files, folders (searched) or patterns that show what the model will see",
    )
    only.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="a COCO instances file: judge by mask AP, not by what fp32 finds",
    )
    only.add_argument("--images", type=Path, metavar="DIR", help="folder of its images")
    only.add_argument(
        "--limit",
        type=options.positive,
        metavar="N",
        help="most images used of --calibration, and of --annotations (default: 64)",
    )
    only.add_argument(
        "--max-loss",
        type=float,
        metavar="X",
        help="layers stay fp32 until int8 loses no more: points of mask AP with --annotations "
        "(default: 0.5), else percent of what fp32 finds (default: 5)",
    )


def _build(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "build",
        "make a TensorRT engine of an exported file, and look whether it became what it should",
        "condinst build model.onnx -o model.engine --max 4x736x736\n\n"
        "The engine is as precise as the file was exported. TensorRT builds for the GPU it runs "
        "on;\nTensorRT-RTX builds without a GPU, for GeForce and workstation cards.\n"
        "What is known about the engine is written to model.engine.json beside it.",
    )
    verb.add_argument("model", type=Path, metavar="MODEL", help="a .onnx file of ours")
    add_output(verb, "FILE", "the .engine file to write")
    verb.add_argument(
        "--runtime",
        choices=("tensorrt", "tensorrt_rtx"),
        help="the library that will run it (default: the one installed, tensorrt before the other)",
    )
    for name, text in (
        ("--min", "smallest input, images x height x width (default: 1x64x64)"),
        ("--opt", "input it is fastest for (default: that of a photograph of 640x480)"),
        ("--max", "largest input (default: one image, as high and wide as the model resizes to)"),
    ):
        verb.add_argument(name, type=options.shape, metavar="NxHxW", help=text)
    verb.add_argument(
        "--workspace",
        type=options.positive,
        metavar="MIB",
        help="scratch memory a layer may take (default: all there is)",
    )
    verb.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="keep what was measured, so that the next build is faster (tensorrt only)",
    )
    verb.add_argument(
        "--no-plugin",
        action="store_true",
        help="NMS and mask heads in TensorRT's own operations instead of our kernels",
    )
    add_json(verb)
    verb.set_defaults(command="condinst_infer.cli.build:build")


def _import(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "import",
        "convert AdelaiDet or mmdetection weights into a checkpoint",
        "condinst import CondInst_MS_R_50_1x.pth --preset-from MS_R_50_1x -o model.safetensors\n"
        "  condinst import own.pth --config own.yaml --classes names.txt -o model.safetensors",
    )
    verb.add_argument(
        "weights", type=Path, metavar="WEIGHTS", help="a .pth file; nothing in it is executed"
    )
    config = verb.add_mutually_exclusive_group()
    config.add_argument(
        "--config", type=Path, metavar="YAML", help="the config it was trained with"
    )
    config.add_argument(
        "--preset-from",
        metavar="NAME",
        help="or its name, if it is published; list them: condinst presets --published",
    )
    verb.add_argument("--classes", type=Path, metavar="FILE", help="class names, one per line")
    add_output(verb, "FILE", "the .safetensors file to write")
    verb.set_defaults(command="condinst_infer.cli.export:import_")


def _info(verbs: Verbs) -> None:
    verb = add_verb(verbs, "info", "show what is inside a model file", "condinst info model.onnx")
    verb.add_argument(
        "file", type=Path, metavar="FILE", help="a .onnx, .engine or .safetensors file"
    )
    add_json(verb)
    verb.set_defaults(command="condinst_infer.cli.export:info")


def _presets(verbs: Verbs) -> None:
    verb = add_verb(verbs, "presets", "list the models of the papers", "condinst presets --table")
    other = verb.add_mutually_exclusive_group()
    other.add_argument(
        "--table",
        action="store_true",
        help="instead the rows of the papers' tables, and how each is reproduced",
    )
    other.add_argument(
        "--published",
        action="store_true",
        help="instead the models whose weights AdelaiDet and mmdetection have published",
    )
    add_json(verb)
    verb.set_defaults(command="condinst_infer.cli.presets:presets")


def _compare(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "compare",
        "show, stage by stage, how two model files differ",
        "condinst compare model.safetensors model.onnx street.jpg\n\n"
        "exit status: 0 they agree, 1 they don't",
    )
    verb.add_argument("a", type=Path, metavar="A", help="an .onnx, .engine or .safetensors file")
    verb.add_argument("b", type=Path, metavar="B", help="another one of the same model")
    verb.add_argument(
        "images",
        nargs="*",
        type=Path,
        metavar="IMAGE",
        help="images (default: two made-up batches)",
    )
    add_json(verb)
    verb.set_defaults(command="condinst_infer.cli.export:compare")


def _capi(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "capi",
        "build the library for C and C++, or print how to compile against it",
        "condinst capi build\n"
        "  c++ -std=c++17 main.cpp $(condinst capi --include --libs)\n"
        "  cmake -Dcondinst_DIR=$(condinst capi --cmake) ...",
    )
    verb.add_argument(
        "action",
        nargs="?",
        choices=("build",),
        metavar="build",
        help="compile libcondinst for the Python that runs this command",
    )
    for name, text in (
        ("--include", "print where the headers are, for a compiler"),
        ("--libs", "print what to link, for a compiler"),
        ("--cmake", "print the folder that find_package(condinst) needs as condinst_DIR"),
    ):
        verb.add_argument(name, action="store_true", help=text)
    verb.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="folder it is built into (default: condinst, in the Python environment)",
    )
    verb.add_argument("--compiler", metavar="CC", help="of build (default: $CC, else cc)")
    verb.set_defaults(command="condinst_infer.cli.capi:capi")


VERBS = (_export, _build, _import, _info, _presets, _compare, _capi, add_serve)
