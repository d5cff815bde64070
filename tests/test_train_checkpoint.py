"""A checkpoint is read as it was written or not at all, whatever happened to the file in between."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyres as tr
from tinyres import train
from tinyres.errors import CheckpointError, UsageError
from tinyres.train import checkpoint, load_network, save_network
from tinyres.train.progress import Silent
from tinyres.weights import load_file, save_safetensors

ARRAYS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7, np.int64)}
MOMENTUM = {"a.weight": np.ones((2, 3), np.float32)}
TEXTS = {"network": None, "run": {"lr": 0.1, "big": 2**100, "none": None}}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    checkpoint.write(tmp_path / "c.safetensors", ARRAYS, {"momentum": MOMENTUM}, TEXTS)
    return tmp_path / "c.safetensors"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    with tr.use_backend("numpy"):
        trainer(folder).fit()
    return folder


def trainer(folder: Path) -> train.Trainer:
    data = tr.data.shapes(n_train=16, n_test=4)
    return train.Trainer("resnet8", data, epochs=2, batch_size=8, out=folder, display=Silent())


def resume(folder: Path) -> None:
    with tr.use_backend("numpy"):
        trainer(folder).fit(resume=True)


def test_what_was_written_is_read_to_the_bit(written: Path) -> None:
    arrays, state, texts = checkpoint.read(written)
    assert {name: (array.dtype, array.tolist()) for name, array in arrays.items()} == {
        name: (array.dtype, array.tolist()) for name, array in ARRAYS.items()
    }
    assert {kind: list(named) for kind, named in state.items()} == {"momentum": ["a.weight"]}
    assert (state["momentum"]["a.weight"] == 1).all()
    assert texts == TEXTS


def test_a_write_that_fails_leaves_the_old_file(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.write(written, {}, {}, {})
    assert written.read_bytes() == before
    assert list(written.parent.iterdir()) == [written]


def test_a_file_from_elsewhere_is_refused_with_advice(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "x.safetensors", ARRAYS)
    with pytest.raises(CheckpointError, match=r"x\.safetensors was not written by tinyres; `tinyres import-weights`"):
        checkpoint.read(tmp_path / "x.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*nothing\.safetensors"):
        checkpoint.read(tmp_path / "nothing.safetensors")


def test_every_truncation_is_noticed(written: Path) -> None:
    data = written.read_bytes()
    for length in [*range(0, len(data), 7), len(data) - 1]:
        written.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"c\.safetensors"):
            checkpoint.read(written)


def test_every_flipped_bit_is_noticed(written: Path) -> None:
    """Also those in the numbers, which the format itself does not notice."""
    data = written.read_bytes()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        written.write_bytes(damaged)
        try:
            arrays, _, texts = checkpoint.read(written)
        except CheckpointError as error:
            assert "c.safetensors" in str(error)
        else:  # white space and the like: then nothing has changed
            assert texts == TEXTS
            assert all((arrays[name] == array).all() for name, array in ARRAYS.items())


@pytest.mark.parametrize("seed", range(4))
def test_resuming_from_a_damaged_checkpoint_is_one_clear_error(run_folder: Path, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    good = (run_folder / "last.safetensors").read_bytes()
    (tmp_path / "run").mkdir()
    for _ in range(10):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(data) if chance.random() < 0.5 else 3000)
            kind = chance.randrange(3)
            if kind == 0:
                data[place] = (data[place] + chance.randrange(1, 256)) % 256
            elif kind == 1:
                del data[place : place + chance.randint(1, 50)]
            else:
                data[place:place] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 50)))
        for name in ("last", "best"):
            (tmp_path / "run" / f"{name}.safetensors").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"last\.safetensors"):
            resume(tmp_path / "run")
        with pytest.raises(CheckpointError, match=r"best\.safetensors"):
            load_network(tmp_path / "run" / "best.safetensors")


# --- files with a right checksum and wrong contents ---------------------------------------------------------------------


def changed(run_folder: Path, target: Path, *path: str, value: Any) -> Path:
    """A copy of the run's checkpoint in which one entry of its texts has another value; "" removes it."""
    arrays, state, texts = checkpoint.read(run_folder / "last.safetensors")
    place: Any = texts
    for key in path[:-1]:
        place = place[key]
    if value == "":
        del place[path[-1]]
    else:
        place[path[-1]] = value
    target.mkdir()
    checkpoint.write(target / "last.safetensors", arrays, state, texts)
    return target


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epoch", -1),
        ("epoch", 10**30),
        ("epoch", 1.0),
        ("epoch", 2.0),
        ("epoch", "1"),
        ("epoch", ""),
        ("step", 3),
        ("step", -1),
        ("step", 1),
        ("images", -5),
        ("wrong", 1),
        ("loss", "x"),
        ("seconds", None),
        ("lines", []),
        ("lines", [1, 2]),
        ("lines", [{}, {}]),
        ("lines", None),
        ("generator", {}),
        ("generator", []),
        ("generator", {"bit_generator": "MT19937"}),
        ("generator", {"bit_generator": "PCG64", "state": {"state": -1, "inc": 2**200}, "has_uint32": 0, "uinteger": 0}),
        ("more", 1),
    ],
)
def test_an_impossible_state_is_refused(run_folder: Path, tmp_path: Path, key: str, value: Any) -> None:
    folder = changed(run_folder, tmp_path / "run", "run", "state", key, value=value)
    with pytest.raises(CheckpointError, match=r"last\.safetensors does not fit this run, or it is damaged"):
        resume(folder)


@pytest.mark.parametrize("value", [None, [], 5, "text", {"state": {}}, {"settings": 7}])
def test_a_run_that_is_no_description_of_one_is_refused(run_folder: Path, tmp_path: Path, value: Any) -> None:
    folder = changed(run_folder, tmp_path / "run", "run", value=value)
    with pytest.raises(CheckpointError, match="run"):
        resume(folder)


@pytest.mark.parametrize("text", ["{", "NaN", "[" * 100_000, '"\\ud800"'])
def test_texts_that_are_not_json_are_refused(run_folder: Path, tmp_path: Path, text: str) -> None:
    arrays, metadata = load_file(run_folder / "last.safetensors")
    del metadata["crc32"]
    metadata["run"] = text
    (tmp_path / "run").mkdir()
    crc32 = checkpoint._crc32(arrays, metadata)
    save_safetensors(tmp_path / "run" / "last.safetensors", arrays, metadata | {"crc32": crc32})
    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        resume(tmp_path / "run")


@pytest.mark.parametrize(
    "network",
    [
        5,
        [],
        {},
        {"name": "resnet8"},
        {"name": ["resnet8"], "num_classes": 10},
        {"name": "resnet9", "num_classes": 10},
        {"name": "resnet20", "num_classes": 10},
        {"name": "resnet8", "num_classes": [10]},
        {"name": "resnet8", "num_classes": 10**9},
        {"name": "resnet599996", "num_classes": 10},
        {"name": "resnet1202", "num_classes": 10},
        {"name": "plain8", "num_classes": 10, "shortcut": "A"},
        {"name": "resnet8", "num_classes": 10, "block": "bottleneck"},
        {"name": "resnet8", "num_classes": 10, "shortcut": 3},
        {"name": "os.system8", "num_classes": 10},
        {"name": "resnet8", "num_classes": 10, "in_channels": 10**15},
    ],
)
def test_a_network_that_is_not_the_one_in_the_file_is_refused_and_not_built(
    run_folder: Path, tmp_path: Path, network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changed(run_folder, tmp_path / "run", "network", value=network)
    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        load_network(folder / "last.safetensors")


@pytest.mark.parametrize("value", ["", None, [], {"mean": 0.0}, {"mean": "x", "scale": 1.0}, {"mean": [1, 2], "scale": 1.0}])
def test_a_normalisation_that_is_none_is_refused(run_folder: Path, tmp_path: Path, value: Any) -> None:
    folder = changed(run_folder, tmp_path / "run", "normalisation", value=value)
    with pytest.raises(CheckpointError, match=r"last\.safetensors lacks the normalisation"):
        load_network(folder / "last.safetensors")


# --- networks -----------------------------------------------------------------------------------------------------------


def test_a_saved_network_comes_back_with_its_normalisation(tmp_path: Path) -> None:
    description = {"name": "resnet8", "shortcut": "B", "num_classes": 4}
    model = tr.models.build(**description)
    mean = np.random.default_rng(0).random((3, 32, 32), np.float32)
    save_network(tmp_path / "n.safetensors", model, description, mean, np.float32(1))
    loaded = load_network(tmp_path / "n.safetensors")
    assert (loaded.mean == mean).all()
    assert (loaded.scale, loaded.data, loaded.network) == (1, None, description)
    for name, array in model.state_dict().items():
        assert (loaded.model.state_dict()[name] == array).all()


def test_a_network_of_ones_own_is_saved_but_its_file_cannot_name_it(tmp_path: Path) -> None:
    save_network(tmp_path / "n.safetensors", tr.nn.Linear(2, 3), None, np.float32(0), np.float32(1))
    with pytest.raises(CheckpointError, match="does not say which network"):
        load_network(tmp_path / "n.safetensors")


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("resnet21", {}, "20 and 26"),
        ("plain9", {}, "8 and 14"),
        ("resnet", {}, "no network is called 'resnet'"),
        ("plain8", {"shortcut": "A"}, "plain8 takes no option shortcut"),
        ("plain20", {"shortcut": "A"}, "shortcut"),
        ("resnet14", {"shortcut": "D"}, "'D'"),
    ],
)
def test_networks_that_do_not_exist_are_refused(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        tr.models.build(name, **options)
