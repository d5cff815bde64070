"""Names of other CIFAR ResNets mapped to ours, and what is said when a file does not fit."""

import pickle
import struct

import numpy as np
import pytest

from tinyres.errors import CheckpointError
from tinyres.weights import import_weights, map_names
from tinyres.weights.torch_file import MAGIC_NUMBER

STATISTICS = ("weight", "bias", "running_mean", "running_var")


def resnet(blocks=3, projections=False, bottleneck=False, stages=3, classes=10, width=4):
    """The names and shapes of one of our networks; the shapes are only as right as the mapping needs them."""
    names = ["conv1.weight", *(f"bn1.{name}" for name in STATISTICS)]
    for stage in range(1, stages + 1):
        for block in range(blocks):
            here = f"layer{stage}.{block}"
            for i in (1, 2, 3) if bottleneck else (1, 2):
                names += [f"{here}.conv{i}.weight", *(f"{here}.bn{i}.{name}" for name in STATISTICS)]
            if projections and block == 0 and stage > 1:
                names += [f"{here}.shortcut.0.weight", *(f"{here}.shortcut.1.{name}" for name in STATISTICS)]
    shapes = {name: (width, 3, 1, 1) if "conv" in name or "shortcut.0" in name else (width,) for name in names}
    return shapes | {"fc.weight": (classes, width), "fc.bias": (classes,)}


def arrays_of(shapes, rename=lambda name: name):
    """Each array holds a number of its own, so that a swap is seen."""
    return {rename(name): np.full(shape, i, np.float32) for i, (name, shape) in enumerate(shapes.items())}


def replaced(*pairs):
    def rename(name):
        for ours, theirs in pairs:
            name = name.replace(ours, theirs)
        return name

    return rename


@pytest.mark.parametrize(
    "rename",
    [
        pytest.param(lambda name: name, id="ours"),
        pytest.param(lambda name: f"module.{name}", id="DataParallel"),
        pytest.param(lambda name: f"_orig_mod.module.model.module.{name}", id="stacked prefixes"),
        pytest.param(lambda name: name.replace("layer1.", "layer1._orig_mod."), id="a compiled stage"),
        pytest.param(lambda name: name.replace(".conv1.", ".conv1.module."), id="a wrapped layer"),
        pytest.param(lambda name: f"model._fsdp_wrapped_module.{name}".replace("fc.", "_orig_mod.fc."), id="FSDP"),
        pytest.param(replaced(("fc.", "linear.")), id="linear and shortcut"),
        pytest.param(replaced(("shortcut", "downsample")), id="fc and downsample"),
        pytest.param(replaced(("shortcut.0", "downsample.conv"), ("shortcut.1", "downsample.bn")), id="conv, bn"),
        pytest.param(replaced(("fc.", "classifier."), ("shortcut.0", "shortcut.conv")), id="classifier"),
        pytest.param(replaced(("fc.", "output.")), id="output"),
        pytest.param(
            lambda name: name.replace("conv1", "conv").replace("bn1", "bn") if name[0] in "cb" else name, id="conv"
        ),
        pytest.param(
            lambda name: name.replace("conv1", "stem.0").replace("bn1", "stem.1") if name[0] in "cb" else f"module.{name}",
            id="stem",
        ),
    ],
)
def test_each_dialect_maps_to_our_names(rename):
    target = resnet(projections=True)
    arrays = arrays_of(target, rename)
    assert len(arrays) == len(target)
    mapped = map_names(arrays, target)
    assert list(mapped) == list(target)
    for i, (name, shape) in enumerate(target.items()):
        np.testing.assert_array_equal(mapped[name], np.full(shape, i), err_msg=name)


def test_a_bottleneck_maps_too():
    target = resnet(bottleneck=True, projections=True)
    assert map_names(arrays_of(target, lambda name: f"module.{name}".replace("shortcut", "downsample")), target)


def test_num_batches_tracked_is_dropped_unless_the_target_has_it():
    target = resnet()
    count = {"module.bn1.num_batches_tracked": np.array(7), "n_averaged": np.array(3)}
    arrays = arrays_of(target, lambda name: f"module.{name}") | count
    assert "bn1.num_batches_tracked" not in map_names(arrays, target)
    assert map_names(arrays, target | {"bn1.num_batches_tracked": ()})["bn1.num_batches_tracked"] == 7


def test_a_name_that_the_target_has_is_left_alone():
    target = {"model.conv.weight": (1,), "linear.weight": (2,)}
    arrays = arrays_of(target)
    assert map_names(arrays, target) == arrays
    assert map_names({"module.linear.weight": arrays["linear.weight"]}, {"linear.weight": (2,)})


@pytest.mark.parametrize("second", ["linear.bias", "module.fc.bias", "model.classifier.bias"])
def test_two_arrays_for_one_name_are_an_error(second):
    target = resnet()
    arrays = arrays_of(target) | {second: np.zeros(10)}
    with pytest.raises(CheckpointError, match=rf"'fc\.bias' and '{second}' both map to 'fc\.bias'"):
        map_names(arrays, target)


def test_what_does_not_fit_is_listed():
    target = resnet()
    arrays = arrays_of(resnet(classes=100))
    del arrays["bn1.bias"], arrays["bn1.weight"]
    arrays["ema.decay\x1b"] = np.zeros(())
    with pytest.raises(CheckpointError) as caught:
        map_names(arrays, target)
    assert str(caught.value).splitlines() == [
        "the weights do not fit the model: 2 missing, 1 unexpected, 2 of another shape",
        "  missing: bn1.weight, bn1.bias",
        r"  unexpected: ema.decay\x1b",
        "  of another shape: fc.weight is (100, 4), expected (10, 4), fc.bias is (100,), expected (10,)",
    ]


def test_a_wrong_shape_alone_is_an_error():
    with pytest.raises(CheckpointError, match=r"0 missing, 0 unexpected, 1 of another shape\n  .*bn1\.bias is \(1, 4\)"):
        map_names(arrays_of(resnet() | {"bn1.bias": (1, 4)}), resnet())


def test_the_list_stays_within_a_screen():
    target = resnet(blocks=18)
    with pytest.raises(CheckpointError) as caught:
        map_names({f"{'long' * 100}{i}": np.zeros(1) for i in range(5000)}, target)
    message = str(caught.value)
    assert f"{len(target)} missing, 5000 unexpected, 0 of another shape" in message
    assert f"... and {len(target) - 8} more" in message and "... and 4992 more" in message
    assert len(message) < 24 * 120


@pytest.mark.parametrize(
    ("ours", "theirs", "hint"),
    [
        ({}, {"blocks": 5}, r"the file looks like resnet32 \(15 blocks.*; the model is like resnet20 \(9 blocks"),
        ({"blocks": 9}, {"blocks": 18, "projections": True}, r"resnet110 \(54 blocks.*resnet56 \(27 blocks"),
        (
            {},
            {"blocks": 2, "stages": 4, "projections": True},
            r"resnet18 \(8 blocks in 4 stages of 2 convolutions, with projection",
        ),
        ({}, {"blocks": 3, "bottleneck": True}, r"resnet29 \(9 blocks in 3 stages of 3 convolutions"),
        ({}, {"projections": True}, r"with projection shortcuts\); the model.*without"),
    ],
)
def test_a_file_of_another_network_is_named(ours, theirs, hint):
    with pytest.raises(CheckpointError, match=hint):
        map_names(arrays_of(resnet(**theirs), lambda name: f"module.{name}"), resnet(**ours))


def test_there_is_no_hint_where_the_networks_are_alike():
    arrays = arrays_of(resnet())
    del arrays["fc.bias"]
    with pytest.raises(CheckpointError) as caught:
        map_names(arrays, resnet())
    assert "looks like" not in str(caught.value)


def torch_file(path, values):
    """A file in PyTorch's old format: every array a float64 vector, made with pickle opcodes."""

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    body, tail = b"}", b""
    for name, value in values.items():
        storage = b"(" + text("storage") + b"ctorch\nDoubleStorage\n" + text(name) + text("cpu") + b"K\x01NtQ"
        body += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x01\x85K\x01\x85\x89}tRs"
        tail += struct.pack("<qd", 1, value)
    head = b"".join(pickle.dumps(part, 2) for part in (MAGIC_NUMBER, 1001, {}))
    path.write_bytes(head + b"\x80\x02" + body + b"." + pickle.dumps(list(values), 2) + tail)


def test_import_reads_maps_and_casts_to_float32(tmp_path):
    path = tmp_path / "weights.th"
    torch_file(path, {"module.linear.weight": 1.5, "module.linear.bias": 1 / 3})
    mapped = import_weights(path, {"fc.bias": (1,), "fc.weight": (1,)})
    assert list(mapped) == ["fc.bias", "fc.weight"]
    np.testing.assert_array_equal(mapped["fc.weight"], np.float32([1.5]), strict=True)
    np.testing.assert_array_equal(mapped["fc.bias"], np.float32([1 / 3]), strict=True)


def test_an_import_that_fails_names_the_file(tmp_path):
    path = tmp_path / "weights.th"
    torch_file(path, {"module.linear.weight": 1.5})
    with pytest.raises(CheckpointError, match=r"weights\.th: the weights do not fit the model: 1 missing"):
        import_weights(path, {"fc.bias": (1,), "fc.weight": (1,)})
    with pytest.raises(CheckpointError, match=r"cannot read .*absent\.th"):
        import_weights(tmp_path / "absent.th", {})


def test_a_number_too_large_for_float32_is_an_error(tmp_path):
    path = tmp_path / "weights.th"
    torch_file(path, {"fc.bias": 1e300})
    with pytest.raises(CheckpointError, match=r"weights\.th: fc\.bias does not fit into float32"):
        import_weights(path, {"fc.bias": (1,)})


@pytest.mark.parametrize(
    "prefix", ["net.", "model.", "module.", "backbone.", "_orig_mod.", "ema.", "student.net.module.", "model.model.", "fc."]
)
def test_a_prefix_that_all_names_have_is_taken_away(prefix):
    target = resnet(projections=True)
    arrays = arrays_of(target, lambda name: f"{prefix}{name}".replace("fc.", "linear.")) | {"n_averaged": np.array(3)}
    mapped = map_names(arrays, target)
    assert list(mapped) == list(target) and all((mapped[name] == k).all() for k, name in enumerate(target))


def test_a_prefix_of_some_names_is_none():
    target = {"fc.weight": (1,), "fc.bias": (1,)}
    with pytest.raises(CheckpointError, match=r"1 missing, 1 unexpected.*\n.*fc\.bias\n.*net\.fc\.bias"):
        map_names({"fc.weight": np.zeros(1), "net.fc.bias": np.zeros(1)}, target)
    assert map_names({"fc.weight": np.zeros(1), "fc.bias": np.zeros(1)}, target)
