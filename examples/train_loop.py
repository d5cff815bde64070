"""The training loop on one page: a small ResNet learns `shapes`, ten classes of generated images.

    python examples/train_loop.py                                       a few seconds
    python examples/train_loop.py --depth 20 --images 5000 --epochs 5   a minute or two

`tinyres train` does the same with a live bar, checkpoints and curves: see tinyres/train/trainer.py. This prints, give or
take a little from one machine to another,

    epoch 1: loss 2.26, test error 68 %
    epoch 2: loss 1.64, test error 61 %
"""

import argparse

import numpy as np

import tinyres as tr
import tinyres.functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--depth", type=int, default=8, help="layers of the network: 6n + 2")
parser.add_argument("--images", type=int, default=1000, help="images to train on")
parser.add_argument("--epochs", type=int, default=2)
options = parser.parse_args()

# Data: uint8 images (N, 3, 32, 32) and labels (N,). The loader draws batches in random order, crops and mirrors them at
# random, and subtracts the mean of the training images.
data = tr.data.shapes(n_train=options.images, n_test=200)
mean, scale = tr.data.normalisation(data.train_images, per="channel", divide_std=True)
training = tr.data.Loader(data.train_images, data.train_labels, batch_size=50, mean=mean, scale=scale)
testing = tr.data.Loader(
    data.test_images, data.test_labels, batch_size=100, shuffle=False, augment=False, mean=mean, scale=scale
)

tr.manual_seed(0)
model = tr.models.resnet(options.depth)
optimizer = tr.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)


def test_error():
    """The share of test images that the network gets wrong."""
    model.eval()  # batch norm uses its running statistics
    with tr.no_grad():
        wrong = [model(tr.tensor(images)).data.argmax(1) != labels for images, labels in testing]
    model.train()
    return np.mean(np.concatenate(wrong))


for epoch in range(1, options.epochs + 1):
    losses = []
    for images, labels in training:
        loss = F.cross_entropy(model(tr.tensor(images)), labels)  # forward; the graph is recorded
        optimizer.zero_grad()  # backward() adds to .grad, so every step clears it first
        loss.backward()  # from the loss down to the .grad of every parameter
        optimizer.step()  # moves every parameter a little against its gradient
        losses.append(loss.item())
    print(f"epoch {epoch}: loss {np.mean(losses):.2f}, test error {100 * test_error():.0f} %")
