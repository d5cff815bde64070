"""Writes training.npz beside this file: what PyTorch makes of the runs in parity.py, in float64.

python tests/golden/make_golden.py
"""

import sys
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent.parent)]

import parity  # noqa: E402
import torch  # noqa: E402
import torch_nets  # noqa: E402

golden = {"made_with": np.array(f"torch {torch.__version__}, numpy {np.__version__}")}
for name, net in torch_nets.NETS.items():
    shapes = {key: tuple(a.shape) for key, a in net().state_dict().items() if not key.endswith("num_batches_tracked")}
    arrays = parity.weights(shapes, "float64")
    for dtype, settings in parity.SETTINGS.items():  # the settings of both, the arithmetic always of float64
        run = torch_nets.train(name, arrays, parity.batches("float64"), "float64", **settings)
        golden.update({f"{name} {dtype} {key}": value for key, value in parity.digest(*run).items()})
np.savez_compressed(Path(__file__).parent / "training.npz", **golden)
