"""docs/gradient.md: its tables are those of the committed results, these are what the engine gives, and its text agrees."""

import re

import numpy as np
import pytest
from docs_gradient import PAGE, read, written

import tinyres as tr
from tinyres.cli.subjects import Subject
from tinyres.explain.page.depth import gain_norms, norms

TEXT = PAGE.read_text("utf-8")


def test_the_tables_are_those_of_the_results():
    assert written(TEXT) == TEXT and TEXT.count(".json -->") == 8


def test_the_figures_in_the_text_are_those_of_the_results():
    found, trained, deep, published, wider = map(
        read, ("ledger-resnet20", "trained-resnet20", "ledger-resnet56", "published-resnet20", "published-resnet32")
    )
    for one in (found, trained, deep, published, wider):
        assert one["ledger"]["adds_up"] and all(row["error"] == 0 for row in one["ledger"]["rows"])
        assert one["ledger"]["paths"]["relative_error"] < 1e-5

    def factor(ledger):
        return ledger["rows"][0]["total"] / ledger["rows"][-1]["total"]

    for text, value in (
        ("{:.2f} times that at the last", factor(trained["ledger"])),
        ("where it was {:.1f} times", factor(found["ledger"])),
        ("from 17 to {:.1f}", factor(trained["compare"]["ledger"])),
        ("the mean length is {:.2f} of 9", found["ledger"]["paths"]["mean_length"]),
        ("the mean is {:.2f} of 27", deep["ledger"]["paths"]["mean_length"]),
        ("comes close ({:.2f}", found["ledger"]["paths"]["predicted_mean"]),
        ("and {:.2f}), and counting", deep["ledger"]["paths"]["predicted_mean"]),
        ("mean path length is {:.2f} of 9", published["ledger"]["paths"]["mean_length"]),
        ("is {:.2f} of 15", wider["ledger"]["paths"]["mean_length"]),
    ):
        assert text.format(value) in TEXT.replace("\n", " "), text.format(value)
    assert max(abs(row["cosine"]) for row in found["ledger"]["rows"]) <= 0.02
    assert max(abs(share) for share in deep["ledger"]["paths"]["share"][18:]) < 0.0005
    plain = {one["model"]: one["first_over_last"] for one in read("norms")["networks"] if one["seed"] == 0}
    assert plain["plain110"] > 2e7 and plain["resnet110"] < 100 and 17 <= plain["plain20"] < 17.5


def test_its_code_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    names: dict = {}
    exec(code, names)
    printed = capsys.readouterr().out
    assert printed.split()[1:3] == ["BatchNormAddReLU", "layer2.0.bn2"] and names["drawing"].startswith("<svg")


def batch(count):
    data = tr.data.load("shapes")
    mean, scale = tr.data.normalisation(data.train_images, per="channel", divide_std=True)
    return Subject("", "", None, {}, data, mean, scale, 0, 0).batch(count)


@pytest.fixture(scope="module")
def shapes():
    return batch(64)


def test_the_engine_gives_the_ledger_and_two_of_the_norms_again(shapes):
    tr.manual_seed(0)
    for row, known in zip(
        tr.gradient_ledger(tr.models.resnet20(), shapes), read("ledger-resnet20")["ledger"]["rows"], strict=True
    ):
        np.testing.assert_allclose(
            [row.lent, row.through_branch, row.total], [known[k] for k in ("lent", "through_branch", "total")], rtol=2e-3
        )
    known = {(one["model"], one["seed"]): one["norms"] for one in read("norms")["networks"]}
    x, y = shapes
    for name in ("plain20", "resnet20"):
        tr.manual_seed(1)
        np.testing.assert_allclose(norms(tr.models.build(name), x[:32], y[:32]), known[name, 1], rtol=2e-3)


def test_the_engine_gives_the_nets_without_batch_norm_again():
    for one in read("gains")["networks"]:
        if one["gain"] in (0.5, 1.0):
            found = gain_norms(one["family"] == "residual", one["gain"])
            np.testing.assert_allclose(found, one["norms"], rtol=1e-2)
