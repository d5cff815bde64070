"""The published CIFAR-10 weights give their published errors. Runs where two environment variables say where to look:

TINYRES_PRETRAINED  a folder with resnet20-12fca82f.th and resnet32-d509ac18.th
TINYRES_EXACT       an .npz with test_images (uint8, N x 3 x 32 x 32) and test_labels, the exact test images at hand
"""

import os

import numpy as np
import pytest

import tinyres as tr
from tinyres.lab.lesion import exact_images, published_net

FOLDER, EXACT = os.environ.get("TINYRES_PRETRAINED"), os.environ.get("TINYRES_EXACT")
pytestmark = pytest.mark.skipif(
    not (FOLDER and EXACT), reason="TINYRES_PRETRAINED and TINYRES_EXACT do not name the published weights and images"
)
RIGHT = {"resnet20": 932, "resnet32": 944}  # of 1,017


def logits(net, images):
    with tr.no_grad():
        return np.concatenate([net(tr.Tensor(images[k : k + 128])).data for k in range(0, len(images), 128)])


@pytest.mark.parametrize("name", RIGHT)
def test_published_weights_classify_as_many_images_as_published(name):
    images, labels = exact_images()
    assert len(labels) == 1017
    assert (logits(published_net(name).eval(), images).argmax(axis=1) == labels).sum() == RIGHT[name]


@pytest.mark.torch
@pytest.mark.parametrize("name", RIGHT)
def test_logits_are_those_of_pytorch(name):
    import torch
    import torch_nets

    images = exact_images()[0][:128]
    net = published_net(name).eval()
    other = torch_nets.Net((int(name[6:]) - 2) // 6, "A")
    torch_nets.load(other, net.state_dict())
    with torch.no_grad():
        theirs = other.eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(logits(net, images), theirs, atol=1e-3)
