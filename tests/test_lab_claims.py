"""The labs' own arithmetic: statistics whose values are known, and networks that are what the claims are about."""

import numpy as np
import pytest

import tinyres as tr
from tinyres import functional as F
from tinyres.lab import depth, identity, relu_collapse, shattered, shortcuts
from tinyres.lab.responses import responses
from tinyres.tensor import Tensor


def tensor(*shape, seed=0):
    return Tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


# --- identity ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [False, True])
def test_both_kinds_of_stack_begin_with_outputs_about_as_large_as_their_inputs(residual):
    sizes = []
    for seed in range(20):
        tr.manual_seed(seed)
        x = tensor(500, 16, seed=seed)
        sizes.append(float(identity.stack(residual, 8, 16)(x).data.std()))
    assert 0.6 < np.median(sizes) < 2.2


def test_to_fit_zero_without_a_shortcut_is_to_fit_the_identity_with_one():
    """One block: F(x) against 0, and F(x) + x against x, are the same error, step by step."""
    config = identity.Identity.scales["tiny"]
    with_shortcut = identity.fit(True, 1, 1.0, 3, config)
    without = identity.fit(False, 1, 0.0, 3, config)
    np.testing.assert_allclose(with_shortcut, without, rtol=1e-4)


# --- shattered -----------------------------------------------------------------------------------------------------------


def test_autocorrelations_that_are_known():
    lags = [1, 2, 4, 8, 16, 32]
    sign = np.array(shattered.autocorrelation(np.sign(np.linspace(-2, 2, 256))))
    np.testing.assert_allclose(sign[lags], [0.992, 0.984, 0.968, 0.935, 0.867, 0.714], atol=5e-4)
    walks = [np.cumsum(np.random.default_rng(seed).standard_normal(256)) for seed in range(200)]
    brown = np.mean([shattered.autocorrelation(walk) for walk in walks], axis=0)
    np.testing.assert_allclose(brown[lags], [0.976, 0.951, 0.905, 0.817, 0.663, 0.403], atol=2e-3)
    white = shattered.autocorrelation(np.random.default_rng(0).standard_normal(100_000))
    assert white[0] == 1 and max(map(abs, white[1:])) < 0.02
    assert np.isnan(shattered.autocorrelation(np.full(100, 3.0))).all()  # a constant is correlated with nothing


def test_the_correlation_of_gradients_is_1_where_they_agree_and_falls_with_the_share_of_units_that_do():
    x = np.random.default_rng(0).standard_normal((8, 4))
    assert abs(shattered.correlation(lambda h: F.linear(h, Tensor(x[:1])), x) - 1) < 1e-6  # a linear net
    # y = sum of relu(x): the gradient of a place is 1 where x > 0; inner products count the places that both have open
    open_units = (x > 0).astype(float)
    product = open_units @ open_units.T
    expected = (product.sum() - np.trace(product)) / (8 * 7) / (np.trace(product) / 8)
    got = shattered.correlation(lambda h: F.relu(h).sum(1), x)
    assert abs(got - expected) < 1e-6


def test_a_net_that_looks_linear_is_and_a_centred_one_treats_its_means_as_constants():
    random = np.random.default_rng(0)
    net = shattered.net("looks linear", 5, 1.0, 6, random)
    a, b = (random.standard_normal((3, 6)) for _ in range(2))
    np.testing.assert_allclose(net(Tensor(a)).data + net(Tensor(b)).data, net(Tensor(a + b)).data, atol=1e-9)
    x = random.standard_normal((5, 3))
    leaf = Tensor(x, requires_grad=True)
    shattered.normalised(leaf).sum().backward()
    np.testing.assert_allclose(leaf.grad, np.broadcast_to(1 / np.sqrt(x.var(0) + 1e-5), x.shape))


# --- what a ReLU destroys ------------------------------------------------------------------------------------------------


def test_what_is_recovered_of_a_spiral_is_all_of_a_linear_image_and_half_of_a_lost_coordinate():
    x = relu_collapse.spiral(500)
    assert relu_collapse.recovered(x, x @ np.array([[1.0, 2.0], [0.5, -1.0]]) + 3)[0] > 1 - 1e-12
    round_ = np.random.default_rng(0).standard_normal((5000, 2))
    assert abs(relu_collapse.recovered(round_, round_[:, :1])[0] - 0.5) < 0.02


def test_a_gpu_trains_and_the_host_does_the_rest(monkeypatch):
    """(The emulation stands for the GPU.)"""
    from tinyres.lab import responses as lab
    from tinyres.lab import running
    from tinyres.train import Trainer

    seen, fit, measure = [], Trainer.fit, lab.responses
    monkeypatch.setattr(running, "_device", lambda backend: "cuda")
    monkeypatch.setattr(Trainer, "fit", lambda self, **how: (seen.append(tr.get_backend()), fit(self, **how))[1])
    monkeypatch.setattr(lab, "responses", lambda *given: (seen.append(tr.get_backend()), measure(*given))[1])
    config = {**lab.Responses.scales["tiny"], "images": 4, "batch": 4, "test": 2, "epochs": 1}
    running.perform(running.Task("responses", {"net": "resnet8"}, 0, config, "cuda-emulated"))
    assert seen == ["cuda-emulated", "numba"]


# --- responses -----------------------------------------------------------------------------------------------------------


def test_a_response_is_what_a_batch_norm_puts_out_before_relu_and_join():
    tr.manual_seed(0)
    net, x = tr.models.resnet(8), tensor(4, 3, 8, 8)
    for bn in (m for m in net.modules() if isinstance(m, tr.nn.BatchNorm2d)):
        bn.weight.data[...] = np.random.default_rng(bn.num_features).uniform(0.5, 2, bn.weight.shape)
        bn.running_var.data[...] = 1.7
    found = responses(net, x.data)
    assert len(found) == 7
    first = net.bn1(net.conv1(x))
    block = net.layer1[0]
    entry = F.relu(first)
    inner = block.bn1(block.conv1(entry))
    outer = block.bn2(block.conv2(F.relu(inner)))
    np.testing.assert_allclose(found[:3], [first.data.std(), inner.data.std(), outer.data.std()], rtol=1e-4)


# --- shortcuts -----------------------------------------------------------------------------------------------------------


def parts(block, x):
    branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    return branch.data, x.data


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (shortcuts.Scaled, lambda f, x, kept: (f + x) / 2),
        (shortcuts.Dropped, lambda f, x, kept: f + x),  # in evaluation
        (shortcuts.Gated, lambda f, x, kept: f + kept * x),
        (shortcuts.Exclusive, lambda f, x, kept: (1 - kept) * f + kept * x),
    ],
)
def test_a_variant_joins_branch_and_shortcut_by_its_formula(kind, expected):
    tr.manual_seed(0)
    block, x = kind(8, 8, 1).eval(), tensor(2, 8, 4, 4)
    kept = 0.0
    if isinstance(block, shortcuts.Gated):
        kept = 1 / (1 + np.exp(block.gate(x).data))  # 1 - sigmoid
        assert kept.min() < 0.3 and kept.max() > 0.7
    np.testing.assert_allclose(block(x).data, np.maximum(expected(*parts(block, x), kept), 0), rtol=1e-4, atol=1e-5)


def test_dropout_on_the_shortcut_leaves_the_branch_alone_and_a_convolution_is_in_every_block():
    tr.manual_seed(0)
    block, x = shortcuts.Dropped(8, 8, 1), tensor(2, 8, 4, 4)
    block.bn2.weight.data[...] = 0
    z = block(x).data
    kept = z > 0
    np.testing.assert_allclose(z[kept], 2 * x.data[kept], rtol=1e-6)  # the others were dropped, or negative
    assert 0.15 < kept.mean() < 0.35
    net = shortcuts.NETS["1x1 convolution"](14)
    assert all(isinstance(block.shortcut, tr.nn.Conv2d) for stage in (net.layer1, net.layer2, net.layer3) for block in stage)


def test_every_kind_of_the_labs_is_a_net_of_the_depth_that_it_is_said_to_have():
    x = tensor(2, 3, 8, 8)
    for build in shortcuts.NETS.values():
        assert build(14)(x).shape == (2, 10)
    layers = {kind: tr.models.build(**{**net, "name": f"{net['name']}14"}) for kind, net in depth.KINDS.items()}
    for kind, net in layers.items():
        convolutions = [m for m in net.modules() if isinstance(m, tr.nn.Conv2d)]
        assert len(convolutions) == 13, kind
    assert not any(isinstance(m, tr.nn.BatchNorm2d) for m in layers["Fixup"].modules())
