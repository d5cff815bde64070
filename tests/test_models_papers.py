"""Networks of later papers: their sizes by arithmetic, how they begin, and values and gradients as PyTorch's."""

import numpy as np
import pytest

import tinyres as tr
from tinyres import functional as F
from tinyres import models, nn
from tinyres.errors import UsageError


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def images(n=2, size=8, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 3, size, size)).astype(np.float32)


def preact_count(depth, option, bottleneck):
    """By the paper's table: batch norms before the convolutions, so that each has its convolution's input channels."""
    n, wide = ((depth - 2) // 9, 4) if bottleneck else ((depth - 2) // 6, 1)
    total, inputs = 3 * 16 * 9, 16
    for channels in (16, 32, 64):
        for k in range(n):
            out = wide * channels
            if bottleneck:
                total += 2 * (inputs + channels + channels) + inputs * channels + 9 * channels**2 + channels * out
            else:
                total += 2 * (inputs + channels) + 9 * inputs * channels + 9 * channels**2
            if option == "B" and k == 0 and inputs != out:
                total += inputs * out
            inputs = out
    return total + 2 * inputs + 10 * inputs + 10


@pytest.mark.parametrize("depth", [20, 56, 110, 164, 1001])
@pytest.mark.parametrize("option", "AB")
def test_a_pre_activation_net_has_as_many_parameters_as_its_layers_by_the_paper(depth, option):
    build = getattr(models, f"preresnet{depth}")
    assert parameters(build(option)) == preact_count(depth, option, depth in (164, 1001))
    assert f"{preact_count(depth, option, depth in (164, 1001)):,}" in build.__doc__


def test_the_published_sizes():
    """1.7 M: He et al. 2016, table 4, which has 10.2 M for 1,001 layers, where these count 10.3. 3.4 M and 300 M: Sandler et
    al., table 4, counted by torchvision.
    """
    assert round(preact_count(164, "B", True) / 1e6, 1) == 1.7 and round(preact_count(1001, "A", True) / 1e6, 1) == 10.3
    mobile = nn.summary(models.mobilenet_v2(), (3, 224, 224))
    assert (mobile.parameters, mobile.multiply_adds) == (3_504_872, 300_774_272)
    small = nn.summary(models.mobilenet_v2_cifar())
    assert (small.parameters, small.multiply_adds) == (2_236_682, 87_976_448)
    for name, multiply_adds in (  # the convolutions are those of the nets that they come from
        ("preresnet20", 40_551_040),
        ("preresnet110", 252_887_680),
        ("fixup_resnet20", 40_551_040),
        ("fixup_resnet110", 252_887_680),
        ("preresnet164", 247_646_720),
    ):
        assert nn.summary(models.build(name)).multiply_adds == multiply_adds, name
    # resnet164's, whose projections are the same three
    assert nn.summary(models.resnet164("B")).multiply_adds == 247_646_720
    for depth, blocks in ((20, 9), (56, 27), (110, 54)):  # resnetD without its batch norms, five scalars per block, and two
        norms = 2 * (16 + 2 * (16 + 32 + 64) * blocks // 3)
        fixup = getattr(models, f"fixup_resnet{depth}")
        assert parameters(fixup()) == parameters(models.resnet(depth)) - norms + 5 * blocks + 2
        assert f"{parameters(fixup()):,}" in fixup.__doc__


def test_depths_options_and_widths_that_do_not_exist_are_explained():
    with pytest.raises(UsageError, match=r"must be 6n \+ 2 .*the nearest are 20 and 26"):
        models.build("preresnet21")
    with pytest.raises(UsageError, match=r"closest: .*fixup_resnet20"):
        models.build("fixup_resnt20")
    with pytest.raises(UsageError, match=r'shortcut must be "A" or "B" in a pre-activation net, got \'C\''):
        models.preresnet20("C")
    with pytest.raises(UsageError, match="width_mult must be above 0"):
        models.mobilenet_v2(width_mult=0)
    for survival, block in ((0.0, "basic"), (1.5, "basic"), (0.5, "bottleneck")):
        with pytest.raises(UsageError, match="survival must be a probability above 0, in a net of basic blocks"):
            models.resnet(20, survival=survival, block=block)
    assert models.build("fixup_resnet14", num_classes=4).fc.out_features == 4


def test_in_a_pre_activation_net_the_gradient_of_a_block_s_output_reaches_its_input_unchanged():
    block = models.preresnet(8).layer1[0]
    block.conv2.weight.data[...] = 0
    x = tr.tensor(np.random.default_rng(0).standard_normal((2, 16, 4, 4)).astype(np.float32), requires_grad=True)
    y, dy = block(x), np.random.default_rng(1).standard_normal((2, 16, 4, 4)).astype(np.float32)
    y.backward(dy)
    assert np.array_equal(y.data, x.data) and np.array_equal(x.grad, dy)  # no ReLU after the join: eq. 5


def test_where_shapes_change_a_pre_activation_shortcut_starts_behind_the_first_relu():
    block = models.preresnet(8, "B").layer2[0]
    block.conv2.weight.data[...] = 0
    x = tr.tensor(np.random.default_rng(0).standard_normal((2, 16, 4, 4)).astype(np.float32))
    assert np.allclose(block(x).data, block.shortcut(F.relu(block.bn1(x))).data, atol=1e-6)


def test_fixup_begins_as_its_shortcuts_and_every_first_convolution_is_scaled():
    tr.manual_seed(0)
    net = models.fixup_resnet56()
    assert not net(tr.tensor(images())).data.any()
    block = net.layer1[3]
    x = tr.tensor(np.random.default_rng(0).random((2, 16, 4, 4), np.float32))
    assert np.array_equal(block(x).data, x.data)
    std = float(np.std(np.concatenate([b.conv1.weight.data.ravel() for b in net.layer3[1:]])))
    assert abs(std / (np.sqrt(2 / (64 * 9)) * 27**-0.5) - 1) < 0.01


def test_zero_init_residual_begins_every_block_as_its_shortcut_with_the_rest_as_it_was():
    for block in ("basic", "bottleneck"):
        tr.manual_seed(0)
        usual = models.resnet(20, block=block)
        tr.manual_seed(0)
        net = models.resnet(20, block=block, zero_init_residual=True)
        last = "bn2.weight" if block == "basic" else "bn3.weight"
        for (name, a), b in zip(net.state_dict().items(), usual.state_dict().values(), strict=True):
            assert not a.any() if name.endswith(last) else np.array_equal(a, b), name


class TestStochasticDepth:
    def test_the_chance_to_keep_a_branch_falls_along_the_net_to_survival(self):
        net = models.resnet20(survival=0.5)
        found = [b.survival for stage in (net.layer1, net.layer2, net.layer3) for b in stage]
        np.testing.assert_allclose(found, [1 - k / 18 for k in range(1, 10)])
        assert net.state_dict().keys() == models.resnet20().state_dict().keys()

    def test_a_branch_is_left_out_as_often_as_that_and_then_gets_no_gradient(self):
        net = models.resnet(8, survival=0.3)
        block = net.layer3[0]
        tr.manual_seed(0)
        x = tr.tensor(np.random.default_rng(0).random((1, 32, 4, 4), np.float32), requires_grad=True)
        kept = 0
        for _ in range(300):
            net.zero_grad()
            z = block(x)
            z.backward(np.ones(z.shape, np.float32))
            kept += block.conv1.weight.grad is not None
            if block.conv1.weight.grad is None:
                assert np.array_equal(z.data, F.relu(block.shortcut(x)).data)
        assert 70 <= kept <= 110  # 90 expected, standard deviation 8

    def test_in_evaluation_the_branch_counts_as_it_did_on_the_average(self):
        block = models.resnet(8, survival=0.3).eval().layer3[0]
        x = tr.tensor(np.random.default_rng(0).random((1, 32, 4, 4), np.float32))
        branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
        np.testing.assert_allclose(block(x).data, np.maximum(0.3 * branch.data + block.shortcut(x).data, 0), rtol=1e-5)

    def test_the_same_seed_leaves_out_the_same_branches(self):
        def logits():
            tr.manual_seed(3)
            net = models.resnet(14, survival=0.5)
            return [net(tr.tensor(images())).data for _ in range(5)]

        first, again = logits(), logits()
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert any(not np.array_equal(first[0], other) for other in first[1:])

    def test_a_step_that_draws_on_the_host_is_not_captured(self):
        from tinyres.train.resident import ResidentStep

        data = tr.data.shapes(8, 4)
        net = models.resnet(8, survival=0.5)
        with tr.use_backend("cuda-emulated"):
            optimizer, how = tr.optim.SGD(net.parameters(), 0.1), {"mean": 0.0, "scale": 1.0}
            step = ResidentStep(net, optimizer, data.train_images, data.train_labels, 4, **how)
        assert step.reason == "stochastic depth draws on the host which branches are left out"


def test_bottlenecks_of_mobilenet_are_linear_unless_asked_otherwise():
    tr.manual_seed(0)
    x = tr.tensor(images(2, 16))
    outputs = {}
    for linear in (True, False):
        net = models.mobilenet_v2_cifar(linear=linear, stages=((1, 8, 1, 1), (2, 8, 2, 1)))
        blocks = [m for m in net.modules() if isinstance(m, models.InvertedResidual)]
        assert [b.joins for b in blocks] == [False, True, True]
        y = net.features[0](x)
        outputs[linear] = blocks[0](y).data
    assert outputs[True].min() < 0 and outputs[False].min() == 0


@pytest.mark.torch
@pytest.mark.parametrize("net", ["preact A", "preact B", "preact bottleneck", "fixup", "mobilenet"])
def test_values_and_gradients_are_pytorch_s(net):
    from torch.nn.functional import relu6
    from torch_nets import Twin

    tr.manual_seed(0)
    mine = {
        "preact A": lambda: models.preresnet(14, "A"),
        "preact B": lambda: models.preresnet(14, "B"),
        "preact bottleneck": lambda: models.preresnet(20, block="bottleneck"),
        "fixup": lambda: models.fixup_resnet(14),
        "mobilenet": lambda: models.mobilenet_v2_cifar(
            width_mult=0.25, stages=((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2))
        ),
    }[net]()
    twin = Twin(mine)
    conv, bn, state = twin.conv, twin.bn, twin.state

    def preact(x, name, stride):
        a = bn(x, name + ".bn1").relu()
        if name + ".conv3.weight" in state:
            y = conv(bn(conv(a, name + ".conv1"), name + ".bn2").relu(), name + ".conv2", stride)
            y = conv(bn(y, name + ".bn3").relu(), name + ".conv3")
        else:
            y = conv(bn(conv(a, name + ".conv1", stride), name + ".bn2").relu(), name + ".conv2")
        if y.shape == x.shape:
            return x + y
        projected = name + ".shortcut.weight" in state
        return y + (conv(a, name + ".shortcut", stride) if projected else twin.padded(a, y.shape[1], stride))

    def fixup(x, name, stride):
        biased = x + state[name + ".bias1a"]
        y = (conv(biased, name + ".conv1", stride) + state[name + ".bias1b"]).relu()
        y = conv(y + state[name + ".bias2a"], name + ".conv2") * state[name + ".scale"] + state[name + ".bias2b"]
        return (y + (x if y.shape == x.shape else twin.padded(biased, y.shape[1], stride))).relu()

    def mobilenet(x):
        x = relu6(bn(conv(x, "features.0.0"), "features.0.1"))
        for i, block in enumerate(list(mine.features)[1:-1], 1):
            name, entry, parts = f"features.{i}.conv", x, list(block.conv)
            for k, part in enumerate(parts[:-2]):
                x = relu6(bn(conv(x, f"{name}.{k}.0", part[0].stride[0], part[0].groups), f"{name}.{k}.1"))
            x = bn(conv(x, f"{name}.{len(parts) - 2}"), f"{name}.{len(parts) - 1}")
            x = entry + x if block.joins else x
        last = f"features.{len(mine.features) - 1}"
        x = relu6(bn(conv(x, f"{last}.0"), f"{last}.1"))
        return twin.linear(x.mean((2, 3)), "classifier.1")

    def forward(x):
        if net == "fixup":
            x = twin.stages((conv(x, "conv1") + state["bias1"]).relu(), fixup)
            return twin.linear(x.mean((2, 3)) + state["bias2"], "fc")
        return twin.linear(bn(twin.stages(conv(x, "conv1"), preact), "bn").relu().mean((2, 3)), "fc")

    if net == "mobilenet":
        mine.classifier[0].p = 0.0
    twin.agrees(mobilenet if net == "mobilenet" else forward)
