"""CIFAR is found where it should be, unpacked without trust, checked, and read into the right arrays."""

import hashlib
import io
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tinyres.data
from tinyres.data import Dataset, available, cifar, load
from tinyres.data.cifar import ARCHIVES, load_archive, load_cifar
from tinyres.errors import DataError, UsageError

REAL = os.environ.get("TINYRES_DATA")
CLASSES = [f"class {i}" for i in range(10)]


def batch_file(rows, seed):
    """The contents of a batch, and its pickle."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (rows, 3072), dtype=np.uint8)
    labels = [int(n) for n in random.permutation(np.arange(rows) % 10)]
    return {"data": images, "labels": labels, "fine_labels": labels, "coarse_labels": [0] * rows}


def contents(spec):
    """The files of a small copy: name -> what it holds."""
    files = {file: batch_file(spec.train_rows, seed) for seed, file in enumerate(spec.train)}
    files |= {file: batch_file(spec.test_rows, 100 + seed) for seed, file in enumerate(spec.test)}
    return files | {spec.meta: {"label_names": CLASSES, "fine_label_names": CLASSES, "num_vis": 3072}}


def pickled(files):
    return {file: pickle.dumps(held, 3) for file, held in files.items()}


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        (folder / file).write_bytes(data)


def small(name="cifar10"):
    """A data set of the same structure with a few images a file, whose published md5 are those of `contents`."""
    spec = replace(ARCHIVES[name], train_rows=20, test_rows=10, classes=10)
    md5 = {file: hashlib.md5(data).hexdigest() for file, data in pickled(contents(spec)).items()}
    return replace(spec, train={file: md5[file] for file in spec.train}, test={file: md5[file] for file in spec.test})


SPEC = small()
FILES = pickled(contents(SPEC))


def packed(path, members, links=()):
    """A tar.gz of {member name: bytes} and of links, (name, target, type) each."""
    with tarfile.open(path, "w:gz") as tar:
        for name, target, kind in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, str(target)
            tar.addfile(link)
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def in_folder(files, folder=SPEC.folder):
    return {f"{folder}/{file}": data for file, data in files.items()}


def same(a, b):
    assert (a.name, a.classes) == (b.name, b.classes)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.fixture(autouse=True)
def no_data_of_this_machine(monkeypatch, tmp_path_factory):
    monkeypatch.delenv("TINYRES_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def unpacked(tmp_path):
    write(tmp_path / SPEC.folder, FILES)
    return tmp_path


# --- Reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_batches_follow_each_other_plane_by_plane(name, tmp_path):
    spec = small(name)
    held = contents(spec)
    write(tmp_path / spec.folder, pickled(held))
    data = load_archive(spec, tmp_path)
    assert data.train_images.shape == (20 * len(spec.train), 3, 32, 32)
    assert data.test_images.shape == (10, 3, 32, 32)
    assert (data.train_images.dtype, data.train_labels.dtype, data.test_labels.dtype) == (np.uint8, np.int64, np.int64)
    for i, file in enumerate(spec.train):
        flat = held[file]["data"]
        np.testing.assert_array_equal(data.train_labels[20 * i : 20 * (i + 1)], held[file]["labels"])
        for channel, row, column in [(0, 0, 0), (0, 0, 5), (0, 3, 0), (1, 2, 7), (2, 31, 31)]:
            at = 1024 * channel + 32 * row + column
            np.testing.assert_array_equal(
                data.train_images[20 * i : 20 * (i + 1), channel, row, column], flat[:, at], err_msg=f"{file}"
            )
    np.testing.assert_array_equal(data.test_images.reshape(10, 3072), held[next(iter(spec.test))]["data"])
    np.testing.assert_array_equal(data.test_labels, held[next(iter(spec.test))]["labels"])
    assert data.classes == tuple(CLASSES)
    assert data.notes == []


def test_cifar100_is_read_with_its_fine_labels(tmp_path):
    spec = small("cifar100")
    held = contents(spec)
    held["train"]["labels"] = held["train"]["coarse_labels"] = [9] * 20
    write(tmp_path / spec.folder, pickled(held))
    np.testing.assert_array_equal(load_archive(spec, tmp_path).train_labels, held["train"]["fine_labels"])


def test_a_copy_with_other_checksums_is_read_and_said_once(unpacked):
    other = contents(SPEC)["data_batch_2"]
    other["data"] = other["data"] // 2
    write(unpacked / SPEC.folder, pickled({"data_batch_2": other}))
    data = load_archive(SPEC, unpacked)
    np.testing.assert_array_equal(data.train_images[20:40].reshape(20, 3072), other["data"])
    assert len(data.notes) == 1
    assert "data_batch_2 in" in data.notes[0]
    assert "data_batch_1" not in data.notes[0]


def test_the_published_sets_are_described_as_they_are():
    ten, hundred = ARCHIVES["cifar10"], ARCHIVES["cifar100"]
    assert (len(ten.train) * ten.train_rows, ten.test_rows, ten.classes) == (50_000, 10_000, 10)
    assert (len(hundred.train) * hundred.train_rows, hundred.test_rows, hundred.classes) == (50_000, 10_000, 100)
    sums = [spec.md5 for spec in (ten, hundred)] + [m for s in (ten, hundred) for m in (*s.train.values(), *s.test.values())]
    assert len(set(sums)) == len(sums) == 10
    assert all(len(md5) == 32 and int(md5, 16) for md5 in sums)


def test_a_real_copy_has_5000_training_and_1000_test_images_of_each_class():
    if not REAL or cifar.find_folder(ARCHIVES["cifar10"], Path(REAL)) is None:
        pytest.skip("TINYRES_DATA names no folder with cifar-10-batches-py")
    data = load("cifar10", REAL)
    assert np.bincount(data.train_labels).tolist() == [5000] * 10
    assert np.bincount(data.test_labels).tolist() == [1000] * 10
    assert data.classes[0] == "airplane"


# --- Finding ----------------------------------------------------------------------------------------------------------


def test_root_is_the_folder_itself_or_the_folder_that_holds_it(unpacked):
    same(load_archive(SPEC, unpacked), load_archive(SPEC, unpacked / SPEC.folder))


def test_the_argument_comes_before_the_variable_and_that_before_the_cache(unpacked, tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHIVES, "cifar10", SPEC)
    with pytest.raises(DataError, match=r"\.cache/tinyres"):
        load_cifar("cifar10")
    monkeypatch.setenv("TINYRES_DATA", str(unpacked))
    expected = load_cifar("cifar10")
    with pytest.raises(DataError, match="elsewhere"):
        load_cifar("cifar10", tmp_path / "elsewhere")
    monkeypatch.setenv("TINYRES_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere"):
        load_cifar("cifar10")
    same(load_cifar("cifar10", unpacked), expected)
    monkeypatch.delenv("TINYRES_DATA")
    write(Path.home() / ".cache" / "tinyres" / SPEC.folder, FILES)
    same(load_cifar("cifar10"), expected)


def test_what_is_missing_is_said_with_what_to_do(tmp_path):
    with pytest.raises(DataError) as missing:
        load_archive(SPEC, tmp_path)
    for part in (str(tmp_path), SPEC.folder, SPEC.filename, "`tinyres data get cifar10`", "--data-dir", "TINYRES_DATA"):
        assert part in str(missing.value)


def test_a_folder_that_lacks_files_is_not_taken_and_says_which(unpacked):
    (unpacked / SPEC.folder / "data_batch_3").unlink()
    (unpacked / SPEC.folder / "batches.meta").unlink()
    with pytest.raises(DataError, match=r"without data_batch_3, batches\.meta\)"):
        load_archive(SPEC, unpacked)


def test_load_takes_the_names_of_the_sets_and_lists_them_for_another(monkeypatch, unpacked):
    monkeypatch.setitem(ARCHIVES, "cifar10", SPEC)
    assert load("cifar10", unpacked).name == "cifar10"
    with pytest.raises(DataError, match="cifar100 not found"):
        load("cifar100", unpacked)
    with pytest.raises(UsageError, match="'mnist': there are cifar10, cifar100, shapes"):
        load("mnist")


def test_the_list_of_sets_says_what_is_there(monkeypatch, unpacked):
    monkeypatch.setitem(ARCHIVES, "cifar10", SPEC)
    ten, hundred, shapes = available(unpacked)
    assert tuple(entry.name for entry in available(unpacked)) == tinyres.data.NAMES
    assert (ten.present, ten.where) == (True, str(unpacked / SPEC.folder))
    assert (hundred.present, hundred.where) == (False, "tinyres data get cifar100")
    assert shapes.present
    (unpacked / ARCHIVES["cifar100"].filename).write_bytes(b"")
    assert available(unpacked)[1][1:3] == (str(unpacked / ARCHIVES["cifar100"].filename), True)


# --- Checking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("data_batch_1", {"data": np.zeros((19, 3072), np.uint8)}, r"shape \(19, 3072\), expected .*\(20, 3072\)"),
        ("data_batch_1", {"data": np.zeros((20, 3071), np.uint8)}, r"shape \(20, 3071\), expected"),
        ("test_batch", {"data": [0]}, "'data' has a list"),
        ("data_batch_4", {"labels": [0] * 19}, "'labels' a list of 20 int"),
        ("data_batch_4", {"labels": [0] * 19 + ["1"]}, "'labels' a list of 20 int"),
        ("data_batch_4", {"labels": [0] * 19 + [True]}, "'labels' a list of 20 int"),
        ("data_batch_4", {"labels": None}, "'labels' a list of 20 int"),
        ("test_batch", {"labels": [0] * 9 + [10]}, "labels go from 0 to 10, expected 0 to 9"),
        ("test_batch", {"labels": [0] * 9 + [-1]}, "labels go from -1 to 0"),
        ("batches.meta", {"label_names": CLASSES[:9]}, "'label_names' a list of 10 str"),
        ("batches.meta", {"label_names": [*CLASSES[:9], 9]}, "'label_names' a list of 10 str"),
    ],
)
def test_a_file_of_another_structure_is_refused_by_name(file, change, says, unpacked):
    write(unpacked / SPEC.folder, pickled({file: contents(SPEC)[file] | change}))
    with pytest.raises(DataError, match=rf"{file}.*{says}"):
        load_archive(SPEC, unpacked)


def test_a_hostile_batch_is_refused_by_name(unpacked):
    (unpacked / SPEC.folder / "data_batch_5").write_bytes(b"\x80\x02cos\nsystem\nU\x09touch ran\x85R.")
    with pytest.raises(DataError, match=r"data_batch_5.*'os\.system'"):
        load_archive(SPEC, unpacked)


# --- Unpacking --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "./"])
def test_the_archive_is_unpacked_once_and_then_read_from_the_folder(prefix, tmp_path, unpacked):
    root = tmp_path / "other"
    root.mkdir()
    packed(root / SPEC.filename, {prefix + name: data for name, data in in_folder(FILES).items()})
    first = load_archive(SPEC, root)
    same(first, load_archive(SPEC, unpacked))
    assert first.notes == []
    (root / SPEC.filename).unlink()
    same(first, load_archive(SPEC, root))


def test_the_archive_completes_a_folder_that_lacks_files(unpacked):
    (unpacked / SPEC.folder / "data_batch_3").unlink()
    packed(unpacked / SPEC.filename, in_folder(FILES))
    assert load_archive(SPEC, unpacked).notes == []


def everything_under(root):
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_nothing_but_the_expected_files_leaves_the_archive(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    evil = ["../evil", str(outside / "evil"), f"{SPEC.folder}/../../evil", f"{SPEC.folder}/readme.html", "data_batch_1"]
    links = [
        (f"{SPEC.folder}/link", outside, tarfile.SYMTYPE),
        (SPEC.folder, outside, tarfile.SYMTYPE),
        ("device", "", tarfile.CHRTYPE),
    ]
    packed(root / SPEC.filename, in_folder(FILES) | dict.fromkeys(evil, b"x"), links)
    assert load_archive(SPEC, root).notes == []
    assert everything_under(tmp_path) == {
        "root",
        f"root/{SPEC.filename}",
        f"root/{SPEC.folder}",
        *(f"root/{SPEC.folder}/{file}" for file in SPEC.files),
    }
    assert not (root / SPEC.folder).is_symlink()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_batch_that_is_no_plain_file_is_refused(kind, tmp_path):
    (tmp_path / "secret").write_bytes(FILES["test_batch"])
    name = f"{SPEC.folder}/test_batch"
    files = in_folder(FILES)
    target = f"{SPEC.folder}/data_batch_1" if kind == tarfile.LNKTYPE else tmp_path / "secret"
    del files[name]
    packed(tmp_path / SPEC.filename, files, [(name, target, kind)])
    with pytest.raises(DataError, match="test_batch is not a plain file"):
        load_archive(SPEC, tmp_path)


def test_a_batch_of_giant_size_is_refused(tmp_path, monkeypatch):
    packed(tmp_path / SPEC.filename, in_folder(FILES))
    monkeypatch.setattr(cifar, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="data_batch_1 is not a plain file of under"):
        load_archive(SPEC, tmp_path)


def test_an_archive_that_lacks_a_file_says_which(tmp_path):
    files = in_folder(FILES)
    del files[f"{SPEC.folder}/test_batch"]
    packed(tmp_path / SPEC.filename, files)
    with pytest.raises(DataError, match=r"lacks test_batch.*tinyres data get cifar10"):
        load_archive(SPEC, tmp_path)
    assert not (tmp_path / SPEC.folder).exists()


@pytest.mark.parametrize("keep", [0, 10, 0.3, 0.9])
def test_an_archive_that_was_cut_short_says_so(keep, tmp_path):
    packed(tmp_path / "whole", in_folder(FILES))
    whole = (tmp_path / "whole").read_bytes()
    (tmp_path / SPEC.filename).write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(DataError, match=r"cut short or damaged.*tinyres data get cifar10"):
        load_archive(SPEC, tmp_path)


@pytest.mark.parametrize("place", ["a pixel", "all of a half", "the end"])
def test_a_damaged_archive_says_so(place, tmp_path):
    packed(tmp_path / SPEC.filename, in_folder(FILES))
    data = bytearray((tmp_path / SPEC.filename).read_bytes())
    if place == "all of a half":
        data[len(data) // 2 :] = b"\xff" * (len(data) // 2)
    else:
        data[len(data) // 2 if place == "a pixel" else -5] ^= 0xFF
    (tmp_path / SPEC.filename).write_bytes(data)
    with pytest.raises(DataError, match="cut short or damaged"):
        load_archive(SPEC, tmp_path)
    assert not (tmp_path / SPEC.folder).exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    packed(tmp_path / SPEC.filename, in_folder(FILES))
    (tmp_path / SPEC.folder).write_bytes(b"a file in its place")
    with pytest.raises(DataError, match=rf"cannot unpack .* into .*{SPEC.folder}"):
        load_archive(SPEC, tmp_path)


# --- Dataset ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def numbered():
    """100 training and 20 test images; each is filled with its own number, which is its label too."""
    images = np.broadcast_to(np.arange(120, dtype=np.uint8)[:, None, None, None], (120, 3, 2, 2))
    labels = np.arange(120)
    return Dataset("numbered", images[:100], labels[:100], images[100:], labels[100:], ("a",), ["a note"])


def test_limit_keeps_the_first_images(numbered):
    few = numbered.limit(train=7, test=3)
    np.testing.assert_array_equal(few.train_labels, np.arange(7))
    np.testing.assert_array_equal(few.train_images[:, 0, 0, 0], np.arange(7))
    np.testing.assert_array_equal(few.test_labels, np.arange(100, 103))
    np.testing.assert_array_equal(few.test_images[:, 0, 0, 0], np.arange(100, 103))
    assert (few.name, few.classes, few.notes) == ("numbered", ("a",), ["a note"])
    assert len(numbered.train_labels) == 100
    same(numbered.limit(), numbered)
    same(numbered.limit(train=100, test=20), numbered)


@pytest.mark.parametrize("wrong", [{"train": 0}, {"train": 101}, {"test": -1}, {"test": 21}])
def test_limit_refuses_what_is_not_there(wrong, numbered):
    with pytest.raises(UsageError, match=rf"limit {next(iter(wrong))}={next(iter(wrong.values()))}.*give 1 to"):
        numbered.limit(**wrong)


def test_the_validation_split_parts_the_training_images_and_leaves_the_test_set_out(numbered):
    split = numbered.split_validation(10, seed=3)
    assert (len(split.train_labels), len(split.test_labels)) == (90, 10)
    assert sorted([*split.train_labels, *split.test_labels]) == list(range(100))
    np.testing.assert_array_equal(split.train_images[:, 0, 0, 0], split.train_labels)
    np.testing.assert_array_equal(split.test_images[:, 0, 0, 0], split.test_labels)
    assert list(split.test_labels) != list(range(10))
    assert list(split.test_labels) != list(range(90, 100))
    assert split.notes[0] == "a note"
    assert "10 training images held out with seed 3" in split.notes[1]
    assert numbered.notes == ["a note"]


def test_the_validation_split_depends_on_the_seed_alone(numbered):
    same(numbered.split_validation(10, seed=3), numbered.split_validation(10, seed=3))
    assert set(numbered.split_validation(10, 3).test_labels) != set(numbered.split_validation(10, 4).test_labels)


@pytest.mark.parametrize("n", [0, -1, 100])
def test_the_validation_split_needs_images_in_both_parts(n, numbered):
    with pytest.raises(UsageError, match=rf"validation n={n}.*give 1 to 99"):
        numbered.split_validation(n)
