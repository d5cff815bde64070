"""A network as a file of ONNX, which is written only if another runtime gives the same answers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import tinyres
from tinyres.errors import CheckpointError, UsageError
from tinyres.export.about import about
from tinyres.export.graph import IR_VERSION, OPSET, Graph
from tinyres.export.trace import Shape, trace
from tinyres.export.translations import translate
from tinyres.files import StrPath, write_atomically
from tinyres.guards import no_grad
from tinyres.kernels.arrays import array_module
from tinyres.nn import Module
from tinyres.nn.module import evaluating
from tinyres.tensor import Tensor

INPUT, OUTPUT = "input", "logits"
TOLERANCE = 1e-4
CHECKED = 1, 5  # images in a batch


class Check(NamedTuple):
    """The largest ``difference`` between the logits of tinyres and of the ``runtime`` that ran the file, as a share of the
    largest logit if that is above 1. Where it is above 1e-4, ``exact`` is that of the same graph in float64, else None.
    """

    difference: float
    runtime: str
    exact: float | None = None


def to_onnx(
    model: Module,
    path: StrPath,
    input_shape: Sequence[int] = (3, 32, 32),
    *,
    normalise: bool = False,
    classes: Sequence[str] = (),
) -> Check:
    """Write ``model`` in evaluation mode as a file of ONNX: ``input`` (batch, *input_shape) -> ``logits`` (batch, K).

    All is float32, and the batch may have any length. With ``normalise``, the graph begins with ``model.normalisation``,
    which a loaded network has, and takes images in 0..1; else it takes what the model takes. The file's metadata say which
    (``normalisation``, ``inside``), and name the ``classes`` and the ``network``.

    Before it is written, the graph passes ONNX's own checks, and ONNX Runtime, or where that is not installed ONNX's
    reference evaluator, runs it on random images. If a logit is off by more than 1e-4 (of the largest logit, if that is
    above 1), the network may magnify errors of rounding, as deep plain nets do; so the same graph in float64 decides, by
    the same measure: if it is off too, that is an error. What was at ``path`` stays until then.

    Raises `UsageError` if onnx is not installed, or an operation of the model has no translation; `CheckpointError` if the
    logits differ, or the file cannot be written.
    """
    if normalise and model.normalisation is None:
        raise UsageError("export: this network does not know its normalisation; set model.normalisation = mean, scale")
    shape = tuple(input_shape)
    data = onnx_model(model, shape, normalise, classes).SerializeToString()
    run, runtime = _runtime(data)
    check = Check(compare(model, run, shape, normalise), runtime)
    if not check.difference <= TOLERANCE:
        exact = _exact(model, shape, normalise)
        check = check._replace(exact=exact)
        if not exact <= TOLERANCE:
            raise CheckpointError(
                f"{runtime} and tinyres differ by {check.difference:.2g} on random images, more than {TOLERANCE:g}, and in "
                f"float64 by {exact:.2g}; the file was not written. Does the network compute past its operations?"
            )
    try:
        write_atomically(path, data)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
    return check


def onnx_model(
    model: Module,
    input_shape: tuple[int, ...],
    normalise: bool = False,
    classes: Sequence[str] = (),
    dtype: Any = np.float32,
) -> Any:
    """The model as ONNX's ``ModelProto``, which has passed ONNX's own checks, but has not been run: see `to_onnx`."""
    graph, traced = Graph(model, dtype), trace(model, input_shape)
    onnx, helper = graph.onnx, graph.onnx.helper
    graph.set_name(traced.input, _normalised(graph, model) if normalise else INPUT)
    for call in traced.calls:
        graph.set_name(call.output, translate(graph, call))
    graph.finish(graph.name(traced.output), OUTPUT)
    values = [_value(graph, INPUT, (None, *input_shape)), _value(graph, OUTPUT, traced.shape)]
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in graph.constants.items()]
    proto = helper.make_model(
        helper.make_graph(graph.nodes, type(model).__name__, values[:1], values[1:], constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="tinyres",
        producer_version=tinyres.__version__,
    )
    helper.set_model_props(proto, about(model, classes, inside=normalise))
    try:
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckpointError(f"the graph is not valid ONNX, and was not written: {error}") from error
    return proto


def _value(graph: Graph, name: str, shape: Shape) -> Any:
    """An input or output; of a length that is not known, it has the name."""
    lengths = ["batch" if n is None else n for n in shape]
    helper = graph.onnx.helper
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(graph.dtype)), lengths)


def _normalised(graph: Graph, model: Module) -> str:
    mean, scale = (np.asarray(value, np.float32) for value in model.normalisation or ())
    centred = graph.add("Sub", INPUT, graph.constant(mean, "normalisation.mean"))
    return graph.add("Mul", centred, graph.constant(scale, "normalisation.scale"))


# --- the check -------------------------------------------------------------------------------------------------------


Run = Callable[[np.ndarray], np.ndarray]


def compare(model: Module, run: Run, input_shape: tuple[int, ...], normalise: bool, dtype: Any = np.float32) -> float:
    """The largest difference between the logits of ``run`` and of ``model`` on random images: see `Check`."""
    random, largest = np.random.default_rng(0), 0.0
    for batch in CHECKED:
        shape = batch, *input_shape
        images = random.random(shape, dtype) if normalise else random.standard_normal(shape, dtype)
        ours, theirs = _logits(model, images, normalise), run(images)
        if not np.isfinite(ours).all():
            raise CheckpointError("the network's own logits on random images are not finite, so nothing can be compared")
        if ours.shape != theirs.shape:
            raise CheckpointError(f"the graph gives {list(theirs.shape)} for {batch} images, and tinyres {list(ours.shape)}")
        difference = np.abs(ours - theirs).max(initial=0) / max(1.0, np.abs(ours).max(initial=0))
        largest = max(largest, float(difference) if np.isfinite(difference) else np.inf)
    return largest


def _logits(model: Module, images: np.ndarray, normalise: bool) -> np.ndarray:
    like = next(model.parameters(), Tensor(images))
    if normalise:
        assert model.normalisation
        mean, scale = model.normalisation
        images = (images - mean) * scale
    with no_grad(), evaluating(model):
        return model(Tensor(array_module(like.data).asarray(images.astype(like.dtype)))).numpy()


def _exact(model: Module, input_shape: tuple[int, ...], normalise: bool) -> float:
    """The difference in float64, for which ONNX Runtime has no convolution: this takes a while."""
    double = copy.deepcopy(model).double()
    run, _ = _evaluator(onnx_model(double, input_shape, normalise, dtype=np.float64))
    return compare(double, run, input_shape, normalise, np.float64)


def _runtime(data: bytes) -> tuple[Run, str]:
    """What runs the graph in ``data``, and its name."""
    try:
        import onnxruntime
    except ImportError:
        import onnx

        return _evaluator(onnx.load_from_string(data))
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {INPUT: images})[0], f"ONNX Runtime {onnxruntime.__version__}"


def _evaluator(proto: Any) -> tuple[Run, str]:
    import onnx
    from onnx.reference import ReferenceEvaluator

    evaluator: Any = ReferenceEvaluator(proto)
    return lambda images: evaluator.run(None, {INPUT: images})[0], f"the reference evaluator of onnx {onnx.__version__}"
