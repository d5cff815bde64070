"""The numbers of the page of `tinyres explain --html`: each is found again by the whole network's own passes."""

import base64
import zlib

import numpy as np
import pytest

import tinyres as tr
from tinyres import functional as F
from tinyres.errors import UsageError
from tinyres.explain.page import depth, lesions, maps, pack, settings
from tinyres.explain.page.chain import Chain
from tinyres.models import ResidualMLP

SHAPES = tr.data.shapes(n_train=16, n_test=12)
X = ((SHAPES.train_images - 128.0) / 64).astype(np.float32)[:6, :, ::2, ::2]
Y = SHAPES.train_labels[:6]


@pytest.fixture(autouse=True)
def numpy_kernels():
    with tr.use_backend("numpy"):
        yield


@pytest.fixture(params=["A", "B", "C", "bottleneck"])
def net(request):
    tr.manual_seed(3)
    if request.param == "bottleneck":
        return tr.models.resnet(11, block="bottleneck")
    return tr.models.resnet(8, shortcut=request.param)


class Watched:
    """One training step of the whole network, with some shortcuts cut: per block x, the branch's use of x, and z."""

    def __init__(self, net, off=()):
        self.rows, hooks = [], []
        for k, block in enumerate(m for m in net.modules() if hasattr(m, "shortcut")):
            row = {}
            self.rows.append(row)
            hooks.append(block.register_forward_pre_hook(lambda m, given, row=row: self.keep(row, "x", given[0])))
            hooks.append(block.conv1.register_forward_pre_hook(lambda m, given, row=row: self.use(row, given[0])))
            hooks.append(block.register_forward_hook(lambda m, given, out, row=row: self.keep(row, "z", out)))
            if k in off:
                hooks.append(block.shortcut.register_forward_hook(lambda m, given, out: tr.Tensor(0 * out.data)))
        net.train()
        self.loss = F.cross_entropy(net(tr.tensor(X)), Y)
        for hook in hooks:
            hook.remove()
        self.loss.backward()

    @staticmethod
    def keep(row, name, tensor):
        tensor.retain_grad()
        row[name] = tensor

    def use(self, row, x):
        y = x * 1.0  # a node of its own, where the branch's part arrives apart from the shortcut's
        self.keep(row, "branch", y)
        return y


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_a_network_taken_apart_gives_the_cotangents_of_the_whole_and_is_left_as_it_was(net):
    before = {name: array.copy() for name, array in net.state_dict().items()}
    loss, found = maps.passes(net, X, Y)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    whole = Watched(net)
    assert loss == pytest.approx(float(whole.loss), rel=1e-6)
    for one, row in zip(found, whole.rows, strict=True):
        close(one.x, row["x"].data)
        close(one.back.dz, row["z"].grad)
        close(one.back.ds, np.where(row["z"].data > 0, row["z"].grad, 0))
        close(one.back.branch, row["branch"].grad)
        close(one.back.dx, row["x"].grad)


def test_the_branch_and_the_shortcut_add_up_to_what_the_join_rectifies(net):
    _, found = maps.passes(net, X, Y)
    chain = Chain(net)
    for one, block in zip(found, chain.blocks, strict=True):
        close(np.maximum(one.branch + block.switch.shortcut(tr.Tensor(one.x)).data, 0), one.run.z.data)


def test_every_setting_of_the_shortcuts_is_the_whole_networks_step_with_these_shortcuts_cut(net):
    blocks = 3
    table = settings.settings(net, X, Y, settings.masks(blocks, every=True))
    assert table.shape == (8, blocks, len(settings.FIELDS))
    for mask in range(8):
        whole = Watched(net, off=[k for k in range(blocks) if not mask >> k & 1])
        for k, row in enumerate(whole.rows):
            dz, dx, branch = row["z"].grad, row["x"].grad, row["branch"].grad
            past = dx - branch if mask >> k & 1 else np.zeros(1)
            norms = [np.linalg.norm(a) for a in (np.where(row["z"].data > 0, dz, 0), past, branch, dx)]
            np.testing.assert_allclose(table[mask, k, :4], norms, rtol=2e-4)
            if mask >> k & 1:
                cosine = (past * branch).sum() / np.linalg.norm(past) / np.linalg.norm(branch)
                assert table[mask, k, 4] == pytest.approx(cosine, abs=1e-4)
            else:
                assert np.isnan(table[mask, k, 4])
                close(dx, branch)


def test_a_few_settings_are_those_of_all():
    few = settings.masks(3, every=False)
    assert few == [0, 1, 2, 3, 4, 5, 6, 7]
    assert settings.masks(4, every=False) == [0, 1, 2, 4, 7, 8, 11, 13, 14, 15]
    tr.manual_seed(0)
    net = tr.models.resnet(8)
    every = settings.settings(net, X, Y, few)
    np.testing.assert_array_equal(settings.settings(net, X, Y, [0, 5]), every[[0, 5]])


def test_lesions_are_the_errors_of_the_network_with_these_parts_cut():
    tr.manual_seed(1)
    net = tr.models.resnet(8, shortcut="B")
    Watched(net)  # moves the running statistics, which serve here
    images, labels = ((SHAPES.test_images - 128.0) / 64).astype(np.float32), SHAPES.test_labels
    found = lesions.lesions(net, images, labels, settings.masks(3, every=True))
    blocks = [m for m in net.modules() if hasattr(m, "shortcut")]

    def error(cut_branches=(), cut_shortcuts=()):
        hooks = [
            blocks[k].shortcut.register_forward_hook(lambda m, given, out: tr.Tensor(0 * out.data)) for k in cut_shortcuts
        ]
        saved = net.state_dict()
        saved = {name: array.copy() for name, array in saved.items()}
        for k in cut_branches:
            for parameter in (blocks[k].bn2.weight, blocks[k].bn2.bias):
                parameter.data = np.zeros_like(parameter.data)
        with tr.no_grad():
            wrong = net.eval()(tr.Tensor(images)).data.argmax(1) != labels
        net.load_state_dict(saved)
        for hook in hooks:
            hook.remove()
        return wrong.mean()

    assert found["base"] == error()
    assert found["branch"] == [error([k]) for k in range(3)]
    assert found["shortcut"] == [error((), [k]) for k in range(3)]
    assert found["branch_masks"]["masks"] == list(range(8))
    assert found["branch_masks"]["error"] == [error([k for k in range(3) if m >> k & 1]) for m in range(8)]
    few = lesions.lesions(net, images, labels, settings.masks(3, every=False, ends=False))
    assert few["branch_masks"] == {
        "masks": [0, 1, 2, 4, 7],
        "error": [found["branch_masks"]["error"][m] for m in (0, 1, 2, 4, 7)],
    }
    assert len(set(found["branch_masks"]["error"])) > 2  # (a table of one number would prove little)


def decoded(maps_of_block):
    data = np.frombuffer(zlib.decompress(base64.b64decode(maps_of_block["arrays"])), np.int8)
    arrays, start = {}, 0
    for name, shape in maps_of_block["shape"].items():
        size = int(np.prod(shape))
        arrays[name] = data[start : start + size].reshape(shape) * (maps_of_block["scale"][name] / 127)
        start += size
    assert start == len(data)
    return arrays


def test_maps_are_within_half_a_step_of_the_arrays_and_tell_closed_gates_from_open_ones(net):
    _, found = maps.passes(net, X, Y)
    shown = maps.block_maps(found, 2)
    assert "x" in shown[0]["shape"] and "x" not in shown[1]["shape"]
    below = None
    for one, block in zip(found, shown, strict=True):
        arrays, outer, inner = decoded(block), block["channels"], block["input_channels"]
        assert below in (None, inner)  # a block's input is the output of the block below
        below = outer
        arrays_of_the_engine = {
            "branch": one.branch[:2, outer],
            "z": one.run.z.data[:2, outer],
            "dz": one.back.dz[:2, outer],
            "back": one.back.branch[:2, inner],
            "x": one.x[:2, inner],
            "dx": one.back.dx[:2, inner],
        }
        for name, array in arrays.items():
            exact, step = arrays_of_the_engine[name], block["scale"][name] / 127
            tiny = (name in ("x", "z")) & (exact > 0) & (exact < step / 2)
            assert np.abs(array - exact)[~tiny].max() <= step * 0.501
            assert (np.abs(array - exact)[tiny] <= step).all()
        np.testing.assert_array_equal(arrays["z"] > 0, one.run.z.data[:2, outer] > 0)


def test_the_arithmetic_of_a_cell_adds_up_to_the_engines_number(net):
    _, found = maps.passes(net, X, Y)
    for one, block in zip(found, maps.cells(found, maps.block_maps(found, 2), 2), strict=True):
        opened, closed = block["join"]
        assert opened["ds"] == opened["dz"] != 0 and closed["ds"] == 0 != closed["dz"]
        for cell in block["fork"]:
            assert cell["dx"] == pytest.approx(one.back.dx[tuple(cell["place"])], rel=1e-5)
            assert cell["shortcut"] + cell["branch"] == pytest.approx(cell["dx"], rel=1e-4)
        assert {cell["layer"] for cell in block["convolution"]} == set(one.convolutions)
        for cell in block["convolution"]:
            _, _, back = one.convolutions[cell["layer"]]
            assert cell["value"] == pytest.approx(back[tuple(cell["place"])], rel=1e-4)
            assert sum(cell["parts"]) == pytest.approx(cell["value"], rel=2e-3)
            for window in cell["windows"]:
                assert np.sum(np.multiply(window["dy"], window["weight"])) == pytest.approx(
                    cell["parts"][window["from"]], rel=1e-3
                )


def test_norms_by_depth_are_those_of_the_whole_network_with_shortcuts_and_without():
    tr.manual_seed(0)
    net = tr.models.resnet(8)
    np.testing.assert_allclose(
        depth.norms(net, X, Y), [np.linalg.norm(row["x"].grad) for row in Watched(net).rows], rtol=1e-4
    )
    tr.manual_seed(0)
    plain, inputs = tr.models.plain(14), []
    found = depth.norms(plain, X, Y)
    for name, block in plain.named_modules():
        if name.count(".") == 1 and name.startswith("layer"):
            block.register_forward_pre_hook(lambda m, given: (given[0].retain_grad(), inputs.append(given[0]))[0])
    F.cross_entropy(plain.train()(tr.tensor(X)), Y).backward()
    assert len(found) == 6
    np.testing.assert_allclose(found, [np.linalg.norm(x.grad) for x in inputs], rtol=1e-4)


def test_without_batch_norm_a_plain_net_vanishes_or_explodes_by_its_gain_and_a_residual_one_explodes():
    """The gain multiplies one linear layer in each of 30 blocks, so the plain net's gradient by gain^29."""
    ratios = {g: (lambda n: n[0] / n[-1])(depth.gain_norms(False, g)) for g in (0.5, 1.0, 2.0)}
    assert ratios[0.5] < 1e-8 and 0.1 < ratios[1.0] < 10 and ratios[2.0] > 1e8
    residual = depth.gain_norms(True, 1.0)
    assert len(residual) == 30 and 1e4 < residual[0] / residual[-1] < 1e7


def test_numbers_are_packed_to_the_precision_that_is_promised():
    a = np.array([0.1, -3.25e-9, 7e8, np.nan, 0.0, 1.0], np.float32)
    back = np.frombuffer(zlib.decompress(base64.b64decode(pack.float32(a))), "<f4")
    np.testing.assert_allclose(back, a, rtol=2**-13)
    steps, scale = pack.int8(np.zeros((2, 2), np.float32))
    assert scale == 1.0 and not steps.any()
    steps, _ = pack.int8(np.array([1e-9, 1.0, 0.0]), positive=True)
    assert steps.tolist() == [1, 127, 0]


def test_only_networks_of_the_cifar_family_can_be_taken_apart():
    with pytest.raises(UsageError, match="ResidualMLP is not a net of post-activation blocks"):
        Chain(ResidualMLP(4, 4, 2, 3))
