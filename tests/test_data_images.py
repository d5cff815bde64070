"""Images of one's own: folders and .npz files, odd images as they are meant to be seen, damaged ones named."""

import io
import os

import numpy as np
import pytest
from PIL import Image

import tinyres as tr
from tinyres.data.images import BadImage, load_folder, load_npz, read_image, read_images
from tinyres.errors import DataError, UsageError

RED, BLUE = (200, 30, 20), (20, 40, 210)


def halves(wide=48, high=32, mode="RGB"):
    """Red at the left, blue at the right."""
    image = Image.new("RGB", (wide, high), RED)
    image.paste(BLUE, (wide // 2, 0, wide, high))
    return image.convert(mode)


def packed(image, kind="PNG", **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def turned_by_exif():
    """Stored on its side, and to be turned back."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    return packed(halves().rotate(90, expand=True), "JPEG", quality=95, exif=exif)


def sixteen_bits():
    values = np.repeat(np.array([[60000, 6000]], np.uint16), 32, 0).repeat(24, 1)
    return packed(Image.fromarray(values))


ODD = {  # how red, green and blue compare at the left and at the right
    "grey.png": (packed(halves(mode="L")), None),
    "bits.png": (packed(halves(mode="1")), None),
    "palette.png": (packed(halves(mode="P")), (RED, BLUE)),
    "alpha.png": (packed(halves(mode="RGBA")), (RED, BLUE)),
    "cmyk.jpg": (packed(halves(mode="CMYK"), "JPEG", quality=95), (RED, BLUE)),
    "sixteen.png": (sixteen_bits(), ((233, 233, 233), (23, 23, 23))),
    "turned.jpg": (turned_by_exif(), (RED, BLUE)),
    "moving.gif": (packed(halves(), "GIF", save_all=True, append_images=[halves().rotate(180)]), (RED, BLUE)),
    "large.webp": (packed(halves(960, 640), "WEBP", quality=95), (RED, BLUE)),
    "JPEG in name only.png": (packed(halves(), "JPEG", quality=95), (RED, BLUE)),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_image_is_seen_as_it_is_meant(name, tmp_path):
    content, colours = ODD[name]
    (tmp_path / name).write_bytes(content)
    image = read_image(tmp_path / name, 16)
    assert image.shape == (3, 16, 16) and image.dtype == np.uint8 and image.flags.c_contiguous
    if colours:
        np.testing.assert_allclose(image[:, 8, 1], colours[0], atol=30)
        np.testing.assert_allclose(image[:, 8, 14], colours[1], atol=30)
    else:
        assert (image[0] == image[1]).all() and (image[1] == image[2]).all()


def test_the_middle_is_cut_out_and_nothing_is_stretched(tmp_path):
    wide = Image.new("RGB", (96, 32), RED)
    wide.paste(BLUE, (32, 0, 64, 32))  # the middle third
    wide.save(tmp_path / "wide.png")
    image = read_image(tmp_path / "wide.png", 32)
    np.testing.assert_array_equal(image, np.broadcast_to(np.array(BLUE)[:, None, None], (3, 32, 32)))


def broken(rng):
    """Two hundred damaged files of twelve kinds."""
    whole = {kind: packed(halves(64, 64), kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")}
    for i in range(200):
        kind = list(whole)[i % 6]
        content = bytearray(whole[kind])
        if i % 12 < 6:  # cut short
            content = content[: int(rng.integers(1, max(2, len(content) // 3)))]
        elif i % 24 < 12:  # noise from the start on
            content[:] = rng.integers(0, 256, len(content), np.uint8).tobytes()
        else:  # a good beginning, then noise
            content[8:] = rng.integers(0, 256, len(content) - 8, np.uint8).tobytes()
        yield f"{i:03}.{kind.lower()}", bytes(content)


def test_damaged_images_never_crash_and_are_named(tmp_path):
    folder = tmp_path / "all"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for k in range(5):
            halves().save(folder / name / f"good{k}.png")
    for name, content in broken(np.random.default_rng(0)):
        (folder / "a" / name).write_bytes(content)
    paths = sorted((folder / "a").iterdir())
    read = dict(zip([path.name for path in paths], read_images(paths, 8), strict=True))
    bad = [name for name, image in read.items() if isinstance(image, BadImage)]
    assert len(bad) >= 190 and not any(name.startswith("good") for name in bad)
    assert all(str(read[name]) and "\n" not in str(read[name]) for name in bad)
    data = load_folder(folder, 8)
    assert len(data.train_labels) + len(data.test_labels) == 10 + 200 - len(bad)
    (note,) = data.notes
    assert f"left out {len(bad)} files: a/" in note and f"and {len(bad) - 5} more" in note
    with pytest.raises(DataError, match="without strict they are left out"):
        load_folder(folder, 8, strict=True)


def claiming(side):
    """A small file that says that it is large."""
    whole = packed(halves(8, 8), "BMP")
    return whole[:18] + side.to_bytes(4, "little") * 2 + whole[26:]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("empty.png", b"", "it is empty"),
        ("notes.txt", b"no image at all", "it is no image"),
        ("page.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is no image"),
        ("huge.bmp", claiming(12_000), "it has 12000 x 12000 pixels"),
        ("huger.bmp", claiming(200_000), "pixels"),
    ],
)
def test_why_a_file_is_no_image(name, content, why, tmp_path):
    (tmp_path / name).write_bytes(content)
    (found,) = read_images([tmp_path / name], 8)
    assert isinstance(found, BadImage) and why in str(found)


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadImage):
        read_image(tmp_path / "pipe.png", 8)


# --- folders -----------------------------------------------------------------------------------------------------------


def make(folder, counts, wide=20):
    """A folder of class folders; every image has a colour of its own."""
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            Image.new("RGB", (wide, wide + k), (50 * label, k, 7)).save(folder / name / f"{k:02}.png")


def test_classes_files_and_the_split_are_always_the_same(tmp_path):
    make(tmp_path / "mine", {"zebra": 10, "ant": 20, ".hidden": 3})
    (tmp_path / "mine" / "ant" / ".DS_Store").write_bytes(b"x")
    one, two, other = (load_folder(tmp_path / "mine", 8, split=0.3, seed=seed) for seed in (0, 0, 1))
    assert one.name == "mine" and one.classes == ("ant", "zebra") and one.notes == []
    assert one.train_images.shape == (21, 3, 8, 8) and np.bincount(one.test_labels).tolist() == [6, 3]
    assert (one.train_images[:, 0] // 50 == one.train_labels[:, None, None]).sum() in (0, one.train_images[:, 0].size)
    np.testing.assert_array_equal(one.test_images, two.test_images)
    assert not np.array_equal(one.test_images, other.test_images)
    everyone = sorted([*one.train_images[:, 1, 0, 0], *one.test_images[:, 1, 0, 0]])
    assert everyone == sorted([*range(20), *range(10)])  # none twice, none lost
    assert one.source == {"path": str(tmp_path / "mine"), "size": 8, "split": 0.3, "seed": 0}


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "val")])
def test_a_folder_with_a_split_of_its_own_keeps_it(names, tmp_path):
    make(tmp_path / names[0], {"a": 3, "b": 4})
    make(tmp_path / names[1], {"b": 2})
    data = load_folder(tmp_path, 8)
    assert data.train_labels.tolist() == [0] * 3 + [1] * 4 and data.test_labels.tolist() == [1, 1]
    make(tmp_path / names[1] / "more", {"c": 1})
    (tmp_path / names[1] / "new").mkdir()
    with pytest.raises(DataError, match=r"has classes that .* has not: more, new"):
        load_folder(tmp_path, 8)


@pytest.mark.parametrize(
    ("counts", "how", "error", "words"),
    [
        ({}, {}, DataError, "0 classes have training images"),
        ({"one": 5}, {}, DataError, "1 classes have training images"),
        ({"one": 1, "two": 1}, {}, DataError, "0 test images"),
        ({"one": 3, "two": 3}, {"size": 3}, UsageError, "expected 4 to 1024 pixels"),
        ({"one": 3, "two": 3}, {"split": 1.0}, UsageError, "a share between 0 and 1"),
    ],
)
def test_a_folder_that_is_no_data_set_says_what_is_expected(counts, how, error, words, tmp_path):
    make(tmp_path / "mine", counts)
    (tmp_path / "mine").mkdir(exist_ok=True)
    with pytest.raises(error, match=words):
        load_folder(tmp_path / "mine", **how)


def test_a_class_without_images_is_named(tmp_path):
    make(tmp_path, {"a": 3, "b": 3, "c": 0})
    assert load_folder(tmp_path, 8).notes == [f"{tmp_path}: no training image in c"]


# --- NumPy files -----------------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, 256, (12, 6, 5, 3), np.uint8), np.arange(12) % 3


@pytest.mark.parametrize(
    ("arrays", "shape"),
    [
        ({"train_images": X, "train_labels": Y, "test_images": X[:3], "test_labels": Y[:3]}, (12, 3, 6, 5)),
        ({"x_train": X, "y_train": Y[:, None], "x_test": X[:4], "y_test": Y[:4, None]}, (12, 3, 6, 5)),
        ({"train_images": X.transpose(0, 3, 1, 2), "train_labels": Y}, (9, 3, 6, 5)),
        (
            {"train_images": X[..., 0], "train_labels": Y.astype(np.uint8), "classes": np.array(["a", "b", "c", "d"])},
            (9, 3, 6, 5),
        ),
        ({"train_images": X[..., :1], "train_labels": Y}, (9, 3, 6, 5)),
    ],
)
def test_an_npz_file_in_the_layouts_that_people_have(arrays, shape, tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays)
    data = tr.data.load(str(tmp_path / "mine.npz"))
    assert data.name == "mine" and data.train_images.shape == shape
    assert data.classes == tuple(map(str, arrays.get("classes", "012")))
    first = X[0].transpose(2, 0, 1) if "test_images" in arrays or "x_test" in arrays else None
    assert first is None or np.array_equal(data.train_images[0], first)
    assert len(data.train_labels) + len(data.test_labels) >= 12


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": X}, "holds images; expected train_images"),
        ({"train_images": X / 255, "train_labels": Y}, "float64 .*expected uint8 images"),
        ({"train_images": X, "train_labels": Y / 2}, "expected integers"),
        ({"train_images": X, "train_labels": Y[:5], "test_images": X, "test_labels": Y}, "12 images and 5 labels"),
        ({"train_images": X, "train_labels": Y - 1}, "labels must be 0 to"),
        ({"train_images": X, "train_labels": Y, "classes": np.array(["a", "b"])}, "labels must be 0 to 1"),
        ({"train_images": X, "train_labels": Y, "test_images": X[:, :3], "test_labels": Y}, "training images are"),
        ({"train_images": X[..., :2], "train_labels": Y}, "channels|expected uint8"),
        ({"train_images": np.array([{}]), "train_labels": Y}, "no .npz file of arrays"),
    ],
)
def test_an_npz_file_that_is_no_data_set_says_why(arrays, words, tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(DataError, match=words):
        load_npz(tmp_path / "mine.npz")


def test_damaged_npz_files_are_refused(tmp_path):
    np.savez(tmp_path / "mine.npz", train_images=X, train_labels=Y)
    content = (tmp_path / "mine.npz").read_bytes()
    for cut in (0, 10, len(content) // 2, len(content) - 30):
        (tmp_path / "mine.npz").write_bytes(content[:cut])
        with pytest.raises(DataError):
            load_npz(tmp_path / "mine.npz")


def test_a_name_that_is_no_data_set_says_what_there_is():
    with pytest.raises(UsageError, match="cifar10, cifar100, shapes; or name a folder"):
        tr.data.load("flowers")
