"""The backward walk through each block, from its join to the fork below, as the page shows it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tinyres import ops
from tinyres.explain.page import pack
from tinyres.explain.trace import Step, norm

BACKWARD = re.compile(r"\bd[a-z]+(?:\[[^\]]*\])? +\+?= .*")  # in a docstring: dx = ...


def walk(trace: Sequence[Step], blocks: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Per block, the steps of ``trace`` from its join to the node where both of its cotangents meet."""
    joins = {step.name.rpartition(".")[0]: step.number for step in trace if step.kind == "join"}
    found = []
    for block in blocks:
        first = joins[block]
        last = next(step.number for step in trace[first + 1 :] if len(step.arrivals) > 1)
        found.append([_step(step) for step in trace[first : last + 1]])
    return found


def _step(step: Step) -> dict[str, Any]:
    text = getattr(ops, step.op).__doc__
    return {
        "number": step.number,
        "op": step.op,
        "name": step.name,
        "kind": step.kind,
        "shape": list(step.shape),
        "formula": re.split(r"\s{3}|: |\.\s", text.splitlines()[0])[0],
        "backward": [re.sub(r" {2,}", "  ", line).rstrip() for line in BACKWARD.findall(text)],
        "arrivals": [{"from": arrival.source, "norm": pack.digits(norm(arrival.array))} for arrival in step.arrivals],
        "sends": [{"input": send.input, "to": send.target, "norm": pack.digits(norm(send.array))} for send in step.sends],
    }
