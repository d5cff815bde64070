"""The course: every block runs and prints what the page says; the same pages as notebooks and as slides."""

import functools
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from page_in_browser import CHROMIUM, chromium

import tinyres as tr
from tinyres.cli import main
from tinyres.course import chapter, plot
from tinyres.course.exercise import CHAPTERS
from tinyres.errors import UsageError


@pytest.fixture(autouse=True)
def kernels():
    """Those that users have, whichever others the tests have chosen."""
    with tr.use_backend("numpy" if tr.available_backends()["numba"] else "numba"):
        yield


@functools.cache
def text(number):
    return chapter.path_of(number).read_text("utf-8")


@pytest.mark.parametrize("number", CHAPTERS)
def test_every_block_runs_and_prints_what_the_page_says(number):
    assert chapter.problems(text(number), chapter.pages(), f"chapter {number}") == []


@pytest.mark.parametrize("number", CHAPTERS)
def test_a_chapter_has_all_that_it_needs(number):
    page, parts = text(number), chapter.blocks(text(number))
    assert "".join(part.text for part in parts) == page
    assert page.startswith(f"# {number}. ") and page.split("\n\n")[1].startswith('> "')  # a question that people asked
    assert page.count("**Predict.**") >= 1 and page.count("<details>") == page.count("</details>") >= 1
    assert len(set(chapter.IMAGE.findall(page))) >= 1 and page.count(f"tinyres exercise start {number}.") == 3
    words = len(re.findall(r"\w+", "".join(part.text for part in parts if part.kind == "prose")))
    assert 500 <= words <= 1600  # with the code, half an hour


def test_no_figure_is_left_over():
    shown = {image for number in CHAPTERS for _, image in chapter.IMAGE.findall(text(number))}
    assert {f"figures/{path.name}" for path in (chapter.pages() / "figures").iterdir()} == shown


PAGE = """\
# 1. A page

```python
x = 1 / 3
print("a third:", x)
```

```text
a third: 0.333
```

**Predict.** Twice?

```python
print(2 * x, 1)
```

```python
import tinyres as tr

a = tr.tensor(2.0, requires_grad=True)
tr.draw(a * a, names={"a": a})
```

![The square](figures/square.svg)

<!-- source tinyres/functional.py relu code -->

```python
pass
```

<!-- exercises -->

- none
"""


def test_rewriting_brings_a_page_up_to_date(tmp_path):
    page, figures = chapter.rewrite(PAGE)
    assert "a third: 0.3333333333333333\n" in page and chapter.rewrite(page) == (page, figures)
    assert "<details><summary>What it prints</summary>\n\n```text\n0.6666666666666666 1\n```\n\n</details>" in page
    assert re.search(r"\[tinyres/functional.py\]\(\S+\), lines \d+ to \d+:\n\n```python\ndef relu\(", page)
    assert "- **1.1 Three derivatives of one line**" in page and page.count("exercise start") == 3
    (tmp_path / "figures").mkdir()
    assert any("square.svg" in problem for problem in chapter.problems(page, tmp_path))
    (tmp_path / "figures" / "square.svg").write_text(figures["figures/square.svg"])
    assert chapter.problems(page, tmp_path) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("a third: 0.3333333333333333", "a third: 0.3333333333333", ""),
        ("a third: 0.3333333333333333", "a third: 0.33", ""),
        ("a third: 0.3333333333333333", "a third: 0.36", "prints"),
        ("a third: 0.3333333333333333", "a quarter: 0.3333333333333333", "prints"),
        ("0.6666666666666666 1", "0.6666666666666666 2", "prints"),
        ("0.6666666666666666 1", "0.6666666666666666 1\n1", "prints"),
        ("```text\n0.6666666666666666 1", "```text within 10%\n0.7 1", ""),
        ("```text\n0.6666666666666666 1", "```text within 1%\n0.7111111 1", "prints"),
        ("def relu(", "def gelu(", "quotes"),
        ("exercise start 1.1", "exercise start 1.4", "quotes"),
    ],
)
def test_what_is_not_true_is_found(old, new, words, tmp_path):
    page, figures = chapter.rewrite(PAGE)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "square.svg").write_text(figures["figures/square.svg"])
    assert old in page
    found = chapter.problems(page.replace(old, new, 1), tmp_path)
    assert bool(found) == bool(words) and all(words in problem for problem in found)


def test_a_drawing_without_its_words_or_its_place_is_found(tmp_path):
    page, figures = chapter.rewrite(PAGE)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "square.svg").write_text(figures["figures/square.svg"].replace("Mul", "Sum"))
    assert any("the drawing of" in problem for problem in chapter.problems(page, tmp_path))
    with pytest.raises(UsageError, match="no image behind it"):
        chapter.rewrite(PAGE.replace("![The square](figures/square.svg)", ""))
    with pytest.raises(UsageError, match="has no nothing"):
        chapter.rewrite(PAGE.replace("functional.py relu", "functional.py nothing"))


def test_a_definition_is_found_with_its_decorators_and_without_its_docstring():
    first, last, code = chapter.definition("tinyres/ops/join.py", "AddReLU.backward")
    lines = Path(chapter.ROOT, "tinyres/ops/join.py").read_text().splitlines()
    assert lines[first - 1].strip() == "@staticmethod" and lines[last - 1].strip() == "return ds, ds"
    assert code.startswith("@staticmethod\ndef backward(")
    assert '"""' in chapter.definition("tinyres/autograd.py", "walk")[2]
    assert '"""' not in chapter.definition("tinyres/autograd.py", "walk", code=True)[2]


def test_colours_mean_the_same_in_all_figures():
    assert plot.places_of(["lent", "through the shortcut", "through the branch"]) == [2, 0, 1]
    assert plot.places_of(["plain56", "resnet56"]) == [1, 0] and plot.places_of(["a", "b", "c"]) == [0, 1, 2]


# --- notebooks and slides --------------------------------------------------------------------------------------------


def test_a_notebook_runs_and_gives_what_the_page_says(tmp_path, monkeypatch, capsys):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.chdir(tmp_path)
    assert main(["course", "3", "--notebook"]) == 0 and "written: course-3.ipynb" in capsys.readouterr().out
    book = nbformat.read("course-3.ipynb", 4)
    parts = chapter.blocks(text(3))
    code = [part.body.rstrip() for part in parts if part.kind == "code"]
    assert [cell.source for cell in book.cells if cell.cell_type == "code"] == code
    assert not any(cell.get("outputs") for cell in book.cells)  # they are to be predicted
    prose = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    assert "Predict" in prose and "details" not in prose and "class AddReLU(Function)" in prose and "<!--" not in prose

    resources = {"metadata": {"path": str(Path(tr.__file__).parent.parent)}}
    NotebookClient(book, timeout=120, resources=resources).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    said = [part.body for part in parts if part.kind == "output"]
    printed = [output.text for output in outputs if output.output_type == "stream"]
    assert len(said) == len(printed) and all(map(chapter.agree, said, printed))
    drawings = [output for output in outputs if output.output_type == "execute_result"]
    assert len(drawings) == 2 and all("image/svg+xml" in output.data for output in drawings)


def test_nothing_of_a_learner_is_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for option, name in (("--notebook", "course-1.ipynb"), ("--slides", "course-1.html")):
        Path(name).write_text("mine")
        assert main(["course", "1", option]) == 2 and "may hold your work" in capsys.readouterr().err
        assert Path(name).read_text() == "mine"
        assert main(["course", "1", option, f"other{Path(name).suffix}"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("9",), "there is no chapter '9'"),
        (("--notebook",), "which chapter?"),
        (("1", "--notebook", "x.txt"), "must name a file that ends in .ipynb"),
        (("1", "--slides", "nowhere/x.html"), "does not exist"),
    ],
)
def test_a_wrong_command_is_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["course", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_chapters_are_listed_and_read_in_a_terminal(capsys):
    assert main(["course"]) == 0
    titles = [chapter.title(text(number)) for number in CHAPTERS]
    assert capsys.readouterr().out.splitlines()[:8] == titles
    assert main(["course", "2"]) == 0
    shown = capsys.readouterr().out
    assert "Two diamonds" in shown and "<details>" not in shown and "```" not in shown


WHY = "" if importlib.util.find_spec("playwright") else "Playwright is not installed: pip install playwright"
WHY = WHY or ("" if CHROMIUM else "no Chromium here; its path may be named by TINYRES_CHROMIUM")


@pytest.mark.skipif(bool(WHY), reason=WHY)
def test_slides_show_an_output_when_asked(tmp_path):
    from tinyres.course.slides import slides

    path = tmp_path / "slides.html"
    path.write_text(slides(text(3), chapter.pages()))
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        hidden = page.evaluate("document.querySelectorAll('.hidden').length")
        sections = page.locator("section").count()
        for _ in range(sections + hidden):
            page.keyboard.press("ArrowRight")
            page.wait_for_timeout(30)
        assert hidden >= 5 and page.evaluate("document.querySelectorAll('.hidden').length") == 0
        assert page.locator("section").last.is_visible() and not page.locator("aside").first.is_visible()
        page.keyboard.press("n")
        assert page.locator("aside").first.is_visible()
        predict = page.locator("section", has_text="Predict.").first
        assert predict.locator("pre").count() == 2  # the question, the code and its output on one slide
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert said == [] and [url for url in asked if not url.startswith("data:")] == [path.as_uri()]


def test_slides_have_all_code_and_need_nothing_else():
    from tinyres.course.slides import slides

    for number in CHAPTERS:
        page = slides(text(number), chapter.pages())
        for part in chapter.blocks(text(number)):
            if part.kind in ("code", "quote", "output"):
                first = part.body.strip().splitlines()[0].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
                assert first.replace('"', "&quot;").replace("'", "&#x27;") in page
        assert page.count("<section>") >= 8 and page.count("<img") == len(chapter.IMAGE.findall(text(number)))
        assert not re.search(r'(src|href)="(?!data:|https?:)', page) and "default-src 'none'" in page
        assert np.all([f"</{tag}>" in page for tag in ("html", "body", "section", "aside")])
