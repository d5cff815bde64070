"""NumPy's archives as files of weights: read whole, and refused when they are anything else."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from tinyres.errors import CheckpointError
from tinyres.weights import import_weights, load_file


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_every_type_and_layout(save, tmp_path):
    arrays = {
        **{kind: np.array([[0, 1, 100]]).astype(kind) for kind in ("f8", "f4", "f2", "i8", "u1", "?")},
        "layer1.0.conv1.weight": np.asfortranarray(np.random.default_rng(0).random((3, 4, 5))),
        "big endian": np.arange(3, dtype=">f4"),
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3)),
    }
    save(tmp_path / "net.npz", **arrays)
    found, metadata = load_file(tmp_path / "net.npz")
    assert list(found) == list(arrays) and metadata == {}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array.astype(array.dtype.newbyteorder("=")), strict=True)
        assert found[name].flags.c_contiguous and found[name].flags.writeable
    (tmp_path / "net.npz").rename(tmp_path / "net.pth")  # the content decides
    assert import_weights(tmp_path / "net.pth", {"scalar": ()} | {n: a.shape for n, a in arrays.items()})["scalar"] == 2.5


def archive(path, **entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            file.writestr(f"{name}.npy", content)


def npy(array, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


class Runs:
    def __reduce__(self):
        return open, ("it_was_run", "w")


ONES = npy(np.ones((2, 3), np.float32))
WRONG = {
    "holds Python objects": npy(np.array([Runs()]), allow_pickle=True),
    "not plain numbers": npy(np.zeros(2, np.complex64)),
    r"array of .*\[2, 3\] has 20 bytes": ONES[:-4],
    r"array of .*\[9, 3\] has 24 bytes": ONES.replace(b"(2, 3)", b"(9, 3)"),
    r"9999999999999, 3\] has 24 bytes": ONES.replace(b"(2, 3), } " + b" " * 12, b"(9999999999999, 3), } "),
    "the magic string is not correct": b"not an array at all",
    "version 7.0 of the format": ONES.replace(b"NUMPY\x01", b"NUMPY\x07"),
    "array 'w.npy': .*eader": ONES.replace(b"'descr'", b"'other'"),
}


@pytest.mark.parametrize("says", WRONG)
def test_what_is_no_array_of_numbers_is_refused_and_not_run(says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    archive("net.npz", w=WRONG[says])
    with pytest.raises(CheckpointError, match=rf"cannot read net\.npz: .*{says}"):
        load_file("net.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["net.npz"]


def test_a_bomb_is_refused_before_it_goes_off(tmp_path):
    archive(tmp_path / "net.npz", w=npy(np.zeros(2**23, np.float32)))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="zip entries are more than 16 times as large"):
        load_file(tmp_path / "net.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
