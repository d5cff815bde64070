"""The documentation site, built and opened from disk: it is complete, holds together, and asks nobody for anything."""

import importlib
import importlib.util
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from page_in_browser import CHROMIUM, chromium

ROOT = Path(__file__).resolve().parent.parent
MISSING = [name for name in ("sphinx", "myst_parser", "furo", "playwright") if not importlib.util.find_spec(name)]
WHY = f"not installed: {', '.join(MISSING)} (pip install -e '.[docs]' playwright)" if MISSING else ""
WHY = WHY or ("" if CHROMIUM else "no Chromium here; its path may be named by TINYRES_CHROMIUM")
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY)
PARTS = (
    "",
    *(
        f".{part}"
        for part in ("nn", "models", "optim", "data", "train", "weights", "explain", "export", "ops", "functional", "lab")
    ),
)


class Parsed(HTMLParser):
    """The ids of a page, what it links to, and what it loads."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads = set(), set(), set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids.add(given.get("id"))
        if tag == "a":
            self.links.add(given.get("href", "#"))
        elif tag in ("img", "script", "link", "source", "iframe", "object"):
            self.loads.add(given.get("src") or given.get("href") or given.get("data") or "#")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [*(sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"), ROOT / "docs", folder]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Parsed(path) for path in sorted(site.rglob("*.html"))}


@pytest.fixture(scope="module")
def page(site):
    """A tab of a browser, with what it says and what it asks for."""
    with chromium() as browser:
        tab = browser.new_page()
        tab.said, tab.asked = [], []
        tab.on("console", lambda message: tab.said.append(message.text))
        tab.on("pageerror", lambda error: tab.said.append(str(error)))
        tab.on("request", lambda request: tab.asked.append(request.url))
        yield tab


def test_every_link_and_every_picture_leads_somewhere(pages):
    lost = []
    for path, parsed in pages.items():
        for link in parsed.links | parsed.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].ids):
                lost.append(f"{path.name}: {link}")
    assert not lost


def test_no_page_loads_anything_from_elsewhere(pages):
    assert not [load for parsed in pages.values() for load in parsed.loads if urlsplit(load).scheme or urlsplit(load).netloc]


def test_pages_are_silent_stay_on_disk_and_are_no_wider_than_the_screen(page, pages, site):
    source = [path for path in pages if path.is_relative_to(site / "source")]  # hundreds, all made in one way
    wide = []
    over = "() => Math.max(...[...document.querySelectorAll('html, .content')].map((e) => e.scrollWidth - e.clientWidth))"
    for path in [*(pages.keys() - source), *source[::40]]:
        page.set_viewport_size({"width": 1366, "height": 768})
        page.goto(path.as_uri())
        for width in (1366, 390):
            page.set_viewport_size({"width": width, "height": 800})
            if page.evaluate(over) > 0:
                wide.append((path.name, width))
    assert not wide and not page.said
    assert {url for url in page.asked if not url.startswith(site.as_uri())} == set()


def test_the_lesson_comes_before_anything_else(page, site):
    page.goto((site / "index.html").as_uri())
    shown = page.locator("article").inner_text().split("\n")
    assert shown[0].startswith("tinyres")
    text = (ROOT / "README.md").read_text("utf-8")
    lesson = text.split("```python\n")[1].split("```")[0].strip()
    inside = "\n".join(shown[1:]).strip()
    assert inside.startswith(lesson)
    assert inside.removeprefix(lesson).split()[:4] == ["[[0.", "7.]]", "[[3.", "2.]]"]
    assert page.locator("article img").count() == 1


def test_all_that_the_packages_offer_is_in_the_reference(pages):
    there = {name for path, parsed in pages.items() if path.parent.name == "api" for name in parsed.ids if name}
    missing = []
    for part in PARTS:
        module = importlib.import_module(f"tinyres{part}")
        for name in module.__all__:
            found = getattr(module, name)
            if callable(found) and not {f"{found.__module__}.{name}", f"tinyres{part}.{name}"} & there:
                missing.append(f"tinyres{part}.{name}")
    assert not missing


def test_the_places_of_an_operation_lead_to_lines(pages, site):
    links = pages[site / "ops.html"].links
    source = (ROOT / "kernels" / "naive" / "join.py").read_text("utf-8").splitlines()
    line = 1 + next(i for i, text in enumerate(source) if text.startswith("def add_relu("))
    assert f"source/kernels/naive/join.py.html#L-{line}" in links


def test_the_search_works_from_disk(page, site):
    page.goto((site / "search.html").as_uri() + "?q=gradcheck")
    page.locator("#search-results li a").first.wait_for(timeout=15_000)
    assert "gradcheck" in page.locator("#search-results").inner_text()
    assert not page.said


def test_dark_figures_keep_a_light_ground_in_the_dark(page, site):
    page.emulate_media(color_scheme="dark")
    page.goto((site / "labs.html").as_uri())
    ground = "(e) => getComputedStyle(e).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    assert max(page.locator("body").evaluate(ground)) < 60
    assert min(page.locator("article img").first.evaluate(ground)) > 250
