"""What test_numba_cuda.py runs in a process of its own: Numba compiles every kernel for a GPU, to PTX. No GPU is needed,
but NVIDIA's compiler library libnvvm is; without it the exit status is 77. Prints the names of the kernels.
"""

import sys
import types

import numba
import numpy as np
from numba import cuda
from numba.cuda.cudadrv.nvvm import NVVM

try:
    NVVM()
except Exception as error:
    print(error)
    sys.exit(77)

cuda.is_available = lambda: True
sys.modules.setdefault("cupy", types.ModuleType("cupy"))  # imported, and not asked for anything

from tinyres.kernels import numba_cuda as kernels  # noqa: E402
from tinyres.kernels.numba_cuda import runtime  # noqa: E402

compiled = set()


def compile_only(self, grid, block, *args):
    real = next(a.dtype.type for a in args if hasattr(a, "dtype") and a.dtype.kind == "f")
    signature = numba.types.void(*map(numba.typeof, args))
    if (self.function, signature) not in compiled:
        ptx, _ = cuda.compile_ptx(self.version(real).py_func, signature, cc=(9, 0))
        assert ".entry" in ptx
        compiled.add((self.function, signature))


runtime.Kernel._launch = compile_only
for name, module in sys.modules.items():
    if name.startswith("tinyres.kernels.numba_cuda.") and hasattr(module, "check"):
        module.check = lambda *arrays: None  # NumPy's arrays stand for CuPy's: only their types count

for dtype in sys.argv[1:]:

    def new(*shape, dtype=dtype):
        return np.ones(shape, dtype)

    x, w, c, geometry = new(2, 4, 6, 6), new(4, 4, 3, 3), new(4), ((2, 2), (1, 1), (1, 1), 1)
    y = kernels.conv2d(x, w, *geometry)
    kernels.conv2d_backward_input(y, w, x.shape, *geometry)
    kernels.conv2d_backward_weight(y, x, w.shape, *geometry)
    kernels.linear(new(3, 4), new(5, 4), new(5))
    kernels.batch_norm(x, c, c, 1e-5, True, (c, c, 0.1))
    kernels.batch_norm_backward(x, x, x, c, c, c, 1e-5, True)
    kernels.batch_norm_add_relu(x, x, c, c, 1e-5, (c, c, 0.1))
    kernels.batch_norm_add_relu_backward(x, x, x, c, c, c, 1e-5, True)
    kernels.relu(x)
    kernels.relu6(x)
    for name in ("relu_backward", "relu6_backward", "add_relu", "add", "accumulate"):
        getattr(kernels, name)(x, new(*x.shape))
    window = ((2, 2), (2, 2), (0, 0))
    y, index = kernels.max_pool2d(x, *window)
    kernels.max_pool2d_backward(y, index, x.shape, *window)
    kernels.avg_pool2d_backward(kernels.avg_pool2d(x, *window), x.shape, *window)
    kernels.global_avg_pool2d_backward(kernels.global_avg_pool2d(x), x.shape)
    kernels.subsample_pad_backward(kernels.subsample_pad(x, 8, 2), x.shape, 2)
    labels = np.zeros(3, np.int64)
    kernels.cross_entropy_mean(new(3, 5), labels, 0.1)
    kernels.cross_entropy_mean_backward(new(), new(3, 5), labels, 0.1)
    scale, whole = np.ones((), np.float32), np.zeros((), np.int32)
    kernels.sgd([c], [c], [c], scale, 0.9, 1e-4, True, whole)
    kernels.adamw([c], [c], [c], [c], [1], 0.1, (0.9, 0.999), 1e-8, 1e-2)
    kernels.unscale([c], scale)
    kernels.update_scale(scale, whole, whole, 2.0, 0.5, 10)
    normal = np.ones((4, 1, 1), np.float32)
    kernels.crop_flip(np.ones(x.shape, np.uint8), np.ones((2, 2), np.int64), np.ones(2, bool), 4, normal, normal)

print(" ".join(sorted({function.__name__ for function, _ in compiled})))
