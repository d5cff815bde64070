"""Two training steps of a ResNet-8 on eight images, for compute-sanitizer.

python -m tinyres.benchmarks.gpu_small_step BACKEND
"""

import sys

import numpy as np

import tinyres as tr
from tinyres.kernels import dispatch


def main(backend: str) -> None:
    from tinyres.train.resident import ResidentStep, Sums

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (16, 3, 32, 32), np.uint8), rng.integers(0, 10, 16)
    with tr.use_backend(backend), tr.strict():
        if dispatch.current().device == "cuda":  # each array alone: in a pool, an access beyond one array lands in the next
            import cupy

            cupy.cuda.set_allocator(None)
        tr.manual_seed(0)
        net = tr.models.resnet(8).to(dispatch.current().device)
        optimizer = tr.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        step = ResidentStep(net, optimizer, images, labels, 8, mean=0.5, scale=2.0, capture=False)
        step.start(0, Sums(0, 0, 0.0, False), [0.01] * 2, np.arange(16))
        step.run(2)
        print(step.sums())


if __name__ == "__main__":
    main(sys.argv[1])
