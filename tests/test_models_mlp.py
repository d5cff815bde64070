"""Fully connected residual blocks: equations 1 and 2 of the paper, and nets of them."""

import numpy as np
import pytest

import tinyres as tr
from tinyres import functional as F
from tinyres.errors import UsageError
from tinyres.models import ResidualLinearBlock, ResidualMLP


def row(*shape, seed=0):
    return tr.tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), requires_grad=True)


def weights(block):
    return [layer.weight.data for layer in (block.fc1, block.fc2)]


def test_equation_1_adds_the_input():
    block, x = ResidualLinearBlock(5, 5), row(3, 5)
    w1, w2 = weights(block)
    assert np.allclose(block(x).data, np.maximum(x.data @ w1.T, 0) @ w2.T + x.data, atol=1e-5)


def test_equation_2_projects_the_input_where_sizes_differ():
    block, x = ResidualLinearBlock(5, 4), row(3, 5)
    w1, w2 = weights(block)
    ws = block.shortcut.weight.data
    assert ws.shape == (4, 5) and block.shortcut.bias is None
    assert np.allclose(block(x).data, np.maximum(x.data @ w1.T, 0) @ w2.T + x.data @ ws.T, atol=1e-5)


def test_the_gradient_passes_through_a_block_whose_branch_is_zero():
    block, x = ResidualLinearBlock(5, 5), row(3, 5)
    block.fc2.weight.data[...] = 0
    dy = row(3, 5, seed=1).data
    block(x).backward(dy)
    assert np.array_equal(x.grad, dy)


def test_the_plain_counterpart_has_the_same_parameters_and_no_shortcut():
    tr.manual_seed(1)
    residual = ResidualMLP(2, 8, 3, 4)
    tr.manual_seed(1)
    plain = ResidualMLP(2, 8, 3, 4, residual=False)
    mine, theirs = residual.state_dict(), plain.state_dict()
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        assert np.allclose(value * (3**0.5 if name.endswith("fc2.weight") else 1), theirs[name])
    assert sum(p.numel() for p in plain.parameters()) == (2 * 8 + 8) + 6 * (8 * 8 + 8) + (8 * 4 + 4)
    x = row(6, 2)
    hidden, plain_hidden = (F.relu(net.stem(x)) for net in (residual, plain))
    for block, plain_block in zip(residual.blocks, plain.blocks, strict=True):
        hidden = F.relu(block.fc2(F.relu(block.fc1(hidden))) + hidden)
        plain_hidden = F.relu(plain_block.fc2(F.relu(plain_block.fc1(plain_hidden))))
    assert np.allclose(residual(x).data, residual.fc(hidden).data, atol=1e-5)
    assert np.allclose(plain(x).data, plain.fc(plain_hidden).data, atol=1e-5)


@pytest.mark.parametrize("residual", [True, False])
def test_deep_nets_start_with_signals_of_the_size_of_their_input(residual):
    tr.manual_seed(0)
    net = ResidualMLP(256, 256, 50, 1, residual=residual)
    x = row(32, 256)
    out = []
    net.fc.register_forward_pre_hook(lambda module, args: out.append(args[0].data))
    net(x)
    assert 0.2 < np.sqrt(np.mean(out[0] ** 2)) < 5


def test_a_net_without_blocks_is_refused():
    with pytest.raises(UsageError, match="number of blocks, 1 or more, got 0"):
        ResidualMLP(2, 8, 0, 1)


def test_where_the_branches_shrink_the_signal_only_the_residual_net_has_a_gradient():
    gradients = {}
    for residual in (True, False):
        net = ResidualMLP(4, 16, 20, 1, residual=residual)
        for block in net.blocks:
            block.fc2.weight.data[...] *= 0.01
        x = row(8, 4)
        net(x).sum().backward()
        gradients[residual] = np.abs(x.grad).max()
    assert gradients[True] > 1e-3 and gradients[False] < 1e-30
