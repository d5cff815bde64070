"""What changed between two results, and of which changes that can be said: `spread.of_ratio` gives an interval for each."""

from typing import Any, NamedTuple

from tinyres.benchmarks import report, spread
from tinyres.errors import UsageError
from tinyres.files import shown


class Change(NamedTuple):
    """Median seconds of one row in two results, and the interval of before / after, if both have rounds enough for one."""

    name: str
    before: float
    after: float
    interval: spread.Interval | None

    @property
    def verdict(self) -> str:
        if not self.interval:
            return "too few rounds"
        return "faster" if self.interval[0] > 1 else "slower" if self.interval[1] < 1 else "no difference shown"

    def slower_than(self, limit: float) -> bool:
        """Whether it surely takes more than ``limit`` times as long as before."""
        return self.interval is not None and self.interval[1] < 1 / limit


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """A change for each row that both results have. Raises `UsageError` if there is none."""
    if before["benchmark"] != after["benchmark"]:
        raise UsageError(f"a {before['benchmark']} result cannot be compared with a {after['benchmark']} result.")
    a, b = report.times(before), report.times(after)
    rounds_a, rounds_b = report.samples(before), report.samples(after)
    found = [Change(k, a[k], b[k], spread.of_ratio(rounds_a.get(k, ()), rounds_b.get(k, ()))) for k in a if k in b]
    if not found:
        raise UsageError("the two results have no row in common.")
    return found


def table(found: list[Change]) -> list[str]:
    """A line for each change, and what the intervals mean."""
    names = {one: shown(one.name) for one in found}
    width = max(map(len, names.values()))
    lines = [f"{'':{width}} {'before ms':>10} {'after ms':>10} {'faster':>7} {'95 % interval':>15}"]
    for one, name in names.items():
        ends = f"{one.interval[0]:.2f} - {one.interval[1]:.2f}" if one.interval else "-"
        times = f"{1e3 * one.before:10.3f} {1e3 * one.after:10.3f} {one.before / one.after:6.2f}x"
        lines.append(f"{name:{width}} {times} {ends:>15}  {one.verdict}")
    judged = sum(one.interval is not None for one in found)
    if judged < len(found):
        lines.append(
            f"{len(found) - judged} of {len(found)} rows have no interval: it needs {spread.LEAST_OF_TWO} rounds in both"
        )
    if judged > 10:
        chance = judged * (1 - spread.CONFIDENCE)
        lines.append(f"by chance alone, up to {chance:.0f} of {judged} intervals can be expected to miss the true ratio")
    return lines


def warnings(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A line for each thing besides the change that may have changed the times."""
    a, b = report.settings(before), report.settings(after)
    lines = []
    for what in (k for k in a if k in b and k != "environment" and a[k] != b[k]):
        lines.append(f"not the same {shown(what)}: {shown(a[what])} and {shown(b[what])}")
    here, there = a.get("environment", {}), b.get("environment", {})
    for name in sorted({*here, *there}):
        if here.get(name) != there.get(name):
            ours, theirs = (shown(found.get(name, "not set")) for found in (here, there))
            lines.append(f"not the same {shown(name)}: {ours} and {theirs}")
    for which, result in (("first", before), ("second", after)):
        load = dict(result["machine"]).get("load")
        if (
            isinstance(load, int | float) and load > 0.5 and "argv" in result
        ):  # (earlier versions read it after their own work)
            lines.append(f"the machine was busy before the {which} run: load {load:.1f}")
        if result.get("complete") is False:
            lines.append(f"the {which} result is incomplete: its run was interrupted")
    return lines
