"""What a lab is: claims of papers, the runs that test them, and rules, fixed beforehand, that make verdicts of numbers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from tinyres.lab.statistics import Check

HOLDS, FAILS, OPEN = "holds here", "does not hold here", "not decided at this scale"
SCALES = ("quick", "full", "tiny")

Config = dict[str, Any]
Setting = dict[str, Any]
Numbers = Mapping[str, Sequence[float]]  # by name, one value per seed


class Run(NamedTuple):
    """One run: what was set, the seed, and what came of it."""

    setting: Setting
    seed: int
    result: dict[str, Any]

    @classmethod
    def read(cls, one: dict[str, Any]) -> Run:
        """A run as a file has it. There null stands for what was not finite; here it is NaN."""
        return cls(dict(one["setting"]), int(one["seed"]), dict(_nan_for_none(one["result"])))


def _nan_for_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_for_none(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_nan_for_none(v) for v in value]
    return math.nan if value is None else value


@dataclass(frozen=True)
class Claim:
    """A claim of a paper (``source``), and the ``rule`` by which the numbers decide. ``judge`` is that rule as code."""

    text: str
    source: str
    rule: str
    judge: Callable[[Numbers], list[Check]]

    def verdict(self, numbers: Numbers) -> tuple[str, list[Check]]:
        """(verdict, the checks on which it rests)."""
        checks = self.judge(numbers)
        return conclude([check.sign for check in checks]), checks


def conclude(signs: Sequence[int]) -> str:
    """It holds if all checks are for it (+1), and does not if one is against it (-1); else it is open."""
    if any(sign < 0 for sign in signs):
        return FAILS
    return HOLDS if signs and all(sign > 0 for sign in signs) else OPEN


class Lab(ABC):
    """An experiment. Its runs, one per setting and seed, are independent of each other.

    ``scales`` has the configuration of each scale: ``quick`` ends within ten minutes on two cores, ``full`` is the paper's
    own, as far as it can be, and ``tiny`` shows that everything runs, and nothing else.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    claims: ClassVar[tuple[Claim, ...]]
    method: ClassVar[str]  # Markdown; {names} are those of the configuration
    differs: ClassVar[str]  # how the quick scale differs from the paper's
    scales: ClassVar[dict[str, Config]]
    seeds: ClassVar[int] = 3
    least: ClassVar[dict[str, int]] = {}  # of entries of the configuration that must be larger than 1

    @abstractmethod
    def settings(self, config: Config) -> list[Setting]:
        """What is run, for each seed."""

    @abstractmethod
    def run(self, setting: Setting, seed: int, config: Config) -> dict[str, Any]:
        """One run. What it returns goes through JSON."""

    @abstractmethod
    def numbers(self, runs: Sequence[Run], config: Config) -> dict[str, list[float]]:
        """The numbers of the table, and of the rules: name -> one value per seed."""

    @abstractmethod
    def draw(self, figure: Any, runs: Sequence[Run], config: Config) -> None:
        """Draws into an empty matplotlib figure."""

    def cost(self, setting: Setting, config: Config) -> float:
        """How long a run takes, compared with the others."""
        return 1.0

    def seen(self, numbers: Numbers) -> str:
        """What else there is to say about the numbers, in Markdown."""
        return ""

    def label(self, setting: Setting) -> str:
        """A setting, in a line of progress."""
        return " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in setting.values())


def by_setting(runs: Sequence[Run], **wanted: Any) -> list[Run]:
    """The runs with these settings, in the order of their seeds."""
    return sorted((r for r in runs if all(r.setting.get(k) == v for k, v in wanted.items())), key=lambda r: r.seed)


def values(runs: Sequence[Run], result: str, **wanted: Any) -> list[float]:
    """One result of the runs with these settings, by seed."""
    return [float(r.result[result]) for r in by_setting(runs, **wanted)]
