"""Parser and builder: layers are the convolutions and our nodes, the engine is the file."""

import json
from typing import Any

import onnx

from tests.support.fake_tensorrt.types import (
    DataType,
    ILogger,
    ITensor,
    LayerType,
    state,
    tensors_of,
)


class ILayer:
    def __init__(self, name: str, kind: Any, dtype: Any, node: onnx.NodeProto) -> None:
        self.name, self.type, self._dtype, self._node = name, kind, dtype, node

    def get_input(self, index: int) -> ITensor:
        return ITensor(self._node.input[index], self._dtype, ())

    def get_output(self, index: int) -> ITensor:
        return ITensor(self._node.output[index], self._dtype, ())


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags, self.data = flags, b""
        self._inputs: list[ITensor] = []
        self._outputs: list[ITensor] = []
        self._layers: list[ILayer] = []

    num_inputs = property(lambda self: len(self._inputs))
    num_outputs = property(lambda self: len(self._outputs))
    num_layers = property(lambda self: len(self._layers))

    def get_input(self, index: int) -> ITensor:
        return self._inputs[index]

    def get_output(self, index: int) -> ITensor:
        return self._outputs[index]

    def get_layer(self, index: int) -> ILayer:
        return self._layers[index]

    def _fill(self, data: bytes) -> None:
        proto = onnx.load_from_string(data)
        self.data = data
        self._inputs, self._outputs = map(tensors_of, (proto.graph.input, proto.graph.output))
        halves = {t.name for t in proto.graph.initializer if t.data_type == 10}
        for node in proto.graph.node:
            if node.op_type == "Conv":
                half = state.half or halves & set(node.input)
                kind = DataType.HALF if half else DataType.FLOAT
                self._layers.append(ILayer(node.name, LayerType.CONVOLUTION, kind, node))
            if node.op_type == "DequantizeLinear":
                self._layers.append(ILayer(node.name, LayerType.DEQUANTIZE, DataType.FLOAT, node))
            if node.domain == "condinst":
                names = [node.name] if node.op_type in state.plugins else [f"{node.name}/a"]
                self._layers += [
                    ILayer(name, LayerType.PLUGIN_V3, DataType.INT32, node) for name in names
                ]


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network

    def parse(self, model: bytes) -> bool:
        self._network._fill(model)
        return True


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(
        self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]
    ) -> None:
        self._shapes[input] = [min, opt, max]


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> bytes:
        return self._content + b"+"


class IBuilderConfig:
    def __init__(self) -> None:
        self._cleared: list[Any] = []
        self._limits: dict[Any, int] = {}
        self._profile = IOptimizationProfile()
        self._cache: ITimingCache | None = None
        self.profiling_verbosity: Any = None
        self.progress_monitor: Any = None

    def clear_flag(self, flag: Any) -> None:
        self._cleared.append(flag)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profile = profile
        return 0

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._limits[pool] = pool_size

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if b"foreign" in cache._content:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        state.networks.append(INetworkDefinition(flags))
        return state.networks[-1]

    def create_builder_config(self) -> IBuilderConfig:
        state.configs.append(IBuilderConfig())
        return state.configs[-1]

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> bytes | None:
        config.progress_monitor.phase_start("Building", None, 4)
        going = all(config.progress_monitor.step_complete("Building", step) for step in range(4))
        config.progress_monitor.phase_finish("Building")
        if state.complaint or not going:
            self._logger.log(ILogger.Severity.ERROR, state.complaint)
            return None
        layers = [(layer.name, layer.get_output(0).dtype.name) for layer in network._layers]
        header = json.dumps({"profile": config._profile._shapes, "layers": layers}).encode()
        return b"FAKE" + len(header).to_bytes(4, "little") + header + network.data
