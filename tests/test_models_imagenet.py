"""ImageNet networks: sizes and names as torchvision's, values and gradients as PyTorch's; and wide residual networks."""

import hashlib

import numpy as np
import pytest

import tinyres as tr
from tinyres import models, nn
from tinyres.cli import main
from tinyres.errors import CheckpointError, UsageError
from tinyres.train import load_network, save_network
from tinyres.train.checkpoint import write
from tinyres.weights import import_weights

# torchvision 0.29: parameters, multiply-adds of one 224x224 image, and a digest of the names and shapes of the state
# (without the counters num_batches_tracked), from whose models outputs agreed to 2e-6
KNOWN = {
    "resnet18": (11_689_512, 1_814_073_344, "f70b90acc4b42e13"),
    "resnet34": (21_797_672, 3_663_761_408, "1eddc54194ca6b04"),
    "resnet50": (25_557_032, 4_089_184_256, "fa8a2ba5a01c9375"),
    "resnet101": (44_549_160, 7_801_405_440, "da89ea62078932e4"),
    "resnet152": (60_192_808, 11_513_626_624, "beda52c1587effdf"),
    "mobilenet_v2": (3_504_872, 300_774_272, "2d3450ca76d5df94"),
}


def parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", KNOWN)
def test_names_and_shapes_are_torchvision_s(name):
    net = models.build(name)
    lines = [f"{key.replace('shortcut', 'downsample')} {array.shape}" for key, array in net.state_dict().items()]
    count, _, digest = KNOWN[name]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest
    assert parameters(net) == count and f"{count:,}" in getattr(models, name).__doc__
    assert models.SIZES[name] == parameters(net) - sum(a.size for k, a in net.state_dict().items() if k[:2] in ("fc", "cl"))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_multiply_adds_are_torchvision_s(name):
    assert nn.summary(models.build(name), (3, 224, 224)).multiply_adds == KNOWN[name][1]
    assert f"{KNOWN[name][1]:,}" in getattr(models, name).__doc__


def test_plain_nets_are_the_residual_ones_without_projections():
    for depth in (18, 34):
        plain, net = models.build(f"plain{depth}"), models.build(f"resnet{depth}")
        state = {key: a.shape for key, a in net.state_dict().items() if "shortcut" not in key}
        assert state == {key: a.shape for key, a in plain.state_dict().items()}
        assert f"{parameters(plain):,}" in getattr(models, f"plain{depth}").__doc__
        assert models.SIZES[f"plain{depth}"] == parameters(plain) - parameters(plain.fc)
    assert nn.summary(models.plain18(), (3, 224, 224)).multiply_adds == 1_794_805_760


def test_options_are_those_of_the_paper():
    a, b, c = (parameters(models.resnet18(option)) for option in "ABC")
    assert a == 11_515_688 and a < b < c
    with pytest.raises(UsageError, match='shortcut must be "A", "B" or "C", got \'D\''):
        models.resnet50("D")
    tr.manual_seed(0)
    net = models.resnet50(zero_init_residual=True, num_classes=3)
    assert not net.layer3[2].bn3.weight.data.any() and net.layer3[2].bn2.weight.data.all()


def test_their_names_come_before_those_of_cifar_nets_of_the_same_depth():
    assert isinstance(models.build("resnet50"), models.ImageNetResNet)
    assert models.build("resnet44").fc.in_features == 64
    with pytest.raises(UsageError, match=r"for any other depth D = 6n \+ 2"):
        models.build("zzz")


@pytest.mark.torch
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "plain18"])
def test_values_and_gradients_are_pytorch_s_on_weights_of_torchvision_s_layout(name, tmp_path):
    import torch
    from torch_nets import Block, Twin

    tr.manual_seed(0)
    bottleneck, option = name == "resnet50", None if name.startswith("plain") else "B"
    mine = models.build(name, num_classes=10)
    kernels = (1, 3, 1) if bottleneck else (3, 3)
    theirs, inputs = {}, 64  # PyTorch's blocks, for the names and for weights of another origin
    for k, (channels, count) in enumerate(zip((64, 128, 256, 512), models.imagenet.STAGES[int(name[-2:])], strict=True), 1):
        for i in range(count):
            theirs[f"layer{k}.{i}"] = Block(inputs, channels, 2 if k > 1 and i == 0 else 1, option, kernels)
            inputs = channels * (4 if bottleneck else 1)
    torch.manual_seed(0)
    state = {f"{at}.{key}": value for at, block in theirs.items() for key, value in block.state_dict().items()}
    for key, array in mine.state_dict().items():
        if not key.startswith("layer"):
            state[key] = torch.rand(array.shape) - 0.5 if array.ndim > 1 else torch.rand(array.shape) + 0.5
    state = {key.replace("shortcut", "downsample"): value for key, value in state.items()}
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    shapes = {key: array.shape for key, array in mine.state_dict().items()}
    mine.load_state_dict(import_weights(tmp_path / "weights.pth", shapes))
    first = state["layer2.0.conv1.weight"].numpy()
    assert np.array_equal(mine.layer2[0].conv1.weight.data, first)

    twin = Twin(mine)
    conv, bn = twin.conv, twin.bn

    def block(x, at, stride):
        y = x
        for i in range(1, len(kernels) + 1):
            y = bn(conv(y, f"{at}.conv{i}", stride if i == (2 if bottleneck else 1) else 1), f"{at}.bn{i}")
            y = y.relu() if i < len(kernels) else y
        if option is None:
            return y.relu()
        projected = f"{at}.shortcut.0.weight" in twin.state
        return (y + (bn(conv(x, f"{at}.shortcut.0", stride), f"{at}.shortcut.1") if projected else x)).relu()

    def forward(x):
        x = bn(conv(x, "conv1", 2), "bn1").relu()
        x = torch.nn.functional.max_pool2d(x, 3, 2, 1)
        for at in theirs:
            x = block(x, at, 2 if at.endswith(".0") and at != "layer1.0" else 1)
        return twin.linear(x.mean((2, 3)), "fc")

    twin.agrees(forward, (2, 3, 40, 40))


def test_the_command_takes_torchvision_s_weights_and_eval_builds_the_net_again(tmp_path, capsys):
    from safetensors.numpy import save_file

    tr.manual_seed(0)
    net = models.resnet18(num_classes=10)
    file, out = tmp_path / "resnet18.safetensors", tmp_path / "ours.safetensors"
    save_file({key.replace("shortcut", "downsample"): a for key, a in net.state_dict().items()}, file)
    assert main(["import-weights", str(file), "--model", "resnet18", "--out", str(out)]) == 0
    loaded = load_network(out)
    assert loaded.network == {"name": "resnet18", "shortcut": "B", "num_classes": 10}
    assert all(np.array_equal(a, loaded.model.state_dict()[key]) for key, a in net.state_dict().items())
    assert main(["eval", str(out), "--data", "shapes", "--limit-test", "4"]) == 0
    assert "resnet18 on 4 test images" in capsys.readouterr().out


def test_a_small_file_that_names_a_large_net_is_refused(tmp_path):
    """The net would take 240 MB."""
    arrays = {f"a{i}": np.zeros(1000, np.float32) for i in range(800)} | {"fc.weight": np.zeros((10, 512), np.float32)}
    for name in ("resnet152", "wrn28_10", "mobilenet_v2"):
        network = {"name": name, "num_classes": 10}
        write(tmp_path / "x.safetensors", arrays, {}, {"network": network, "normalisation": {"mean": 0.0, "scale": 1.0}})
        with pytest.raises(CheckpointError, match="holds 801 arrays, which are not those of the network that it names"):
            load_network(tmp_path / "x.safetensors")


def test_the_summary_takes_images_of_imagenet_s_size(capsys):
    assert main(["summary", "resnet18"]) == 0
    assert "1,814,073,344" in capsys.readouterr().out
    assert main(["summary", "resnet18", "--image-size", "32", "--classes", "10"]) == 0
    assert f"{11_176_512 + 5_130:,}" in capsys.readouterr().out


# --- wide nets -----------------------------------------------------------------------------------------------------------


def wide_count(depth, width):
    """Parameters and multiply-adds by table 1: 3x3 convolutions after batch norms of their input channels, and 1x1
    convolutions where stages begin.
    """
    total = multiply_adds = 3 * 16 * 9
    multiply_adds, inputs = multiply_adds * 32**2, 16
    for size, channels in ((32, 16 * width), (16, 32 * width), (8, 64 * width)):
        for k in range((depth - 4) // 6):
            weights = 9 * inputs * channels + 9 * channels**2
            weights += inputs * channels if k == 0 and inputs != channels else 0
            total, multiply_adds = total + 2 * (inputs + channels) + weights, multiply_adds + size**2 * weights
            inputs = channels
    return total + 2 * inputs + 10 * inputs + 10, multiply_adds + 10 * inputs


@pytest.mark.parametrize(("depth", "width", "millions"), [(16, 8, 11.0), (28, 10, 36.5), (40, 2, 2.2), (40, 4, 8.9)])
def test_wide_nets_have_the_paper_s_parameters(depth, width, millions):
    """Zagoruyko and Komodakis 2016, tables 4 and 5."""
    build = getattr(models, f"wrn{depth}_{width}")
    net, (count, multiply_adds) = build(), wide_count(depth, width)
    assert parameters(net) == count and round(count / 1e6, 1) == millions
    assert nn.summary(net).multiply_adds == multiply_adds
    assert f"{parameters(net):,}" in build.__doc__
    assert models.SIZES[build.__name__] == parameters(net) - parameters(net.fc)


def test_a_wide_net_of_width_1_is_a_pre_activation_net_and_dropout_is_between_its_convolutions():
    tr.manual_seed(0)
    net, narrow = models.wide_resnet(16, 1), models.preresnet(14, "B")
    narrow.load_state_dict(net.state_dict())
    x = tr.tensor(np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32))
    assert np.array_equal(net.eval()(x).data, narrow.eval()(x).data)
    block = models.wide_resnet(10, 2, dropout=1.0).layer2[0]
    y = tr.tensor(np.random.default_rng(0).standard_normal((2, 32, 8, 8)).astype(np.float32))
    assert np.allclose(block(y).data, block.shortcut(block.bn1(y, relu=True)).data)  # nothing of the branch is left
    with pytest.raises(UsageError, match=r"a wide net has 6n \+ 4 layers, n >= 1, and a width of 1 or more, got 20 and 2"):
        models.wide_resnet(20, 2)


def test_a_wide_net_is_saved_and_built_again_by_name(tmp_path):
    net = models.wrn40_2(num_classes=4)
    save_network(tmp_path / "w.safetensors", net, {"name": "wrn40_2", "num_classes": 4}, np.zeros(()), np.ones(()))
    assert type(load_network(tmp_path / "w.safetensors").model) is models.PreactResNet
