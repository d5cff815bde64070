"""A user's script, for type checkers alone: the lines marked "wrong" are those that they must find, and no others."""

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from typing_extensions import assert_type

import tinyres as tr
import tinyres.functional as F
from tinyres.explain import Ledger, Trace

data = tr.data.load("shapes")
assert_type(data, tr.data.Dataset)
loader = tr.data.Loader(data.train_images, data.train_labels, batch_size=32, mean=0.5)
assert_type(len(loader), int)

model = tr.models.resnet20(shortcut="B", num_classes=10)
assert_type(model, tr.models.CifarResNet)
assert_type(tr.models.wrn16_8(), tr.models.PreactResNet)
assert_type(tr.models.mobilenet_v2_cifar(), tr.models.MobileNetV2)
assert_type(tr.models.resnet18(), tr.models.ImageNetResNet)
assert_type(tr.models.build("resnet20"), tr.nn.Module)
assert_type(tr.nn.Conv2d(3, 16, 3).weight, tr.nn.Parameter)
optimizer = tr.optim.SGD(model.parameters(), lr=0.1)
schedule = tr.optim.OneCycleLR(optimizer, 0.1, total_steps=10)
assert_type(schedule.get_last_lr(), list[float])

x = tr.tensor([[1.0, 2.0]], requires_grad=True)
assert_type(x, tr.Tensor)
assert_type(x.data, np.ndarray)
assert_type(x.grad, np.ndarray | None)
loss = F.cross_entropy(F.relu(x), tr.tensor([0]))
assert_type(loss, tr.Tensor)
assert_type(loss.shape, tuple[int, ...])
with tr.no_grad(), tr.profile(model) as measured, tr.use_backend("numpy"):
    assert_type(measured, tr.profile)
assert_type(tr.use_backend("numpy"), AbstractContextManager[Any])
assert_type(tr.get_backend(), str)
assert_type(tr.available_backends(), dict[str, str])
assert_type(tr.trace(loss), Trace)
assert_type(tr.gradient_ledger(model, (x, x)), Ledger)
assert_type(tr.draw(loss).upper(), str)
assert_type(tr.nn.summary(model).parameters, int)
assert_type(tr.train.Trainer("resnet20", data, epochs=1).model, tr.nn.Module)
assert_type(tr.weights.load_file("w.th")[1], dict[str, str])
assert_type(tr.lab.find("depth").name, str)
assert_type(tr.errors.UsageError("no"), tr.errors.UsageError)

print(tr.nonsense)  # wrong
print(tr.nn.Conv3d)  # wrong
print(tr.data.nothing)  # wrong
print(F.nothing)  # wrong
print(F.relu("3"))  # wrong
print(x.nothing)  # wrong
print(data.nothing)  # wrong
tr.models.resnet20(shortcuts="B")  # wrong
tr.nn.Conv2d("3", 16, 3)  # wrong
tr.optim.SGD(model.parameters(), learning_rate=0.1)  # wrong
tr.use_backend(3)  # wrong
