"""Inference by ONNX Runtime and OpenVINO, from an ONNX file of the same network with the same weights.

Both get as many threads as ours, and compute in float32: OpenVINO would take bfloat16 where the processor has it.
"""

import functools
from collections.abc import Callable
from typing import Any

from tinyres.benchmarks import networks
from tinyres.export import onnx_file
from tinyres.kernels.arrays import threads


def onnx_bytes(net: Any, batch: int) -> bytes:
    """The network in evaluation mode as an ONNX file, for ``batch`` images and no other number: so a peer can plan best."""
    model = onnx_file.onnx_model(net, (3, 32, 32))
    for end in (model.graph.input[0], model.graph.output[0]):
        end.type.tensor_type.shape.dim[0].dim_value = batch
    data: bytes = model.SerializeToString()
    return data


def step(name: str, library: str, images: Any) -> Callable[[], Any]:
    """Inference as a function that returns the logits; the first call compiles."""
    file = onnx_bytes(networks.ours(name), len(images))
    compiled = functools.cache({"onnxruntime": _onnxruntime, "openvino": _openvino}[library])
    return lambda: compiled(file)(images)


def _onnxruntime(file: bytes) -> Callable[[Any], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads(), 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {onnx_file.INPUT: images})[0]


def _openvino(file: bytes) -> Callable[[Any], Any]:
    import openvino

    core = openvino.Core()
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads()}
    request = core.compile_model(core.read_model(file), "CPU", hints).create_infer_request()
    return lambda images: request.infer([images], share_inputs=True)[0]
