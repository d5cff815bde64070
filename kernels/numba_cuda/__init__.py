"""The contract's kernels once more, in Numba's dialect of CUDA: Python, to read for those who do not write C++.

The same plan as `kernels/cuda`, in its plainest form. To begin with: `elementwise` (one thread per element), `conv` (im2col
and its way back), `matmul` (shared memory and barriers), `norm` (sums as trees). `runtime` is how kernels are started.

On a GPU it takes CuPy's arrays; with NUMBA_ENABLE_CUDASIM=1 it runs on NumPy's in Numba's simulator, very slowly.
"""

from tinyres.kernels.contract import kernels_of
from tinyres.kernels.numba_cuda.runtime import SIMULATED

DEVICE = "cpu" if SIMULATED else "cuda"  # where its arrays live
globals().update(kernels_of(__name__))
