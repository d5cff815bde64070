"""The pictures of a step: `tr.draw`, and the ledger's."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

import tinyres as tr
import tinyres.functional as F
from tinyres.errors import UsageError
from tinyres.explain.draw import _graph, _Picture
from tinyres.explain.trace import norm

x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
y = np.array([3, 1])


def step(name, **options):
    tr.manual_seed(0)
    net = tr.models.build(name, **options)
    with tr.watch(net) as seen:
        loss = F.cross_entropy(net(tr.tensor(x)), y)
    return loss, seen


def titles(drawing):
    root = ElementTree.fromstring(str(drawing))
    return [e.text for e in root.iter() if e.tag.endswith("title")]


def texts(drawing):
    return [e.text for e in ElementTree.fromstring(str(drawing)).iter() if e.tag.endswith("}text")]


@pytest.fixture(scope="module")
def traced():
    return tr.trace(*step("resnet20", shortcut="B"))


def test_every_step_arrow_and_sum_is_there_with_its_number(traced):
    drawing = tr.draw(traced)
    shown, words = titles(drawing), texts(drawing)
    assert {s.name for s in traced} <= set(words)
    for s in traced:
        for sent in s.sends:
            size = f"{norm(sent.array):.3g}"
            if sent.step < 0:
                assert f"gradient of {sent.target.removeprefix(f'{s.name}.')}: {size}" in shown
            else:
                arrow = f"cotangent of {sent.target} from {s.name}, {size}, {' x '.join(map(str, sent.array.shape))}"
                assert arrow in shown
    forks = sum(len(s.arrivals) > 1 for s in traced)
    assert forks == 9 and sum("that meet here are added" in t for t in shown) == forks


def test_a_fused_join_is_drawn_as_three_operations_and_lends_the_same_number_to_both(traced):
    drawing = tr.draw(traced, block="layer2.0")
    join = next(s for s in traced if s.name == "layer2.0.bn2")
    lent = f"{norm(join.stages[1].array):.3g}"
    assert [op for op in texts(drawing) if op in ("ReLU", "Add", "BatchNorm")] == [
        "ReLU",
        "Add",
        "BatchNorm",
        "ReLU",
        "BatchNorm",
    ]
    shown = titles(drawing)
    assert any(
        t.startswith("layer2.0.bn2: the same ds to the branch and to the shortcut, ") and t.endswith(lent) for t in shown
    )
    assert f"cotangent of layer2.0.shortcut.1 from layer2.0.bn2, {lent}, 2 x 32 x 16 x 16" in shown
    # no other block's; but what is below it, where its two sides meet
    names = {t for t in texts(drawing) if t.startswith("layer")}
    assert names == {s.name for s in traced if s.block == "layer2.0"} | {"layer1.2.bn2"}


def test_values_are_norms_or_root_mean_squares_or_largest_magnitudes(traced):
    sent = traced[1].sends[0].array.astype(np.float64)
    for values, right in (("norm", norm(sent)), ("rms", np.sqrt((sent**2).mean())), ("max", abs(sent).max())):
        assert any(
            t.startswith(f"cotangent of GlobalAvgPool2d from fc, {right:.3g},")
            for t in titles(tr.draw(traced, values=values))
        )


def test_of_a_deep_net_each_block_is_one_box_and_one_can_be_opened():
    loss, seen = step("resnet56")
    drawing = tr.draw(loss, seen)
    assert [t for t in texts(drawing) if t.startswith("layer")] == [
        f"layer{stage}.{block}" for stage in (3, 2, 1) for block in range(8, -1, -1)
    ]
    ledger = tr.gradient_ledger(*_again(seen))
    for row in ledger:
        lent = f"{row.lent:.3g}"
        assert f"{row.name}: ds, {lent}" in titles(drawing)
    opened = tr.draw(loss, seen, block="layer2.4")
    assert "layer2.4.conv1" in texts(opened) and "layer2.5.conv1" not in texts(opened)


def _again(seen):
    tr.manual_seed(0)
    return tr.models.resnet56(), (x, y)


def test_a_graph_made_by_hand():
    a = tr.tensor([[1.0, 2.0]], requires_grad=True)
    w = tr.tensor([[1.0, -2.0], [3.0, 1.0]], requires_grad=True)
    drawing = tr.draw(F.add_relu(F.linear(a, w), a).sum())
    assert "cotangent of leaf (1, 2) from AddReLU, 1, 1 x 2" in titles(drawing)  # past the branch, to the leaf that forks
    assert "cotangent of leaf (1, 2) from Linear, 3.16, 1 x 2" in titles(drawing)
    assert "the 2 cotangents that meet here are added" in titles(drawing)
    assert drawing._repr_svg_() == str(drawing) and "http" not in drawing.replace("http://www.w3.org/2000/svg", "")


def test_the_same_array_twice_and_arrows_that_pass_boxes_are_told_apart():
    a = tr.tensor([2.0], requires_grad=True)
    b = a + a
    steps = tr.trace((b * b + b * 3).sum())
    boxes, arrows = _graph(steps, list(steps), folded=False)
    _Picture(boxes, arrows, norm)
    assert len(arrows) == 1 + sum(s.step >= 0 for one in steps for s in one.sends)
    place = {id(box): i for i, box in enumerate(boxes)}
    spans = [(a.lane, place[id(a.start)] if a.start else -1, place[id(a.end)]) for a in arrows]
    for i, (lane, first, last) in enumerate(spans):
        assert not any(box.lane == lane for box in boxes[first + 1 : last])
        assert not any(lane == other and first < end and last > start for other, start, end in spans[:i])


def test_the_picture_of_a_ledger_places_each_number():
    tr.manual_seed(0)
    ledger = tr.gradient_ledger(tr.models.resnet(8), (x, y))
    shown = titles(ledger.svg())
    for row in ledger:
        for words, value in (
            ("lent to both sides, |ds|", row.lent),
            ("back through the shortcut", row.through_shortcut),
            ("back through the branch", row.through_branch),
            ("the sum, |dx|", row.total),
        ):
            assert f"{row.name}: {words} {value:.3g}" in shown
    # the sum is a path whose place grows with the number's logarithm
    places = [float(p) for p in re.findall(r"<path d=\"M([\d.]+) [\d.]+l6 6l", str(ledger.svg()))]
    sums = [row.total for row in reversed(ledger.rows)]
    slope = np.diff(places[1:]) / np.diff(np.log10(sums))
    assert len(places) == 4 and np.allclose(slope, slope[0], rtol=0.02) and slope[0] > 0
    assert str(ledger.svg()) in ledger._repr_html_()


def test_a_plain_net_has_dots_for_its_sums_only():
    tr.manual_seed(0)
    ledger = tr.gradient_ledger(tr.models.plain(8), (x, y))
    shown = titles(ledger.svg())
    assert sum("the sum" in t for t in shown) == 3 and not any("lent" in t or "shortcut" in t for t in shown)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"values": "mean"}, "values is one of norm, rms, max"),
        ({"block": "layer9.0"}, "no step of the trace belongs to 'layer9.0'.*layer3.2"),
    ],
)
def test_what_cannot_be_drawn(traced, arguments, words):
    with pytest.raises(UsageError, match=words):
        tr.draw(traced, **arguments)


def test_a_leaf_has_no_picture():
    with pytest.raises(UsageError, match="nothing to draw"):
        tr.draw(tr.tensor(1.0, requires_grad=True))
