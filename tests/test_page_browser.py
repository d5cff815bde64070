"""The page in a real browser: nothing leaves it, nothing is shown before a prediction, every control does something, and
every number is the engine's.
"""

import importlib.util
import json
from itertools import pairwise

import numpy as np
import pytest
from page_in_browser import CHROMIUM, NETWORK, SEED, Opened, chromium, data_of_a_page, small_data, written

import tinyres as tr
import tinyres.functional as F
from tinyres.data import Loader

WHY = "" if importlib.util.find_spec("playwright") else "Playwright is not installed: pip install playwright"
WHY = WHY or ("" if CHROMIUM else "no Chromium here; its path may be named by TINYRES_CHROMIUM")
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY)
VIEWS = ("block", "walk", "ledger", "depth", "paths", "cut", "check")
SIZES = {"phone": (390, 844), "laptop": (1366, 768), "projector": (1920, 1080)}


@pytest.fixture(scope="module")
def data():
    return json.loads(json.dumps(data_of_a_page()))


@pytest.fixture(scope="module")
def path(data, tmp_path_factory):
    return written(tmp_path_factory.mktemp("page"), data)


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def opened(browser, path):
    one = Opened(browser, path)
    yield one
    assert one.said == [] and one.asked == [path.as_uri()]  # no message, and no request but for the file
    one.context.close()


def values(locator):
    return [float(v) for v in locator.locator("data").evaluate_all("(all) => all.map((d) => d.value)")]


def test_each_view_asks_before_it_reveals(opened):
    for name in VIEWS:
        view = opened.view(name)
        assert view.locator("h2").count() == 1 and view.locator(".predict button").count() >= 2
        for part in (".verdict", ".reveal", ".why", ".break"):
            assert not view.locator(part).is_visible(), (name, part)
    assert opened.view("ledger").locator("[role=switch]:not([disabled])").count() == 0
    for name in VIEWS:
        before = opened.shown(name)
        opened.reveal(name)
        view = opened.view(name)
        for part in (".verdict", ".why", ".break", *([".reveal"] if name != "check" else [])):
            assert view.locator(part).is_visible() and view.locator(part).inner_text().strip(), (name, part)
        assert opened.shown(name) != before
    assert opened.page.locator("#bar a.answered").count() == 7


def test_a_prediction_is_kept_and_judged(opened):
    opened.view("walk").get_by_role("button", name="both get the same").click()
    assert opened.view("walk").locator(".verdict").inner_text().startswith("Yes")
    assert opened.js("() => Answers.read().walk") == "same"
    opened.view("ledger").get_by_role("button", name="100 times smaller").click()
    assert opened.view("ledger").locator(".verdict").inner_text().startswith("It becomes")


@pytest.mark.parametrize("when", ["start", "trained"])
def test_the_ledger_shows_the_engine_s_numbers_at_every_setting(opened, data, when):
    opened.reveal("ledger")
    opened.js("(when) => App.set({ when, mask: ALL_ON })", when)
    rows = data["states"][when]["ledger"]
    for k, row in enumerate(rows):
        line = opened.view("ledger").locator(f"[data-row='{k}']")
        assert values(line) == [row["ratio"], row["cosine"]]
        drawn = " ".join(line.locator("title").all_text_contents())
        for word, key in (
            ("lent", "lent"),
            ("shortcut", "through_shortcut"),
            ("branch", "through_branch"),
            ("sum", "total"),
        ):
            shown = opened.js("(v) => text(v)", row[key])
            assert word in drawn and shown in drawn
    decoded = opened.js("(when) => [...settings[when]].map(([mask, blocks]) => [mask, blocks.map((b) => b.total)])", when)
    assert sorted(mask for mask, _ in decoded) == list(range(2 ** len(rows)))
    found = dict(decoded)
    np.testing.assert_allclose(found[2 ** len(rows) - 1], [row["total"] for row in rows], rtol=2e-4)
    for k in range(len(rows)):
        opened.view("ledger").locator(f"[data-block='{k}']").click()
        mask = 2 ** len(rows) - 1 - 2**k
        assert values(opened.view("ledger").locator(".sums"))[0] == found[mask][0]
        opened.view("ledger").locator(f"[data-block='{k}']").click()


def test_what_was_not_computed_is_said(opened):
    opened.reveal("ledger", "walk", "cut")
    opened.js("() => { settings.start.delete(5); App.set({ when: 'start', mask: 5 }) }")
    assert "was not computed" in opened.view("ledger").locator(".sums").inner_text()


def test_every_control_changes_what_is_shown(opened):
    opened.reveal(*VIEWS)
    opened.js("() => App.set({ mask: ALL_ON, block: 1 })")
    dead = []
    for name, choose in (
        ("block", ".controls button"),
        ("walk", ".reveal button:not([aria-pressed=true])"),
        ("ledger", "[role=switch], .controls button:not([aria-pressed=true])"),
        ("depth", ".group button"),
        ("paths", ".controls button:not([aria-pressed=true])"),
        ("cut", ".wire"),
        ("check", ".items button, .items input"),
    ):
        count = opened.view(name).locator(choose).count()
        assert count >= 3, name
        for i in range(count):
            control = opened.view(name).locator(choose).nth(i)
            if control.count() == 0:  # (chosen meanwhile, so no longer among those that are not)
                continue
            words, before = control.evaluate("(c) => c.ariaLabel || c.textContent"), opened.shown(name)
            control.evaluate("(c) => c.type === 'text' ? (c.value = '8') : c.click()")
            if opened.shown(name) == before and control.evaluate("(c) => c.type") not in ("text", "checkbox"):
                dead.append((name, words))
    assert [d for d in dead if d[1] not in ("start again", "all on", "Check")] == []


def test_steps_blocks_images_and_channels_change_the_walk(opened, data):
    opened.reveal("walk")
    seen = {opened.shown("walk")}
    for changes in ({"step": 1}, {"step": 2}, {"step": 4}, {"block": 2}, {"image": 1}, {"channel": 3}, {"when": "trained"}):
        opened.js("(changes) => App.set(changes)", changes)
        shown = opened.shown("walk")
        assert shown not in seen, changes
        seen.add(shown)
    opened.js("() => App.set({ when: 'start', block: 1, step: 0 })")
    row = data["states"]["start"]["ledger"][1]
    assert values(opened.view("walk").locator(".sums"))[:4] == [
        row[key] for key in ("lent", "through_shortcut", "through_branch", "total")
    ]
    walk = data["states"]["start"]["walk"][1]
    for i, step in enumerate(walk[1:-1], 1):
        opened.js("(step) => App.set({ step })", i)
        assert values(opened.view("walk").locator(".detail table.plain")) == [one["norm"] for one in step["sends"]]
    cell = data["states"]["start"]["cells"][1]["fork"][1]
    opened.js("(step) => App.set({ step })", len(walk) - 1)
    shown = values(opened.view("walk").locator(".detail .sum"))
    assert shown == [cell["shortcut"], cell["branch"], cell["dx"]] and abs(shown[0] + shown[1] - shown[2]) < 1e-4 * abs(
        shown[2]
    )


def test_the_map_of_the_input_gradient_is_told_from_half_of_it(opened):
    opened.reveal("walk")
    drawn = opened.view("walk").locator(".mapchoice canvas").evaluate_all("(all) => all.map((c) => c.toDataURL())")
    assert len(set(drawn)) == 4
    for name, words in (("mean", "you averaged"), ("branch", "branch alone"), ("sum", "That is it")):
        opened.view("walk").locator(f".mapchoice[value={name}]").click()
        assert words in opened.view("walk").locator(".break .done").first.inner_text()


def test_the_maps_are_the_arrays_to_half_a_step(opened, data):
    given = small_data()
    mean, scale = tr.data.normalisation(given.train_images, per="channel", divide_std=True)
    images, labels = given.train_images[:8], given.train_labels[:8]
    batch = next(iter(Loader(images, labels, 8, shuffle=False, augment=False, mean=mean, scale=scale)))
    with tr.use_backend("numpy"):
        tr.manual_seed(SEED)
        ledger = tr.gradient_ledger(tr.models.resnet(8, shortcut=NETWORK["shortcut"]), batch, arrays=True)
    for k, row in enumerate(ledger):
        packed = data["states"]["start"]["maps"][k]
        for name, key, channels in (
            ("dz", "dz", "channels"),
            ("back", "through_branch", "input_channels"),
            ("dx", "dx", "input_channels"),
        ):
            for i, channel in enumerate(packed[channels][:3]):
                got = opened.js(
                    "([k, name, i]) => { const a = maps.start[k].arrays[name];"
                    " return [a.scale, [...plane(a, 1, i).values]] }",
                    [k, name, i],
                )
                error = np.abs(np.array(got[1]) - row.arrays[key][1, channel].ravel()).max()
                assert error <= got[0] / 254 * 1.02, (k, name, channel)


def test_the_block_by_hand_is_what_the_engine_computes(opened):
    rng = np.random.default_rng(0)
    for shortcut in (True, False):
        v, ds = rng.standard_normal((2, 2))
        w1, w2 = rng.standard_normal((2, 2, 2))
        x = tr.tensor(v[None], requires_grad=True)
        y = F.linear(F.relu(F.linear(x, tr.tensor(w1))), tr.tensor(w2)) * 0.7
        (y + x if shortcut else y).backward(ds[None])
        given = {"x": v, "ds": ds, "alpha": 0.7, "shortcut": shortcut, "W1": w1, "W2": w2}
        found = opened.js("(block) => blockByHand(block)", {k: np.asarray(a).tolist() for k, a in given.items()})
        np.testing.assert_allclose(found["dx"], x.grad[0], rtol=1e-12)
        np.testing.assert_allclose(found["y"], (y.data + (x.data if shortcut else 0))[0], rtol=1e-12)


def test_the_block_s_arrow_is_moved_by_keys_judged_and_can_be_made_to_vanish(opened):
    grip = opened.page.get_by_role("slider", name="Your guess for dx")
    found = opened.js(
        "() => blockByHand({ x: [0.6, 1], ds: [0.9, 0.5], alpha: 1, shortcut: true,"
        " W1: [[0.2, 1], [-0.6, 1]], W2: [[-0.5, 0.6], [0.8, 0.7]] })"
    )
    grip.focus()
    for axis, (less, more) in enumerate((("ArrowLeft", "ArrowRight"), ("ArrowDown", "ArrowUp"))):
        steps = round((found["dx"][axis] / 2 - (0.3, -0.6)[axis]) / 0.1)
        for _ in range(abs(steps)):
            opened.page.keyboard.press(more if steps > 0 else less)
    opened.view("block").get_by_role("button", name="Here").click()
    view = opened.view("block")
    assert view.locator(".verdict").inner_text().startswith("You averaged")
    view.get_by_role("button", name="identity").click()
    assert view.locator(".done").inner_text() == ""
    view.get_by_label("alpha").fill("-1")
    assert "the two cancel" in view.locator(".done").inner_text()


def test_depth_paths_and_cuts_show_the_engine_s_numbers(opened, data):
    opened.reveal("depth", "paths", "cut")
    view = opened.view("depth")
    plain = next(d for d in data["depth"]["norms"] if d["net"] == "plain8")
    assert values(view.locator(".reveal table")) == pytest.approx([plain["first_over_last"], plain["per_block"]], rel=1e-4)
    gains = {d["gain"]: d["norms"][0] / d["norms"][-1] for d in data["depth"]["gains"] if d["family"] == "plain"}
    view.get_by_role("button", name="plain, gain 0.5").click()
    assert values(view.locator(".reveal table"))[2] == pytest.approx(gains[0.5], rel=1e-9)
    assert gains[0.5] < 0.01 and "There: plain" in view.locator(".done").inner_text()
    paths = data["states"]["start"]["paths"]
    opened.view("paths").get_by_label("fewest branches").fill("1")
    opened.view("paths").get_by_label("most branches").fill("2")
    shown = values(opened.view("paths").locator(".sums"))
    assert shown == pytest.approx([sum(paths["share"][1:3]), paths["mean_length"], paths["predicted_mean"]], rel=1e-9)
    cut = opened.view("cut")
    lesions = data["lesions"]
    errors = dict(zip(lesions["branch_masks"]["masks"], lesions["branch_masks"]["error"], strict=True))
    cut.locator("[data-wire='branch 0']").click()
    cut.locator("[data-wire='branch 2']").click()
    assert values(cut.locator(".sums")) == [errors[5]]
    cut.locator("[data-wire='shortcut 1']").click()
    assert values(cut.locator(".sums")) == [lesions["shortcut"][1]]
    worst = sorted([*lesions["branch"], *lesions["shortcut"]], reverse=True)[:3]
    assert values(cut.locator(".verdict")) == worst


def test_three_cuts_and_a_curve_can_be_predicted(opened):
    cut = opened.view("cut")
    assert cut.get_by_role("button", name="These three").is_disabled()
    for wire in ("branch 0", "shortcut 0", "branch 1", "branch 2"):  # the fourth is one too many
        cut.locator(f"[data-wire='{wire}']").click()
    assert cut.locator(".wire[aria-pressed=true]").count() == 3
    cut.get_by_role("button", name="These three").click()
    assert "of 3. The worst are" in cut.locator(".verdict").inner_text()
    depth = opened.view("depth")
    before = opened.shown("depth")
    depth.get_by_role("slider").first.focus()
    opened.page.keyboard.press("ArrowUp")
    assert opened.shown("depth") != before
    depth.get_by_role("button", name="This is my curve").click()
    assert depth.locator(".verdict").inner_text()


def test_each_question_knows_its_answer_and_its_mistakes(opened):
    check = opened.view("check")
    right = {"fork": "4", "rows": "4", "parameters": "2,752", "cancel": "\u2212I", "tables": "degradation"}
    wrong = {
        "fork": ("8", "1", "6"),
        "rows": ("2", "0", "7"),
        "parameters": ("2560", "2656", "14240"),
        "cancel": ("0", "I"),
        "tables": ("noise",),
    }
    for name, answer in right.items():
        item = check.locator(f"[data-item={name}]")
        said = []
        for given in (*wrong[name], answer):
            if item.locator("input").count():
                item.locator("input").fill(given)
                item.get_by_role("button", name="Check").click()
            else:
                item.get_by_role("button", name=given, exact=True).click()
            said.append(item.locator(".done").inner_text())
        assert len(set(said)) == len(said) and [t.startswith("Right.") for t in said] == [False] * len(wrong[name]) + [True]
    zero = check.locator("[data-item=zero]")
    for parameter in ("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight"):
        zero.get_by_label(parameter).check()
    zero.get_by_role("button", name="Check").click()
    assert zero.locator(".done").inner_text().startswith("Right.") and "6 of 6" in check.inner_text()


def test_keys(opened):
    opened.reveal("walk", "ledger")
    opened.js(
        "() => { App.set({ mask: ALL_ON, block: 0, step: 0 }); "
        " document.querySelector('#v3').scrollIntoView(); document.activeElement.blur() }"
    )
    state = "() => [App.block, App.step, App.mask, App.when, document.documentElement.className]"
    for key, after in (
        ("3", [2, 0, 7, "start", ""]),
        ("ArrowRight", [2, 1, 7, "start", ""]),
        ("ArrowLeft", [2, 0, 7, "start", ""]),
        ("s", [2, 0, 3, "start", ""]),
        ("Shift+S", [2, 0, 0, "start", ""]),
        ("Shift+S", [2, 0, 7, "start", ""]),
        ("t", [2, 0, 7, "trained", ""]),
        ("Shift+P", [2, 0, 7, "trained", "projector"]),
        ("Shift+P", [2, 0, 7, "trained", ""]),
    ):
        opened.page.keyboard.press(key)
        assert opened.js(state) == after, key
    opened.js("() => window.scrollTo({ top: document.querySelector('#v3').offsetTop, behavior: 'instant' })")
    opened.page.keyboard.press("ArrowDown")
    assert opened.js("() => App.block") == 1
    assert opened.page.locator("#live").text_content().startswith("layer2.0: lent ")
    opened.page.keyboard.press("?")
    assert opened.page.locator("#keys").is_visible()
    opened.page.keyboard.press("Escape")
    opened.js("() => window.scrollTo({ top: document.querySelector('#v4').offsetTop, behavior: 'instant' })")
    opened.page.keyboard.press("r")
    assert opened.view("depth").locator(".reveal").is_visible()


def test_tab_goes_down_the_page_and_every_control_has_a_name(opened):
    opened.reveal(*VIEWS)
    order = "[...document.querySelectorAll('*')]"
    places = []
    for _ in range(400):
        opened.page.keyboard.press("Tab")
        place = opened.js(f"() => document.activeElement === document.body ? -1 : {order}.indexOf(document.activeElement)")
        if place < 0 or (places and place < places[-1]):
            break
        places.append(place)
    assert all(a < b for a, b in pairwise(places)) and len(places) > 60
    nameless = opened.js(
        "() => [...document.querySelectorAll('button, input, select, [role=slider], a, svg[role], canvas[role]')]"
        ".filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.[0]?.textContent.trim()))"
        ".map((e) => e.outerHTML)"
    )
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_the_screen_in_either_scheme(browser, path, size, scheme):
    one = Opened(browser, path, *SIZES[size], scheme)
    wide = "() => document.documentElement.scrollWidth - innerWidth"
    assert one.js(wide) <= 0
    one.reveal(*VIEWS)
    for step in range(5):
        one.js("(step) => App.set({ step })", step)
        assert one.js(wide) <= 0
    small = (
        "() => [...document.querySelectorAll('main button:not(.image)')]"
        ".filter((b) => b.offsetParent && b.offsetHeight < 36).length"
    )
    assert one.js(small) == 0
    ground, ink = one.js("() => { const s = getComputedStyle(document.body); return [s.backgroundColor, s.color] }")
    dark = sum(map(int, ground[4:-1].split(","))) < sum(map(int, ink[4:-1].split(",")))
    assert dark == (scheme == "dark")
    assert one.said == [] and one.asked == [path.as_uri()]
    one.context.close()


def test_on_paper_everything_is_revealed(opened):
    opened.js("() => window.dispatchEvent(new Event('beforeprint'))")
    opened.page.emulate_media(media="print")
    assert not opened.page.locator("#bar").is_visible()
    for name in VIEWS:
        assert opened.view(name).locator(".why").is_visible()


def test_the_walk_shows_what_the_block_computed_forward(opened):
    opened.reveal("walk")
    identity = opened.js("() => Data.meta.blocks.findIndex((b) => b.shortcut === 'identity')")
    for block, count in ((identity, 3), (1, 2)):  # where the shortcut projects, x has other channels
        opened.js("(block) => App.set({ when: 'start', block, step: 0, channel: 1 })", block)
        opened.view("walk").locator("summary").click()
        drawn = opened.view("walk").locator("details canvas").evaluate_all("(all) => all.map((c) => c.toDataURL())")
        assert len(set(drawn)) == len(drawn) == count
        open_places = opened.js("([k]) => plane(maps.start[k].arrays.z, 0, 1).values.filter((v) => v < 0).length", [block])
        assert open_places == 0  # z comes out of a ReLU
