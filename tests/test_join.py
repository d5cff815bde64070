"""The join that is read is the join that runs: in every residual network, forward and backward."""

import numpy as np
import pytest

import tinyres as tr
import tinyres.functional as F
from tinyres import nn, ops
from tinyres.models import ResidualMLP, resnet
from tinyres.models.cifar import BasicBlock, Bottleneck


def images(*shape):
    return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


NETS = {
    "resnet20": (lambda: tr.models.resnet20(), images(2, 3, 8, 8), ops.BatchNormAddReLU),
    "bottleneck": (lambda: resnet(11, block="bottleneck"), images(2, 3, 8, 8), ops.BatchNormAddReLU),
    "fully connected": (lambda: ResidualMLP(4, 8, 3, 2), images(5, 4), ops.AddReLU),
}


def gradients(make, x):
    """Of every parameter and of the input, in the float64 copy of a network that is the same at every call."""
    tr.manual_seed(3)
    net = make()
    for p in net.parameters():
        p.data = p.data.astype(np.float64)
    for b in net.buffers():
        b.data = b.data.astype(np.float64)
    x = tr.tensor(x.astype(np.float64), requires_grad=True)
    y = net(x)
    y.backward(np.random.default_rng(7).standard_normal(y.shape))
    return {"x": x.grad, **{name: p.grad for name, p in net.named_parameters()}}


@pytest.mark.parametrize("name", NETS)
def test_the_join_on_the_page_is_the_one_that_the_network_runs(name, monkeypatch):
    make, x, join = NETS[name]
    right = gradients(make, x)
    real = join.backward
    monkeypatch.setattr(join, "backward", staticmethod(lambda ctx, dz: tuple(np.zeros_like(g) for g in real(ctx, dz))))
    wrong = gradients(make, x)
    assert not wrong["x"].any() and right["x"].any(), "nothing reaches the input but through the joins"
    for parameter in right:
        if not parameter.startswith("fc."):
            assert not np.array_equal(right[parameter], wrong[parameter]), parameter


@pytest.mark.parametrize("name", NETS)
def test_the_forward_pass_of_the_network_runs_the_join_too(name, monkeypatch):
    make, x, join = NETS[name]
    real, seen = join.forward, []
    monkeypatch.setattr(join, "forward", staticmethod(lambda *a, **kw: seen.append(1) or real(*a, **kw)))
    net = make()
    net(tr.tensor(x))
    blocks = [m for m in net.modules() if isinstance(m, BasicBlock | Bottleneck)] or list(net.blocks)
    assert len(seen) == len(blocks)


def as_in_the_paper(block, x):
    """The block written out, one operation per step (He et al. 2015, figure 5)."""
    y = F.relu(block.bn1(block.conv1(x)))
    if isinstance(block, Bottleneck):
        y = F.relu(block.bn2(block.conv2(y)))
        return F.relu(block.bn3(block.conv3(y)) + block.shortcut(x))
    return F.relu(block.bn2(block.conv2(y)) + block.shortcut(x))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("option", "stride"), [("A", 1), ("A", 2), ("B", 2), ("C", 1)])
@pytest.mark.parametrize("kind", [BasicBlock, Bottleneck])
def test_the_fused_block_and_the_block_as_in_the_paper_give_the_same(kind, option, stride, training):
    tr.manual_seed(4)
    channels = 8 if stride == 1 else 16
    block = kind(8, channels // (4 if kind is Bottleneck else 1), stride, option)
    for bn in block.modules():
        if isinstance(bn, nn.BatchNorm2d):
            bn.weight.data = np.random.default_rng(5).uniform(0.5, 1.5, bn.num_features)
            bn.bias.data = np.random.default_rng(6).standard_normal(bn.num_features)
            bn.running_var.data = np.random.default_rng(8).uniform(0.5, 2, bn.num_features)
            bn.running_mean.data = np.random.default_rng(9).standard_normal(bn.num_features)
        elif isinstance(bn, nn.Conv2d):
            bn.weight.data = bn.weight.data.astype(np.float64)
    block.train(training)
    statistics = {name: b.data.copy() for name, b in block.named_buffers()}
    results = []
    for run in (lambda x: block(x), lambda x: as_in_the_paper(block, x)):
        for name, b in block.named_buffers():
            b.data = statistics[name].copy()
        block.zero_grad()
        x = tr.tensor(images(3, 8, 6, 6).astype(np.float64), requires_grad=True)
        z = run(x)
        z.backward(np.random.default_rng(7).standard_normal(z.shape))
        results.append([z.data, x.grad, *(p.grad for p in block.parameters()), *(b.data for b in block.buffers())])
    for fused, plain in zip(*results, strict=True):
        np.testing.assert_allclose(fused, plain, rtol=1e-9, atol=1e-10)
    moved = any(not np.array_equal(b.data, statistics[name]) for name, b in block.named_buffers())
    assert moved == training


def check_join_is_closed_at_a_tie():
    """z > 0 decides; where branch and shortcut cancel exactly, nothing passes."""
    a, b = (tr.tensor(np.array(values), requires_grad=True) for values in ([2.0, -1.0, 1.0, 3.0], [-2.0, 1.0, 1.0, -4.0]))
    F.add_relu(a, b).backward(np.array([5.0, 6.0, 7.0, 8.0]))
    np.testing.assert_array_equal(a.grad, [0, 0, 7, 0])
    np.testing.assert_array_equal(b.grad, [0, 0, 7, 0])


def test_the_join_is_closed_at_a_tie():
    check_join_is_closed_at_a_tie()


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_what_the_shortcut_collects_elsewhere_does_not_leak_into_the_branch(backend):
    """h and r are results of other operations; r is the residual and is used again, ten times."""
    if tr.available_backends()[backend]:
        pytest.skip(f"{backend} cannot run here: {tr.available_backends()[backend]}")
    rng = np.random.default_rng(1)
    x, h, r = (tr.tensor(rng.standard_normal((4, 3, 2, 2)).astype(np.float32), requires_grad=True) for _ in range(3))
    with tr.use_backend(backend):
        a, b, c = x * 1.0, h * 1.0, r * 1.0
        y = F.batch_norm_add_relu(a, c, np.zeros(3, np.float32), np.ones(3, np.float32), training=True)
        ((y + b) + c * 10.0).backward(np.ones(y.shape, np.float32))
    np.testing.assert_array_equal(h.grad, np.ones(h.shape))
    np.testing.assert_array_equal(r.grad, 10 + (y.data > 0))
