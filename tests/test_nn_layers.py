"""Layers: their initial values, their arguments, and that they compute what PyTorch's do."""

import math

import numpy as np
import pytest
from backends import require

import tinyres as tr
from tinyres import functional as F
from tinyres import nn
from tinyres.errors import ShapeError, UsageError


def images(*shape, seed=0, dtype=np.float32):
    return tr.tensor(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


def test_fans_count_the_connections_of_one_output_and_of_one_input():
    assert nn.init.fans(tr.tensor(np.zeros((8, 4, 3, 5)))) == (4 * 15, 8 * 15)
    assert nn.init.fans(tr.tensor(np.zeros((8, 4)))) == (4, 8)
    with pytest.raises(ShapeError, match=r"got shape \(8,\)"):
        nn.init.fans(tr.tensor(np.zeros(8)))


@pytest.mark.parametrize("mode, fan", [("fan_in", 40 * 9), ("fan_out", 80 * 9)])
def test_kaiming_fills_have_he_s_variance(mode, fan):
    generator = np.random.default_rng(0)
    normal = nn.init.kaiming_normal_(tr.tensor(np.zeros((80, 40, 3, 3))), mode=mode, generator=generator).data
    uniform = nn.init.kaiming_uniform_(tr.tensor(np.zeros((80, 40, 3, 3))), mode=mode, generator=generator).data
    std = math.sqrt(2 / fan)
    for values in (normal, uniform):
        assert abs(values.mean()) < 0.03 * std and abs(values.std() / std - 1) < 0.02
    assert 0.99 < abs(uniform).max() / (math.sqrt(3) * std) <= 1
    assert abs(normal).max() > 3 * std


def test_a_leaky_slope_lowers_the_variance():
    values = nn.init.kaiming_normal_(tr.tensor(np.zeros((300, 100))), a=math.sqrt(5), generator=np.random.default_rng(0))
    assert abs(values.data.std() / math.sqrt(2 / 6 / 100) - 1) < 0.02
    with pytest.raises(UsageError, match='"fan_in" or "fan_out"'):
        nn.init.kaiming_normal_(tr.tensor(np.zeros((2, 2))), mode="fan_avg")


def test_constant_fills():
    tensor = tr.tensor(np.zeros(3))
    assert nn.init.ones_(tensor) is tensor and tensor.data.tolist() == [1, 1, 1]
    assert nn.init.constant_(tensor, 2.5).data.tolist() == [2.5] * 3
    assert nn.init.zeros_(tensor).data.tolist() == [0] * 3


def test_the_seed_decides_the_initial_weights():
    def weights(seed):
        tr.manual_seed(seed)
        return np.concatenate([nn.Conv2d(3, 4, 3).weight.data.ravel(), nn.Linear(4, 2).weight.data.ravel()])

    assert np.array_equal(weights(7), weights(7))
    assert not np.array_equal(weights(7), weights(8))


def test_layers_start_as_documented():
    tr.manual_seed(0)
    conv, linear, bn = nn.Conv2d(32, 128, 3), nn.Linear(400, 300), nn.BatchNorm2d(3)
    assert abs(conv.weight.data.std() / math.sqrt(2 / (128 * 9)) - 1) < 0.02
    assert conv.bias.data.tolist() == [0] * 128
    for values in (linear.weight.data, linear.bias.data):
        assert 0.95 < abs(values).max() * 20 <= 1
    assert [t.data.tolist() for t in (bn.weight, bn.bias, bn.running_mean, bn.running_var)] == [
        [1] * 3,
        [0] * 3,
        [0] * 3,
        [1] * 3,
    ]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: nn.Conv2d(0, 4, 3), "in_channels must be an integer of at least 1, got 0"),
        (lambda: nn.Conv2d(3, 4.0, 3), "out_channels must be an integer of at least 1, got 4.0"),
        (lambda: nn.Conv2d(3, 4, 0), "kernel_size must be an integer of at least 1, or a pair"),
        (lambda: nn.Conv2d(3, 4, (3, 3, 3)), "kernel_size"),
        (lambda: nn.Conv2d(3, 4, 3, stride=0), "stride"),
        (lambda: nn.Conv2d(3, 4, 3, padding=-1), "padding must be an integer of at least 0"),
        (lambda: nn.Conv2d(3, 4, 3, padding="full"), "padding"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "groups must divide .* groups=2, in_channels=3"),
        (lambda: nn.Linear(3, -1), "out_features"),
        (lambda: nn.BatchNorm2d(0), "num_features"),
        (lambda: nn.BatchNorm2d(3, eps=0.0), "eps must be positive"),
        (lambda: nn.BatchNorm2d(3, momentum=1.5), "momentum within"),
        (lambda: nn.MaxPool2d(0), "MaxPool2d: kernel_size"),
        (lambda: nn.AvgPool2d(2, padding=-1), "AvgPool2d: padding"),
        (lambda: nn.Dropout(1.1), "p is the probability"),
    ],
)
def test_arguments_without_meaning_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_layers_pass_their_settings_on():
    x = images(2, 4, 9, 8)
    conv = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
    assert np.array_equal(conv(x).data, F.conv2d(x, conv.weight, conv.bias, (2, 1), (1, 0), (1, 2), 2).data)
    assert nn.Conv2d(4, 6, 1, bias=False).bias is None
    assert np.array_equal(nn.MaxPool2d(3, 2, 1)(x).data, F.max_pool2d(x, 3, 2, 1).data)
    assert nn.AvgPool2d(2)(x).shape == (2, 4, 4, 4)
    assert nn.GlobalAvgPool2d()(x).shape == (2, 4)
    assert nn.Flatten()(x).shape == (2, 4 * 9 * 8)
    assert nn.Identity()(x) is x
    assert nn.ReLU()(x).data.min() == 0 and nn.ReLU6()(x * 10).data.max() == 6
    labels, loss = np.array([0, 3]), nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum")
    logits = images(2, 4)
    assert loss(logits, labels).item() == F.cross_entropy(logits, labels, label_smoothing=0.1, reduction="sum").item()


def test_dropout_drops_in_training_only():
    x, layer = tr.tensor(np.ones(1000, np.float32)), nn.Dropout(0.25)
    tr.manual_seed(0)
    assert set(layer(x).data.tolist()) == {0.0, np.float32(1 / 0.75)}
    assert np.array_equal(layer.eval()(x).data, x.data)


def test_batch_norm_normalises_by_the_batch_and_remembers_its_statistics():
    layer, x = nn.BatchNorm2d(2, momentum=0.5), tr.tensor(np.array([1.0, 3.0, 10.0, 30.0], np.float32).reshape(2, 2, 1, 1))
    assert np.allclose(layer(x).data.ravel(), [-1, -1, 1, 1], atol=1e-4)
    assert np.allclose(layer.running_mean.data, [0.5 * 5.5, 0.5 * 16.5])
    assert np.allclose(layer.running_var.data, [0.5 + 0.5 * 40.5, 0.5 + 0.5 * 364.5])
    with pytest.raises(ShapeError, match="more than one value per channel"):
        layer(tr.tensor(np.ones((1, 2, 1, 1), np.float32)))
    before = layer.state_dict()
    z = layer.eval()(x)
    assert np.allclose(
        z.data, (x.data - before["running_mean"].reshape(2, 1, 1)) / np.sqrt(before["running_var"].reshape(2, 1, 1) + 1e-5)
    )
    assert all(np.array_equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_with_residual_and_relu_is_the_composition_of_the_three(training):
    x, residual = images(4, 3, 2, 2, seed=1), images(4, 3, 2, 2, seed=2)
    layer = nn.BatchNorm2d(3).train(training)
    y = layer(x).data
    assert np.allclose(layer(x, relu=True).data, np.maximum(y, 0), atol=1e-6)
    assert np.allclose(layer(x, residual=residual).data, y + residual.data, atol=1e-6)
    assert np.allclose(layer(x, residual=residual, relu=True).data, np.maximum(y + residual.data, 0), atol=1e-6)


def test_batch_norm_1d_and_batch_norm_without_affine():
    x = images(50, 3)
    y = nn.BatchNorm1d(3)(x).data
    assert np.allclose(y, (x.data - x.data.mean(0)) / x.data.std(0), atol=1e-4)
    bare = nn.BatchNorm1d(3, affine=False)
    assert list(bare.parameters()) == [] and np.allclose(bare(x).data, y)


@pytest.mark.torch
def test_layers_agree_with_pytorch():
    import torch

    x = images(3, 4, 7, 7, dtype=np.float64)
    pairs = [
        (nn.Conv2d(4, 6, 3, 2, 1, groups=2), torch.nn.Conv2d(4, 6, 3, 2, 1, groups=2)),
        (nn.BatchNorm2d(4, eps=1e-3, momentum=0.3), torch.nn.BatchNorm2d(4, eps=1e-3, momentum=0.3)),
        (nn.MaxPool2d(3, 2, 1), torch.nn.MaxPool2d(3, 2, 1)),
        (nn.AvgPool2d(2), torch.nn.AvgPool2d(2)),
        (nn.Sequential(nn.Flatten(), nn.Linear(196, 5)), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(196, 5))),
    ]
    for mine, theirs in pairs:
        mine, theirs = mine.double(), theirs.double()
        theirs.load_state_dict({k: torch.tensor(v) for k, v in mine.state_dict().items()}, strict=False)
        for training in (True, False):
            got = mine.train(training)(x).data
            want = theirs.train(training)(torch.tensor(x.data)).detach().numpy()
            assert np.allclose(got, want, atol=1e-12), mine
        assert repr(mine).split("(")[0] == repr(theirs).split("(")[0]
        for name, value in mine.state_dict().items():
            assert np.allclose(value, theirs.state_dict()[name].numpy(), atol=1e-12)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (5, 3)])
def test_batch_norm_without_running_statistics_normalises_by_the_batch(shape, backend):
    require(backend)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    axes = tuple(a for a in range(x.ndim) if a != 1)
    want = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
    with tr.use_backend(backend):
        np.testing.assert_allclose(F.batch_norm(x, None, None, training=True).data, want, atol=1e-5)
        joined = F.batch_norm_add_relu(x, x, None, None, training=True)
        np.testing.assert_allclose(joined.data, np.maximum(want + x, 0), atol=1e-5)


@pytest.mark.parametrize("statistics", [(None, None, False), (None, np.ones(3), True), (np.zeros(3), None, True)])
def test_running_statistics_that_are_needed_or_half_given_are_asked_for(statistics):
    mean, var, training = statistics
    with pytest.raises(
        ShapeError, match="running_mean and running_var must both be given, or with training=True both be None"
    ):
        F.batch_norm(np.ones((4, 3)), mean, var, training=training)


def test_a_cumulative_average_is_refused_by_name():
    with pytest.raises(UsageError, match="BatchNorm2d: momentum=None, a cumulative average, is not supported"):
        nn.BatchNorm2d(3, momentum=None)
