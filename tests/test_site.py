"""The site: it builds without a warning, every link leads somewhere, and in a browser it asks for its own files alone."""

import importlib.util
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from page_in_browser import CHROMIUM, chromium

DOCS = Path(__file__).parent.parent / "docs"
MISSING = [name for name in ("sphinx", "myst_parser", "furo") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason="Sphinx is not installed: pip install -e '.[docs]'")
WHY = "" if importlib.util.find_spec("playwright") else "Playwright is not installed: pip install playwright"
WHY = WHY or ("" if CHROMIUM else "no Chromium here; its path may be named by TINYRES_CHROMIUM")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return out


class Page(HTMLParser):
    """What a page refers to, the places in it that can be referred to, and its images' descriptions."""

    def __init__(self, path):
        super().__init__()
        self.targets, self.ids, self.undescribed = [], set(), []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.ids |= {known[key] for key in ("id", "name") if known.get(key)}
        self.targets += [known[key] for key in ("href", "src") if known.get(key)]
        if tag == "img" and not known.get("alt"):
            self.undescribed.append(known.get("src"))


def test_every_link_and_every_image_is_there(site):
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 200
    wrong = []
    for path, page in pages.items():
        assert not page.undescribed, (path, page.undescribed)
        for target in page.targets:
            file, place = urldefrag(target)
            if target.startswith(("https://", "http://", "data:", "mailto:")):
                continue
            goal = (path.parent / unquote(file.split("?")[0])).resolve() if file else path
            goal = goal / "index.html" if goal.is_dir() else goal
            if not goal.exists() or (place and goal.suffix == ".html" and unquote(place) not in pages[goal].ids):
                wrong.append((str(path.relative_to(site)), target))
    assert not wrong, wrong[:20]


def test_what_the_site_must_have_is_on_it(site):
    index = (site / "index.html").read_text("utf-8").partition("<article")[2]
    places = [index.index(words) for words in ("The lesson", "add_relu", "x.grad = ds", "3-ledger.svg", "Where to go")]
    assert places == sorted(places)  # the lesson first
    for page in ("course", "labs", "gradient", "cpu", "cuda", "ops", "api", "design", "pytorch"):
        assert f'href="{page}.html"' in index
    assert {path.stem for path in (site / "course").glob("*.html")} == {path.stem for path in (DOCS / "course").glob("*.md")}
    assert {"tinyres.nn.Conv2d", "tinyres.nn.Module.load_state_dict"} <= Page(site / "api/03-nn.html").ids
    assert "tinyres.functional.add_relu" in Page(site / "api/02-functional.html").ids
    source = (site / "source/tinyres/ops/join.py.html").read_text("utf-8")
    assert "J_F^T ds" in source and 'id="L-23"' in source
    chapter = (site / "course/3-the-join.html").read_text("utf-8")
    assert "../source/tinyres/ops/join.py.html" in chapter and "<details>" in chapter


@pytest.mark.skipif(bool(WHY), reason=WHY)
def test_in_a_browser_nothing_is_asked_for_and_nothing_overflows(site):
    pages = ["index", "course", "labs", "gradient", "cpu", "cuda", "ops", "design", "pytorch", "api", "search", "genindex"]
    pages += [f"{folder}/{path.stem}" for folder in ("course", "api") for path in sorted((site / folder).glob("*.html"))]
    pages += ["source/tinyres/ops/join.py", "source/kernels/cuda/src/conv_exact.cu", "source/tinyres/autograd.py"]
    with chromium() as browser:
        for width in (390, 1366):
            page = browser.new_page(viewport={"width": width, "height": 800})
            said, asked = [], []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            for name in pages:
                page.goto((site / f"{name}.html").as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
                assert page.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)"), name
                assert not said, (name, said)
            home = site.as_uri()
            assert [url for url in asked if not url.startswith((home, "data:"))] == []
        page.goto((site / "search.html").as_uri() + "?q=shortcut")
        page.wait_for_selector("#search-results li a")
