"""PyTorch's own sample inputs: each gives the same values and gradients, or an error that docs/pytorch.md announces; and
arguments by position mean what they mean there.
"""

import functools
import re
import sys
import types
import unittest.mock
import warnings
from pathlib import Path

import numpy as np
import pytest

import tinyres as tr
import tinyres.functional as F
from tinyres import nn, optim
from tinyres.errors import TinyresError

pytestmark = pytest.mark.torch

PAGE = Path(__file__).parent.parent / "docs" / "pytorch.md"
MOST = 200  # samples of one operation, every so-many-th: max_pool2d has 1,440
FUNCTIONS = ("relu", "relu6", "linear", "conv2d", "batch_norm", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")
FUNCTIONS += ("leaky_relu", "gelu", "silu", "mse_loss", "layer_norm", "group_norm")
METHODS = ("sum", "mean", "reshape", "view", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "item", "to")
METHODS += (
    "exp",
    "log",
    "sqrt",
    "abs",
    "tanh",
    "sigmoid",
    "max",
    "min",
    "amax",
    "amin",
    "argmax",
    "std",
    "all",
    "any",
    "clone",
)
OPERATORS = {"add": "add", "sub": "sub", "mul": "mul", "div": "truediv", "pow": "pow", "matmul": "matmul"}
REVERSED = {f"__r{name}__": "truediv" if name == "div" else name for name in ("add", "sub", "mul", "div", "pow", "matmul")}
OURS = {  # PyTorch's name -> ours
    **{f"nn.functional.{name}": getattr(F, name) for name in (*FUNCTIONS, "cross_entropy", "pad")},
    "nn.functional.dropout": functools.partial(F.dropout, generator=np.random.default_rng(0)),
    "log_softmax": F.log_softmax,
    "softmax": F.softmax,
    **{name: getattr(tr.Tensor, f"__{ours}__") for name, ours in OPERATORS.items()},
    **{name: getattr(tr.Tensor, f"__r{ours}__") for name, ours in REVERSED.items()},
    **{name: getattr(tr.Tensor, f"__{name}__") for name in ("neg", "eq", "ne", "lt", "le", "gt", "ge")},
    **{name: getattr(tr.Tensor, name) for name in (*METHODS, "float", "half", "bfloat16", "__getitem__")},
    "T": lambda x: x.T,
}
# what no sample shows
CALLS = {
    ("BatchNorm2d", "momentum"): lambda: nn.BatchNorm2d(3, momentum=None),
    ("Conv2d", "padding_mode"): lambda: nn.Conv2d(3, 4, 3, padding_mode="reflect"),
    ("conv2d", "padding"): lambda: F.conv2d(np.zeros((1, 1, 4, 4)), np.zeros((1, 1, 3, 3)), stride=2, padding="same"),
    ("cross_entropy", "ignore_index"): lambda: F.cross_entropy(np.zeros((2, 3)), np.full((2, 3), 1 / 3), ignore_index=1),
    ("kaiming_normal_", "nonlinearity"): lambda: nn.init.kaiming_normal_(tr.tensor(np.zeros((2, 2))), nonlinearity="tanh"),
    ("SGD", "dampening"): lambda: optim.SGD([nn.Parameter([1.0])], dampening=0.5),
    ("SGD", "maximize"): lambda: optim.SGD([nn.Parameter([1.0])], maximize=True),
    ("backward", "create_graph"): lambda: tr.tensor([1.0], requires_grad=True).backward(create_graph=True),
}


@functools.cache
def op_db():
    """PyTorch's table of operations. Its test tools import expecttest, which the samples do not need, and freeze flags."""
    if "expecttest" not in sys.modules:
        sys.modules["expecttest"] = types.ModuleType("expecttest")
        sys.modules["expecttest"].TestCase = unittest.TestCase
    with warnings.catch_warnings(), unittest.mock.patch("torch.backends.disable_global_flags"):
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    return [op for op in op_db if op.name in OURS]


@functools.cache
def announced():
    """(function, argument) of each row of the page's tables."""
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(rows) == len(set(rows))
    return set(rows)


def refusal(name, error):
    """The row of the page for an error that names the argument."""
    own = isinstance(error, TinyresError) or (type(error) is TypeError and "unexpected keyword argument" in str(error))
    short = name.removeprefix("nn.functional.")
    text = str(error).removeprefix(f"{short}: ")
    rows = [row for row in announced() if row[0] == short and re.search(rf"\b{row[1]}\b", text)]
    if not own or len(rows) != 1:
        raise AssertionError(f"{name}: no clear error, or none that docs/pytorch.md announces") from error
    return rows[0]


def ours(value):
    """A sample's argument: PyTorch's tensors and dtypes become ours, also in tuples and lists."""
    import torch

    if isinstance(value, torch.Tensor):
        return tr.Tensor(np.array(value.detach().numpy()), requires_grad=value.requires_grad)
    if isinstance(value, torch.dtype | torch.device):
        return str(value).removeprefix("torch.")
    return type(value)(map(ours, value)) if type(value) in (tuple, list) else value


def tensors(*values):
    """All tensors in arguments, in order."""
    found = []
    for value in values:
        found += tensors(*value) if isinstance(value, tuple | list) else [value] if hasattr(value, "requires_grad") else []
    return found


def same(mine, theirs, what):
    theirs = theirs.detach()
    assert mine.shape == tuple(theirs.shape) and str(mine.dtype) == str(theirs.dtype).removeprefix("torch."), what
    want = theirs.double().numpy()
    error = {"torch.float64": 1e-10, "torch.float32": 2e-5}.get(str(theirs.dtype), 1e-2)
    scale = np.abs(want, where=np.isfinite(want), out=np.zeros_like(want)).max(initial=1)
    np.testing.assert_allclose(mine.astype(np.float64), want, rtol=error, atol=error * scale, err_msg=what)


def compare(op, sample):
    """Raises for a difference from PyTorch; returns the row of the page if the sample is refused."""
    import torch

    args, options = (sample.input, *sample.args), sample.kwargs
    mine, my_options = ours(args), {name: ours(value) for name, value in options.items()}
    what = f"{op.name}{[tuple(a.shape) if hasattr(a, 'shape') else a for a in args]}{options}"
    try:
        y = OURS[op.name](*mine, **my_options)
    except Exception as error:
        return refusal(op.name, error)
    want = op(*args, **options)
    if op.name == "nn.functional.dropout" and options.get("training", True):
        p = options.get("p", 0.5)
        want = args[0] * torch.from_numpy(np.asarray(y.data != 0)) * (1 / (1 - p) if p < 1 else 0)
    if isinstance(want, tuple):  # values and indices
        same(y.indices.data, want.indices, what)
        y, want = y.values, want.values
    if not isinstance(want, torch.Tensor):
        assert y == want, what
        return None
    same(y.data, want, what)
    assert y.requires_grad == want.requires_grad, what
    if want.requires_grad:
        dy = torch.from_numpy(np.array(np.random.default_rng(0).standard_normal(want.shape))).to(want.dtype)
        want.backward(dy)
        y.backward(dy.double().numpy())
        for a, b in zip(tensors(mine, *my_options.values()), tensors(args, *options.values()), strict=True):
            assert (a.grad is None) == (b.grad is None), what
            if b.grad is not None:
                same(a.grad, b.grad, f"{what}: gradient")
                b.grad = None
    return None


def samples(op, dtype):
    found = list(op.sample_inputs("cpu", dtype, requires_grad=op.supports_autograd))
    return found[:: len(found) // MOST | 1]


@functools.cache
def walk(dtype):
    """The rows of the page that PyTorch's samples meet."""
    import torch

    met = set()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for op in op_db():
            met |= {compare(op, sample) for sample in samples(op, getattr(torch, dtype))}
    return met - {None}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sample_of_pytorch_s_is_equal_or_refused_as_announced(dtype):
    assert {op.name for op in op_db()} == set(OURS)
    walk(dtype)


def test_the_page_announces_nothing_else():
    for row, call in CALLS.items():
        with pytest.raises(TinyresError) as error:
            call()
        assert refusal(row[0], error.value) == row
    assert walk("float32") | set(CALLS) == announced()
