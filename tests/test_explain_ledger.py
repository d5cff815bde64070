"""The trace and the ledger: the walk is the engine's to the bit, the two parts of every block add up, and where a join is
wrong the ledger says how.
"""

import cases
import numpy as np
import pytest

import tinyres as tr
import tinyres.functional as F
from tinyres import autograd, nn
from tinyres.errors import GraphError, UsageError
from tinyres.explain import ledger_of
from tinyres.kernels.dispatch import use_backend
from tinyres.models import ResidualMLP, cifar
from tinyres.ops.join import AddReLU, BatchNormAddReLU

BACKENDS = ["numpy", "numba"]


class PreActivation(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))), the block of He et al. 2016."""

    def __init__(self, channels):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x):
        return self.conv2(self.bn2(self.conv1(self.bn1(x, relu=True)), relu=True)) + x


class PreActivationNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(PreActivation(8) for _ in range(3)))
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(F.global_avg_pool2d(self.blocks(self.stem(x))))


NETS = {
    "resnet20 A": lambda: tr.models.resnet20(shortcut="A"),
    "resnet20 B": lambda: tr.models.resnet20(shortcut="B"),
    "resnet20 C": lambda: tr.models.resnet20(shortcut="C"),
    "bottleneck": lambda: cifar.resnet(20, "B", "bottleneck"),
    "preactivation": PreActivationNet,
    "fully connected": lambda: ResidualMLP(12, 16, 6, 10),
}
BLOCKS = {"bottleneck": 6, "preactivation": 3, "fully connected": 6}


def batch(name="resnet20 A", n=4, size=16):
    random = np.random.default_rng(3)
    shape = (n, 12) if name == "fully connected" else (n, 3, size, size)
    return random.standard_normal(shape).astype(np.float32), random.integers(0, 10, n)


def build(name):
    tr.manual_seed(0)
    return NETS[name]()


def loss_of(model, images, labels):
    with tr.explain.watch(model) as seen:
        return F.cross_entropy(model(tr.tensor(images)), labels), seen


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NETS)
def test_both_parts_add_up_to_the_last_bit(name, backend):
    with use_backend(backend):
        ledger = tr.gradient_ledger(build(name), batch(name))
    assert len(ledger) == BLOCKS.get(name, 9)
    assert [row.error for row in ledger] == [0.0] * len(ledger)
    assert {row.words for row in ledger} == {"adds up to the last bit"} and ledger.adds_up
    assert sum(ledger.paths.share) == pytest.approx(1, abs=1e-5)
    assert ledger.paths.relative_error < 1e-5
    assert min(row.through_branch for row in ledger) > 0 and min(row.through_shortcut for row in ledger) > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NETS)
def test_traced_gradients_have_the_bits_of_backward(name, backend):
    with use_backend(backend):
        model = build(name)
        loss, seen = loss_of(model, *batch(name))
        steps, again = tr.trace(loss, seen), tr.trace(loss, seen)
        assert all(p.grad is None for p in model.parameters())
        loss.backward()
    gradients = {key: p.grad for key, p in model.named_parameters()}
    assert set(steps.gradients) == set(gradients)
    for key, gradient in gradients.items():
        np.testing.assert_array_equal(steps.gradients[key], gradient, err_msg=key)
        np.testing.assert_array_equal(again.gradients[key], gradient, err_msg=key)
    assert sum(step.kind == "join" for step in steps) == BLOCKS.get(name, 9)


@pytest.mark.parametrize("case", cases.CASES, ids=str)
def test_every_operation_traces(case):
    leaves = [tr.tensor(a, requires_grad=True) for a in case.arrays()]
    y = case.run(*leaves)
    dy = cases.cotangent(case)
    steps = tr.trace(y, gradient=dy)
    y.backward(dy)
    reached = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert len(steps.gradients) == len(reached)
    for traced, gradient in zip(sorted(map(np.sum, steps.gradients.values())), sorted(map(np.sum, reached)), strict=True):
        np.testing.assert_array_equal(traced, gradient)


def test_a_fork_of_the_smallest_kinds():
    x = tr.tensor([3.0], requires_grad=True)
    steps = tr.trace((x + x) * 1.0)
    np.testing.assert_array_equal(next(iter(steps.gradients.values())), [2.0])
    assert [step.kind for step in steps] == ["", ""]  # both uses end at one place: there is no branch

    b = x * x
    y = b * 2.0 + (b * b + b)  # b is used four times, in three operations
    steps = tr.trace(y)
    fork = [step for step in steps if step.kind == "fork"]
    assert len(fork) == 1 and len(fork[0].arrivals) == 4
    y.backward()
    np.testing.assert_array_equal(next(iter(steps.gradients.values())), x.grad)


def test_a_graph_of_six_nodes_that_wrong_walks_get_wrong():
    parents = [(), ((0, 1),), ((1, 2),), ((1, 2), (2, 1)), ((2, 2), (3, 3)), ((4, 2),)]
    values = [tr.tensor(np.array([1.0]), requires_grad=True)]
    for edges in parents[1:]:
        terms = [values[parent] * float(slope) for parent, slope in edges]
        values.append(terms[0] if len(terms) == 1 else terms[0] + terms[1])
    steps = tr.trace(values[-1])
    values[-1].backward()
    assert next(iter(steps.gradients.values())) == values[0].grad == 32.0


def test_the_steps_of_one_block_and_its_three_operations():
    model = build("resnet20 A")
    loss, seen = loss_of(model, *batch())
    steps = tr.trace(loss, seen)
    join = next(step for step in steps if step.name == "layer3.1.bn2")
    assert join.kind == "join" and [stage.op for stage in join.stages] == ["ReLU", "Add", "BatchNorm"]
    relu, add, bn = join.stages
    z = join.stages and next(n for n in seen.nodes if seen.nodes[n] == join.name).saved[1]
    np.testing.assert_array_equal(relu.array, np.where(z > 0, join.dy, 0))
    assert add.array is relu.array  # the same cotangent to both
    np.testing.assert_array_equal(bn.array, join.sends[0].array)
    np.testing.assert_array_equal(add.array, join.sends[1].array)
    text = steps.table("layer3.1")
    assert "layer3.1.conv1" in text and "layer3.2" not in text.split("sends")[0] and str(steps)
    with pytest.raises(UsageError, match=r"layer9.*layer3\.1"):
        steps.table("layer9")
    loss.backward()
    with pytest.raises(GraphError):
        tr.trace(loss, seen)


def test_the_ledger_leaves_the_model_as_it_was():
    model = build("resnet20 A")
    model.layer1.eval()
    modes = [m.training for m in model.modules()]
    model.conv1.weight.grad = np.ones_like(model.conv1.weight.data)
    linear = nn.Linear(3, 2)
    state, random = model.state_dict(), tr.default_generator().bit_generator.state
    tr.gradient_ledger(model, batch())
    with pytest.raises(UsageError):
        tr.gradient_ledger(linear, (np.ones((2, 3)), np.array([0, 1])))
    with pytest.raises(ZeroDivisionError):
        tr.gradient_ledger(model, batch(), loss=lambda logits, labels: 1 / 0)
    assert [m.training for m in model.modules()] == modes
    assert all(np.array_equal(v, state[k]) for k, v in model.state_dict().items())
    assert tr.default_generator().bit_generator.state == random
    assert (model.conv1.weight.grad == 1).all() and model.fc.weight.grad is None
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.data.flags.writeable for p in model.parameters())


def test_by_hand_with_leaves_alone():
    x = tr.tensor([[1.0, 2.0]], requires_grad=True)
    w = tr.tensor([[1.0, -2.0], [3.0, 1.0]], requires_grad=True)
    ledger = ledger_of(F.add_relu(F.linear(x, w), x).sum())
    (row,) = ledger.rows
    assert (row.lent, row.through_shortcut, row.shortcut) == (1.0, 1.0, "identity")
    assert row.through_branch == pytest.approx(10**0.5) and row.total == pytest.approx(13**0.5)
    assert x.grad is None and ledger.paths.share == pytest.approx([2 / 13, 11 / 13])


def test_plain_nets_have_rows_too():
    model = tr.models.plain20()
    ledger = tr.gradient_ledger(model, batch())
    assert [row.name for row in ledger] == [f"layer{i}.{k}" for i in (1, 2, 3) for k in range(3)]
    assert {row.shortcut for row in ledger} == {"none"} and ledger.paths is None
    assert [row.total for row in ledger][1:] == [row.arrives for row in ledger][:-1]
    mlp = tr.gradient_ledger(ResidualMLP(12, 16, 6, 10, residual=False), batch("fully connected"))
    assert len(mlp) == 6


def test_kinds_of_shortcuts():
    kinds = {name: [row.shortcut for row in tr.gradient_ledger(build(name), batch(name), paths=False)] for name in NETS}
    assert kinds["resnet20 A"] == ["identity", "identity", "identity", "A", *["identity"] * 2, "A", *["identity"] * 2]
    assert kinds["resnet20 B"][3] == "B" and kinds["resnet20 B"].count("identity") == 7
    assert set(kinds["resnet20 C"]) == {"C"} and set(kinds["preactivation"]) == {"identity"}


# --- wrong on purpose ------------------------------------------------------------------------------------------------


def wrong_join(function, change):
    """The join's backward with what it sends to the branch and to the shortcut changed."""
    right = function.backward

    def backward(ctx, dz):
        branch, shortcut, *rest = right(ctx, dz)
        return (*change(branch, shortcut, dz), *rest)

    return staticmethod(backward)


WRONG = {
    "branch only": (lambda b, s, dz: (b, 0 * s), "sends to the shortcut nothing"),
    "shortcut only": (lambda b, s, dz: (0 * b, s), "sends to the branch nothing"),
    "halved": (lambda b, s, dz: (b / 2, s / 2), "sends to both sides half of what it must"),
    "doubled": (lambda b, s, dz: (b * 2, s * 2), "sends to both sides twice what it must"),
    "shortcut negated": (lambda b, s, dz: (b, -s), "sends to the shortcut the right cotangent with the wrong sign"),
    "branch a tenth": (lambda b, s, dz: (b * np.float32(0.1), s), "sends to the branch 0.1 times what it must"),
    "the mask forgotten": (lambda b, s, dz: (b, dz * 1), "sends to the shortcut something else than its formula says"),
}


@pytest.mark.parametrize("join", [BatchNormAddReLU, AddReLU], ids=["fused", "alone"])
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_join_is_named(kind, join, monkeypatch):
    change, said = WRONG[kind]
    name = "resnet20 A" if join is BatchNormAddReLU else "fully connected"
    monkeypatch.setattr(join, "backward", wrong_join(join, change))
    ledger = tr.gradient_ledger(build(name), batch(name), paths=False)
    assert not ledger.adds_up
    assert {row.words for row in ledger} == {f"does not add up: the join {said}"}
    assert all(row.error > 0.01 for row in ledger)
    assert said in str(ledger) and said in ledger._repr_html_()


FORKS = {
    "averages": (lambda a, b: (a + b) / 2, "half of what it must"),
    "keeps the last": (lambda a, b: b, "'s part is missing"),
    "keeps the first": (lambda a, b: a, "'s part is missing"),
}


@pytest.mark.parametrize("kind", FORKS)
def test_an_engine_that_does_not_add_at_the_fork_is_named(kind, monkeypatch):
    change, said = FORKS[kind]
    monkeypatch.setattr(autograd, "add_cotangents", lambda first, second, kernels: change(first[0], second[0]))
    monkeypatch.setattr(autograd, "owned_cotangent", lambda table, edge: None)
    ledger = tr.gradient_ledger(build("fully connected"), batch("fully connected"), paths=False)
    assert all(said in row.words and "at the fork" in row.words for row in ledger)
