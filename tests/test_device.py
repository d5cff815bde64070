"""Where arrays live: tensors and modules move, nothing moves by itself, and the engine never waits for a GPU."""

import contextlib
import sys
import types

import cases_of_functions
import fake_cupy
import numpy as np
import pytest
from backends import require

import tinyres as tr
import tinyres.functional as F
from tinyres import models, nn, optim
from tinyres.errors import DeviceError, NonFiniteError, UsageError
from tinyres.kernels import contract, dispatch
from tinyres.ops import activations


@pytest.fixture
def gpu(monkeypatch):
    return fake_cupy.install(monkeypatch)


def on_gpu(array):
    return isinstance(array, fake_cupy.ndarray)


def images(n=4, size=8):
    return np.random.default_rng(0).standard_normal((n, 3, size, size)).astype(np.float32)


LABELS = np.array([0, 3, 1, 2])


def momenta(optimizer):
    return [one["momentum_buffer"] for one in optimizer._state.values()]


def test_tensors_are_in_host_memory_unless_told_otherwise():
    x = tr.tensor([1.0])
    assert x.device == "cpu" and x.cpu() is x and x.to("cpu") is x and x.to(np.float32) is x and x.to("float32") is x


def test_a_tensor_moves_to_a_gpu_and_back(gpu):
    x = tr.tensor([1.0, 2.0])
    for y in (x.to("cuda"), x.cuda(), x.to("cuda:0"), tr.tensor([1.0, 2.0], device="cuda")):
        assert y.device == "cuda:0" and on_gpu(y.data) and y.dtype == np.float32
        assert y.cuda() is y and y.to("cuda:0") is y
        np.testing.assert_array_equal(y.cpu().data, x.data)
    there = x.to("cuda:1")
    assert there.device == "cuda:1" and there.cuda() is there and there.to("cuda:0").device == "cuda:0"
    assert repr(x.cuda()) == "tensor([1., 2.], device='cuda:0')"
    assert tr.tensor(there).device == "cuda:1" and tr.tensor(there, device="cpu").device == "cpu"


def test_the_gradient_of_a_tensor_that_moved_comes_back(gpu):
    x = tr.tensor([1.0, 2.0], requires_grad=True)
    y = x.cuda() * 3
    assert y.device == "cuda:0"
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [3, 3])


def test_numbers_and_lists_go_to_the_device_of_the_tensor_beside_them(gpu):
    x = tr.tensor([1.0, 2.0], device="cuda")
    for y in (x + 1, 2 / x, x * np.float32(2), x * [1.0, 2.0], x**2, x.mean()):
        assert y.device == "cuda:0"


def two_devices(a, b):
    return [
        lambda: tr.tensor(a) * tr.tensor(b, device="cuda"),
        lambda: tr.tensor(b, device="cuda") + a,
        lambda: F.add_relu(tr.tensor(a, device="cuda:0"), tr.tensor(b, device="cuda:1")),
        lambda: F.cross_entropy(tr.tensor(a, device="cuda"), np.array([0, 1])),
        lambda: F.batch_norm(tr.tensor(a, device="cuda"), np.zeros(2, np.float32), np.ones(2, np.float32)),
        lambda: nn.Linear(2, 2).cuda()(tr.tensor(a)),
        lambda: tr.tensor(a, requires_grad=True, device="cuda").backward(b),
        lambda: optim.SGD(nn.Linear(2, 2).cuda().parameters(), lr=np.ones((), np.float32)),
    ]


@pytest.mark.parametrize("which", range(8))
def test_two_devices_in_one_operation_are_one_error_that_names_both(gpu, which):
    a = np.ones((2, 2), np.float32)
    with pytest.raises(DeviceError, match=r"must live on one device. Got .*(cpu.*cuda:0|cuda:0.*cpu|cuda:0.*cuda:1)"):
        two_devices(a, a)[which]()


def test_a_module_moves_with_its_buffers_and_gradients(gpu):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    weight = model[0].weight
    weight.grad = np.ones_like(weight.data)
    before = model.state_dict()
    assert model.cuda() is model and on_gpu(weight.data) and on_gpu(weight.grad)
    assert {t.device for t in (*model.parameters(), *model.buffers())} == {"cuda:0"}
    assert all(isinstance(a, np.ndarray) and np.array_equal(a, before[name]) for name, a in model.state_dict().items())
    model.load_state_dict({name: 2 * a for name, a in before.items()})
    assert on_gpu(weight.data)
    model.load_state_dict({name: gpu.asarray(a) for name, a in before.items()})
    model.to("cpu")
    assert not on_gpu(weight.data) and not on_gpu(weight.grad)
    assert all(np.array_equal(a, before[name]) for name, a in model.state_dict().items())
    assert nn.Parameter(tr.tensor([1.0], device="cuda")).device == "cuda:0"


def test_what_is_no_device_and_no_dtype_is_named():
    with pytest.raises(UsageError, match=r"'gpu' is no device \(\"cpu\", \"cuda\", \"cuda:1\"\) and no dtype"):
        tr.tensor([1.0]).to("gpu")
    with pytest.raises(UsageError, match=r"parameters are float32 or float64, not float16.*cast the input"):
        nn.Linear(1, 1).to("float16")


def test_a_device_that_is_not_there_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match="cuda: GPU arrays need CuPy: pip install"):
        tr.tensor([1.0]).cuda()
    fake_cupy.install(monkeypatch, gpus=0)
    with pytest.raises(DeviceError, match="no CUDA device, or no driver for it, was found"):
        nn.Linear(1, 1).cuda()
    fake_cupy.install(monkeypatch, gpus=2)
    for name in ("cuda:2", "cuda:-1", "cuda:x", "cuda:"):
        with pytest.raises(DeviceError, match="there is no such GPU; there is cuda:0, cuda:1"):
            tr.tensor([1.0]).to(name)


class Waiting:
    """A backend whose kernels may wait for the GPU; what waits beside them stays on the list."""

    def __init__(self, inner):
        self.name, self.device = inner.name, inner.device
        for name in contract.NAMES:
            setattr(self, name, self.forgiven(getattr(inner, name)))

    @staticmethod
    def forgiven(kernel):
        def run(*args):
            before = len(fake_cupy.SYNCS)
            result = kernel(*args)
            del fake_cupy.SYNCS[before:]
            return result

        return run


@contextlib.contextmanager
def no_waiting():
    with tr.use_backend("numpy") as use, dispatch.using(Waiting(dispatch.current())):
        fake_cupy.SYNCS.clear()
        yield use
        assert fake_cupy.SYNCS == []


def train(device, dtype="float32", steps=2):
    tr.manual_seed(0)
    model = models.resnet(8, shortcut="B").to(device)
    labels = tr.tensor(LABELS).to(device)
    x = tr.tensor(images()).to(device)
    lr = tr.tensor(0.1).to(device).data
    optimizer, scaler = optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-4), optim.GradScaler(2.0**10)
    schedule, ema = optim.MultiStepLR(optimizer, [1]), optim.EMA(model, 0.9)
    losses = []
    with no_waiting():
        for _ in range(steps):
            loss = F.cross_entropy(model(x.to(dtype)), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            ema.update()
            losses.append(loss)
    return [loss.item() for loss in losses], model, optimizer, scaler, ema


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_training_step_stays_on_the_gpu_and_does_not_wait_for_it(gpu, dtype):
    losses, model, optimizer, scaler, ema = train("cuda", dtype)
    assert all(on_gpu(p.data) and on_gpu(p.grad) for p in model.parameters())
    assert all(on_gpu(a) for a in (*momenta(optimizer), *ema._averages.values(), scaler._scale))
    assert optimizer.state_dict()["param_groups"][0]["lr"] == pytest.approx(0.01)
    on_host = train("cpu", dtype)
    np.testing.assert_allclose(losses, on_host[0], rtol=1e-4 if dtype == "float32" else 0.05)
    if dtype == "float32":
        for name, value in on_host[1].state_dict().items():
            np.testing.assert_allclose(model.state_dict()[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_the_rest_of_the_engine_works_on_a_gpu_too(gpu):
    _, model, optimizer, _, ema = train("cuda", steps=1)
    assert nn.summary(model, (3, 8, 8)).parameters == sum(p.numel() for p in model.parameters())
    fake_cupy.SYNCS.clear()
    assert optim.clip_grad_norm_(model.parameters(), 0.01) > 0.01 and fake_cupy.SYNCS == ["float"]
    optim.clip_grad_value_(model.parameters(), 1e-4)
    assert max(float(abs(p.grad).max()) for p in model.parameters()) <= 1e-4
    for fill in (nn.init.kaiming_normal_, nn.init.kaiming_uniform_, nn.init.zeros_):
        assert on_gpu(fill(model.conv1.weight).data)
    before = model.state_dict()
    with ema.applied():
        assert not np.array_equal(model.state_dict()["conv1.weight"], before["conv1.weight"])
    ema.load_state_dict(ema.state_dict())
    optimizer.load_state_dict(optimizer.state_dict())
    assert all(map(on_gpu, (*ema._averages.values(), *momenta(optimizer))))
    assert on_gpu(optimizer.param_groups[0]["lr"])
    y = F.dropout(tr.tensor(images(), device="cuda"), generator=np.random.default_rng(0))
    assert y.device == "cuda:0"
    with pytest.raises(NonFiniteError, match="made a NaN"), tr.detect_anomaly():
        F.relu(tr.tensor([float("nan")], device="cuda"))
    assert tr.gradcheck(lambda x: (x * x).sum(), [tr.tensor(np.ones(3), device="cuda")])


@pytest.mark.parametrize("case", cases_of_functions.all_of_them(), ids=str)
def test_functions_and_reductions_stay_on_the_gpu_and_give_the_same(gpu, case, monkeypatch):
    special = types.SimpleNamespace(erf=lambda x: fake_cupy.ndarray(activations.erf(x.host)))
    monkeypatch.setitem(sys.modules, "cupyx", types.SimpleNamespace(scipy=types.SimpleNamespace(special=special)))
    monkeypatch.setitem(sys.modules, "cupyx.scipy", types.SimpleNamespace(special=special))

    def run(device):
        leaves = [tr.tensor(a, requires_grad=True, device=device) for a in case.arrays()]
        y = case.run(*leaves)
        dy = tr.tensor(np.random.default_rng(0).standard_normal(y.shape), device=device)
        fake_cupy.SYNCS.clear()
        case.run(*leaves).backward(dy)
        assert fake_cupy.SYNCS == []
        return [y.data, *(leaf.grad for leaf in leaves)]

    for there, here in zip(run("cuda"), run("cpu"), strict=True):
        assert on_gpu(there)
        np.testing.assert_allclose(there.host, here, rtol=1e-12, atol=1e-14)


def test_momentum_follows_parameters_that_move(gpu):
    _, model, optimizer, _, ema = train("cpu", steps=1)
    model.cuda()
    optimizer.param_groups[0]["lr"] = 0.1
    with tr.use_backend("numpy"):
        optimizer.step()
    ema.update()
    assert all(map(on_gpu, (*momenta(optimizer), *ema._averages.values())))


def test_kernels_for_the_cpu_leave_gpu_arrays_to_the_reference(gpu):
    require("numba")
    x, w = (tr.tensor(a, device="cuda") for a in (images(), images(5, 3)))
    with tr.use_backend("numba"):
        assert on_gpu(F.relu(F.conv2d(x, w)).data)
        with tr.strict(), pytest.raises(dispatch.BackendError, match="arrays on a GPU"):
            F.conv2d(x, w)
