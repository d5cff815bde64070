"""Networks as files of ONNX: another runtime gives the same logits, or nothing is written."""

import json
import sys

import numpy as np
import pytest

import tinyres as tr
import tinyres.functional as F
from tinyres import export, guards, models, nn, ops
from tinyres.autograd import Function
from tinyres.errors import CheckpointError, UsageError
from tinyres.export.translations import TRANSLATIONS
from tinyres.lab.identity import stack
from tinyres.lab.shortcuts import NETS

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")

SHAPE = (3, 16, 16)


def settled(net, shape=SHAPE):
    """The net with parameters that are not at their neutral start, and with the running statistics of a batch."""
    random = np.random.default_rng(0)
    for parameter in net.parameters():
        if parameter.ndim == 1 or not parameter.data.any():
            parameter.data[...] = random.uniform(0.05, 0.2, parameter.shape) + (parameter.ndim == 1) * 0.5
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with tr.no_grad():
        net(tr.Tensor(random.standard_normal((16, *shape), np.float32)))
    return net


def theirs(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [value.name for value in (*session.get_inputs(), *session.get_outputs())] == ["input", "logits"]
    return session.run(None, {"input": images})[0]


def exported(net, path, shape=SHAPE, batch=3, **options):
    """Writes the net and compares, with other images than `to_onnx` has compared."""
    found = export.to_onnx(net, path, shape, **options)
    assert found.difference <= 1e-4 and found.runtime.startswith("ONNX Runtime")
    images = np.random.default_rng(1).standard_normal((batch, *shape), np.float32)
    with tr.no_grad():
        ours = net.eval()(tr.tensor(images)).data  # (a copy: what works in place changes it)
    assert ours.std() > 0
    np.testing.assert_allclose(theirs(path, images), ours, atol=1e-4 * max(1, np.abs(ours).max()))


NETWORKS = {
    **{f"resnet20 {option}": lambda option=option: models.resnet20(option) for option in "ABC"},
    "plain20": models.plain20,
    "bottleneck-164": models.resnet164,
    "bottleneck, A": lambda: models.resnet(11, "A", "bottleneck", in_channels=3),
    "stochastic depth": lambda: models.resnet(14, survival=0.5),
    "preresnet20": models.preresnet20,
    "pre-activation bottlenecks": lambda: models.preresnet(11, block="bottleneck"),
    "wide": lambda: models.wide_resnet(10, 2, dropout=0.3),
    "fixup_resnet20": models.fixup_resnet20,
    "mobilenet_v2_cifar": lambda: models.mobilenet_v2_cifar(width_mult=0.35),
    "mobilenet_v2, not linear": lambda: models.mobilenet_v2(10, width_mult=0.35, linear=False),
    "resnet18": lambda: models.resnet18(num_classes=10),
    "plain18": lambda: models.plain18(num_classes=10),
    **{f"lab: {name}": lambda make=make: make(8) for name, make in NETS.items()},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gives_the_same_logits_in_onnx_runtime(name, tmp_path):
    tr.manual_seed(0)
    shape = (3, 32, 32) if "18" in name or "mobilenet" in name else SHAPE
    exported(settled(NETWORKS[name](), shape), tmp_path / "net.onnx", shape)


@pytest.mark.parametrize("residual", [True, False])
def test_nets_of_linear_layers_too(residual, tmp_path):
    tr.manual_seed(0)
    exported(models.ResidualMLP(8, 16, 3, 4, residual), tmp_path / "net.onnx", (8,))
    exported(stack(residual, 2, 8), tmp_path / "net.onnx", (8,))


def test_the_batch_may_have_any_length_and_the_file_says_so(tmp_path):
    net, path = settled(models.resnet(8, "B", num_classes=4)), tmp_path / "net.onnx"
    for batch in (1, 7):
        exported(net, path, batch=batch)
    graph = onnx.load(path).graph
    sizes = [
        [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in (*graph.input, *graph.output)
    ]
    assert sizes == [["batch", *SHAPE], ["batch", 4]]
    names = {constant.name for constant in graph.initializer}
    assert {name for name, _ in [*net.named_parameters(), *net.named_buffers()]} <= names


def test_the_normalisation_can_be_part_of_the_graph(tmp_path):
    net, path = settled(models.resnet(8)), tmp_path / "net.onnx"
    with pytest.raises(UsageError, match="does not know its normalisation"):
        export.to_onnx(net, path, SHAPE, normalise=True)
    mean, scale = np.float32([0.5, 0.4, 0.3]).reshape(3, 1, 1), np.float32([4, 5, 6]).reshape(3, 1, 1)
    net.normalisation = mean, scale
    export.to_onnx(net, path, SHAPE, normalise=True, classes=["é", "b"])
    images = np.random.default_rng(1).random((2, *SHAPE), np.float32)
    with tr.no_grad():
        ours = net.eval()(tr.Tensor((images - mean) * scale)).data
    np.testing.assert_allclose(theirs(path, images), ours, atol=1e-4)
    said = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    assert said["normalisation"] == {"mean": mean.tolist(), "scale": scale.tolist(), "inside": True}
    assert said["classes"] == ["é", "b"] and said["network"] == {"name": "resnet8"}
    export.to_onnx(net, path, SHAPE)
    said = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    assert said["normalisation"]["inside"] is False
    np.testing.assert_allclose(theirs(path, (images - mean) * scale), ours, atol=1e-4)


# --- every operation -----------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A network of one function, and of layers that it may use."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x) if any(self.children()) else self.function(x)


def in_place(x):
    x += 1.0
    F.relu(x, inplace=True)
    return x * 2.0


FUNCTIONS = {
    "arithmetic": lambda x: (3 - x) / 2 - (-x) * 0.25 + 1,
    "powers": lambda x: (x * x + 1) ** 0.5 + tr.Tensor(np.float32(2)) ** x,
    "an integer beside it": lambda x: x * tr.tensor([2, 3, 4]).reshape(3, 1, 1),
    "matmul": lambda x: x @ tr.Tensor(np.ones((16, 5), np.float32)),
    "linear with further axes": lambda x: F.linear(x, np.ones((4, 16), np.float32), np.arange(4, dtype=np.float32)),
    "in place": lambda x: in_place(x * 1.0),
    "in place, the input": in_place,
    "relu6": lambda x: F.relu6(5 * x),
    "add_relu": lambda x: F.add_relu(x, x * 2),
    "sum and mean": lambda x: x.sum((1, -1)) + x.mean(dim=(1, 3)) - x.sum(2, keepdim=True).mean(1).sum(1, keepdim=True),
    "flatten": lambda x: x.flatten(1),
    "the batch in an axis with others": lambda x: x.reshape(-1, 16).sum(1, keepdim=True) + x.flatten(0, 2),
    "unsqueeze and permute": lambda x: x.unsqueeze(1).permute(0, 2, 1, 4, 3).squeeze(2),
    "index": lambda x: x[:, 1:, ::-1, None, 3] + x[:, 0:2, ..., -2:][..., 1].unsqueeze(2),
    "index, steps back": lambda x: x[..., 12:2:-3] * x[:, :, :, :4],
    "pad": lambda x: F.pad(x, (1, 2, 0, 3), value=1.5),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool2d, ceil_mode": lambda x: F.max_pool2d(x, (3, 2), (2, 3), ceil_mode=True),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "avg_pool2d, of what is inside": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
    "global average": lambda x: F.adaptive_avg_pool2d(x, 1),
    "subsample_pad": lambda x: F.subsample_pad(x, 8, 3) + F.subsample_pad(x[:, :1], 8, 3),
    "subsample alone": lambda x: F.subsample_pad(x, 3, 2),
    "dropout": lambda x: F.dropout(x, 0.5, training=False) * 2,
    "functions": lambda x: x.abs().sqrt() + (x.exp() + 1).log() * x.tanh() - x.sigmoid().clone(),
    "activations": lambda x: F.leaky_relu(x, 0.2) + F.silu(x) * F.gelu(x) - F.gelu(x, approximate="tanh"),
    "softmax": lambda x: F.softmax(x, 1) + x.softmax(-1),
    "amax and amin": lambda x: x.amax((2, 3)) - x.amin((-1, 2)) + x.amax(1, keepdim=True).amin((1, 2, 3)).reshape(-1, 1),
    "std": lambda x: x.std((1, 2)) + x.std(3, correction=0).mean(1),
    "layer_norm": lambda x: F.layer_norm(x, (16, 16)) * F.layer_norm(x, 16, np.arange(16.0, dtype=np.float32)),
    "group_norm": lambda x: F.group_norm(x.reshape(-1, 6, 8, 16), 3, np.arange(6, dtype=np.float32)),
    "float64": lambda x: (x.to(np.float64) * 2).float(),
}
LAYERS = {
    "convolution": {"a": nn.Conv2d(3, 6, (3, 2), (2, 1), (1, 0), groups=3)},
    "dilation": {"a": nn.Conv2d(3, 4, 3, padding=2, dilation=2)},
    "padding same": {"a": nn.Conv2d(3, 4, 4, padding="same", bias=False)},
    "batch norm without weights": {"a": nn.BatchNorm2d(3, affine=False)},
    "norms of examples": {"a": nn.Sequential(nn.GroupNorm(3, 3), nn.LayerNorm((3, 16, 16)), nn.LeakyReLU(0.3))},
    "batch norm of vectors": {"a": nn.Sequential(nn.Flatten(), nn.Linear(768, 5, bias=False), nn.BatchNorm1d(5))},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_operation_is_translated(name, tmp_path):
    exported(Net(FUNCTIONS[name]), tmp_path / "net.onnx")


@pytest.mark.parametrize("name", LAYERS)
def test_options_of_layers_are_translated(name, tmp_path):
    exported(settled(Net(lambda net, x: net.a(x), **LAYERS[name])), tmp_path / "net.onnx")


def test_batch_norm_and_the_join_of_vectors_in_a_row(tmp_path):
    net = Net(lambda net, x: net.a(net.a(x, relu=True), residual=x, relu=True), a=nn.BatchNorm1d(3))
    exported(settled(net, (3, 7)), tmp_path / "net.onnx", (3, 7))


def test_the_operations_without_a_translation_are_those_of_training():
    missing = {name for name in ops.__all__ if getattr(ops, name) not in TRANSLATIONS}
    assert missing == {"CrossEntropy", "SoftCrossEntropy", "SquaredError", "Dropout", "AlongAxis"}


class Square(Function):
    """An operation of one's own."""

    @staticmethod
    def forward(ctx, x):
        return x * x


def test_an_operation_of_ones_own_is_named_and_can_be_translated(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    with pytest.raises(UsageError, match=r"the operation Square has no translation to ONNX; tinyres\.export\.translates"):
        export.to_onnx(Net(Square.apply), path, SHAPE)
    monkeypatch.setattr("tinyres.export.translations.TRANSLATIONS", TRANSLATIONS)  # what is registered goes again
    export.translates(Square)(lambda graph, call, x: graph.add("Mul", x[0], x[0]))
    try:
        exported(Net(Square.apply), path)
    finally:
        del TRANSLATIONS[Square]


# --- what cannot be, and what is wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: x * float(x.data.mean()), "Mul is given numbers that depend on the images and come from no operation"),
        (lambda x: tr.Tensor(x.data * 2) + x, "Add is given numbers that depend on the images"),
        (lambda x: tr.Tensor(np.tanh(x.data)), "output is not the result of an operation on its input"),
        (lambda x: x if len(x) == 2 else x * 2, "other operations to 3 images than to 2"),
        (lambda x: F.pad(x, (1, 0), value=len(x)), "Pad is given other options for 3 images"),
        (lambda x: x[: len(x) - 1], "picks single images of the batch"),
        (lambda x: x[0], "picks single images of the batch"),
        (lambda x: x[:, [0, 2]], "with arrays has no translation"),
        (lambda x: x.half().float(), "computes in 16 bits"),
        (lambda x: F.dropout(x, 0.5), "Dropout has no translation"),
        (lambda x: (x, x), "returns a tuple; expected one tensor"),
    ],
)
def test_what_is_no_graph_is_one_error(function, says, tmp_path):
    with pytest.raises(UsageError, match=says):
        export.to_onnx(Net(function), tmp_path / "net.onnx", SHAPE)
    assert not list(tmp_path.iterdir())


def test_a_batch_norm_that_needs_the_batch_is_an_error(tmp_path):
    net = Net(lambda net, x: net.a(x), a=nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(UsageError, match="normalises by the batch that it is given"):
        export.to_onnx(net, tmp_path / "net.onnx", SHAPE)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (
            lambda x: x if x.data.shape[0] < 4 else x * 1.001,
            "differ by 0.00.* on random images, more than 0.0001, and in float64 by 0.00",
        ),
        (lambda x: x / (x * 0), "not finite, so nothing can be compared"),
    ],
)
def test_a_graph_that_gives_other_logits_is_not_written(function, says, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_text("what was there")
    with pytest.raises(CheckpointError, match=says), np.errstate(all="ignore"):
        export.to_onnx(Net(function), path, SHAPE)
    assert path.read_text() == "what was there" and len(list(tmp_path.iterdir())) == 1


def test_a_wrong_translation_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setitem(TRANSLATIONS, ops.BatchNormAddReLU, lambda graph, call, x: graph.add("Add", x[0], x[1]))
    with pytest.raises(CheckpointError, match="the file was not written"):
        export.to_onnx(settled(models.resnet(8)), tmp_path / "net.onnx", SHAPE)
    monkeypatch.setitem(TRANSLATIONS, ops.BatchNormAddReLU, lambda graph, call, x: graph.add("NoSuchOperator", x[0]))
    with pytest.raises(CheckpointError, match=r"not valid ONNX, and was not written: .*NoSuchOperator"):
        export.to_onnx(settled(models.resnet(8)), tmp_path / "net.onnx", SHAPE)
    assert not list(tmp_path.iterdir())


def test_where_rounding_decides_the_same_graph_in_float64_does(tmp_path, monkeypatch):
    monkeypatch.setattr("tinyres.export.onnx_file.TOLERANCE", 1e-10)
    net = settled(models.resnet(8, "B"))
    net.normalisation = np.float32(0.5), np.float32(3)
    for normalise in (False, True):
        found = export.to_onnx(net, tmp_path / "net.onnx", SHAPE, normalise=normalise)
        assert found.exact is not None and found.exact < 1e-10 < found.difference < 1e-4
    (tmp_path / "net.onnx").unlink()
    wrong = lambda graph, call, x: graph.add("Relu", graph.add("Mul", x[0], graph.number(1 + 1e-6)))  # noqa: E731
    monkeypatch.setitem(TRANSLATIONS, ops.BatchNorm, wrong)
    with pytest.raises(CheckpointError, match="and in float64 by"):
        export.to_onnx(net, tmp_path / "net.onnx", SHAPE)
    assert not list(tmp_path.iterdir()) and net.conv1.weight.dtype == np.float32


def test_without_onnx_runtime_onnx_itself_runs_the_graph_and_without_onnx_nothing_does(tmp_path, monkeypatch):
    net = settled(models.resnet(8, "B"), (3, 8, 8))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = export.to_onnx(net, tmp_path / "net.onnx", (3, 8, 8))
    assert found.runtime == f"the reference evaluator of onnx {onnx.__version__}" and found.difference <= 1e-4
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match="pip install onnx onnxruntime"):
        export.to_onnx(net, tmp_path / "other.onnx", (3, 8, 8))


def test_the_network_is_left_as_it_was(tmp_path):
    net = settled(models.resnet(8)).train()
    net.layer2.eval()
    modes, before = [module.training for module in net.modules()], net.state_dict()
    with tr.no_grad():
        export.to_onnx(net, tmp_path / "net.onnx", SHAPE)
    assert [module.training for module in net.modules()] == modes
    assert all(np.array_equal(array, before[name]) for name, array in net.state_dict().items())
    assert all(parameter.grad is None and parameter.data.flags.writeable for parameter in net.parameters())
    with pytest.raises(UsageError):
        export.to_onnx(Net(lambda x: (x,)), tmp_path / "other.onnx", SHAPE)
    assert guards.flags.calls is None and tr.is_grad_enabled()


def test_parameters_in_float64_become_float32(tmp_path):
    path = tmp_path / "net.onnx"
    export.to_onnx(settled(models.resnet(8)).double(), path, SHAPE)
    assert theirs(path, np.zeros((1, *SHAPE), np.float32)).dtype == np.float32
