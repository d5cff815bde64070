"""Networks as state dicts of PyTorch: its own loader reads them, and the nets of other repositories take them whole."""

import json
import zipfile

import numpy as np
import pytest

import tinyres as tr
from tinyres import export, models
from tinyres.errors import CheckpointError, UsageError
from tinyres.lab.shortcuts import NETS
from tinyres.weights import import_weights, load_file, save_torch

HEADS, SIDES = {"cifar": "linear"}, {"torchvision": "downsample"}
NETWORKS = {
    **{f"resnet20 {o}": (lambda o=o: models.resnet20(o), 3, o, (3, 3)) for o in "ABC"},
    "plain20": (models.plain20, 3, None, (3, 3)),
    "bottleneck-164": (lambda: models.resnet164("B"), 18, "B", (1, 3, 1)),
    "stochastic depth": (lambda: models.resnet(14, survival=0.5), 2, "A", (3, 3)),
}


def settled(net):
    """With running statistics and vectors that are not at their neutral start."""
    random = np.random.default_rng(0)
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if tensor.ndim == 1:
            tensor.data[...] = random.uniform(0.8, 1.2, tensor.shape) * (0.1 if "mean" in name or "bias" in name else 1)
    return net


@pytest.mark.torch
@pytest.mark.parametrize("form", ["torch", "safetensors"])
@pytest.mark.parametrize("naming", export.NAMINGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_nets_of_other_repositories_take_the_weights_and_give_the_same_logits(name, naming, form, tmp_path):
    import torch
    import torch_nets
    from safetensors.torch import load_file as load_tensors

    if (naming, name) == ("tinyres", "stochastic depth"):
        return  # which keeps our own meaning: see below
    tr.manual_seed(0)
    build, *shape = NETWORKS[name]
    net, path = settled(build()), tmp_path / "net.file"
    (export.to_torch if form == "torch" else export.to_safetensors)(net, path, naming)
    state = torch.load(path, weights_only=True) if form == "torch" else load_tensors(path)
    other = torch_nets.Net(*shape, head=HEADS.get(naming, "fc"), side=SIDES.get(naming, "shortcut"))
    if naming != "tinyres":
        assert set(state) == set(other.state_dict())
    other.load_state_dict(state, strict=True)
    images = np.random.default_rng(1).standard_normal((2, 3, 16, 16), np.float32)
    with torch.no_grad(), tr.no_grad():
        theirs, ours = other.eval()(torch.from_numpy(images)).numpy(), net.eval()(tr.tensor(images)).data
    assert np.isfinite(ours).all() and ours.std() > 0
    np.testing.assert_allclose(theirs, ours, atol=1e-4 * max(1, np.abs(ours).max()))


@pytest.mark.parametrize("naming", export.NAMINGS)
@pytest.mark.parametrize(
    "build",
    [lambda: models.resnet(8, "B"), lambda: models.resnet(11, "C", "bottleneck"), lambda: models.plain18(num_classes=3)],
)
def test_what_is_exported_comes_back(build, naming, tmp_path):
    net = settled(build())
    arrays = net.state_dict()
    target = {name: array.shape for name, array in arrays.items()}
    for write in (export.to_torch, export.to_safetensors):
        write(net, tmp_path / "net.file", naming)
        back = import_weights(tmp_path / "net.file", target)
        assert all(np.array_equal(array, arrays[name]) for name, array in back.items())


def test_names_are_those_of_the_repositories():
    net = models.resnet(8, "B")
    cifar, torchvision = (set(export.named_state(net, naming)) for naming in ("cifar", "torchvision"))
    assert {"linear.bias", "layer2.0.shortcut.1.running_var", "layer1.0.bn2.num_batches_tracked"} <= cifar
    assert {"fc.bias", "layer2.0.downsample.1.running_var", "layer1.0.bn2.num_batches_tracked"} <= torchvision
    assert set(export.named_state(net)) == set(net.state_dict())
    mobile = models.mobilenet_v2(width_mult=0.35)
    assert set(export.named_state(mobile, "torchvision")) >= set(mobile.state_dict())


@pytest.mark.parametrize(
    ("net", "naming", "says"),
    [
        (lambda: models.preresnet20(), "cifar", "it is a PreactResNet"),
        (lambda: models.fixup_resnet20(), "torchvision", "it is a FixupResNet"),
        (lambda: NETS["gated"](8), "cifar", "it has blocks of the kind Gated"),
        (lambda: NETS["scaled by 0.5"](8), "torchvision", "it has blocks of the kind Scaled"),
        (lambda: models.mobilenet_v2_cifar(width_mult=0.35), "cifar", "it is a MobileNetV2"),
        (lambda: models.mobilenet_v2_cifar(width_mult=0.35, linear=False), "torchvision", "bottlenecks are not linear"),
        (lambda: models.resnet(8), "keras", "no naming is called 'keras'; there are: tinyres, cifar, torchvision"),
    ],
)
def test_a_network_that_a_repository_has_no_names_for_is_one_error(net, naming, says, tmp_path):
    with pytest.raises(UsageError, match=says):
        export.to_torch(net(), tmp_path / "net.pth", naming)
    assert not list(tmp_path.iterdir())


def test_our_own_naming_is_for_every_network_and_keeps_its_meaning():
    net = settled(models.resnet(8, survival=0.5))
    for name, array in export.named_state(net).items():
        assert np.array_equal(array, net.state_dict()[name])
    last = "layer3.0.bn2.weight"  # the last branch counts by half
    np.testing.assert_array_equal(export.named_state(net, "cifar")[last], 0.5 * net.state_dict()[last])


def test_safetensors_say_what_the_network_is(tmp_path):
    net = models.resnet(8)
    net.normalisation = np.float32(0.5), np.float32(2)
    export.to_safetensors(net, tmp_path / "net.safetensors", classes=["a", "b"])
    said = load_file(tmp_path / "net.safetensors")[1]
    assert said.pop("format") == "pt"
    found = {key: json.loads(value) for key, value in said.items()}
    assert found == {"network": {"name": "resnet8"}, "classes": ["a", "b"], "normalisation": {"mean": 0.5, "scale": 2.0}}


# --- the writer ----------------------------------------------------------------------------------------------------------


@pytest.mark.torch
def test_pytorch_reads_arrays_of_every_type_and_layout(tmp_path):
    import torch

    arrays = {
        **{kind: np.array([[0, 1, 100]]).astype(kind) for kind in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "?")},
        "transposed é": np.arange(6.0).reshape(2, 3).T,
        "big endian": np.arange(3, dtype=">f4"),
        "scalar": np.array(7),
        "empty": np.zeros((0, 3), np.float32),
    }
    save_torch(tmp_path / "net.pth", arrays)
    for found in (torch.load(tmp_path / "net.pth", weights_only=True), load_file(tmp_path / "net.pth")[0]):
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(np.asarray(found[name]), array.astype(array.dtype.newbyteorder("=")), strict=True)


def test_equal_weights_make_equal_files_and_what_cannot_be_written_is_an_error(tmp_path):
    arrays = {"w": np.ones(3, np.float32)}
    for name in ("a.pth", "b.pth"):
        save_torch(tmp_path / name, arrays)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    assert {entry.date_time[0] for entry in zipfile.ZipFile(tmp_path / "a.pth").infolist()} == {1980}  # not the time of day
    with pytest.raises(CheckpointError, match="cannot save 'w': PyTorch has no tensors of complex64"):
        save_torch(tmp_path / "c.pth", {"w": np.ones(3, np.complex64)})
    with pytest.raises(CheckpointError, match=r"cannot write .*no/c\.pth: No such file"):
        save_torch(tmp_path / "no" / "c.pth", arrays)
