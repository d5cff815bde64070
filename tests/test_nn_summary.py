"""summary: shapes, parameters and multiply-adds of each layer, and a model left as it was."""

import inspect
import sys

import numpy as np
import pytest

import tinyres as tr
from tinyres import nn
from tinyres.errors import ShapeError, UsageError


def test_each_layer_has_a_row_in_the_order_of_its_call():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.GlobalAvgPool2d(), nn.Linear(8, 5))
    table = nn.summary(net, (3, 9, 6))
    assert [(row.name, row.type, row.input_shape, row.output_shape) for row in table.rows] == [
        ("0", "Conv2d", (3, 9, 6), (8, 5, 3)),
        ("1", "ReLU", (8, 5, 3), (8, 5, 3)),
        ("2", "GlobalAvgPool2d", (8, 5, 3), (8,)),
        ("3", "Linear", (8,), (5,)),
    ]
    assert [row.parameters for row in table.rows] == [8 * 27 + 8, 0, 0, 45]
    assert [row.multiply_adds for row in table.rows] == [15 * 8 * 27, 0, 0, 40]
    assert (table.parameters, table.multiply_adds) == (8 * 27 + 8 + 45, 15 * 8 * 27 + 40)


def test_groups_and_dilation_count_only_what_is_multiplied():
    rows = nn.summary(nn.Conv2d(4, 8, 3, dilation=2, groups=4), (4, 7, 7)).rows
    assert rows[0].multiply_adds == 9 * 8 * 9 and rows[0].parameters == 8 * 9 + 8


def test_a_layer_used_twice_has_two_rows_and_its_parameters_once():
    layer = nn.Linear(4, 4)
    table = nn.summary(nn.Sequential(layer, layer), (4,))
    assert [row.parameters for row in table.rows] == [20, 0]
    assert (table.parameters, table.multiply_adds) == (20, 32)


def test_resnet20_has_its_published_counts_and_a_row_for_the_parameter_free_shortcut():
    table = nn.summary(tr.models.resnet20())
    assert (table.parameters, table.multiply_adds) == (269_722, 40_551_040)
    row = next(row for row in table.rows if row.name == "layer2.0.shortcut")
    assert (row.type, row.input_shape, row.output_shape) == ("SubsamplePad", (16, 32, 32), (32, 16, 16))
    assert row.parameters == row.multiply_adds == 0


def test_the_model_is_left_as_it_was():
    net = tr.models.resnet(8)
    net.layer1.eval()
    net.layer3[0].bn1.running_mean.data[...] = 1
    before, modes = net.state_dict(), [module.training for module in net.modules()]
    nn.summary(net)
    with pytest.raises(ShapeError):
        nn.summary(net, (4, 32, 32))
    assert [module.training for module in net.modules()] == modes
    assert all(np.array_equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_a_float64_model_is_summarised():
    assert nn.summary(nn.Linear(2, 3).double(), (2,)).multiply_adds == 6


def test_the_table_prints_with_and_without_rich():
    table = nn.summary(nn.Sequential(nn.Linear(1000, 10)), (1000,))
    lines = str(table).splitlines()
    assert lines[0].split() == ["layer", "type", "input", "output", "parameters", "multiply-adds"]
    assert lines[2].split() == ["0", "Linear", "1000", "10", "10,010", "10,000"]
    assert lines[-1].split() == ["total", "Sequential", "10,010", "10,000"]
    rich = pytest.importorskip("rich.console", reason="rich draws this table")
    console = rich.Console(width=100)
    with console.capture() as capture:
        console.print(table)
    assert "10,010" in capture.get()


def test_resnet1202_needs_no_deep_recursion():
    net = tr.models.resnet1202()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 60)
    try:
        table = nn.summary(net)
    finally:
        sys.setrecursionlimit(limit)
    assert (table.parameters, table.multiply_adds) == (19_421_274, 2_829_238_912)


@pytest.mark.parametrize("shape", [(), (3, 0, 32), (3, 32.0, 32)])
def test_an_input_shape_without_meaning_is_refused(shape):
    with pytest.raises(UsageError, match="input_shape is one image's shape"):
        nn.summary(nn.Identity(), shape)
