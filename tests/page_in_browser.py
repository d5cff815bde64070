"""A page of ``tinyres explain --html`` for the tests: of a small net, opened in Chromium, with what it says and asks.

``python tests/page_in_browser.py PAGE.html FOLDER`` takes the pictures of a page that docs/pictures holds.
"""

import contextlib
import os
import shutil
import sys
from pathlib import Path

import pytest

import tinyres as tr
from tinyres.data import Dataset
from tinyres.explain.page import Job, collect
from tinyres.explain.page.assemble import page as assembled

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND"),
]
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = os.environ.get("TINYRES_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
NETWORK = {"name": "resnet8", "shortcut": "B", "num_classes": 10}
SEED = 5


def small_data():
    whole = tr.data.shapes(n_train=64, n_test=24)
    train, test = (images[:, :, ::2, ::2].copy() for images in (whole.train_images, whole.test_images))
    return Dataset("shapes", train, whole.train_labels, test, whole.test_labels, whole.classes)


def data_of_a_page():
    """Everything on the page of a ResNet-8 after some steps, computed by the engine."""
    data = small_data()
    mean, scale = tr.data.normalisation(data.train_images, per="channel", divide_std=True)
    with pytest.MonkeyPatch.context() as patch, tr.use_backend("numpy"):
        patch.setattr("tinyres.explain.page.data.DEPTHS", ("plain8", "resnet8"))
        patch.setattr("tinyres.explain.page.data.DEEP_NET", "resnet14")
        job = Job(
            "tinyres explain --html page.html", NETWORK, data, mean, scale, train_steps=6, images=2, batch=8, seed=SEED
        )
        return collect(job)


@contextlib.contextmanager
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Opened:
    """A page in a context of its own, with what it said and what it asked for."""

    def __init__(self, browser, path, width=1366, height=768, scheme="light"):
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.set_default_timeout(15_000)
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("body.ready")

    def js(self, code, *given):
        return self.page.evaluate(code, *given)

    def view(self, name):
        number = self.js("(name) => Views.findIndex((v) => v.name === name) + 1", name)
        return self.page.locator(f"#v{number}")

    def reveal(self, *names):
        for name in names:
            self.js("(name) => Views.find((v) => v.name === name).giveUp()", name)

    def shown(self, name):
        """All that can be seen of a view: its elements, with drawings and maps."""
        return self.js(
            "(name) => { const v = Views.find((v) => v.name === name).section;"
            " return v.innerHTML + [...v.querySelectorAll('canvas')].map((c) => c.toDataURL()).join() }",
            name,
        )


def written(folder, data):
    path = folder / "page.html"
    path.write_text(assembled(data), "utf-8")
    return path


PICTURES = [  # (file, view, what to do first, width, scheme)
    ("page-1-block", "block", "", 1100, "light"),
    ("page-2-walk", "walk", "App.set({ step: walkSteps() })", 1100, "light"),
    ("page-3-ledger", "ledger", "App.set({ mask: ALL_ON })", 1100, "light"),
    (
        "page-4-depth",
        "depth",
        "document.querySelectorAll('#v4 .group:first-of-type button[aria-pressed=false]').forEach((b) => b.click())",
        1100,
        "light",
    ),
    ("page-5-paths", "paths", "", 1100, "light"),
    ("page-6-cut", "cut", "document.querySelector('[data-wire=\"branch 2\"]').click()", 1100, "light"),
    ("page-7-check", "check", "", 1100, "light"),
    ("page-phone", "ledger", "App.set({ mask: ALL_ON })", 390, "dark"),
]


def take_pictures(path, folder):
    from PIL import Image

    with chromium() as browser:
        for file, name, first, width, scheme in PICTURES:
            one = Opened(browser, path, width, 900, scheme)
            one.reveal(name)
            one.js(f"() => {{ {first}; document.getElementById('bar').remove() }}")
            one.js("() => document.querySelectorAll('.view').forEach((v) => { v.style.padding = '1.5rem' })")
            target = folder / f"{file}.png"
            one.view(name).screenshot(path=target)
            Image.open(target).convert("RGB").quantize(128).save(target, optimize=True)
            one.context.close()


if __name__ == "__main__":
    take_pictures(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
