"""CIFAR networks: counts as published, names as in published weights, values and gradients as PyTorch's."""

import inspect
import pickle
import pydoc
import re

import numpy as np
import pytest

import tinyres as tr
from tinyres import functional as F
from tinyres import models, nn
from tinyres.errors import ShapeError, UsageError

DEPTHS = (20, 32, 44, 56, 110, 1202)

# (parameters, multiply-adds of one image) by depth and shortcut option
COUNTS = {
    (20, "A"): (269_722, 40_551_040),
    (20, "B"): (272_474, 40_813_184),
    (20, "C"): (283_962, 42_648_192),
    (32, "A"): (464_154, 68_862_592),
    (32, "B"): (466_906, 69_124_736),
    (32, "C"): (489_594, 72_532_608),
    (44, "A"): (658_586, 97_174_144),
    (44, "B"): (661_338, 97_436_288),
    (44, "C"): (695_226, 102_417_024),
    (56, "A"): (853_018, 125_485_696),
    (56, "B"): (855_770, 125_747_840),
    (56, "C"): (900_858, 132_301_440),
    (110, "A"): (1_727_962, 252_887_680),
    (110, "B"): (1_730_714, 253_149_824),
    (110, "C"): (1_826_202, 266_781_312),
    (1202, "A"): (19_421_274, 2_829_238_912),
    (1202, "B"): (19_424_026, 2_829_501_056),
    (1202, "C"): (20_538_714, 2_986_263_168),
}


def count(depth, option):
    """Parameters and multiply-adds by section 4.2: 6n + 2 layers on maps of 32, 16 and 8 with 16, 32 and 64 channels."""
    parameters = multiply_adds = 0

    def conv(size, inputs, outputs, window):
        nonlocal parameters, multiply_adds
        parameters += inputs * outputs * window**2 + 2 * outputs  # and its batch norm's
        multiply_adds += size**2 * inputs * outputs * window**2

    conv(32, 3, 16, 3)
    inputs = 16
    for size, channels in ((32, 16), (16, 32), (8, 64)):
        for _ in range((depth - 2) // 6):
            conv(size, inputs, channels, 3)
            conv(size, channels, channels, 3)
            if option == "C" or (option == "B" and inputs != channels):
                conv(size, inputs, channels, 1)
            inputs = channels
    return parameters + 64 * 10 + 10, multiply_adds + 64 * 10


@pytest.mark.parametrize("depth, option", [(d, o) for d in DEPTHS for o in "ABC"])
def test_residual_nets_have_the_paper_s_parameters_and_multiply_adds(depth, option):
    table = nn.summary(models.build(f"resnet{depth}", shortcut=option))
    assert (table.parameters, table.multiply_adds) == COUNTS[depth, option] == count(depth, option)


@pytest.mark.parametrize("depth", DEPTHS)
def test_plain_nets_have_the_counts_of_option_a(depth):
    net = models.build(f"plain{depth}")
    table = nn.summary(net)
    assert (table.parameters, table.multiply_adds) == COUNTS[depth, "A"]
    assert not any("shortcut" in name for name, _ in net.named_modules())


def test_the_paper_prints_these_sizes_in_millions():
    assert [round(COUNTS[depth, "A"][0] / 1e6, 2) for depth in DEPTHS] == [0.27, 0.46, 0.66, 0.85, 1.73, 19.42]


def test_a_plain_net_starts_with_the_weights_of_its_residual_twin():
    tr.manual_seed(3)
    residual = models.resnet20().state_dict()
    tr.manual_seed(3)
    plain = models.plain20().state_dict()
    assert list(plain) == list(residual)
    assert all(np.array_equal(plain[name], residual[name]) for name in plain)


def test_tensors_have_the_names_of_published_weights():
    names = list(models.resnet20(shortcut="B").state_dict())
    bn = [f"{{}}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    expected = ["conv1.weight", *(name.format("bn1") for name in bn)]
    for stage in (1, 2, 3):
        for block in (0, 1, 2):
            at = f"layer{stage}.{block}"
            for i in (1, 2):
                expected += [f"{at}.conv{i}.weight", *(name.format(f"{at}.bn{i}") for name in bn)]
            if stage > 1 and block == 0:
                expected += [f"{at}.shortcut.0.weight", *(name.format(f"{at}.shortcut.1") for name in bn)]
    assert names == [*expected, "fc.weight", "fc.bias"]


def test_option_c_projects_in_every_block_and_option_b_where_shapes_change():
    kinds = {o: [type(b.shortcut).__name__ for b in models.resnet(14, o).layer2] for o in "ABC"}
    assert kinds == {"A": ["SubsamplePad", "Identity"], "B": ["Sequential", "Identity"], "C": ["Sequential"] * 2}


@pytest.mark.parametrize("option", "ABC")
def test_a_block_may_halve_its_map_without_widening(option):
    block = models.BasicBlock(4, 4, 2, option)
    assert block(tr.tensor(np.ones((2, 4, 6, 6), np.float32))).shape == (2, 4, 3, 3)


def test_bottlenecks_widen_fourfold_and_stride_in_their_3x3_convolution():
    net = models.resnet164()
    assert [len(layer) for layer in (net.layer1, net.layer2, net.layer3)] == [18, 18, 18]
    block = net.layer2[0]
    assert [c.weight.shape for c in (block.conv1, block.conv2, block.conv3)] == [
        (32, 64, 1, 1),
        (32, 32, 3, 3),
        (128, 32, 1, 1),
    ]
    assert [c.stride for c in (block.conv1, block.conv2, block.conv3)] == [(1, 1), (2, 2), (1, 1)]
    table = nn.summary(net)
    shapes = {row.name: row.output_shape for row in table.rows}
    assert shapes["layer1.0.shortcut"] == (64, 32, 32) and shapes["layer3.17.bn3"] == (256, 8, 8)
    assert table.parameters == 1_661_274 == (464 + 3_776 + 17 * 4_544 + 15_744 + 17 * 17_792 + 62_208 + 17 * 70_400 + 2_570)
    assert len([row for row in table.rows if row.type in ("Conv2d", "Linear")]) == 164


def test_classes_and_channels_are_free_and_other_map_sizes_work():
    net = models.resnet(8, num_classes=100, in_channels=1)
    assert net(tr.tensor(np.zeros((2, 1, 28, 28), np.float32))).shape == (2, 100)
    assert models.plain(8, num_classes=7)(tr.tensor(np.zeros((2, 3, 32, 32), np.float32))).shape == (2, 7)
    with pytest.raises(ShapeError):
        net(tr.tensor(np.zeros((2, 3, 28, 28), np.float32)))


def test_options_that_do_not_exist_are_explained():
    for depth, near in ((21, "20 and 26"), (7, "8 and 14"), (-4, "8 and 14"), (19, "14 and 20"), (20.0, "20 and 26")):
        with pytest.raises(UsageError, match=rf"must be 6n \+ 2 .*got {depth}; the nearest are {near}"):
            models.resnet(depth)
    with pytest.raises(UsageError, match=r"9n \+ 2 .*the nearest are 11 and 20"):
        models.resnet(15, block="bottleneck")
    with pytest.raises(ValueError, match=r"the nearest are 56 and 62"):
        models.plain(60)
    with pytest.raises(UsageError, match='shortcut must be "A", "B" or "C", got \'a\''):
        models.resnet20(shortcut="a")
    with pytest.raises(UsageError, match='block must be "basic" or "bottleneck"'):
        models.resnet(20, block="wide")


def test_nets_are_built_by_name_and_a_wrong_name_brings_the_closest():
    assert {"resnet20", "plain1202", "resnet164"} <= set(models.NAMES)
    assert models.build("resnet20", num_classes=4).fc.out_features == 4
    assert models.build("resnet14").state_dict().keys() == models.resnet(14).state_dict().keys()
    assert models.build("plain8", num_classes=3).state_dict().keys() == models.plain(8).state_dict().keys()
    told = r"no network is called 'resnett20'; closest: .*resnet20.*any other depth D = 6n \+ 2"
    with pytest.raises(UsageError, match=told):
        models.build("resnett20")
    with pytest.raises(UsageError, match=r"must be 6n \+ 2 with n >= 1, got 21; the nearest are 20 and 26"):
        models.build("resnet21")
    with pytest.raises(UsageError, match=r"there are: resnet20, .*plain1202"):
        models.build("zzz")
    with pytest.raises(UsageError, match="plain20 takes no option shortcut; it takes num_classes, in_channels"):
        models.build("plain20", shortcut="B")


@pytest.mark.parametrize("name", models.NAMES)
def test_help_for_a_net_shows_its_options_shapes_and_parameters(name):
    build, text = getattr(models, name), pydoc.plain(pydoc.render_doc(getattr(models, name)))
    assert f"\n{name}({', '.join(map(str, inspect.signature(build).parameters.values()))}) -> " in text
    assert all(f"``{option}``" in text for option in inspect.signature(build).parameters)
    assert "arXiv 1" in text and re.search(r"images \(N, 3, (\d+), \1\) -> logits \(N, 10+\)", text)
    found = re.fullmatch(r"(resnet|plain)(\d+)", name)
    if not found or name in models.IMAGENET:
        return  # their numbers: test_models_papers.py, test_models_imagenet.py
    kind, depth = found[1], int(found[2])
    assert f"A {kind.replace('resnet', 'residual')} net of {depth} layers" in text
    for option in "A" if kind == "plain" else "ABC":
        counted = sum(p.numel() for p in build(option).parameters()) if depth == 164 else COUNTS[depth, option][0]
        assert f"{counted:,}" in text


def test_help_for_resnet20_in_full():
    text = inspect.getdoc(models.resnet20)
    assert (
        "layer1: 3 basic blocks           (N, 16, 32, 32)" in text
        and "layer3: 3 basic blocks           (N, 64, 8, 8)" in text
    )
    assert 'Parameters: 269,722 with shortcut "A", 272,474 with "B", 283,962 with "C".' in text
    assert "layer3: 18 bottleneck blocks     (N, 256, 8, 8)" in inspect.getdoc(models.resnet164)


@pytest.mark.parametrize("name", models.NAMES)
def test_the_functions_that_build_nets_can_be_pickled(name):
    assert pickle.loads(pickle.dumps(getattr(models, name))) is getattr(models, name)


def test_a_block_whose_branch_is_zero_passes_its_input_on_and_the_gradient_back():
    block = models.resnet(8).layer1[0]
    block.bn2.weight.data[...] = 0
    x = tr.tensor(np.random.default_rng(0).uniform(0.1, 1, (2, 16, 4, 4)).astype(np.float32), requires_grad=True)
    z = block(x)
    dz = np.random.default_rng(1).standard_normal(z.shape).astype(np.float32)
    z.backward(dz)
    assert np.allclose(z.data, x.data) and np.allclose(x.grad, dz)
    plain = models.plain(8).layer1[0]
    plain.bn2.weight.data[...] = 0
    x.grad = None
    plain(x).backward(dz)
    assert not x.grad.any()


@pytest.mark.parametrize("option", "ABC")
def test_a_block_is_relu_of_branch_plus_shortcut(option):
    block = models.resnet(8, option).layer2[0]
    x = tr.tensor(np.random.default_rng(0).standard_normal((2, 16, 8, 8)).astype(np.float32))
    y = F.relu(block.bn1(block.conv1(x)))
    z = F.relu(block.bn2(block.conv2(y)) + block.shortcut(x))
    assert np.allclose(block(x).data, z.data, atol=1e-5)


def test_a_small_net_learns_a_batch_by_heart():
    tr.manual_seed(0)
    rng = np.random.default_rng(0)
    x, labels = tr.tensor(rng.standard_normal((16, 3, 8, 8)).astype(np.float32)), rng.integers(0, 10, 16)
    net = models.resnet(8)
    optimizer = tr.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.torch
@pytest.mark.parametrize("net", ["A", "B", "C", "bottleneck", "plain"])
def test_values_and_gradients_are_pytorch_s(net):
    from torch_nets import Twin

    tr.manual_seed(0)
    if net == "plain":
        mine = models.plain(14)
    elif net == "bottleneck":
        mine = models.resnet(11, block="bottleneck")
    else:
        mine = models.resnet(14, net)
    twin = Twin(mine)
    conv, bn = twin.conv, twin.bn

    def block(x, name, stride):
        if net == "bottleneck":
            y = bn(conv(x, name + ".conv1"), name + ".bn1").relu()
            y = bn(conv(y, name + ".conv2", stride), name + ".bn2").relu()
            y = bn(conv(y, name + ".conv3"), name + ".bn3")
        else:
            y = bn(conv(x, name + ".conv1", stride), name + ".bn1").relu()
            y = bn(conv(y, name + ".conv2"), name + ".bn2")
        if net == "plain":
            return y.relu()
        projected = name + ".shortcut.0.weight" in twin.state
        past = (
            bn(conv(x, name + ".shortcut.0", stride), name + ".shortcut.1")
            if projected
            else twin.padded(x, y.shape[1], stride)
        )
        return (y + past).relu()

    twin.agrees(lambda x: twin.linear(twin.stages(bn(conv(x, "conv1"), "bn1").relu(), block).mean((2, 3)), "fc"))
