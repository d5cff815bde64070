"""Module: what it registers, saves, loads, casts and prints."""

import copy

import numpy as np
import pytest

import tinyres as tr
from tinyres import functional as F
from tinyres import nn
from tinyres.errors import CheckpointError, UsageError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter([2.0])
        self.body = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2, bias=False)

    def forward(self, x):
        return self.head(self.body(x)) * self.scale


NAMES = ["scale", "body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias", "head.weight"]
BUFFERS = ["body.2.running_mean", "body.2.running_var"]


def test_parameters_and_buffers_are_listed_in_order_of_assignment():
    net = Net()
    assert [name for name, _ in net.named_parameters()] == NAMES
    assert [name for name, _ in net.named_buffers()] == BUFFERS
    assert list(net.state_dict()) == NAMES[:5] + BUFFERS + NAMES[5:]
    assert [name for name, _ in net.named_modules()] == ["", "body", "body.0", "body.1", "body.2", "head"]
    assert list(net.children()) == [net.body, net.head]
    assert next(net.buffers()) is net.body[2].running_mean


def test_a_parameter_requires_a_gradient_and_owns_its_array():
    array = np.ones(3)
    parameter = nn.Parameter(array)
    array[:] = 5
    assert parameter.requires_grad and parameter.dtype == np.float64 and parameter.data.max() == 1
    assert nn.Parameter([1, 2]).dtype == nn.Parameter(np.ones(2, np.float16)).dtype == np.float32


def test_a_shared_parameter_is_listed_once_but_saved_under_both_names():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert [name for name, _ in net.named_parameters()] == ["0.weight", "0.bias", "1.bias"]
    assert "1.weight" in net.state_dict()
    shared = nn.Sequential(net[0], net[0])
    assert len(list(shared.parameters())) == 2 and len(list(shared.modules())) == 2


def test_replacing_an_attribute_replaces_the_registration():
    net = Net()
    net.head = None
    assert "head.weight" not in net.state_dict()
    net.head = nn.Linear(4, 5)
    assert net.state_dict()["head.weight"].shape == (5, 4)
    del net.scale
    assert "scale" not in net.state_dict()


def test_train_eval_and_apply_reach_every_module_and_return_the_model():
    net = Net()
    assert net.eval() is net and not any(module.training for module in net.modules())
    assert net.train() is net and all(module.training for module in net.modules())
    seen = []
    assert net.apply(seen.append) is net
    assert seen[-1] is net and len(seen) == 6


def test_zero_grad_forgets_gradients():
    net = Net()
    net(tr.tensor(np.ones((2, 3), np.float32))).sum().backward()
    assert net.scale.grad is not None
    net.zero_grad()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_state_dict_does_not_follow_later_changes():
    net = Net()
    state = net.state_dict()
    net.scale.data += 1
    assert state["scale"] == 2


def test_a_saved_state_comes_back_in_place_and_keeps_the_dtype():
    source, target = Net(), Net().double()
    source.body[2].running_mean.data[...] = 3
    array = target.scale.data
    assert target.load_state_dict(source.state_dict()) == ([], [])
    assert target.scale.data is array and array.dtype == np.float64
    for name, value in source.state_dict().items():
        assert np.array_equal(target.state_dict()[name], value)


def test_load_state_dict_takes_tensors():
    net = nn.Linear(2, 1, bias=False)
    net.load_state_dict({"weight": tr.tensor([[1.0, 2.0]])})
    assert net.weight.data.tolist() == [[1, 2]]


def test_a_state_that_does_not_fit_is_reported_whole_and_nothing_is_loaded():
    net = Net()
    before = net.state_dict()
    state = {name: value + 1 for name, value in before.items()}
    del state["scale"]
    state["head.weight"] = np.zeros((2, 5))
    state["body.0.bias"] = np.array(["a"] * 4)
    state["tail.weight"] = np.zeros(1)
    with pytest.raises(CheckpointError) as error:
        net.load_state_dict(state)
    for part in (
        "missing: scale (1,)",
        "unexpected: tail.weight",
        "head.weight is (2, 5), the model has (2, 4)",
        "not numbers: body.0.bias",
    ):
        assert part in str(error.value)
    for name, value in net.state_dict().items():
        assert np.array_equal(value, before[name])


def test_without_strict_names_may_differ_but_shapes_may_not():
    net = nn.Linear(2, 1)
    result = net.load_state_dict({"weight": np.ones((1, 2)), "extra": np.ones(1)}, strict=False)
    assert result.missing_keys == ["bias"] and result.unexpected_keys == ["extra"]
    assert net.weight.data.tolist() == [[1, 1]]
    with pytest.raises(CheckpointError, match="mis-shaped: weight"):
        net.load_state_dict({"weight": np.ones((2, 1))}, strict=False)


def test_double_and_float_cast_parameters_and_buffers():
    net = Net().double()
    assert {value.dtype for value in net.state_dict().values()} == {np.dtype(np.float64)}
    net(tr.tensor(np.ones((2, 3)))).sum().backward()
    net.float()
    assert {value.dtype for value in net.state_dict().values()} == {np.dtype(np.float32)}
    assert net.scale.grad is None


def test_hooks_see_and_may_replace_what_goes_in_and_out():
    layer, seen = nn.Identity(), []
    before = layer.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    after = layer.register_forward_hook(lambda module, args, output: output + 1)
    watch = layer.register_forward_hook(lambda module, args, output: seen.append((module, args[0].item(), output.item())))
    assert layer(tr.tensor([3.0])).item() == 7
    assert seen == [(layer, 6.0, 7.0)]
    before.remove()
    after.remove()
    watch.remove()
    watch.remove()
    assert layer(tr.tensor([3.0])).item() == 3 and len(seen) == 1


def test_a_hook_may_remove_itself():
    layer = nn.Identity()
    handle = layer.register_forward_hook(lambda *call: handle.remove())
    layer(1)
    layer(1)


def test_buffers_are_tensors_without_gradient_under_a_free_name():
    module = nn.Identity()
    module.register_buffer("steps", tr.tensor([0.0]))
    assert list(module.state_dict()) == ["steps"]
    for name, value in (
        ("steps", tr.tensor([0.0])),
        ("a.b", tr.tensor([0.0])),
        ("x", np.ones(1)),
        ("y", nn.Parameter([1.0])),
    ):
        with pytest.raises(UsageError, match="register_buffer"):
            module.register_buffer(name, value)


def test_a_missing_attribute_is_explained():
    net = Net()
    with pytest.raises(AttributeError, match="Net has no attribute 'haed'; did you mean 'head'"):
        _ = net.haed
    with pytest.raises(AttributeError, match="its tensors and modules: scale, body, head"):
        _ = net.qqqq
    assert not hasattr(net, "qqqq")


def test_a_forgotten_super_init_is_explained():
    class Forgetful(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(2, 2)

    for use in (lambda net: net(1), lambda net: net.state_dict(), lambda net: net.training):
        with pytest.raises(UsageError, match=r"Forgetful.__init__ did not call super\(\).__init__\(\)"):
            use(Forgetful())


def test_a_module_without_forward_is_explained():
    with pytest.raises(UsageError, match=r"Module defines no forward\(\)"):
        nn.Module()(1)


def test_repr_shows_the_tree():
    assert repr(nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU()))) == (
        "Sequential(\n  (0): Linear(in_features=3, out_features=4, bias=True)\n  (1): Sequential(\n    (0): ReLU()\n  )\n)"
    )


def test_a_copy_is_independent():
    net = Net()
    twin = copy.deepcopy(net)
    twin.scale.data += 1
    assert net.scale.item() == 2 and twin.scale.item() == 3


def test_containers_act_as_lists():
    layers = [nn.Identity(), nn.ReLU(), nn.Flatten()]
    net = nn.Sequential(*layers)
    assert len(net) == 3 and list(net) == layers and net[-1] is layers[2]
    assert isinstance(net[1:], nn.Sequential) and list(net[1:]) == layers[1:]
    net[-2] = layers[0]
    assert list(net) == [layers[0], layers[0], layers[2]]
    net.append(nn.ReLU())
    assert len(net) == 4
    for index in (4, -5):
        with pytest.raises(IndexError):
            net[index]
        with pytest.raises(IndexError):
            net[index] = nn.ReLU()
    with pytest.raises(UsageError, match="Sequential holds modules, got function"):
        nn.Sequential(F.relu)


def test_module_list_registers_its_modules():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(2))

    assert list(Twice().state_dict()) == ["layers.0.weight", "layers.1.weight"]
