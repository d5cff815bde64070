"""Where arrays live: in host memory ("cpu", NumPy) or on a GPU ("cuda:0", CuPy). Which kernels run is another question:
see `tinyres.use_backend`.
"""

from typing import Any

import numpy as np

from tinyres.errors import DeviceError, UsageError
from tinyres.kernels.arrays import array_module


def device_of(array: Any) -> str:
    """Where an array lives: "cpu", or "cuda:" and the number of the GPU."""
    return f"cuda:{array.device.id}" if array_module(array) is not np else "cpu"


def check_same_device(op: str, **arrays: Any) -> None:
    """Raises `DeviceError` unless all arrays (None is ignored) live on one device."""
    devices = {name: device_of(a) for name, a in arrays.items() if a is not None}
    if len(set(devices.values())) > 1:
        where = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise DeviceError(f"{op}: the arrays must live on one device. Got {where}. Move them with .to(device).")


def move(array: Any, device: str) -> Any:
    """``array`` on ``device``: the array itself if it is there already, else a copy."""
    own = device_of(array)
    if device == own or (device == "cuda" and own != "cpu"):
        return array
    if device == "cpu":
        return array.get()
    cupy, number = _gpu(device)
    with cupy.cuda.Device(number):
        return cupy.asarray(array) if own == "cpu" else array.copy()


def place(target: Any) -> tuple[str | None, Any]:
    """What ``.to(target)`` means, as (device, None) or (None, dtype): a device's name, or a dtype or its name."""
    if isinstance(target, str) and (target == "cpu" or target.partition(":")[0] == "cuda"):
        if target not in ("cpu", "cuda"):
            _gpu(target)
        return target, None
    return None, to_dtype(target)


def to_dtype(dtype: Any) -> np.dtype:
    """``dtype``, or its name, as a NumPy dtype. For "bfloat16" the package ml_dtypes must be installed."""
    try:
        if str(dtype) == "bfloat16":
            import ml_dtypes

            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(dtype)
    except ImportError:
        raise UsageError("bfloat16 needs the package ml_dtypes: pip install ml_dtypes") from None
    except TypeError:
        raise UsageError(f'{dtype!r} is no device ("cpu", "cuda", "cuda:1") and no dtype ("float16", np.float32)') from None


def _gpu(device: str) -> tuple[Any, int]:
    """CuPy, and the number of the GPU that ``device`` names: the one in use for "cuda" alone."""
    try:
        import cupy
    except ImportError:
        raise DeviceError(
            f"{device}: GPU arrays need CuPy: pip install -e '.[cuda12]' or '.[cuda13]' in a checkout of tinyres"
        ) from None
    if not cupy.cuda.is_available():
        raise DeviceError(f"{device}: no CUDA device, or no driver for it, was found")
    text, count = device.partition(":")[2], cupy.cuda.runtime.getDeviceCount()
    if device == "cuda":
        return cupy, cupy.cuda.Device().id
    if not (text.isascii() and text.isdigit() and int(text) < count):
        raise DeviceError(f"{device}: there is no such GPU; there is " + ", ".join(f"cuda:{i}" for i in range(count)))
    return cupy, int(text)
