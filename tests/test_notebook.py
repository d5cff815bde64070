"""In a notebook: outputs that are shown, hooks that store, cells that fail or are interrupted; the next cell trains on."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

SETUP = """
import hashlib
import numpy as np, tinyres as tr, tinyres.functional as F
tr.manual_seed(0)
net = tr.models.resnet(8)
optimizer = tr.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
x = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)

def train(steps, labels=(0, 1, 2, 3)):
    for _ in range(steps):
        loss = F.cross_entropy(net(tr.tensor(x)), np.array(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

def digest():
    arrays = [p.data for p in net.parameters()]
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()
"""
STEPS = [  # (the cell, what it ends with)
    ("train(2)", None),
    ("net(tr.tensor(x))", None),  # shown, so that Out and _ keep it
    ("y = net(tr.tensor(x)); loss = F.cross_entropy(y, np.arange(4)); loss", None),
    ("train(1)", None),
    ("kept = []\nhook = net.layer2.register_forward_hook(lambda module, args, output: kept.append(output))", None),
    ("train(2); assert len(kept) == 2; hook.remove()", None),
    ("train(1, labels=(99, 99, 99, 99))", "ShapeError"),
    ("def fails():\n    y = net(tr.tensor(x)); 1 / 0\nfails()", "ZeroDivisionError"),
    ("train(1)", None),
    ("while True:\n    y = net(tr.tensor(x))", "KeyboardInterrupt"),
    ("weights, state = net.state_dict(), optimizer.state_dict()", None),
    ("while True:\n    train(1)", "KeyboardInterrupt"),
    ("net.load_state_dict(weights); optimizer.load_state_dict(state)", None),
    ("train(2)", None),
]


def run(cells):
    """The outputs of each cell, as a notebook shows them; those that end in KeyboardInterrupt are interrupted."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code, _ in cells])
    for cell, (_, error) in zip(book.cells, cells, strict=True):
        cell.metadata["tags"] = ["raises-exception"] if error else []
        cell.metadata["interrupt"] = error == "KeyboardInterrupt"
    client = NotebookClient(
        book,
        timeout_func=lambda cell: 1 if cell.metadata["interrupt"] else 300,
        interrupt_on_timeout=True,
        resources={"metadata": {"path": str(Path(__file__).parent.parent)}},
    )
    client.execute()
    return [cell.outputs for cell in book.cells]


@pytest.fixture(scope="module")
def outputs():
    cells = [(SETUP, None), *STEPS, ("digest()", None)]
    return list(zip(cells, run(cells), strict=True))


def test_each_cell_ends_as_it_must_and_training_goes_on(outputs):
    for (code, error), shown in outputs:
        errors = [output.ename for output in shown if output.output_type == "error"]
        assert errors == ([error] if error else []), (code, errors)


def test_the_bits_are_those_of_the_training_cells_alone(outputs):
    undisturbed = "\n".join(code for code, _ in STEPS if code.startswith("train") and "99" not in code)
    alone = run([(SETUP, None), (undisturbed.replace("len(kept) == 2; hook.remove()", "True"), None), ("digest()", None)])
    assert outputs[-1][1][0].data["text/plain"] == alone[-1][0].data["text/plain"]


def test_a_shown_tensor_is_its_repr(outputs):
    (shown,) = [outputs for (code, _), outputs in outputs if code == "net(tr.tensor(x))"]
    assert shown[0].output_type == "execute_result" and "tensor([[" in shown[0].data["text/plain"]


def test_training_shows_a_live_bar_in_a_notebook_and_its_curves():
    pytest.importorskip("ipywidgets", reason="ipywidgets is not installed")
    code = """
import tinyres as tr
with tr.use_backend("numpy"):
    trainer = tr.train.Trainer("resnet8", tr.data.shapes(n_train=32, n_test=8), epochs=1, batch_size=16)
    lines = trainer.fit()
"""
    training, figure = run([(code, None), ("trainer.plot()", None)])
    shown = [output["data"] for output in training if output.output_type == "display_data"]
    assert any("application/vnd.jupyter.widget-view+json" in data for data in shown)
    assert any("epoch 1/1  loss" in data.get("text/plain", "") for data in shown)
    assert "image/png" in figure[-1]["data"]
