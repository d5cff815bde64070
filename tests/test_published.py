"""The published CIFAR-10 weights give their published errors. Runs where two environment variables say where to look:

TINYRES_PRETRAINED  a folder with resnet20-12fca82f.th and resnet32-d509ac18.th
TINYRES_EXACT       an .npz with test_images (uint8, N x 3 x 32 x 32) and test_labels, the exact test images at hand
"""

import os
from pathlib import Path

import numpy as np
import pytest

import tinyres as tr
from tinyres.weights import import_weights

FOLDER, EXACT = os.environ.get("TINYRES_PRETRAINED"), os.environ.get("TINYRES_EXACT")
pytestmark = pytest.mark.skipif(
    not (FOLDER and EXACT), reason="TINYRES_PRETRAINED and TINYRES_EXACT do not name the published weights and images"
)
WEIGHTS = {"resnet20": ("resnet20-12fca82f.th", 932), "resnet32": ("resnet32-d509ac18.th", 944)}
MEAN, STD = (np.array(v, np.float32).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def images_and_labels():
    with np.load(EXACT) as file:
        images, labels = file["test_images"], file["test_labels"]
    return (images.reshape(-1, 3, 32, 32).astype(np.float32) / 255 - MEAN) / STD, labels


def network(name):
    net = tr.models.build(name, shortcut="A")
    shapes = {key: a.shape for key, a in net.state_dict().items()}
    net.load_state_dict(import_weights(Path(FOLDER) / WEIGHTS[name][0], shapes))
    return net.eval()


def logits(net, images):
    with tr.no_grad():
        return np.concatenate([net(tr.Tensor(images[k : k + 128])).data for k in range(0, len(images), 128)])


@pytest.mark.parametrize("name", WEIGHTS)
def test_published_weights_classify_as_many_images_as_published(name):
    images, labels = images_and_labels()
    assert len(labels) == 1017
    assert (logits(network(name), images).argmax(axis=1) == labels).sum() == WEIGHTS[name][1]


@pytest.mark.torch
@pytest.mark.parametrize("name", WEIGHTS)
def test_logits_are_those_of_pytorch(name):
    import torch
    import torch_nets

    images = images_and_labels()[0][:128]
    net = network(name)
    other = torch_nets.Net((int(name[6:]) - 2) // 6, "A")
    torch_nets.load(other, net.state_dict())
    with torch.no_grad():
        theirs = other.eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(logits(net, images), theirs, atol=1e-3)
