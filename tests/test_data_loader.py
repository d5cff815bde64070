"""Batches hold the right images, cropped, mirrored and normalised; any position comes back byte for byte."""

import gc
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tinyres.data import Loader, normalisation
from tinyres.data.loader import _generator
from tinyres.errors import DataError, UsageError
from tinyres.kernels.reference.augment import crop_flip


def numbered(count, height=8, width=8):
    """Images whose first pixel is their number, and labels that are 1000 more."""
    images = np.random.default_rng(count).integers(0, 256, (count, 3, height, width), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return images, np.arange(count) + 1000


def plain(loader):
    """The numbers of the images of each batch of an epoch, from a loader without augmentation."""
    return [np.rint(x[:, 0, 0, 0] * 255).astype(int).tolist() for x, _ in loader]


def as_bytes(batches):
    return [(x.tobytes(), y.tobytes()) for x, y in batches]


# --- What a batch holds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    ("count", "size", "drop_last"),
    [(10, 3, False), (10, 3, True), (9, 3, False), (9, 3, True), (5, 5, True), (5, 1, False), (3, 7, False)],
)
def test_an_epoch_holds_each_image_once_with_its_label(count, size, drop_last, shuffle):
    images, labels = numbered(count)
    loader = Loader(images, labels.astype(np.int16), size, shuffle=shuffle, augment=False, drop_last=drop_last)
    batches = list(loader)
    sizes = [len(y) for _, y in batches]
    whole, rest = divmod(count, size)
    assert sizes == [size] * whole + ([rest] if rest and not drop_last else [])
    assert len(loader) == len(sizes)
    seen = [int(n) for _, y in batches for n in y - 1000]
    assert len(set(seen)) == len(seen) == sum(sizes)
    for x, y in batches:
        np.testing.assert_array_equal(x, images[y - 1000] / np.float32(255))
        assert (x.dtype, y.dtype, x.flags.c_contiguous) == (np.float32, np.int64, True)
    if not shuffle:
        assert seen == sorted(seen)


def test_images_are_normalised_by_mean_and_scale():
    images, labels = numbered(6)
    mean, scale = normalisation(images, "pixel", divide_std=True)
    ((x, _),) = Loader(images, labels, 6, shuffle=False, augment=False, mean=mean, scale=scale)
    np.testing.assert_array_equal(x, (images / np.float32(255) - mean) * scale)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(0), 1, atol=1e-5)


def test_augmented_images_are_crops_by_all_offsets_flipped_half_of_the_time():
    image = np.arange(3 * 12 * 12, dtype=np.uint8).reshape(3, 12, 12) // 2 + 1  # no zero, no symmetry
    images = np.repeat(image[None], 4000, axis=0)
    ((x, _),) = Loader(images, np.zeros(4000, int), 4000)
    padded = np.pad(image / np.float32(255), ((0, 0), (4, 4), (4, 4)))
    crops = {}
    for i in range(9):
        for j in range(9):
            crop = padded[:, i : i + 12, j : j + 12]
            crops[crop.tobytes()] = (i, j, False)
            crops[crop[:, :, ::-1].tobytes()] = (i, j, True)
    assert len(crops) == 162
    counts = np.zeros((9, 9, 2), int)
    for one in x:
        counts[crops[one.tobytes()]] += 1
    assert counts.sum((0, 2)).min() > 340  # of 444 expected
    assert counts.sum((1, 2)).min() > 340
    assert counts.sum(2).min() > 20  # of 49
    assert 1850 < counts[..., 1].sum() < 2150


def test_the_border_of_an_augmented_image_is_the_mean_and_not_black():
    images = np.full((64, 3, 8, 8), 200, np.uint8)
    mean, scale = normalisation(images)
    ((x, _),) = Loader(images, np.zeros(64, int), 64, mean=mean, scale=scale)
    np.testing.assert_array_equal(x, 0)


def test_another_crop_flip_can_be_passed():
    calls = []

    def spy(images, offsets, flips, pad, mean, scale):
        calls.append((offsets, flips, pad))
        return crop_flip(images, offsets, flips, pad, mean, scale)

    images, labels = numbered(5)
    expected = as_bytes(Loader(images, labels, 3, seed=1))
    assert as_bytes(Loader(images, labels, 3, seed=1, crop_flip=spy)) == expected
    assert [(offsets.shape, flips.shape, flips.dtype, pad) for offsets, flips, pad in calls] == [
        ((3, 2), (3,), bool, 4),
        ((2, 2), (2,), bool, 4),
    ]


# --- Randomness and position ------------------------------------------------------------------------------------------


def test_epochs_and_seeds_differ_in_order_and_in_crops():
    images, labels = numbered(200)
    loaders = [Loader(images, labels, 50, seed=seed, augment=False) for seed in (0, 0, 1)]
    first, second = ([plain(loader) for loader in loaders] for _ in range(2))
    assert first[0] == first[1] != first[2]
    assert second[0] == second[1] != second[2]
    assert first[0] != second[0]
    still = np.repeat(images[:1], 200, axis=0)  # all images alike: only crops can differ
    one, other = Loader(still, labels, 50, seed=0), Loader(still, labels, 50, seed=1)
    batches = [x.tobytes() for _ in range(2) for x, _ in one] + [x.tobytes() for x, _ in other]
    assert len(set(batches)) == len(batches) == 12


def test_each_epoch_and_each_batch_has_a_stream_of_its_own():
    positions = [(epoch, *batch) for epoch in range(3) for batch in ((), (0,), (1,), (2,))]
    drawn = [_generator(seed, *position).integers(2**62) for seed in range(3) for position in positions]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("prefetch", [0, 1, 2, 7])
@pytest.mark.parametrize("stop", [0, 1, 3, 4, 5, 9])
def test_a_run_that_goes_on_from_a_saved_position_sees_the_same_bytes(prefetch, stop):
    images, labels = numbered(11)
    unbroken = Loader(images, labels, 3, seed=7)
    expected = [batch for _ in range(3) for batch in as_bytes(unbroken)]
    assert len(expected) == 12
    loader, seen = Loader(images, labels, 3, seed=7, prefetch=prefetch), []
    while len(seen) < stop:
        for batch in loader:
            seen += as_bytes([batch])
            if len(seen) == stop:
                break
    state = loader.state_dict()
    assert state == {"seed": 7, "epoch": stop // 4, "batch": stop % 4}
    resumed = Loader(images, labels, 3, seed=99, prefetch=prefetch)
    resumed.load_state_dict(state)
    while resumed.epoch < 3:
        seen += as_bytes(resumed)
    assert seen == expected


def test_the_position_is_that_of_the_next_batch_to_be_handed_out():
    images, labels = numbered(9)
    loader = Loader(images, labels, 3, prefetch=5)
    positions = [(loader.epoch, loader.batch) for _ in loader]
    assert positions == [(0, 1), (0, 2), (1, 0)]
    for _ in loader:
        break
    assert (loader.epoch, loader.batch) == (1, 1)
    loader.load_state_dict(loader.state_dict())
    assert len(list(loader)) == 2  # to the end of the epoch
    assert (loader.epoch, loader.batch) == (2, 0)


def test_a_loop_over_a_loader_that_was_moved_is_refused():
    images, labels = numbered(9)
    loader = Loader(images, labels, 3)
    with pytest.raises(UsageError, match="moved while a loop"):
        for _ in loader:
            loader.load_state_dict({"seed": 0, "epoch": 4, "batch": 0})
    assert loader.state_dict() == {"seed": 0, "epoch": 4, "batch": 0}
    with pytest.raises(UsageError, match="moved while a loop"):
        list(zip(loader, loader, strict=True))


@pytest.mark.parametrize(
    "state",
    [
        {"seed": 0, "epoch": 0, "batch": 3},
        {"seed": 0, "epoch": 0, "batch": -1},
        {"seed": 0, "epoch": -1, "batch": 0},
        {"seed": 0, "epoch": 0, "batch": 1.0},
        {"seed": 0, "epoch": 0},
        {"seed": 0, "epoch": 0, "batch": 0, "x": 0},
    ],
)
def test_a_position_that_does_not_exist_is_refused(state):
    images, labels = numbered(9)
    with pytest.raises(DataError, match=r"loader state .*a batch under 3"):
        Loader(images, labels, 3).load_state_dict(state)


# --- The background thread --------------------------------------------------------------------------------------------


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("tinyres-loader")]


class Counting:
    """A crop_flip that counts its calls, and fails at one of them."""

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = 0, fail_at

    def __call__(self, images, *rest):
        self.calls += 1
        if self.calls == self.fail_at:
            raise ZeroDivisionError("in the background")
        return images.astype(np.float32)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_no_more_than_prefetch_batches_are_prepared_ahead(prefetch):
    images, labels = numbered(20)
    count = Counting()
    batches = iter(Loader(images, labels, 1, prefetch=prefetch, crop_flip=count))
    for handed_out in range(1, 21):
        next(batches)
        assert handed_out <= count.calls <= handed_out + prefetch
    assert next(batches, None) is None
    assert count.calls == 20


def test_batches_are_prepared_while_the_caller_works():
    images, labels = numbered(20)
    ready = threading.Event()
    count = Counting()

    def crop(images, *rest):
        if count.calls == 2:
            ready.set()
        return count(images)

    batches = iter(Loader(images, labels, 1, prefetch=2, crop_flip=crop))
    next(batches)
    assert ready.wait(10)
    batches.close()


def test_an_error_in_the_background_reaches_the_loop_and_the_position_stays():
    images, labels = numbered(20)
    loader = Loader(images, labels, 1, crop_flip=Counting(fail_at=4))
    seen = 0
    with pytest.raises(ZeroDivisionError, match="in the background"):
        for _ in loader:
            seen += 1
    assert seen == loader.batch == 3
    assert loader_threads() == []
    loader.load_state_dict(loader.state_dict())
    assert len(list(loader)) == 17


def test_no_thread_outlives_a_loop_that_ends_breaks_or_is_dropped():
    images, labels = numbered(20)
    loader = Loader(images, labels, 1, prefetch=4)
    for x, _ in loader:
        assert len(loader_threads()) == 1
        if x is not None:
            break
    gc.collect()
    assert loader_threads() == []
    batches = iter(loader)
    next(batches)
    del batches
    gc.collect()
    assert loader_threads() == []
    iter(loader)
    assert loader_threads() == []
    list(loader)
    assert loader_threads() == []


def test_what_was_queued_is_dropped_when_a_loop_is_left():
    images, labels = numbered(20)
    running, go_on = threading.Event(), threading.Event()
    count = Counting()

    def crop(images, *rest):
        if count.calls == 1:  # the second call, ahead of the loop
            running.set()
            go_on.wait(10)
        return count(images)

    batches = iter(Loader(images, labels, 1, prefetch=10, crop_flip=crop))
    next(batches)
    assert running.wait(10)
    threading.Timer(0.05, go_on.set).start()
    batches.close()
    assert count.calls == 2
    assert loader_threads() == []


def test_a_loop_left_open_does_not_keep_the_process_from_ending():
    code = (
        "import numpy as np; from tinyres.data import Loader\n"
        "images = np.zeros((900, 3, 32, 32), np.uint8)\n"
        "batches = iter(Loader(images, np.zeros(900, int), 3, prefetch=50)); next(batches)\n"
    )
    command, root = [sys.executable, "-W", "error", "-c", code], Path(__file__).parents[1]
    ended = subprocess.run(command, cwd=root, capture_output=True, timeout=60, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


# --- Arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"images": np.zeros((5, 3, 8, 8), np.float32)}, DataError, r"images: got float32 \(5, 3, 8, 8\), expected uint8"),
        ({"images": np.zeros((5, 3, 8), np.uint8)}, DataError, r"images: got uint8 \(5, 3, 8\)"),
        ({"images": np.zeros((0, 3, 8, 8), np.uint8)}, DataError, "at least one image"),
        ({"images": [[1]]}, DataError, "images: got list"),
        ({"labels": np.arange(4)}, DataError, r"labels: got int64 \(4,\), expected integers of shape \(5,\)"),
        ({"labels": np.arange(5.0)}, DataError, r"labels: got float64 \(5,\)"),
        ({"labels": np.ones(5, bool)}, DataError, r"labels: got bool \(5,\)"),
        ({"labels": np.ones((5, 1), int)}, DataError, r"labels: got int64 \(5, 1\)"),
        ({"labels": [0] * 5}, DataError, "labels: got list"),
        ({"batch_size": 0}, UsageError, "got batch_size=0"),
        ({"prefetch": -1}, UsageError, "prefetch=-1"),
        ({"seed": -1}, UsageError, "seed=-1"),
        ({"batch_size": 6, "drop_last": True}, UsageError, "drop_last leaves no batch of 6 from 5 images"),
        ({"mean": np.zeros(3)}, DataError, r"mean: got shape \(3,\), expected one that broadcasts to \(3, 8, 8\)"),
        ({"scale": np.ones((2, 3, 1, 1))}, DataError, r"scale: got shape \(2, 3, 1, 1\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, error, says):
    images, labels = numbered(5)
    arguments = {"images": images, "labels": labels, "batch_size": 2} | change
    with pytest.raises(error, match=says):
        Loader(**arguments)
