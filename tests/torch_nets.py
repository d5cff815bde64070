"""The networks of He et al. once more, in PyTorch, with the parameter names of `tinyres.models`; and training steps."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import tinyres as tr
from tinyres import functional

torch.set_num_threads(1)  # the batches are small


class OptionA(nn.Module):
    """Every second pixel, and zero channels on both sides, as in the published weights."""

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = more, stride

    def forward(self, x):
        before = self.more // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.more - before))


def shortcut(option, inputs, outputs, stride):
    if inputs == outputs and stride == 1 and option != "C":
        return nn.Identity()
    if option == "A":
        return OptionA(outputs - inputs, stride)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """kernels (3, 3): basic; (1, 3, 1): bottleneck. ``option`` None: plain. ``side``: the name of the shortcut."""

    def __init__(self, inputs, channels, stride, option, kernels, side="shortcut"):
        super().__init__()
        self.side = side
        self.count, wide = len(kernels), channels * (4 if len(kernels) == 3 else 1)
        first = 0 if self.count == 2 else 1  # which convolution has the stride
        for i, kernel in enumerate(kernels):
            outputs = wide if i == self.count - 1 else channels
            here = stride if i == first else 1
            source = inputs if i == 0 else channels
            setattr(self, f"conv{i + 1}", nn.Conv2d(source, outputs, kernel, here, kernel // 2, bias=False))
            setattr(self, f"bn{i + 1}", nn.BatchNorm2d(outputs))
        setattr(self, side, shortcut(option, inputs, wide, stride) if option else None)

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.count:
                y = F.relu(y)
        beside = getattr(self, self.side)
        return F.relu(y if beside is None else y + beside(x))


class Net(nn.Module):
    """``head`` and ``side``: the names of the last layer and of the shortcuts, by which repositories differ."""

    def __init__(
        self, blocks: int, option: str | None, kernels=(3, 3), classes: int = 10, head="fc", side="shortcut"
    ) -> None:
        super().__init__()
        self.head = head
        wide = 4 if len(kernels) == 3 else 1
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        inputs = 16
        for k, channels in enumerate((16, 32, 64)):
            stage = []
            for j in range(blocks):
                stage.append(Block(inputs, channels, 2 if k and not j else 1, option, kernels, side))
                inputs = wide * channels
            setattr(self, f"layer{k + 1}", nn.Sequential(*stage))
        setattr(self, head, nn.Linear(inputs, classes))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        return getattr(self, self.head)(y.mean(dim=(2, 3)))


NETS = {
    "resnet20-A": lambda: Net(3, "A"),
    "resnet20-B": lambda: Net(3, "B"),
    "plain20": lambda: Net(3, None),
    "bottleneck20-B": lambda: Net(2, "B", (1, 3, 1)),
}


def load(net, arrays):
    result = net.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items()}, strict=False)
    assert not result.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in result.missing_keys)


def train(name, arrays, batches, dtype, lr, momentum, weight_decay):
    """As `parity.train`, in PyTorch."""
    net = NETS[name]().to(torch.float64 if dtype == "float64" else torch.float32)
    load(net, arrays)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    losses, gradients = [], []
    for images, labels in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(torch.from_numpy(images)), torch.from_numpy(labels))
        loss.backward()
        losses.append(loss.item())
        gradients.append({key: p.grad.numpy().copy() for key, p in net.named_parameters()})
        optimizer.step()
    state = {key: a.numpy() for key, a in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    return losses, gradients, state


class Twin:
    """A network's own layers in PyTorch, by the names of its parameters, for a forward pass to be written out. It makes the
    net float64, and its vectors and what is 0 random, so that nothing hides.
    """

    def __init__(self, net, seed=0):
        self.net, self.random = net.double(), np.random.default_rng(seed)
        for parameter in net.parameters():
            if parameter.ndim == 1 or not parameter.data.any():
                scale = 1 if parameter.ndim == 1 else 0.1
                parameter.data[...] = self.random.uniform(0.5, 1.5, parameter.shape) * scale
        self.state = {name: torch.tensor(value) for name, value in net.state_dict().items()}
        for name, _ in net.named_parameters():
            self.state[name].requires_grad_()

    def conv(self, x, name, stride=1, groups=1):
        weight = self.state[name + ".weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)

    def bn(self, x, name):
        mean, var, weight, bias = (self.state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias, training=True)

    def linear(self, x, name):
        return F.linear(x, self.state[name + ".weight"], self.state[name + ".bias"])

    def padded(self, x, channels, stride):
        """Shortcut A."""
        return OptionA(channels - x.shape[1], stride)(x)

    def stages(self, x, block):
        """The three stages of a CIFAR net; ``block(x, name, stride)``."""
        for stage in (1, 2, 3):
            for i in range(len(getattr(self.net, f"layer{stage}"))):
                x = block(x, f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1)
        return x

    def agrees(self, forward, shape=(3, 3, 8, 8)):
        """``forward(images)`` gives the net's logits, gradients and buffers."""
        images, labels = self.random.standard_normal(shape), self.random.integers(0, 10, shape[0])
        logits = forward(torch.tensor(images))
        F.cross_entropy(logits, torch.tensor(labels)).backward()
        got = self.net(tr.tensor(images))
        functional.cross_entropy(got, labels).backward()
        assert np.allclose(got.data, logits.detach().numpy(), atol=1e-10)
        for name, parameter in self.net.named_parameters():
            assert np.allclose(parameter.grad, self.state[name].grad.numpy(), atol=1e-9), name
        for name, buffer in self.net.named_buffers():
            assert np.allclose(buffer.data, self.state[name].numpy(), atol=1e-12), name
