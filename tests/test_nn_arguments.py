"""Layers with the arguments that PyTorch's take: the same numbers, by position and by name."""

import numpy as np
import pytest

import tinyres as tr
import tinyres.functional as F
from tinyres import nn
from tinyres.errors import GraphError, ShapeError, UsageError

LAYERS = {
    "conv same": ("Conv2d", (4, 6, 3, 1, "same", 2), {}),
    "conv same, even": ("Conv2d", (4, 6, (4, 2)), {"padding": "same"}),
    "conv valid": ("Conv2d", (4, 6, 3), {"padding": "valid", "stride": 2, "padding_mode": "zeros"}),
    "max pool": ("MaxPool2d", (3, 2, 1, 1, False, True), {}),
    "average pool": ("AvgPool2d", (3, 2, 1, True, False), {}),
    "average pool, divisor": ("AvgPool2d", (2,), {"divisor_override": 3}),
    "adaptive": ("AdaptiveAvgPool2d", ((3, None),), {}),
    "adaptive to one": ("AdaptiveAvgPool2d", (1,), {}),
    "flatten": ("Flatten", (2, 3), {}),
    "relu": ("ReLU", (True,), {}),
    "relu6": ("ReLU6", (), {"inplace": True}),
    "linear": ("Linear", (6, 3), {}),
    "norm": ("BatchNorm2d", (4, 1e-3, 0.3, False, False), {}),
}


def images(*shape):
    return np.random.default_rng(0).standard_normal(shape)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(("name", "arguments", "options"), LAYERS.values(), ids=list(LAYERS))
def test_a_layer_is_pytorch_s(name, arguments, options):
    import torch

    mine, theirs = (getattr(room, name)(*arguments, **options).double() for room in (nn, torch.nn))
    theirs.load_state_dict({k: torch.tensor(v) for k, v in mine.state_dict().items()})
    shapes = [(2, 4, 7, 6)] if name in ("BatchNorm2d", "Flatten") else [(2, 4, 7, 6), (4, 7, 6)]
    for x in (images(*shape) for shape in shapes):
        for training in (True, False):
            got = mine.train(training)(tr.tensor(x)).data
            want = theirs.train(training)(torch.tensor(x)).detach().numpy()
            np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.torch
def test_a_batch_norm_of_sequences_and_a_loss_with_weights_are_pytorch_s():
    import torch

    for shape in ((5, 3), (5, 3, 4)):
        mine, theirs = nn.BatchNorm1d(3).double(), torch.nn.BatchNorm1d(3).double()
        np.testing.assert_allclose(mine(tr.tensor(images(*shape))).data, theirs(torch.tensor(images(*shape))).detach())
    weight, labels = np.array([1.0, 3.0, 0.5]), np.array([0, 2, 1, 2])
    options = {"ignore_index": 1, "reduction": "sum", "label_smoothing": 0.1}
    mine = nn.CrossEntropyLoss(weight, **options)
    theirs = torch.nn.CrossEntropyLoss(torch.from_numpy(weight), **options)
    want = theirs(torch.from_numpy(images(4, 3)), torch.from_numpy(labels))
    assert mine(tr.tensor(images(4, 3)), labels).item() == pytest.approx(want.item())
    assert list(mine.state_dict()) == list(theirs.state_dict()) == ["weight"]


def test_a_batch_norm_without_running_statistics_has_no_buffers():
    layer = nn.BatchNorm2d(3, track_running_stats=False)
    assert list(layer.state_dict()) == ["weight", "bias"] and "track_running_stats=False" in repr(layer)


@pytest.mark.parametrize(
    ("layer", "shape", "wanted"),
    [
        (nn.BatchNorm2d(3), (2, 3), r"BatchNorm2d: x must be \(N, C, H, W\), got shape \(2, 3\)"),
        (nn.BatchNorm2d(3), (2, 3, 4), "BatchNorm2d"),
        (nn.BatchNorm1d(3), (2, 3, 4, 4), r"BatchNorm1d: x must be \(N, C\) or \(N, C, L\)"),
    ],
    ids=["two axes", "three", "four"],
)
def test_a_batch_norm_takes_the_axes_of_its_name(layer, shape, wanted):
    with pytest.raises(ShapeError, match=wanted):
        layer(tr.tensor(np.zeros(shape, np.float32)))


@pytest.mark.parametrize("activation", [F.relu, F.relu6, lambda x, inplace: F.dropout(x, 1.0, True, inplace)])
def test_in_place_the_tensor_becomes_the_result(activation):
    w = tr.tensor([-1.0, 2.0, 3.0], requires_grad=True)
    x = w * 2
    before = x * 1  # what was computed from x keeps its gradient
    y = activation(x, inplace=True)
    assert y is x and x.data.min() == 0
    (before + x).sum().backward()
    alone = tr.tensor([-1.0, 2.0, 3.0], requires_grad=True)
    z = alone * 2
    (z * 1 + activation(z, False)).sum().backward()
    np.testing.assert_array_equal(w.grad, alone.grad)
    with pytest.raises(GraphError, match="inplace=True: a leaf"):
        activation(w, inplace=True)
    image = tr.tensor([-1.0, 1.0])
    activation(image, inplace=True)
    assert image.data[0] == 0


def test_what_a_loss_cannot_mean_is_named():
    x = np.zeros((4, 3), np.float32)
    for weight in (0.1, np.ones(4), [1.0, 2.0]):
        with pytest.raises(ShapeError, match=r"weight must be \(K,\), one number for each class"):
            F.cross_entropy(x, np.zeros(4, int), weight)
    with pytest.raises(ShapeError, match=r"labels must lie in 0 .. 2"):
        F.cross_entropy(x, np.array([0, 1, 3, -100]))
    with pytest.raises(ShapeError, match=r"labels int64\[4, 2\]"):
        F.cross_entropy(x, np.zeros((4, 2), int))
    with pytest.raises(UsageError, match="ignore_index=2 is not supported"):
        F.cross_entropy(x, np.full((4, 3), 1 / 3, np.float32), ignore_index=2)


def test_indices_that_are_not_there_are_named():
    x = tr.tensor(np.arange(6.0).reshape(2, 3))
    for index in (2, (0, 3), (0, 0, 0), 1.5, [5]):
        with pytest.raises(ShapeError, match=r"index: .*x float64\[2, 3\]"):
            x[index]
    assert [row.data.tolist() for row in x] == [[0, 1, 2], [3, 4, 5]]
    assert x[x > 2].data.tolist() == [3, 4, 5] and x[tr.tensor([1])].shape == (1, 3)
    assert np.asarray(x) is x.data and x.size() == (2, 3) and x.size(-1) == 3 and x.dim() == 2


BAD_SHAPES = {
    "reshape(-2, 3)": (lambda x: x.reshape(-2, 3), "one length may be -1"),
    "reshape(2.0, 3)": (lambda x: x.reshape(2.0, 3), "must be ints"),
    "sum(1.0)": (lambda x: x.sum(1.0), "dim=1.0 must be an int"),
    "unsqueeze": (lambda x: x.unsqueeze(3), r"unsqueeze: dim=3 must lie within -3 .. 2"),
    "squeeze": (lambda x: x.squeeze(2), "squeeze: dim=2"),
    "pad": (lambda x: F.pad(x, (1,)), "pad: .*two sizes"),
    "neg of bools": (lambda x: -(x > 0), "neg: bools have no sign"),
    "sub of bools": (lambda x: (x > 0) - (x > 1), "sub: bools have no difference"),
    "conv2d of no channels": (lambda x: F.conv2d(np.zeros((1, 0, 3, 3)), np.zeros((1, 0, 1, 1))), "at least one channel"),
    "divisor of 0": (lambda x: F.avg_pool2d(np.zeros((1, 1, 2, 2)), 2, divisor_override=0), "divisor_override"),
}


@pytest.mark.parametrize(("call", "message"), BAD_SHAPES.values(), ids=list(BAD_SHAPES))
def test_arguments_without_meaning_are_named(call, message):
    with pytest.raises((ShapeError, UsageError), match=message):
        call(tr.tensor(np.arange(6.0).reshape(2, 3)))


def test_nothing_is_left_of_an_empty_axis():
    x = tr.tensor(np.zeros((2, 0)))
    assert F.log_softmax(x).shape == (2, 0) and x.sum(dim=[]).shape == () and x.sum(dim=()).item() == 0


def test_an_argmax_and_probabilities_need_no_method():
    """As docs/pytorch.md says."""
    logits = tr.tensor([[0.0, 2.0, 1.0], [3.0, 1.0, 2.0]], requires_grad=True)
    assert np.argmax(logits, axis=1).tolist() == [1, 0]
    np.testing.assert_allclose(np.exp(F.log_softmax(logits).data).sum(axis=1), 1, rtol=1e-6)
