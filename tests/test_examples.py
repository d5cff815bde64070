"""Every example does what its docstring promises, and so do the snippets of the README; links in the docs lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# How far a number may be from the one that is promised: (relative, absolute). Training differs between machines.
EXAMPLES = {"break_it.py": (1e-6, 1e-6), "new_op.py": (1e-6, 1e-6), "shortcut.py": (0, 0), "train_loop.py": (0.25, 0)}
NUMBER = r"-?\d+\.?\d*(?:e[+-]\d+)?"


def run(*arguments: str) -> str:
    """What Python prints, from a checkout that is not installed."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TINYRES_BACKEND": "numpy"}
    command = [sys.executable, "-W", "error", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def promised(text: str) -> str:
    """The indented lines behind the paragraph that says "prints"."""
    found = re.search(r"\bprints\b[^\n]*(?:\n[^\n]+)*\n\n((?:    .+\n)+)", text)
    assert found, "the docstring does not say what the example prints"
    return found[1]


def check(printed: str, expected: str, relative: float = 0, absolute: float = 0) -> None:
    """The words are the same, however lines are broken, and the numbers nearly so."""
    words = (re.sub(NUMBER, "#", " ".join(text.split())) for text in (printed, expected))
    assert next(words) == next(words), f"{printed}\nis not\n{expected}"
    got, wanted = ([float(number) for number in re.findall(NUMBER, text)] for text in (printed, expected))
    assert got == pytest.approx(wanted, rel=relative, abs=absolute)


def test_every_example_is_known():
    assert {path.name for path in (ROOT / "examples").iterdir() if path.is_file()} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_promises(name):
    path = ROOT / "examples" / name
    check(run(str(path)), promised(path.read_text("utf-8")), *EXAMPLES[name])


RUN = ("README.md", "docs/training.md", "docs/capture.md")  # pages whose Python runs, block by block


def snippets() -> list[tuple[str, str]]:
    """The Python blocks of these pages, each with the block behind it: what it prints."""
    texts = [(ROOT / page).read_text("utf-8") for page in RUN]
    return [two for text in texts for two in re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)]


def test_every_python_block_is_followed_by_what_it_prints():
    assert len(snippets()) == sum((ROOT / page).read_text("utf-8").count("```python") for page in RUN) == 4


@pytest.mark.parametrize(
    ("index", "relative"), [(0, 0), (1, 0.25), (2, 0), (3, 0)], ids=["lesson", "training", "callbacks", "capture"]
)
def test_a_snippet_of_the_readme_prints_what_it_promises(index, relative):
    code, expected = snippets()[index]
    check(run("-c", code), expected, relative)


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing
