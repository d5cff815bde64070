"""Inference by ONNX Runtime and OpenVINO, from an ONNX file of the same network with the same weights.

Both get as many threads as ours, and compute in float32: OpenVINO would take bfloat16 where the processor has it.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from tinyres.benchmarks import networks
from tinyres.kernels.arrays import threads


def onnx_bytes(name: str, net: Any, batch: int) -> bytes:
    """The network in evaluation mode as an ONNX file, for images (batch, 3, 32, 32). All that the peers know of it."""
    from onnx import TensorProto, helper

    graph = Graph(net.state_dict())
    logits = networks.walk(graph, graph.weights, "images", name.startswith("plain"))
    ends = ("images", [batch, 3, 32, 32]), (logits, [batch, 10])
    inputs, outputs = ([helper.make_tensor_value_info(end, TensorProto.FLOAT, shape)] for end, shape in ends)
    made = helper.make_graph(graph.nodes, name, inputs, outputs, graph.constants)
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(made, opset_imports=opset, ir_version=8).SerializeToString()


class Graph:
    """The operations of `networks.walk`, each of which adds a node and returns the name of its result."""

    def __init__(self, weights: dict[str, Any]) -> None:
        self.weights = weights
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        for key, array in weights.items():
            self._constant(key, array)

    def _constant(self, name: str, array: Any) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [f"{kind}{len(self.nodes)}"], **attributes))
        return self.nodes[-1].output[0]

    def conv(self, x: str, name: str, stride: int) -> str:
        size = self.weights[f"{name}.weight"].shape[2]
        return self._node("Conv", x, f"{name}.weight", strides=[stride] * 2, pads=[size // 2] * 4)

    def norm(self, x: str, name: str) -> str:
        parts = ("weight", "bias", "running_mean", "running_var")
        return self._node("BatchNormalization", x, *(f"{name}.{part}" for part in parts), epsilon=1e-5)

    def relu(self, x: str) -> str:
        return self._node("Relu", x)

    def add(self, x: str, y: str) -> str:
        return self._node("Add", x, y)

    def subsample_pad(self, x: str, channels: int, stride: int) -> str:
        start, end, axes, steps = [0, 0], [2**31 - 1] * 2, [2, 3], [stride] * 2
        margin = [0, channels // 4, 0, 0] * 2  # the channels double: half as many again on either side
        key = f"pad{channels}"
        named = {"start": start, "end": end, "axes": axes, "steps": steps, "margin": margin}
        start_, end_, axes_, steps_, margin_ = (
            self._constant(f"{key}.{k}", np.array(v, np.int64)) for k, v in named.items()
        )
        return self._node("Pad", self._node("Slice", x, start_, end_, axes_, steps_), margin_)

    def pool(self, x: str) -> str:
        return self._node("Flatten", self._node("GlobalAveragePool", x))

    def linear(self, x: str, name: str) -> str:
        return self._node("Gemm", x, f"{name}.weight", f"{name}.bias", transB=1)


def step(name: str, library: str, images: Any) -> Callable[[], Any]:
    """Inference as a function that returns the logits; the first call compiles."""
    file = onnx_bytes(name, networks.ours(name), len(images))
    compiled = functools.cache({"onnxruntime": _onnxruntime, "openvino": _openvino}[library])
    return lambda: compiled(file)(images)


def _onnxruntime(file: bytes) -> Callable[[Any], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads(), 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def _openvino(file: bytes) -> Callable[[Any], Any]:
    import openvino

    core = openvino.Core()
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads()}
    request = core.compile_model(core.read_model(file), "CPU", hints).create_infer_request()
    return lambda images: request.infer([images], share_inputs=True)[0]
