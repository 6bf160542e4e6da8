"""Model files, photographs and the command line, for all test files."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from condinst_infer.cli.main import main
from condinst_infer.contract.metadata import file_sha256
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.stream import Stream
from condinst_infer.errors import SessionError
from engines import emulator
from engines.emulator import Emulator
from tests.support import jitter, time_limits
from tests.support.bright_model import write_bright_model
from tests.support.command_line import Run
from tests.support.shared_files import shared_file

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what is in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:  # read when torch is imported; it would wait for cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """--jitter and --ort-basic; worker processes get them too."""
    jitter.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Do what the options say, and see to it that no test hangs for ever."""
    jitter.configure(config)
    config.pluginmanager.register(time_limits.TimeLimits())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Whole files, whose fixtures are made once; as they come, not those of few tests last."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session")
def bright_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of tests/support/bright_model.py, with dynamic batch and size."""
    return write_bright_model(tmp_path_factory.mktemp("bright") / "bright.onnx")


Factory = pytest.TempPathFactory


@pytest.fixture(scope="session")
def nano_checkpoint(tmp_path_factory: Factory) -> Path:
    """A nano network of made-up weights that finds up to 20 instances in any image."""
    return _made_up(tmp_path_factory, "nano/nano.safetensors")


@pytest.fixture(scope="session")
def nano_onnx(tmp_path_factory: Factory, nano_checkpoint: Path) -> Path:
    """`nano_checkpoint` exported with dynamic batch and size."""
    return _exported(tmp_path_factory, nano_checkpoint, "dynamic.onnx")


@pytest.fixture(scope="session")
def tested_onnx(tmp_path_factory: Factory, nano_onnx: Path) -> Path:
    """`nano_onnx` with a self-test."""
    from condinst_infer.runtimes.ort import OrtSession
    from condinst_infer.verification import self_test

    path = Path(shutil.copy(nano_onnx, tmp_path_factory.mktemp("tested") / "model.onnx"))
    with closing(OrtSession(path)) as session:
        self_test.store(path, session, session)
    return path


@pytest.fixture(scope="session")
def nano_static_onnx(tmp_path_factory: Factory, nano_checkpoint: Path) -> Path:
    """`nano_checkpoint` exported for two images of 128x160."""
    return _exported(tmp_path_factory, nano_checkpoint, "static.onnx", size=(128, 160), batch=2)


@pytest.fixture(scope="session")
def detector_onnx(tmp_path_factory: Factory, nano_checkpoint: Path) -> Path:
    """`nano_checkpoint` up to NMS, with dynamic batch and size."""
    return _exported(tmp_path_factory, nano_checkpoint, "detector.onnx", graph="detector")


@pytest.fixture(scope="session")
def panoptic_checkpoint(tmp_path_factory: Factory) -> Path:
    """A nano panoptic network of made-up weights, with three kinds of stuff."""
    return _made_up(
        tmp_path_factory,
        "panoptic/panoptic.safetensors",
        neck_in_levels=(2, 3, 4, 5),
        stuff_names=("sky", "grass", "road"),
        stuff_ids=(201, 202, 203),
        stuff_area_limit=50,
    )


@pytest.fixture(scope="session")
def panoptic_onnx(tmp_path_factory: Factory, panoptic_checkpoint: Path) -> Path:
    """`panoptic_checkpoint` exported with dynamic batch and size."""
    return _exported(tmp_path_factory, panoptic_checkpoint, "panoptic.onnx")


@pytest.fixture(scope="session")
def mask_nms_checkpoint(tmp_path_factory: Factory, nano_checkpoint: Path) -> Path:
    """`nano_checkpoint` without its box branch: NMS by the masks of the best 60 candidates."""
    from condinst_infer import checkpoint
    from condinst_infer.config.model import override

    def write(path: Path) -> None:
        model = checkpoint.load(nano_checkpoint)
        model.config = override(
            model.config, nms="mask", mask_nms_candidates=60, score_threshold=0.2
        )
        checkpoint.save(model, path)

    return shared_file(tmp_path_factory, "nano/mask_nms.safetensors", write)


@pytest.fixture(scope="session")
def mask_nms_onnx(tmp_path_factory: Factory, mask_nms_checkpoint: Path) -> Path:
    """`mask_nms_checkpoint` exported with dynamic batch and size."""
    return _exported(tmp_path_factory, mask_nms_checkpoint, "mask_nms.onnx")


@pytest.fixture(scope="session")
def mask_nms_detector_onnx(tmp_path_factory: Factory, mask_nms_checkpoint: Path) -> Path:
    """`mask_nms_checkpoint` up to NMS, with dynamic batch and size."""
    return _exported(
        tmp_path_factory, mask_nms_checkpoint, "mask_nms_detector.onnx", graph="detector"
    )


@pytest.fixture(scope="session")
def nuclei_onnx(tmp_path_factory: Factory, demo_folder: Path) -> Path:
    """The trained model that ships, made for smaller images and at most 60 nuclei."""
    from condinst_infer import checkpoint
    from condinst_infer.config.model import override
    from condinst_infer.export.onnx_export import export_onnx

    def write(path: Path) -> None:
        model = checkpoint.load(demo_folder / "nuclei.safetensors")
        limits = {"max_detections": 60, "short_side": 256, "long_side": 352}
        model.config = override(model.config, **limits)
        export_onnx(model, path)

    return shared_file(tmp_path_factory, "nuclei/nuclei.onnx", write)


def _made_up(factory: Factory, name: str, **changes: Any) -> Path:
    """A nano network of made-up weights."""

    def write(path: Path) -> None:
        import torch

        from benchmarks.trained_statistics import with_trained_statistics
        from condinst_infer import checkpoint
        from condinst_infer.config.presets import preset
        from condinst_infer.model.condinst import build_condinst

        torch.manual_seed(0)
        sizes = {"short_side": 128, "long_side": 192, "max_detections": 20}
        config = preset("condinst_nano", **sizes, **changes)
        checkpoint.save(with_trained_statistics(build_condinst(config)), path)

    return shared_file(factory, name, write)


def _exported(factory: Factory, source: Path, name: str, **options: Any) -> Path:
    """The checkpoint `source` as ONNX, in the same folder."""

    def write(path: Path) -> None:
        from condinst_infer import checkpoint
        from condinst_infer.export.onnx_export import export_onnx

        digest = file_sha256(source)
        export_onnx(checkpoint.load(source), path, checkpoint_sha256=digest, **options)

    return shared_file(factory, f"{source.parent.name}/{name}", write)


@pytest.fixture
def condinst(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line; gives exit status, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:  # argparse
            status = stop.code if isinstance(stop.code, int) else 1
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with three images of a bright object, two of the same name."""
    folder = tmp_path / "photos"
    for name, size in (("a.png", (60, 90)), ("b/a.png", (90, 60)), ("12.jpg", (60, 90))):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.zeros((*size, 3), np.uint8)
        image[20:50, 10:40] = 255
        cv2.imwrite(str(path), image)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The data that ships with the package."""
    import condinst_infer

    return Path(condinst_infer.__file__).parent / "data"


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are built as where there is no GPU; the emulator of other tests would be one."""

    def refused() -> None:
        raise SessionError("there is no GPU.")

    monkeypatch.setattr("condinst_infer.trt.build.Device", refused)


@pytest.fixture(scope="session")
def cuda_emulator() -> Emulator:
    """The kernels compiled by g++, in the place of NVIDIA's driver for the whole process."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is missing")
    return emulator.load()


@pytest.fixture
def device(cuda_emulator: Emulator) -> Iterator[Device]:
    """The emulator's; fails if anything is left in its memory or went wrong."""
    cuda_emulator.schedule("descending")
    before = _kept(cuda_emulator)
    yield Device()
    cuda_emulator.fault("")
    assert cuda_emulator.failure() == "" and _kept(cuda_emulator) == before


def _kept(emulator: Emulator) -> dict[str, int]:
    """What has to be given back; modules stay as long as their device."""
    live = {kind: number for kind, number in emulator.live().items() if kind != "module"}
    return live | {"memory": emulator.allocations()}


@pytest.fixture(
    params=[
        pytest.param(name, marks=[] if name == "descending" else [pytest.mark.slow])
        for name in emulator.SCHEDULES
    ]
)
def stream(cuda_emulator: Emulator, request: pytest.FixtureRequest) -> Iterator[Stream]:
    """A stream of the emulator, threads in each schedule; fails on what the kernels do wrong."""
    cuda_emulator.schedule(request.param)
    with closing(Stream(Device())) as stream:
        yield stream
        assert cuda_emulator.failure() == ""
