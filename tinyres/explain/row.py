"""One line of the gradient ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tinyres.kernels.arrays import Array


@dataclass
class Row:
    """The block called ``name``. Norms are Euclidean, over the whole batch, of the cotangents of a loss that is a mean
    over the batch.

    ``arrives`` |dz|, ``open`` the share of the join's ReLU that lets it through (1 without a ReLU), ``lent`` |ds|,
    ``through_shortcut`` |J_s^T ds|, ``through_branch`` |J_F^T ds|, ``total`` |dx|, ``ratio`` = through_branch /
    through_shortcut, ``cosine`` of the angle between the two, ``error`` = max |dx - (sum of the two)| / max |dx|.
    A plain block has ``shortcut`` "none", and None where there is nothing to say. ``words`` says whether it adds up.
    ``arrays`` are the cotangents themselves, where they were asked for.
    """

    name: str
    shortcut: str
    arrives: float
    open: float
    lent: float | None
    through_shortcut: float | None
    through_branch: float
    total: float
    ratio: float | None
    cosine: float | None
    error: float | None
    words: str
    arrays: dict[str, Array] = field(default_factory=dict, repr=False)

    def json(self) -> dict[str, Any]:
        """All but the arrays."""
        return {key: value for key, value in vars(self).items() if key != "arrays"}
