"""A session on the device that replays ONNX Runtime's outputs."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from condinst_infer.cuda import kernels
from condinst_infer.cuda.arrays import DeviceArray
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.runner import CudaRunner
from condinst_infer.cuda.stream import Stream
from condinst_infer.runtimes.ort import OrtSession
from engines.emulator import host


class Recorded:
    """A session on the device that puts out what ONNX Runtime computed on the host.

    Its work is copies on the stream, so it can be captured, as TensorRT's can.
    """

    capturable = True

    def __init__(self, path: Path) -> None:
        self._session = OrtSession(path)
        self.metadata = self._session.metadata
        self.contexts = self.enqueued = 0
        self._kept: list[np.ndarray] = []

    def context(self) -> "Recorded":
        self.contexts += 1
        return self

    def release(self, context: "Recorded") -> None:
        self.contexts -= 1

    def enqueue(
        self, feeds: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: Stream
    ) -> None:
        self.enqueued += 1
        found = self.outputs({name: host(array).copy() for name, array in feeds.items()})
        assert set(found) == set(outputs)
        for name, value in found.items():
            stream.upload(outputs[name], value)
            self._kept.append(value)  # a graph copies from it again

    def outputs(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._session.run(feeds)

    def close(self) -> None:
        self._session.close()


class Kept(Recorded):
    """A session for several pipelines, one after the other, all with the same small pictures."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        config = self.metadata.config
        small = replace(config.input, short_side=32, long_side=48)
        self.metadata = replace(self.metadata, config=replace(config, input=small))
        self._known: dict[tuple[int, ...], dict[str, np.ndarray]] = {}

    def outputs(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        shape = feeds["images"].shape
        if shape not in self._known:
            self._known[shape] = super().outputs(feeds)
        return self._known[shape]

    def close(self) -> None:
        pass


def photograph(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 3), np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), np.uint8))[: size[0], : size[1]].copy()


def resized_on(stream: Stream) -> Callable[[np.ndarray, tuple[int, int]], np.ndarray]:
    """`preprocess.resize` by our kernel."""

    def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        target = stream.empty((*size, 3), np.uint8)
        pitch, shape = 3 * image.shape[1], (image.shape[0], image.shape[1])
        launch = kernels.preprocess(pitch=pitch, size=shape, net_size=size, canvas=size)
        stream.launch(launch, [stream.array(image)], [target])
        return stream.numpy(target)

    return resize


def runner(device: Device, path: Path) -> CudaRunner:
    return CudaRunner(OrtSession(path), device)
