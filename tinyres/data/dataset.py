"""A labelled set of images, held in memory as bytes."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

import numpy as np

from tinyres import markup
from tinyres.errors import UsageError

SHOWN = 10  # classes of a notebook's view, and images of each


@dataclass
class Dataset:
    """Training and test images with their labels, under a ``name``.

    ``train_images`` and ``test_images`` are uint8 (N, 3, H, W), red plane first, 0 to 255; ``train_labels`` and
    ``test_labels`` are int64 (N,), indices into ``classes``.
    ``notes`` holds what a reader of results must know, such as checksums that are not the published ones: print it once.
    ``source`` says how to load it again, where the name alone does not: see `data.load`.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    notes: list[str] = field(default_factory=list)
    source: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.train_images.shape[1:]))
        counts = f"{len(self.train_images):,} training and {len(self.test_images):,} test images"
        return f"Dataset({self.name!r}: {counts} of {size}, {len(self.classes)} classes)"

    def _repr_html_(self) -> str:
        rest = len(self.classes) - SHOWN
        more = f"<p>and {rest} more classes</p>" if rest > 0 else ""
        return f"<p>{escape(repr(self))}</p>{''.join(self._rows())}{more}"

    def _rows(self) -> Iterator[str]:
        """The first training images of each class, with its name before them."""
        for label, name in enumerate(self.classes[:SHOWN]):
            found = self.train_images[np.flatnonzero(self.train_labels == label)]
            images = markup.strip(found[:SHOWN], name) if len(found) else "no image"
            caption = f'<span style="flex:0 0 8em;overflow-wrap:anywhere">{escape(name)} ({len(found):,})</span>'
            yield f'<div style="display:flex;align-items:center;gap:1em;overflow-x:auto">{caption}{images}</div>'

    def crc32(self) -> int:
        """A checksum that tells data sets of the same name and size apart."""
        value = 0
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            value = zlib.crc32(np.ascontiguousarray(array).data, value)
        return value

    def limit(self, train: int | None = None, test: int | None = None) -> "Dataset":
        """The data set cut to its first ``train`` training images and first ``test`` test images (None: all of them).

        Raises `UsageError` for a number that is below 1 or above the number of images.
        """
        for what, count, have in (("train", train, len(self.train_labels)), ("test", test, len(self.test_labels))):
            if count is not None and not 1 <= count <= have:
                raise UsageError(f"limit {what}={count}: {self.name} has {have} {what} images; give 1 to {have}")
        return replace(
            self,
            train_images=self.train_images[:train],
            train_labels=self.train_labels[:train],
            test_images=self.test_images[:test],
            test_labels=self.test_labels[:test],
        )

    def split_validation(self, n: int = 5000, seed: int = 0) -> "Dataset":
        """The data set for choosing settings: ``n`` training images, drawn by ``seed``, take the place of the test set.

        He et al. 2015 (section 4.2) choose theirs on a 45k/5k split of the training images. Raises `UsageError` unless
        both parts have an image.
        """
        total = len(self.train_labels)
        if not 1 <= n < total:
            raise UsageError(f"validation n={n}: {self.name} has {total} training images; give 1 to {total - 1}")
        order = np.random.default_rng(seed).permutation(total)
        held, kept = np.sort(order[:n]), np.sort(order[n:])
        note = f"{self.name}: tested on {n} training images held out with seed {seed}, not on the test set"
        return replace(
            self,
            train_images=self.train_images[kept],
            train_labels=self.train_labels[kept],
            test_images=self.train_images[held],
            test_labels=self.train_labels[held],
            notes=[*self.notes, note],
        )
