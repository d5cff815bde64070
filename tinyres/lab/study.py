"""One lab from its settings to its folder: result.json, figure.png, figure.svg and page.md."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tinyres
from tinyres.errors import UsageError
from tinyres.files import parse_json, read_json, write_atomically
from tinyres.kernels import dispatch
from tinyres.kernels.arrays import cores
from tinyres.lab import find
from tinyres.lab.experiment import SCALES, Config, Lab, Run, conclude
from tinyres.lab.figures import LOOK
from tinyres.lab.report import page
from tinyres.lab.running import Done, Task, finite, key_of, run_all
from tinyres.lab.statistics import mean, spread
from tinyres.train.folder import locked
from tinyres.train.progress import Silent, duration

MOST_BYTES, MOST_SEEDS = 16 << 20, 10_000  # of a result.json


def study(
    name: str,
    out: str | os.PathLike[str],
    scale: str = "quick",
    *,
    seeds: int | None = None,
    changes: Config | None = None,
    jobs: int | None = None,
    scheduler: str | None = None,
    display: Silent | None = None,
) -> dict[str, Any]:
    """Makes the runs that are not in ``out`` yet, and writes there what they show. Returns what ``result.json`` holds.

    ``changes`` are entries of the scale's configuration with other values. ``jobs`` is the number of processes (by default
    one per core, and one on a GPU); 0 makes the runs in this one. ``scheduler`` is the address of a dask scheduler.

    Raises `UsageError` for a lab, an entry or a value that does not exist, and for a folder with results of another
    configuration.
    """
    lab, display = find(name), display or Silent()
    config = configuration(lab, scale, changes or {})
    settings = lab.settings(config)
    folder = Folder(Path(out))
    with folder.claimed():
        about: dict[str, Any] = {
            "lab": name,
            "scale": scale,
            "config": config,
            "backend": tinyres.get_backend(),
            "version": tinyres.__version__,
        }
        known = folder.known(about)
        wanted = range(max(lab.seeds if seeds is None else seeds, 1 + max((run.seed for run, _ in known), default=-1)))
        tasks = [Task(name, setting, seed, config, about["backend"]) for seed in wanted for setting in settings]
        if scale == "full":
            tasks = [task._replace(keep=str(folder.path.resolve() / "runs" / digest(task))) for task in tasks]
        order = {key_of(task): i for i, task in enumerate(tasks)}
        # those of settings that are there no more, such as published weights, stay
        runs = {key_of(run): (run, seconds) for run, seconds in known}
        missing = [task for task in tasks if key_of(task) not in runs]
        here = machine() if missing else folder.machine
        if runs and missing:
            display.message(f"{name}: {len(tasks) - len(missing)} of {len(tasks)} runs are there already")

        def keep(done: Done) -> None:
            runs[key_of(done.run)] = (done.run, done.seconds)
            folder.write({**about, **here, "complete": order.keys() <= runs.keys(), "runs": listed(runs, order)})
            if done.seconds >= 1:
                display.message(f"{name}: {lab.label(done.run.setting)}, seed {done.run.seed} ({duration(done.seconds)})")

        run_all(lab, missing, number_of_jobs(jobs), scheduler, display, keep)
        try:
            return finish(lab, folder, {**about, **here}, listed(runs, order), len(wanted))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            if not known:
                raise
            raise UsageError(
                f"{folder.file} is not what a lab writes ({error!r}); move it away, or choose another --out"
            ) from error


def finish(lab: Lab, folder: Folder, about: dict[str, Any], runs: list[dict[str, Any]], seeds: int) -> dict[str, Any]:
    """The verdicts, the figure and the page of runs that are all there."""
    found = [Run.read(one) for one in runs]
    result = {**about, "seeds": seeds, **judged(lab, found, about["config"])}
    result |= {"complete": True, "seconds": round(sum(r["seconds"] for r in runs), 1), "runs": runs}
    for name, figure in drawn(lab, found, about["config"]).items():
        write_atomically(folder.path / name, figure)
    write_atomically(folder.path / "page.md", page(lab, result).encode())
    folder.write(result)
    return result


def judged(lab: Lab, runs: Sequence[Run], config: Config) -> dict[str, Any]:
    """What the runs show: the verdict, that of each claim with the checks on which it rests, and the numbers."""
    numbers = lab.numbers(runs, config)
    claims, signs = [], []
    for claim in lab.claims:
        verdict, checks = claim.verdict(numbers)
        told = {"claim": claim.text, "source": claim.source, "rule": claim.rule, "verdict": verdict}
        claims.append({**told, "checks": [check._asdict() for check in checks]})
        signs += [check.sign for check in checks]
    table = {name: {"mean": mean(v), "sd": spread(v), "values": v} for name, v in numbers.items()}
    return {"title": lab.title, "verdict": conclude(signs), "claims": claims, "numbers": table}


def drawn(lab: Lab, runs: Sequence[Run], config: Config) -> dict[str, bytes]:
    """The figure, as the files figure.svg and figure.png. The same runs give the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    files = {}
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
        lab.draw(figure, runs, config)
        for kind, metadata in (("svg", {"Date": None}), ("png", {})):
            data = io.BytesIO()
            figure.savefig(data, format=kind, metadata=metadata)
            files[f"figure.{kind}"] = data.getvalue()
    return files


def configuration(lab: Lab, scale: str, changes: Config) -> Config:
    """The configuration of a scale, with the entries that were changed."""
    if scale not in SCALES:
        raise UsageError(f"no scale is called {scale!r}; there are {', '.join(SCALES)}")
    config = dict(lab.scales[scale])
    for name, value in changes.items():
        if name not in config:
            raise UsageError(f"{lab.name} has no setting {name!r}; it has {', '.join(config)}")
        config[name] = fitting(lab, name, value, config[name])
    return config


def fitting(lab: Lab, name: str, value: Any, usual: Any) -> Any:
    """``value``, parsed if it is the text of another kind of value than ``usual``."""
    if isinstance(value, str) and not isinstance(usual, str):
        try:
            value = parse_json(value)
        except ValueError:
            if isinstance(usual, list):
                value = value.split(",")
                value = [fitting(lab, name, v, usual[0]) for v in value] if usual else value
    if isinstance(usual, list) and not isinstance(value, list):
        value = [value]
    if isinstance(usual, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    same = type(value) is type(usual)
    if same and isinstance(value, list) and usual:
        value = [fitting(lab, name, v, usual[0]) for v in value]
    if not same or value == []:
        raise UsageError(f"{lab.name}: {name} must be like {json.dumps(usual)}, got {json.dumps(value)}")
    least = lab.least.get(name, 1 if isinstance(usual, int) else 0)
    if isinstance(value, int | float) and not isinstance(value, bool) and not least <= value < math.inf:
        raise UsageError(f"{lab.name}: {name} must be a number of at least {least}, got {value:g}")
    return value


def digest(task: Task) -> str:
    return hashlib.sha256(key_of(task).encode()).hexdigest()[:12]


def number_of_jobs(jobs: int | None) -> int:
    if jobs is not None:
        return jobs
    return cores() if dispatch.current().device == "cpu" else 1


def machine() -> dict[str, Any]:
    from tinyres.benchmarks.machine import describe

    found = describe()
    return {"date": found["date"], "machine": {key: found[key] for key in ("processor", "system", "versions")}}


def listed(runs: dict[str, tuple[Run, float]], order: dict[str, int]) -> list[dict[str, Any]]:
    keys = sorted(runs, key=lambda key: order.get(key, len(order)))
    return [{**runs[key][0]._asdict(), "seconds": runs[key][1]} for key in keys]


class Folder:
    """The folder of a lab."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, path / "result.json"
        self.machine: dict[str, Any] = {}

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Makes the folder, and keeps other processes out of it."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is no folder, and a lab needs one of its own; choose another with --out")
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path, "working"):
            yield

    def known(self, about: dict[str, Any]) -> list[tuple[Run, float]]:
        """The runs that are there, with their seconds. Raises `UsageError` for those of another configuration."""
        if not self.file.exists():
            return []
        try:
            result = read_json(self.file, MOST_BYTES)
            other = [name for name in about if result[name] != about[name]]
            runs = [(Run.read(one), float(one["seconds"])) for one in result["runs"]]
            if not all(0 <= run.seed < MOST_SEEDS for run, _ in runs):
                raise ValueError("a seed that no lab has")
            self.machine = {key: result[key] for key in ("date", "machine")}
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{self.file} is not what a lab writes ({error}); move it away, or choose another --out"
            ) from None
        if other:
            raise UsageError(
                f"{self.path} holds results of another {' and '.join(other)}; choose another --out, or delete the folder"
            )
        return runs

    def write(self, result: dict[str, Any]) -> None:
        write_atomically(self.file, dumped(finite(result)).encode())


def dumped(result: dict[str, Any]) -> str:
    """As JSON, with one line per run."""
    runs = ",\n".join(f"  {json.dumps(run, allow_nan=False)}" for run in result["runs"])
    rest = json.dumps({key: value for key, value in result.items() if key != "runs"}, indent=1, allow_nan=False)
    return f'{rest[:-2]},\n "runs": [\n{runs}\n ]\n}}\n'
