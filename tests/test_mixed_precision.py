"""Mixed precision: images of 16 bits beside parameters of float32, and the scale of the loss that float16 needs."""

import numpy as np
import pytest
from backends import BACKENDS, require

import tinyres as tr
import tinyres.functional as F
from tinyres import models, nn, optim
from tinyres.errors import CheckpointError, GraphError, NonFiniteError, ShapeError, UsageError
from tinyres.kernels import contract, dispatch, reference
from tinyres.kernels.reference.mixed import ACTIVATIONS

ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 needs the package ml_dtypes")
HALVES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
EPS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # the relative error of one rounding
half = pytest.mark.parametrize("dtype", HALVES)
C = 5


def statistics():
    return np.linspace(-0.5, 0.5, C, dtype=np.float32), np.linspace(0.5, 2, C, dtype=np.float32)


# name -> (operation, shapes of images, shapes of parameters, whether the result has 16 bits)
OPERATIONS = {
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, padding=1), [(2, C, 6, 7)], [(4, C, 3, 3), (4,)], True),
    "conv2d stride 2": (lambda x, w: F.conv2d(x, w, stride=2, padding=1), [(2, C, 6, 7)], [(4, C, 3, 3)], True),
    "conv2d depthwise": (lambda x, w: F.conv2d(x, w, padding=1, groups=C), [(2, C, 6, 7)], [(C, 1, 3, 3)], True),
    "linear": (F.linear, [(6, C)], [(3, C), (3,)], False),
    "batch_norm": (lambda x, w, b: F.batch_norm(x, *statistics(), w, b, True), [(3, C, 4, 4)], [(C,), (C,)], True),
    "batch_norm 2d": (lambda x, w, b: F.batch_norm(x, *statistics(), w, b, True), [(9, C)], [(C,), (C,)], True),
    "batch_norm eval": (lambda x, w, b: F.batch_norm(x, *statistics(), w, b), [(3, C, 4, 4)], [(C,), (C,)], True),
    "batch_norm plain": (lambda x: F.batch_norm(x, *statistics(), training=True), [(3, C, 4, 4)], [], True),
    "batch_norm_relu": (
        lambda x, w, b: F.batch_norm(x, *statistics(), w, b, True, relu=True),
        [(3, C, 4, 4)],
        [(C,), (C,)],
        True,
    ),
    "batch_norm_add_relu": (
        lambda x, r, w, b: F.batch_norm_add_relu(x, r, *statistics(), w, b, True),
        [(3, C, 4, 4)] * 2,
        [(C,), (C,)],
        True,
    ),
    "relu": (F.relu, [(2, C, 4, 4)], [], True),
    "relu6": (F.relu6, [(2, C, 4, 4)], [], True),
    "add_relu": (F.add_relu, [(2, C, 4, 4)] * 2, [], True),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1), [(2, C, 6, 7)], [], True),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1), [(2, C, 6, 7)], [], True),
    "global_avg_pool2d": (F.global_avg_pool2d, [(2, C, 6, 7)], [], True),
    "subsample_pad": (lambda x: F.subsample_pad(x, 8, 2), [(2, C, 6, 7)], [], True),
    "dropout": (lambda x: F.dropout(x, 0.5, generator=np.random.default_rng(1)), [(2, C, 4)], [], True),
    "add": (lambda x, y: x + y, [(2, C), (C,)], [], True),
    "mul": (lambda x, y: 2 * x * y, [(2, C), (C,)], [], True),
    "sum": (lambda x: x.sum(dim=1), [(2, 300)], [], True),
    "mean": (lambda x: x.mean(dim=1), [(2, 300)], [], True),
    "a diamond": (lambda x: F.relu(x) + x + x, [(2, C, 4, 4)], [], True),
    "float": (lambda x: x.float() * 3, [(2, C)], [], False),
}


def run(operation, arrays, cotangent=None):
    leaves = [tr.Tensor(a, requires_grad=True) for a in arrays]
    y = operation(*leaves)
    dy = np.random.default_rng(3).standard_normal(y.shape) if cotangent is None else cotangent
    dy = dy.astype(y.dtype)
    y.backward(dy)
    return y, dy, [leaf.grad for leaf in leaves]


@half
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_on_16_bits_is_that_on_float32_rounded(name, backend, dtype):
    """To the precision of the dtype, relative to the largest element; what belongs to parameters is float32."""
    operation, images, parameters, narrow = OPERATIONS[name]
    rng = np.random.default_rng(4)
    half_images = [rng.standard_normal(shape).astype(HALVES[dtype]) for shape in images]
    rest = [rng.standard_normal(shape).astype(np.float32) for shape in parameters]
    with tr.use_backend(backend):
        y, dy, grads = run(operation, [*half_images, *rest])
    with tr.use_backend("numpy"):
        want, _, want_grads = run(operation, [*(x.astype(np.float32) for x in half_images), *rest], dy.astype(np.float32))
    assert y.dtype == (dtype if narrow else np.float32)
    assert [g.dtype for g in grads] == [dtype] * len(images) + [np.float32] * len(parameters)
    for got, exact in zip((y.data, *grads), (want.data, *want_grads), strict=True):
        assert got.shape == exact.shape
        atol = 6 * EPS[dtype] * max(0.1, float(np.abs(exact).max()))
        np.testing.assert_allclose(got.astype(np.float32), exact, rtol=0, atol=atol)


def test_the_reference_computes_in_float32_and_rounds_once():
    x = np.random.default_rng(0).standard_normal((2, 64, 5, 5)).astype(np.float16)
    w = np.random.default_rng(1).standard_normal((8, 64, 3, 3)).astype(np.float32)
    geometry = (1, 1), (1, 1), (1, 1), 1
    exact = reference.conv2d(x.astype(np.float32), w, *geometry)
    np.testing.assert_array_equal(reference.conv2d(x, w, *geometry), exact.astype(np.float16))
    dw = reference.conv2d_backward_weight(x[:, :8], x, w.shape, *geometry)
    wide = [a.astype(np.float32) for a in (x[:, :8], x)]
    np.testing.assert_array_equal(dw, reference.conv2d_backward_weight(*wide, w.shape, *geometry))
    assert set(ACTIVATIONS) <= set(contract.NAMES)


@half
def test_sums_of_many_numbers_of_16_bits_are_made_in_float32(dtype):
    ones = tr.tensor(np.ones(4096), dtype=dtype)
    assert ones.sum().item() == 4096 and ones.mean().item() == 1
    many = tr.tensor(np.full(100_000, 2.0), dtype=dtype, requires_grad=True)
    assert many.mean().item() == 2  # whose sum is more than float16 holds
    one = tr.tensor(np.ones(1), dtype=dtype, requires_grad=True)
    (one * ones).sum().backward()
    assert one.grad == 4096


@half
def test_a_cast_is_an_operation(dtype):
    x = tr.tensor([1.0, 1 / 3], requires_grad=True)
    y = x.to(dtype)
    assert y.dtype == dtype and y.to(dtype) is y and repr(y).endswith(f"dtype={dtype}, grad_fn=Cast)")
    assert y.float().dtype == np.float32
    y.backward(np.array([1, 2], y.dtype))
    assert x.grad.dtype == np.float32 and x.grad.tolist() == [1, 2]
    assert {"float16": x.half, "bfloat16": x.bfloat16}[dtype]().dtype == dtype
    assert tr.tensor(y).dtype == np.float32 and tr.tensor([1.0], dtype=dtype).dtype == dtype
    whole = y.to(np.int64)
    assert whole.dtype == np.int64 and not whole.requires_grad
    assert np.isinf(tr.tensor(3.4e38).to(dtype).item())  # without a warning


FLOAT32 = "must all be float32, or all float64"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, w: F.conv2d(x, w.half()), rf"conv2d: .*{FLOAT32}, or x float16 or bfloat16 with weight and"),
        (lambda x, w: F.conv2d(x.float(), w.half()), rf"{FLOAT32}.*Got x float32\[.*weight float16\["),
        (lambda x, w: F.conv2d(x, w.to("float64")), FLOAT32),
        (lambda x, w: F.add_relu(x, x.bfloat16()), rf"{FLOAT32}, or x and y float16 or bfloat16 \("),
        (lambda x, w: F.add_relu(x, x.float()), FLOAT32),
        (lambda x, w: F.batch_norm(x, np.zeros(2), np.ones(2)), rf"batch_norm: .*{FLOAT32}.*running_mean float64"),
        (lambda x, w: F.linear(x.reshape(1, -1), tr.tensor(np.ones((3, 18)))), FLOAT32),
        (lambda x, w: F.cross_entropy(x.reshape(1, -1), [0]), rf"cross_entropy: .*{FLOAT32}"),
        (lambda x, w: F.log_softmax(x), FLOAT32),
        (lambda x, w: x.reshape(1, -1) @ x.reshape(-1, 1), r"matmul: it does not take 16 bits; \.float\(\) converts"),
        (lambda x, w: F.max_pool2d(x.to(np.int64), 2), FLOAT32),
    ],
)
def test_other_mixtures_name_the_rule(call, message):
    x, w = tr.tensor(np.ones((1, 2, 3, 3), np.float32)).half(), tr.tensor(np.ones((2, 2, 3, 3), np.float32))
    with pytest.raises(ShapeError, match=message):
        call(x, w)


@half
def test_strict_mode_refuses_16_bits_on_the_cpu_kernels(dtype):
    require("numba")
    for name, (operation, images, parameters, _) in OPERATIONS.items():
        if not name.startswith(("conv2d", "batch_norm", "relu", "add_relu", "max", "avg")) or "2d" in name[-3:]:
            continue
        arrays = [np.ones(shape, HALVES[dtype]) for shape in images] + [np.ones(shape, np.float32) for shape in parameters]
        with tr.use_backend("numba"), tr.strict(), pytest.raises(dispatch.BackendError, match="dtype"):
            run(operation, arrays)


@half
def test_nan_and_infinity_pass_through(dtype):
    x = tr.tensor([np.nan, np.inf, -np.inf, 1.0], dtype=dtype)
    np.testing.assert_array_equal(F.relu(x).data.astype(np.float32), [np.nan, np.inf, 0, 1])
    np.testing.assert_array_equal(F.add_relu(x, x).data.astype(np.float32), [np.nan, np.inf, 0, 2])
    images = np.zeros((1, 1, 2, 2), HALVES[dtype])
    images[0, 0, 0, 1] = np.nan
    assert np.isnan(F.max_pool2d(tr.tensor(images, dtype=dtype), 2).item())
    with tr.detect_anomaly(), pytest.raises(NonFiniteError, match="ReLU made a NaN"):
        F.relu(x)


# --- training --------------------------------------------------------------------------------------------------------


def task():
    """16 images of 4 classes, a bright quarter each."""
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((16, 3, 8, 8)).astype(np.float32), np.arange(16) % 4
    for image, label in zip(images, labels, strict=True):
        image[:, 4 * (label // 2) :, 4 * (label % 2) :][:, :4, :4] += 2
    return images, labels


def learned(dtype, enabled, steps=25):
    tr.manual_seed(0)
    model, (images, labels) = models.resnet(8, num_classes=4), task()
    optimizer, scaler = optim.SGD(model.parameters(), 0.05, momentum=0.9), optim.GradScaler(enabled=enabled)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(tr.tensor(images).to(dtype)), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert loss.dtype == np.float32 and {p.grad.dtype for p in model.parameters()} == {np.dtype(np.float32)}
    assert {t.dtype for t in (*model.parameters(), *model.buffers())} == {np.dtype(np.float32)}
    return losses


@pytest.mark.parametrize("dtype, enabled", [("float16", True), ("bfloat16", False), ("float32", False)])
def test_a_resnet_learns(dtype, enabled):
    with tr.use_backend("numpy"):
        losses = learned(dtype, enabled)
    assert losses[-1] < 0.1 * losses[0]


def test_small_gradients_survive_in_float16_only_when_the_loss_is_scaled():
    x = tr.tensor([1.0], requires_grad=True)
    (x.half().float() * 1e-8).sum().backward()
    assert x.grad == 0
    x.grad, scaler = None, optim.GradScaler()
    scaler.scale((x.half().float() * 1e-8).sum()).backward()
    assert x.grad / scaler.get_scale() == pytest.approx(1e-8, rel=1e-2)


def parameter():
    return nn.Parameter(np.array([1.0, 2.0], np.float32))


def scaled_step(p, optimizer, scaler, factor=1.0):
    optimizer.zero_grad()
    scaler.scale((p * factor).sum()).backward()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_an_overflow_skips_the_step_and_halves_the_scale(bad):
    p = parameter()
    optimizer, scaler = optim.SGD([p], 0.5, momentum=0.9, weight_decay=0.1), optim.GradScaler(8.0)
    scaled_step(p, optimizer, scaler)
    before, momentum = p.data.copy(), optimizer.state_dict()["state"][0]["momentum_buffer"]
    scaled_step(p, optimizer, scaler, bad)
    np.testing.assert_array_equal(p.data, before)
    np.testing.assert_array_equal(optimizer.state_dict()["state"][0]["momentum_buffer"], momentum)
    assert scaler.get_scale() == 4
    scaled_step(p, optimizer, scaler)
    assert not np.array_equal(p.data, before) and scaler.get_scale() == 4


def test_the_scale_does_not_change_the_update_and_grows_after_good_steps():
    p, q = parameter(), parameter()
    optimizer, plain = optim.SGD([p], 0.5, momentum=0.9), optim.SGD([q], 0.5, momentum=0.9)
    scaler = optim.GradScaler(4.0, growth_factor=3.0, growth_interval=2)
    scales = []
    for _ in range(5):
        scaled_step(p, optimizer, scaler)
        scales.append(scaler.get_scale())
        q.sum().backward()
        plain.step()
        plain.zero_grad()
    np.testing.assert_array_equal(p.data, q.data)
    assert scales == [4, 12, 12, 36, 36]


@pytest.mark.torch
def test_the_scale_is_pytorch_s():
    import torch

    ours, p = optim.GradScaler(64.0, growth_interval=3), parameter()
    theirs = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
    optimizer, q = optim.SGD([p], 0.1), torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    oracle = torch.optim.SGD([q], 0.1)
    for factor in (1, 1, np.inf, 1, 1, 1, 1, np.nan, np.inf, 1):
        scaled_step(p, optimizer, ours, factor)
        oracle.zero_grad()
        theirs.scale((q * factor).sum()).backward()
        theirs.step(oracle)
        theirs.update()
        assert ours.state_dict() == theirs.state_dict()
    np.testing.assert_allclose(p.data, q.detach().numpy())


def test_gradients_can_be_seen_unscaled_before_the_step():
    p = parameter()
    optimizer, scaler = optim.SGD([p], 1.0), optim.GradScaler(1024.0)
    scaler.scale(p.sum()).backward()
    assert p.grad.tolist() == [1024, 1024]
    scaler.unscale_(optimizer)
    assert p.grad.tolist() == [1, 1]
    scaler.step(optimizer)
    assert p.data.tolist() == [0, 1]
    scaler.update()


def test_one_optimizer_s_overflow_does_not_skip_the_other_s_step():
    p, q = parameter(), parameter()
    first, second, scaler = optim.SGD([p], 1.0), optim.SGD([q], 1.0), optim.GradScaler(2.0)
    scaler.scale((p * np.inf + q).sum()).backward()
    scaler.step(second)
    scaler.step(first)
    scaler.update()
    assert p.data.tolist() == [1, 2] and q.data.tolist() == [0, 1] and scaler.get_scale() == 1


def test_the_scale_does_not_grow_past_float32():
    p = parameter()
    optimizer, scaler = optim.SGD([p], 1.0), optim.GradScaler(growth_interval=1)
    for _ in range(150):
        optimizer.zero_grad()
        scaler.scale((p * 1e-30).sum()).backward()
        assert np.isfinite(p.grad).all()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**127


def test_calls_out_of_turn_are_errors():
    p = parameter()
    optimizer, scaler = optim.SGD([p], 1.0), optim.GradScaler()
    with pytest.raises(GraphError, match="no loss has been scaled"):
        scaler.unscale_(optimizer)
    scaler.scale(p.sum()).backward()
    with pytest.raises(GraphError, match=r"update\(\) without a step"):
        scaler.update()
    scaler.step(optimizer)
    for call in (scaler.step, scaler.unscale_):
        with pytest.raises(GraphError, match="since the last update"):
            call(optimizer)
    scaler.update()
    for wrong in ({"init_scale": 0.0}, {"growth_factor": 1.0}, {"backoff_factor": 1.0}, {"growth_interval": 0}):
        with pytest.raises(UsageError, match="GradScaler: init_scale must be"):
            optim.GradScaler(**wrong)


@pytest.mark.parametrize("used", [False, True])
def test_a_scaler_goes_on_from_its_state(used):
    p = parameter()
    optimizer, scaler = optim.SGD([p], 0.1), optim.GradScaler(16.0, growth_interval=3)
    scaled_step(p, optimizer, scaler)
    other = optim.GradScaler()
    if used:
        scaled_step(p, optimizer, other)
    other.load_state_dict(scaler.state_dict())
    assert other.state_dict() == scaler.state_dict()
    for _ in range(2):
        scaled_step(p, optimizer, other)
    assert other.get_scale() == 32
    with pytest.raises(CheckpointError, match="no state of an enabled GradScaler"):
        other.load_state_dict({})
    assert other.get_scale() == 32


def test_a_scaler_that_is_not_enabled_does_nothing():
    p = parameter()
    optimizer, scaler = optim.SGD([p], 1.0), optim.GradScaler(enabled=False)
    loss = p.sum()
    assert scaler.scale(loss) is loss and scaler.get_scale() == 1 and scaler.state_dict() == {}
    loss.backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    scaler.load_state_dict({})
    assert p.data.tolist() == [0, 1]


def test_a_step_is_skipped_where_the_array_says_so_and_the_learning_rate_may_be_an_array():
    p, lr = parameter(), np.array(0.5, np.float32)
    optimizer = optim.SGD([p], lr)
    p.grad = np.ones(2, np.float32)
    optimizer.step(skip=np.array(1, np.int32))
    assert p.data.tolist() == [1, 2]
    optimizer.step(skip=np.array(0, np.int32))
    assert p.data.tolist() == [0.5, 1.5]
    schedule = optim.MultiStepLR(optimizer, [1])
    assert lr == 0.5
    schedule.step()
    assert optimizer.param_groups[0]["lr"] is lr and lr == np.float32(0.05)
    state = optimizer.state_dict()
    assert type(state["param_groups"][0]["lr"]) is float
    lr[...] = 7
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] is lr and lr == np.float32(0.05)
    for wrong in (np.ones(1, np.float32), np.ones(())):
        with pytest.raises(UsageError, match=r"an array as lr is float32 of shape \(\)"):
            optim.SGD([p], wrong)
