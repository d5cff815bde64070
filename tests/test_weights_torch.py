"""What ``torch.save`` writes, in both of its formats, against what ``torch.load`` reads."""

import collections
import functools
import pathlib
import warnings

import numpy as np
import pytest

from tinyres.errors import CheckpointError
from tinyres.weights import load_file

torch = pytest.importorskip("torch", reason="PyTorch, which writes the files to compare with, is not installed")

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])


def save(content, path, zipped, **options):
    torch.save(content, path, _use_new_zipfile_serialization=zipped, **options)


def assert_reads_like_torch(path, state):
    loaded = torch.load(path, weights_only=False)
    loaded = loaded.get("state_dict", loaded)
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    arrays, metadata = load_file(path)
    assert list(arrays) == list(state) and metadata == {}
    for name, tensor in loaded.items():
        expected = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
        np.testing.assert_array_equal(arrays[name], expected, strict=True, err_msg=name)


def network():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8, 4)
    )
    return net.to(memory_format=torch.channels_last)


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_checkpoint_of_a_training_run(zipped, protocol, tmp_path):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.rand(2, 3, 3, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10, 20])
    content = {
        "epoch": 3,
        "arch": "résnet",
        "best_acc1": torch.tensor(91.5),
        "state_dict": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
        "shape": torch.Size([1, 2]),
        "device": torch.device("cuda:0"),
    }
    save(content, tmp_path / "checkpoint.pth", zipped, pickle_protocol=protocol)
    assert_reads_like_torch(tmp_path / "checkpoint.pth", net.state_dict())


@FORMATS
def test_views_of_every_layout(zipped, tmp_path):
    base = torch.arange(120.0)
    state = {
        "whole": base,
        "tail": base[100:],
        "transposed": base.view(10, 12).t(),
        "steps": base.view(10, 12)[1::3, 2::5],
        "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "permuted": torch.rand(2, 3, 4).permute(2, 0, 1),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "no elements of a view": base[:0],
        "parameter": torch.nn.Parameter(torch.rand(3)),
        "one index": torch.rand(3, 1, 5)[:, :, 2:3],
    }
    save(state, tmp_path / "views.pt", zipped)
    assert_reads_like_torch(tmp_path / "views.pt", state)


@FORMATS
def test_every_element_type(zipped, tmp_path):
    types = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    values = torch.tensor([0.0, 1.0, 3.5, 100.0])
    state = {name: values.to(getattr(torch, name)) for name in types}
    state |= {f"{name} scalar": tensor[2] for name, tensor in state.items()}
    state["not finite"] = torch.tensor([float("inf"), float("-inf"), 1e-40]).bfloat16()
    save(state, tmp_path / "types.pt", zipped)
    assert_reads_like_torch(tmp_path / "types.pt", state)


@FORMATS
def test_a_state_dict_saved_alone_and_in_an_ordered_dict_with_metadata(zipped, tmp_path):
    state = network().state_dict()
    assert isinstance(state, collections.OrderedDict) and state._metadata
    save(state, tmp_path / "state.pt", zipped)
    assert_reads_like_torch(tmp_path / "state.pt", state)


class Own(torch.nn.Module):
    """A class of one's own, with layers in layers, a shared one, a function, and a class that is kept."""

    def __init__(self):
        super().__init__()
        self.stem, self.activation, self.norm = network(), torch.nn.functional.relu, torch.nn.BatchNorm2d
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Identity(), torch.nn.Linear(2, 2)])
        self.again, self.nothing = self.blocks[0], None
        self.scale = torch.nn.Parameter(torch.rand(1))
        self.register_buffer("mean", torch.rand(3))
        self.register_parameter("bias", None)
        self.options = {"names": ["a", "b"], "sizes": (1, 2)}


@FORMATS
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("build", [network, Own, lambda: torch.nn.DataParallel(Own())], ids=["layers", "own", "wrapped"])
def test_a_whole_model_is_read_without_running_it(build, protocol, zipped, tmp_path, monkeypatch):
    model = build()
    for content in (model, {"epoch": 3, "model": model}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the old format warns about classes without source
            save(content, tmp_path / "model.pt", zipped, pickle_protocol=protocol)
        with monkeypatch.context() as patch:
            patch.setattr(Own, "__setstate__", lambda *_: pytest.fail("it was run"))
            patch.setattr(torch.nn.Module, "__setstate__", lambda *_: pytest.fail("it was run"))
            arrays, _ = load_file(tmp_path / "model.pt")
        assert list(arrays) == list(model.state_dict())
        for name, tensor in model.state_dict().items():
            np.testing.assert_array_equal(arrays[name], tensor.numpy(), strict=True, err_msg=name)


class Odd(torch.nn.Module):
    """A layer that keeps something in a way of its own, or is kept so."""

    def __init__(self, what=None):
        super().__init__()
        self.what = what


class Slotted(Odd):
    def __getstate__(self):
        return [1, 2]


@FORMATS
@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (
            lambda: Odd(functools.partial(torch.nn.Linear, 2)),
            r"asks to run functools\.partial: refused.*model\.state_dict\(\)",
        ),
        (lambda: Odd(pathlib.PurePosixPath("a")), r"asks to run pathlib\.PurePosixPath: refused"),
        (lambda: Slotted(), r"'1' in its model is a test_weights_torch\.Slotted without _parameters, so no plain module"),
        (lambda: torch.nn.Linear(2, 2).to("meta"), r"asks to run torch\._utils\._rebuild_meta_tensor"),
    ],
)
def test_a_model_that_is_not_plain_is_refused_with_the_reason(odd, says, zipped, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(torch.nn.Sequential(torch.nn.ReLU(), odd()), tmp_path / "model.pt", zipped)
    with pytest.raises(CheckpointError, match=says):
        load_file(tmp_path / "model.pt")


def test_a_program_of_torchscript_is_refused_as_such(tmp_path):
    class Double(torch.nn.Module):
        def forward(self, x):
            return x * 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Double(), torch.zeros(1)), tmp_path / "program.pt")
    with pytest.raises(CheckpointError, match=r"asks to run __torch__\..*it is a TorchScript program"):
        load_file(tmp_path / "program.pt")


@FORMATS
def test_types_that_numpy_cannot_hold_are_refused_by_name(zipped, tmp_path):
    save({"w": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "w.pt", zipped)
    with pytest.raises(CheckpointError, match=r"torch\.ComplexFloatStorage: refused"):
        load_file(tmp_path / "w.pt")


@FORMATS
def test_a_tensor_that_repeats_elements_is_refused_with_the_way_out(zipped, tmp_path):
    save({"w": torch.ones(1).expand(1000, 1000)}, tmp_path / "w.pt", zipped)
    with pytest.raises(CheckpointError, match=r"tensor 'w'.*must be saved as \.contiguous\(\)"):
        load_file(tmp_path / "w.pt")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_plain_values_beside_the_weights_do_not_refuse_the_file(zipped, protocol, tmp_path):
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.no_decay = True
    beside = {
        "dtypes": [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.uint8],
        "sets": [{"a", 1, (2, 3)}, set(), frozenset({1})] if protocol >= 4 else [{"a", 1}],
        "bytes": [b"", b"abc" * 100, bytearray(b"a")],
        "keys": {(3, 3): 5, 0.5: 1, None: 1, True: 1, 1j: 2, b"x": 3, "good": 4},
        "numbers": [1j, 2**70, -1.5],
        "parameter": parameter,
        "sizes": [torch.Size([1, 2])],
    }
    state = torch.nn.Linear(2, 2).state_dict()
    path = tmp_path / "file.pt"
    saved = {"state_dict": state, **beside}
    torch.save(saved, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    arrays = load_file(path)[0]
    assert sorted(arrays) == ["bias", "weight"]
    np.testing.assert_array_equal(arrays["weight"], state["weight"].numpy())
