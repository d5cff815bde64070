"""Twenty steps of training from weights and batches that are drawn by name and number, so that nothing need be stored."""

import zlib

import numpy as np

import tinyres as tr
import tinyres.functional as F

NETS = {
    "resnet20-A": lambda: tr.models.resnet20(shortcut="A"),
    "resnet20-B": lambda: tr.models.resnet20(shortcut="B"),
    "plain20": lambda: tr.models.plain20(),
    "bottleneck20-B": lambda: tr.models.resnet(20, block="bottleneck", shortcut="B"),
}
# In float32 a rounding error can tip a ReLU over; with the steps of real training, two right programs are then apart by
# 10 % after some steps. So float64 takes the large steps, and float32 small ones.
SETTINGS = {
    "float64": {"lr": 0.03, "momentum": 0.9, "weight_decay": 1e-4},
    "float32": {"lr": 5e-5, "momentum": 0.9, "weight_decay": 1e-4},
}
STEPS, SHAPE = 20, (8, 3, 16, 16)


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """`RandomState` draws the same numbers in every version of NumPy."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)


def weights(shapes: dict[str, tuple[int, ...]], dtype: str) -> dict[str, np.ndarray]:
    """He initialisation, and batch norms that are not at their neutral start."""
    arrays = {}
    for name, shape in shapes.items():
        drawn, kind = noise(name, shape), name.rsplit(".", 1)[1]
        if len(shape) == 4:
            drawn *= np.sqrt(2 / (shape[0] * shape[2] * shape[3]))
        elif kind == "running_var":
            drawn = np.exp(0.1 * drawn)
        else:
            drawn = 0.1 * drawn + (kind == "weight" and len(shape) == 1)
        arrays[name] = drawn.astype(dtype)
    return arrays


def batches(dtype: str) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (noise(f"images {k}", SHAPE).astype(dtype), np.random.RandomState(k).randint(0, 10, SHAPE[0]).astype(np.int64))
        for k in range(STEPS)
    ]


def train(name, dtype):
    """Every step's loss and gradients, and the state (parameters and running statistics) at the end."""
    net = NETS[name]()
    net = net.double() if dtype == "float64" else net
    net.load_state_dict(weights({key: a.shape for key, a in net.state_dict().items()}, dtype))
    net.train()
    optimizer = tr.optim.SGD(net.parameters(), **SETTINGS[dtype])
    losses, gradients = [], []
    for images, labels in batches(dtype):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(tr.Tensor(images)), labels)
        loss.backward()
        losses.append(loss.item())
        gradients.append({key: p.grad.copy() for key, p in net.named_parameters()})
        optimizer.step()
    return losses, gradients, net.state_dict()


def digest(losses, gradients, state) -> dict[str, np.ndarray]:
    """What a golden file holds of a run: losses, each step's norm of the gradients, two sums of each gradient of the first
    three steps and of each array at the end (the second with random weights, so that order counts), running statistics of
    three batch norms.
    """

    def sums(arrays):
        return [[np.linalg.norm(a), (a * noise(key, a.shape)).sum()] for key, a in sorted(arrays.items())]

    statistics = ("bn1", "layer2.0.bn1", "layer3.1.bn2")
    return {
        "losses": np.array(losses),
        "norms": np.array([np.sqrt(sum((g**2).sum(dtype=float) for g in step.values())) for step in gradients]),
        "gradients": np.array([sums(step) for step in gradients[:3]]),
        "state": np.array(sums(state)),
        "statistics": np.concatenate([state[f"{bn}.running_{kind}"] for bn in statistics for kind in ("mean", "var")]),
    }
