"""The whole data of the page, on a small net: they are the ledger's numbers, and the file is one, safe and small enough."""

import base64
import json
import re
import zlib

import numpy as np
import pytest

import tinyres as tr
from tinyres.data import Dataset, Loader
from tinyres.errors import UsageError
from tinyres.explain.page import Job, assemble, collect, maps, write_page
from tinyres.explain.page.settings import FIELDS
from tinyres.explain.page.training import train

WHOLE = tr.data.shapes(n_train=40, n_test=10)
SMALL = Dataset(
    "shapes",
    WHOLE.train_images[:, :, ::2, ::2].copy(),
    WHOLE.train_labels,
    WHOLE.test_images[:, :, ::2, ::2].copy(),
    WHOLE.test_labels,
    WHOLE.classes,
)
MEAN, SCALE = tr.data.normalisation(SMALL.train_images, per="channel", divide_std=True)
NETWORK = {"name": "resnet8", "shortcut": "B", "num_classes": 10}
FAST = "numpy" if tr.available_backends()["numba"] else "numba"
DATA = "tinyres.explain.page.data"


@pytest.fixture(autouse=True)
def small_nets(monkeypatch):
    monkeypatch.setattr(f"{DATA}.DEPTHS", ("plain8", "resnet14"))
    monkeypatch.setattr(f"{DATA}.DEEP_NET", "resnet14")
    with tr.use_backend("numpy"):
        yield


def job(**more):
    given = {"train_steps": 3, "images": 2, "batch": 8, "seed": 5, **more}
    return Job("tinyres explain --html page.html", NETWORK, SMALL, MEAN, SCALE, **given)


def nets():
    """The net at the start, and after the three steps."""
    found = []
    for steps in (0, 3):
        tr.manual_seed(5)
        net = tr.models.resnet(8, shortcut="B")
        if steps:
            train(net, SMALL.train_images, SMALL.train_labels, MEAN, SCALE, steps, seed=5)
        found.append(net)
    return dict(zip(("start", "trained"), found, strict=True))


X, Y = next(iter(Loader(SMALL.train_images, SMALL.train_labels, 8, shuffle=False, augment=False, mean=MEAN, scale=SCALE)))


def inflated(text, kind):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), kind)


def test_every_number_is_the_ledgers_and_the_display_follows_the_work():
    shown = []
    data = collect(job(), lambda *now: shown.append(now))
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    for state, net in nets().items():
        found, ledger = data["states"][state], tr.gradient_ledger(net, (X, Y)).json()
        assert found["ledger"] == ledger["rows"]
        assert found["paths"] == ledger["paths"]
        assert found["loss"] == pytest.approx(ledger["loss"], rel=1e-5)
        assert sum(found["paths"]["share"]) == pytest.approx(1, abs=1e-5)
        table = inflated(found["settings"]["data"], "<f4").reshape(8, 3, len(FIELDS))
        for k, row in enumerate(ledger["rows"]):
            walk, fork = found["walk"][k], found["walk"][k][-1]
            norms = [row["lent"], row["through_shortcut"], row["through_branch"], row["total"]]
            np.testing.assert_allclose(table[-1, k, :4], norms, rtol=3e-4)  # all shortcuts on
            assert table[-1, k, 4] == pytest.approx(row["cosine"], abs=2e-3)
            assert walk[0]["kind"] == "join" and walk[0]["name"] == f"{row['name']}.bn2"
            assert walk[0]["formula"] == "z = max(bn(x) + residual, 0)"
            met = sorted(arrival["norm"] for arrival in fork["arrivals"])
            assert met == pytest.approx(sorted([row["through_shortcut"], row["through_branch"]]), rel=1e-4)
    lost = data["lesions"]
    assert lost["base"] == pytest.approx(1 - data["states"]["trained"]["accuracy"])
    assert [lost["branch_masks"]["error"][1 << k] for k in range(3)] == lost["branch"]
    assert [(n["net"], n["seed"], n["trained"]) for n in data["depth"]["norms"]] == [
        *((name, seed, False) for name in ("plain8", "resnet14") for seed in (5, 6, 7)),
        ("resnet8", 5, True),
        ("plain8", 5, True),
    ]
    assert len(data["shipped"]["resnet14"]["share"]) == 7
    image = data["images"][1]
    np.testing.assert_array_equal(
        inflated(image["pixels"], np.uint8).reshape(image["size"]), SMALL.train_images[1].transpose(1, 2, 0)
    )
    assert data["meta"]["blocks"][1] == {"name": "layer2.0", "shortcut": "B", "channels": 32, "size": 8}
    phases = list(dict.fromkeys(what for what, *_ in shown))
    assert phases[:3] == ["training resnet8", "training plain8", "shortcuts on and off, start"]
    assert phases[-1] == "paths of resnet14" and all(0 <= done <= steps for _, done, steps, _ in shown)
    assert shown[-1][3] == pytest.approx(0, abs=1e-6)
    last = {what: done / steps for what, done, steps, _ in shown}
    assert set(last.values()) == {1.0}


def test_quick_has_few_settings_and_one_seed_and_a_trained_net_is_taken_as_it_is():
    net = nets()["trained"]
    before = {name: array.copy() for name, array in net.state_dict().items()}
    data = collect(job(quick=True, trained=net))
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert data["meta"]["train_steps"] is None
    assert data["states"]["trained"]["ledger"] == tr.gradient_ledger(net, (X, Y)).json()["rows"]
    assert data["states"]["start"]["settings"]["masks"] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert data["lesions"]["branch_masks"]["masks"] == [0, 1, 2, 4, 7]
    assert [(n["net"], n["trained"]) for n in data["depth"]["norms"]] == [
        ("plain8", False),
        ("resnet14", False),
        ("resnet8", True),
    ]


def test_what_cannot_be_shown_is_refused_before_the_work():
    def no_work(*now):
        raise AssertionError("work was begun")

    with pytest.raises(UsageError, match="plain8 has no shortcuts"):
        collect(job()._replace(network={"name": "plain8", "num_classes": 10}), no_work)
    with pytest.raises(UsageError, match="9 are more than the batch has"):
        collect(job(images=9), no_work)


def test_the_page_is_one_file_that_asks_nobody_and_its_data_come_back(tmp_path):
    data = {"classes": ["</script><script>alert(1)//", "\u2028 é"], "numbers": [0.1, None, 1e-30]}
    size = write_page(tmp_path / "page.html", data)
    text = (tmp_path / "page.html").read_text("utf-8")
    assert size == len(text.encode())
    begin, end = text.index('<script type="application/json" id="data">'), text.index("</script>")
    held = text[begin:end].partition(">")[2]
    assert json.loads(held) == data
    rest = text[:begin] + text[end:]
    assert not re.findall(r"https?:|//[a-z]|url\((?!data:)|@import|<link|src=", rest.replace("http://www.w3.org", "")), (
        "asks"
    )
    policy = re.search(r'http-equiv="Content-Security-Policy"\s+content="([^"]*)"', rest)
    assert policy and "default-src 'none'" in policy[1] and not re.search(r"connect-src|http|\*", policy[1])
    assert not assemble.PART.search(rest)


def test_numbers_that_json_lacks_are_an_error_and_no_file(tmp_path):
    with pytest.raises(ValueError):
        write_page(tmp_path / "page.html", {"ratio": float("inf")})
    assert not list(tmp_path.iterdir())


def test_deep_nets_show_fewer_channels_and_very_deep_ones_are_refused():
    found = maps.passes(tr.models.resnet(56), X, Y)[1]
    shown = maps.block_maps(found, 2)
    assert {len(one["channels"]) for one in shown} == {2}
    with pytest.raises(UsageError, match="the page shows up to 30 blocks, and resnet110 has 54"):
        collect(job()._replace(network={"name": "resnet110", "num_classes": 10}))


def test_the_page_of_resnet20_stays_under_its_limit(tmp_path, monkeypatch):
    """With noise in place of the tables of settings and cuts, which is as large as they can be. Both states are the one at
    the start, which is the larger one.
    """
    random = np.random.default_rng(0)
    noise = random.standard_normal((512, 9, len(FIELDS))).astype(np.float32)
    errors = {"branch_masks": {"masks": [*range(512)], "error": random.random(512).tolist()}}
    monkeypatch.setattr(f"{DATA}.settings", lambda *given: noise)
    monkeypatch.setattr(f"{DATA}.lesions", lambda *given: errors)
    monkeypatch.setattr(f"{DATA}.TESTED", 1)
    with tr.use_backend(FAST):
        tr.manual_seed(0)
        one = Job("", {"name": "resnet20", "num_classes": 10}, WHOLE, MEAN, SCALE, trained=tr.models.resnet20())
        data = collect(one)
    assert write_page(tmp_path / "page.html", data) < 1.5e6
