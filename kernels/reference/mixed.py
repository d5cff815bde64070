"""Mixed precision: activations of 16 bits beside parameters of 32.

The reference computes in float32. A call that is given float16 or bfloat16 arrays runs on float32 copies of them, and of
its results those that are activations, or their cotangents, become 16 bits again; statistics, gradients of parameters and
logits stay float32.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from tinyres.kernels.arrays import convert, is_half

# kernel -> which of its results are activations. A kernel that is not named here has none, or only moves numbers
# (subsample_pad), or adds two arrays (add, accumulate), which NumPy does in float32 and rounds once.
ACTIVATIONS: dict[str, tuple[int, ...]] = {
    "conv2d": (0,),
    "conv2d_backward_input": (0,),
    "conv2d_backward_weight": (),
    "linear": (),
    "linear_backward_weight": (),
    "batch_norm": (0,),
    "batch_norm_inference": (0,),
    "batch_norm_backward": (0,),
    "relu": (0,),
    "relu_backward": (0,),
    "relu6": (0,),
    "relu6_backward": (0,),
    "add_relu": (0,),
    "batch_norm_add_relu": (0,),
    "batch_norm_add_relu_inference": (0,),
    "batch_norm_add_relu_backward": (0, 3),
    "max_pool2d": (0,),
    "max_pool2d_backward": (0,),
    "avg_pool2d": (0,),
    "avg_pool2d_backward": (0,),
    "global_avg_pool2d": (0,),
    "global_avg_pool2d_backward": (0,),
}


def mixed(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """``kernel``, for arrays of 16 bits too."""
    activations = ACTIVATIONS[kernel.__name__.lstrip("_")]

    @functools.wraps(kernel)
    def run(*args: Any) -> Any:
        dtype = next((a.dtype for a in args if hasattr(a, "dtype") and is_half(a.dtype)), None)
        if dtype is None:
            return kernel(*args)
        results = kernel(*(convert(a, np.float32) if hasattr(a, "dtype") and is_half(a.dtype) else a for a in args))
        if not isinstance(results, tuple):
            return convert(results, dtype) if activations else results
        return tuple(convert(r, dtype) if i in activations else r for i, r in enumerate(results))

    return run
