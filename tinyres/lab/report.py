"""What a lab found, as a page of text: Markdown, and one HTML page of several labs."""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyres.explain.svg import data_uri
from tinyres.lab.experiment import FAILS, HOLDS, Lab
from tinyres.lab.statistics import digits
from tinyres.train.progress import duration

MARKS = {1: "yes", -1: "no", 0: "not decided"}


def page(lab: Lab, result: dict[str, Any], folder: str = "", level: int = 1) -> str:
    """The page of a lab, in Markdown. ``folder`` is where its figure is, seen from the page."""
    head = "#" * level
    scale, config = result["scale"], result["config"]
    parts = [f"{head} {lab.title}", f"**{result['verdict'].capitalize()}** ({scale} scale, {result['seeds']} seeds)."]
    parts += [f"![{lab.title}]({folder}figure.svg)"]
    parts += [f"{head}# The claim" if len(result["claims"]) == 1 else f"{head}# The claims"]
    parts += [f"{number(i, result)}{c['claim']} ({c['source']})" for i, c in enumerate(result["claims"])]
    parts += [f"{head}# Method", lab.method.format(**{k: shown_setting(v) for k, v in config.items()})]
    parts += [f"{head}# What was seen", table(result)]
    if said := lab.seen({name: one["values"] for name, one in result["numbers"].items()}):
        parts += [said]
    for i, claim in enumerate(result["claims"]):
        parts += [f"{number(i, result)}**{claim['verdict'].capitalize()}.** The rule: {claim['rule']}"]
        parts += ["\n".join(f"- {check['text']}: {MARKS[check['sign']]}" for check in claim["checks"])]
    parts += [f"{head}# How this differs from the paper", lab.differs]
    seconds, cores = result["seconds"], result["machine"]["processor"]
    parts += [
        f"`{command(lab, result)}`: {len(result['runs'])} runs, {duration(seconds)} of computing in all on one thread each "
        f"({cores}, backend {result['backend']}, tinyres {result['version']})."
    ]
    return "\n\n".join(parts) + "\n"


def number(i: int, result: dict[str, Any]) -> str:
    return f"{i + 1}. " if len(result["claims"]) > 1 else ""


def shown_setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(shown_setting, value))
    return f"{value:,}" if type(value) is int else str(value)


def command(lab: Lab, result: dict[str, Any]) -> str:
    """What to type for this result."""
    words = ["tinyres lab", lab.name]
    words += [f"--scale {result['scale']}"] if result["scale"] != "quick" else []
    words += [f"--seeds {result['seeds']}"] if result["seeds"] != lab.seeds else []
    usual = lab.scales[result["scale"]]
    for name, value in result["config"].items():
        if value != usual[name]:
            words.append(f"--set {name}={','.join(map(typed, value)) if isinstance(value, list) else typed(value)}")
    return " ".join(words)


def typed(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def table(result: dict[str, Any]) -> str:
    """The numbers: mean, standard deviation between seeds, least and greatest."""
    lines = [f"| | {' | '.join(HEADS)} |", f"|{'---|' * (1 + len(HEADS))}"]
    lines += [f"| {name} | {' | '.join(cells(one))} |" for name, one in result["numbers"].items()]
    return "\n".join(lines)


HEADS = ("mean", "sd", "least", "greatest")


def cells(one: dict[str, Any]) -> list[str]:
    """A row of the table. A single seed has no deviation."""
    values = [math.nan if v is None else v for v in one["values"]]
    if not values:
        return ["not run", "", "", ""]
    sd = digits(math.nan if one["sd"] is None else one["sd"]) if len(values) > 1 else ""
    return [digits(math.nan if one["mean"] is None else one["mean"]), sd, digits(min(values)), digits(max(values))]


def overview(results: Sequence[tuple[Lab, dict[str, Any]]], anchor: str = "#") -> str:
    """A table of all verdicts."""
    lines = ["| lab | claim | verdict | seeds | computing time |", "|---|---|---|---|---|"]
    for lab, result in results:
        for i, claim in enumerate(result["claims"]):
            first = [f"[{lab.name}]({anchor}{lab.name})", str(result["seeds"]), duration(result["seconds"])]
            name, seeds, seconds = first if i == 0 else ["", "", ""]
            lines.append(f"| {name} | {claim['claim']} | **{claim['verdict']}** | {seeds} | {seconds} |")
    return "\n".join(lines)


STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1b2127; --soft: #59626c; --line: #d5dae0; --blue: #08519c;
  --orange: #b35806; --card: #f5f6f8; }
@media (prefers-color-scheme: dark) { :root { --ground: #11151a; --ink: #e8ebee; --soft: #9da7b1; --line: #303841;
  --blue: #6baed6; --orange: #fd8d3c; --card: #1a2027; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 56rem; padding: 2rem 1.25rem; background: var(--ground); color: var(--ink);
  font: 1.0625rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1, h2, h3 { line-height: 1.25; text-wrap: balance; }
h2 { margin-top: 3.5rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
a { color: var(--blue); }
img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 8px;
  margin: 1rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92em; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); }
td:not(:first-child) { white-space: nowrap; } .overview td:nth-child(2) { white-space: normal; min-width: 16rem; }
code { background: var(--card); padding: .1em .35em; border-radius: 4px; overflow-wrap: anywhere; }
.verdict { font-weight: 650; } .holds { color: var(--blue); } .fails { color: var(--orange); }
"""


def html_report(results: Sequence[tuple[Lab, dict[str, Any], bytes]]) -> str:
    """One page that needs nothing else: the overview, and each lab's page with its figure, given as SVG."""
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark").enable("table")
    parts = [f'<div class="overview">{markdown.render(overview([(lab, result) for lab, result, _ in results]))}</div>']
    for lab, result, svg in results:
        body = markdown.render(page(lab, result, level=2))
        body = body.replace('src="figure.svg"', f'src="{data_uri(svg)}"')
        parts.append(f'<section id="{lab.name}">{body}</section>')
    body = "\n".join(parts).replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>")
    for words, kind in ((HOLDS, "holds"), (FAILS, "fails")):
        for text in (words, words.capitalize(), f"{words.capitalize()}."):
            body = body.replace(f"<strong>{text}</strong>", f'<strong class="verdict {kind}">{text}</strong>')
    title = "What residual networks are said to do, and what they did here"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def markdown_report(results: Sequence[tuple[Lab, dict[str, Any]]], folders: dict[str, Path], target: Path) -> str:
    """The overview and every lab's page, as Markdown for the file ``target``; the figures are in ``folders``, by lab."""
    parts = ["# The labs", INTRODUCTION, overview(results)]
    for lab, result in results:
        place = Path(os.path.relpath(folders[lab.name], target.parent)).as_posix()
        parts.append(f'<a id="{lab.name}"></a>\n\n{page(lab, result, f"{place}/", level=2)}')
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


INTRODUCTION = """\
The ideas behind residual networks are claims. Each lab makes an experiment of one: `tinyres lab NAME` runs it, in minutes on
a laptop, and writes the figure, the numbers, and a verdict for each claim. The rule that decides was fixed before the runs,
and is code. A difference counts if Student's 95 % confidence interval for it, over the seeds, does not hold zero. A claim
holds if all checks of its rule are met, does not hold if one is contradicted, and else is not decided. A verdict is about
the scale at which it was found: `--scale full` comes as near to the papers as it can, and wants a GPU or patience.
`tinyres lab all --html report.html` runs all labs."""
