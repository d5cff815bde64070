"""Batches of images for training and testing: shuffled, augmented, normalised, and prepared in the background."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from tinyres.data.mixing import mixup, one_hot, random_erasing
from tinyres.errors import DataError, UsageError
from tinyres.kernels.reference import augment as reference

PAD = 4  # pixels on each side: He et al. 2015, section 4.2

Batch = tuple[np.ndarray, np.ndarray]


def normalisation(images: np.ndarray, per: str = "pixel", divide_std: bool = False) -> Batch:
    """The float32 arrays (mean, scale) of y = (images / 255 - mean) * scale, for uint8 images (N, C, H, W).

    ``per="pixel"``: one mean for each of the C*H*W positions, as in He et al. 2015; arrays (C, H, W). ``per="channel"``: one
    for each channel, over all its pixels; arrays (C, 1, 1). The scale is 1, or with ``divide_std`` one over the standard
    deviation (divided by N, not N - 1; 1 where it is 0). The sums are of integers, so they are exact. Raises `DataError`
    for other images, `UsageError` for another ``per``.
    """
    check_images(images)
    if per not in ("pixel", "channel"):
        raise UsageError(f"normalisation per={per!r}: expected 'pixel' or 'channel'")
    axes = (0, 2, 3) if per == "channel" else (0,)
    total = squares = np.zeros((), np.int64)
    for start in range(0, len(images), 1000):  # in parts: as int64, images take eight times their memory
        part = images[start : start + 1000]
        total = total + part.sum(axes, np.int64, keepdims=True)[0]
        if divide_std:
            squares = squares + np.square(part, dtype=np.int64).sum(axes, keepdims=True)[0]
    count = images.size // total.size
    mean = (total / (255 * count)).astype(np.float32)
    if not divide_std:
        return mean, np.ones_like(mean)
    # n sum(x^2) - (sum x)^2 = n^2 var(x), in Python's integers: 50,000 images' channel passes 2^63
    variance = (count * squares.astype(object) - total.astype(object) ** 2).astype(np.float64) / (255.0 * count) ** 2
    std = np.sqrt(np.where(variance > 0, variance, 1))
    return mean, (1 / std).astype(np.float32)


class Loader:
    """Iterates over (images, labels) in batches of ``batch_size``, one epoch per ``for`` loop. The last batch of an epoch is
    smaller if they do not divide, or left out with ``drop_last``.

    Yields x, float32 (B, C, H, W) and C-contiguous, and y, int64 (B,). x is ``(images / 255 - mean) * scale``. With
    ``augment`` it is padded by 4 pixels of zeros on each side, cropped at random, and mirrored half of the time. Read a test
    set with ``shuffle=False, augment=False``.

    With ``random_erasing``, a rectangle of an image is erased with this probability; with ``mixup``, the alpha of its
    distribution, images are blended, and y has the probabilities of all classes, float32 (B, classes): see
    `tinyres.data.mixing`.

    Each loop begins a new epoch, also after one that was left early. The loader has a position: the (epoch, batch) of the
    next batch that it returns. After `load_state_dict` a loop runs from that position to the end of its epoch.

    What a batch holds depends on the seed and its position alone: the order of an epoch is drawn from (seed, epoch), the
    crops and flips of a batch from (seed, epoch, batch). So a run that continues from a saved `state_dict` sees the same
    bytes as one that was never interrupted, however many batches were prepared ahead.

    A background thread keeps up to ``prefetch`` batches ready; it ends with the loop, even if the loop is left early.
    ``crop_flip`` is the kernel that makes x: see `tinyres.kernels.reference.augment.crop_flip`.

    Raises `DataError` for images and labels that do not fit, `UsageError` for other wrong arguments.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        *,
        shuffle: bool = True,
        augment: bool = True,
        mean: np.ndarray | float = 0.0,
        scale: np.ndarray | float = 1.0,
        seed: int = 0,
        drop_last: bool = False,
        prefetch: int = 2,
        mixup: float = 0.0,
        random_erasing: float = 0.0,
        classes: int | None = None,
        crop_flip: Callable[..., np.ndarray] = reference.crop_flip,
    ) -> None:
        check_images(images)
        if not isinstance(labels, np.ndarray) or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            got = f"{labels.dtype} {labels.shape}" if isinstance(labels, np.ndarray) else type(labels).__name__
            raise DataError(f"labels: got {got}, expected integers of shape ({len(images)},), one for each image")
        if batch_size < 1 or prefetch < 0 or seed < 0:
            raise UsageError(
                f"Loader: got batch_size={batch_size}, prefetch={prefetch}, seed={seed}; "
                "expected batch_size >= 1, prefetch >= 0, seed >= 0"
            )
        if not (0 <= mixup < math.inf and 0 <= random_erasing <= 1):
            raise UsageError(
                f"Loader: got mixup={mixup}, random_erasing={random_erasing}; expected mixup >= 0, random_erasing in 0 .. 1"
            )
        self.mixup, self.random_erasing = mixup, random_erasing
        self.classes = int(labels.max()) + 1 if classes is None else classes
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.shuffle, self.augment, self.drop_last, self.prefetch = shuffle, augment, drop_last, prefetch
        self.mean, self.scale = (_fitting(name, v, images) for name, v in (("mean", mean), ("scale", scale)))
        self.crop_flip = crop_flip
        self.seed, self.epoch, self.batch = seed, 0, 0
        self._loaded = False  # whether the next loop goes on where load_state_dict has put it
        if len(self) == 0:
            raise UsageError(f"Loader: drop_last leaves no batch of {batch_size} from {len(images)} images")

    def __repr__(self) -> str:
        size = "x".join(map(str, self.images.shape[1:]))
        does = [*["shuffled"] * self.shuffle, *["augmented"] * self.augment] or ["in order"]
        batches = f"{len(self):,} batches of {self.batch_size}, {' and '.join(does)}"
        where = f"next is batch {self.batch} of epoch {self.epoch}"
        return f"Loader({len(self.images):,} images of {size} in {batches}; {where})"

    def __len__(self) -> int:
        """Batches per epoch."""
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def state_dict(self) -> dict[str, int]:
        """The seed and the position of the next batch."""
        return {"seed": self.seed, "epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position; raises `DataError` for one that this loader does not have."""
        wrong = set(state) != {"seed", "epoch", "batch"} or not all(isinstance(v, int) and v >= 0 for v in state.values())
        if wrong or state["batch"] >= len(self):
            raise DataError(f"loader state {state}: expected seed, epoch and a batch under {len(self)}, all >= 0")
        self.seed, self.epoch, self.batch = state["seed"], state["epoch"], state["batch"]
        self._loaded = True

    def __iter__(self) -> Iterator[Batch]:
        """A new epoch, or from a loaded position to the end of its epoch."""
        if self.batch and not self._loaded:  # the last loop was left early
            self.epoch, self.batch = self.epoch + 1, 0
        self._loaded = False
        seed, epoch, first, last = self.seed, self.epoch, self.batch, len(self) - 1
        order = self.order(epoch)
        ahead: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(1, thread_name_prefix="tinyres-loader")
        try:
            for batch in range(first, last + 1):
                # the batch that is due and ``prefetch`` more: the thread works on them while the caller trains
                for coming in range(batch + len(ahead), min(batch + self.prefetch, last) + 1):
                    ahead.append(pool.submit(self._prepare, order, seed, epoch, coming))
                ready = ahead.popleft().result()
                if self.state_dict() != {"seed": seed, "epoch": epoch, "batch": batch}:
                    raise UsageError(
                        "the loader was moved while a loop over it ran, by load_state_dict or a second loop; "
                        "make one Loader for each loop"
                    )
                self.epoch, self.batch = (epoch, batch + 1) if batch < last else (epoch + 1, 0)
                yield ready
        finally:
            pool.shutdown(cancel_futures=True)

    def order(self, epoch: int) -> np.ndarray:
        """The indices of the images, in the order in which an epoch shows them."""
        if not self.shuffle:
            return np.arange(len(self.images))
        return _generator(self.seed, epoch).permutation(len(self.images))

    def _prepare(self, order: np.ndarray, seed: int, epoch: int, batch: int) -> Batch:
        chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
        count, pad = len(chosen), PAD if self.augment else 0
        offsets, flips = np.zeros((count, 2), np.int64), np.zeros(count, bool)
        random = _generator(seed, epoch, batch)
        if self.augment:
            offsets = random.integers(0, 2 * pad, (count, 2), endpoint=True)
            flips = random.integers(0, 2, count).astype(bool)
        x = self.crop_flip(self.images[chosen], offsets, flips, pad, self.mean, self.scale)
        y = self.labels[chosen].astype(np.int64)
        if self.random_erasing:
            x = random_erasing(x, self.random_erasing, random)
        return mixup(x, one_hot(y, self.classes), self.mixup, random) if self.mixup else (x, y)


def check_images(images: np.ndarray) -> None:
    """Raises `DataError` unless these are uint8 images (N, C, H, W), at least one."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
        got = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(f"images: got {got}, expected uint8 (N, C, H, W) with at least one image")


def _fitting(name: str, value: np.ndarray | float, images: np.ndarray) -> np.ndarray:
    array = np.asarray(value, np.float32)
    try:
        np.broadcast_to(array, images.shape[1:])
    except ValueError as error:
        raise DataError(f"{name}: got shape {array.shape}, expected one that broadcasts to {images.shape[1:]}") from error
    return array


def _generator(seed: int, *position: int) -> np.random.Generator:
    # Through spawn_key: a bare list of entropy is padded with zeros, so [seed, epoch] and [seed, epoch, 0] are the same.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=position))


def first_batch(images: np.ndarray, labels: np.ndarray, count: int, mean: np.ndarray, scale: np.ndarray) -> Batch:
    """The first ``count`` images, normalised as a `Loader` does it but not augmented, and their labels."""
    images, labels = images[:count], labels[:count]
    return next(iter(Loader(images, labels, count, shuffle=False, augment=False, mean=mean, scale=scale)))
