"""CuPy's place taken by NumPy, to find every array that would pass between host and GPU without being asked to.

A `ndarray` of this module holds a NumPy array and does what that does, but refuses to meet one, as CuPy does; what would
make the host wait for the GPU is counted in `SYNCS`.
"""

import operator
import sys
import types

import numpy as np

SYNCS: list[str] = []
STATE = {"device": 0}


def _host(value, what):
    if isinstance(value, ndarray):
        return value.host
    if isinstance(value, np.ndarray):
        raise TypeError(f"{what}: Unsupported type {type(value)}")
    if isinstance(value, tuple | list):
        return type(value)(_host(v, what) for v in value)
    return value


def _gpu(value, device=None):
    """What NumPy returned; a reduction to a number stays an array, on the GPU."""
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(np.asarray(value), device)
    if isinstance(value, tuple | list):
        return type(value)(_gpu(v, device) for v in value)
    return value


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    def __init__(self, host, device=None):
        self.host = host
        self.device = types.SimpleNamespace(id=STATE["device"] if device is None else device)

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        given = {name: _host(value, ufunc.__name__) for name, value in kwargs.items()}
        result = getattr(ufunc, method)(*(_host(a, ufunc.__name__) for a in inputs), **given)
        return kwargs["out"][0] if kwargs.get("out") else _gpu(result, self.device.id)

    def __matmul__(self, other):
        return _gpu(self.host @ _host(other, "matmul"), self.device.id)

    def __getitem__(self, key):
        return _gpu(self.host[_host(key, "getitem")], self.device.id)

    def __setitem__(self, key, value):
        self.host[_host(key, "setitem")] = _host(value, "setitem")

    def __len__(self):
        return len(self.host)

    def __getattr__(self, name):  # shape, dtype, reshape, sum ...
        if name.startswith("__") or name in ("ctypes", "data", "base"):
            raise AttributeError(name)
        value = getattr(self.host, name)
        if not callable(value) or isinstance(value, np.dtype):
            return _gpu(value, self.device.id) if isinstance(value, np.ndarray) else value

        def method(*args, **kwargs):
            keywords = {key: _host(v, name) for key, v in kwargs.items()}
            return _gpu(value(*_host(args, name), **keywords), self.device.id)

        return method

    def _wait(self, how):
        SYNCS.append(how)
        return self.host

    def get(self):
        return self._wait("get").copy()

    def item(self):
        return self._wait("item").item()

    def tolist(self):
        return self._wait("tolist").tolist()

    def copy(self):
        return ndarray(self.host.copy())

    __bool__, __int__, __float__ = (lambda self, f=f: f(self._wait(f.__name__)) for f in (bool, int, float))
    __index__ = lambda self: operator.index(self._wait("index"))  # noqa: E731


ndarray.__module__ = "cupy"


class Device:
    def __init__(self, number=None):
        self.id = STATE["device"] if number is None else number

    def __enter__(self):
        self.before, STATE["device"] = STATE["device"], self.id

    def __exit__(self, *error):
        STATE["device"] = self.before


def _function(numpy_function, name):
    def function(*args, **kwargs):
        result = numpy_function(*_host(args, name), **{key: _host(v, name) for key, v in kwargs.items()})
        return kwargs["out"] if "out" in kwargs else _gpu(result)

    return function


class Module(types.ModuleType):
    def __init__(self, gpus=2):
        super().__init__("cupy")
        self.ndarray = ndarray
        runtime = types.SimpleNamespace(getDeviceCount=lambda: gpus)
        self.cuda = types.SimpleNamespace(is_available=lambda: gpus > 0, Device=Device, runtime=runtime)
        tricks = np.lib.stride_tricks
        strided = types.SimpleNamespace(as_strided=_function(tricks.as_strided, "as_strided"))
        self.lib = types.SimpleNamespace(stride_tricks=strided)

    @staticmethod
    def asarray(a, dtype=None):  # an upload that is asked for
        if isinstance(a, ndarray):
            return a if dtype is None or a.dtype == dtype else ndarray(a.host.astype(dtype), a.device.id)
        return ndarray(np.asarray(a, dtype))

    @staticmethod
    def array(a, dtype=None):
        return ndarray(np.array(a.host if isinstance(a, ndarray) else a, dtype))

    def __getattr__(self, name):
        value = getattr(np, name)
        return value if isinstance(value, type) or not callable(value) else _function(value, name)


def install(monkeypatch, gpus=2):
    """Puts the fake in CuPy's place for a test, and returns it."""
    module = Module(gpus)
    monkeypatch.setitem(sys.modules, "cupy", module)
    SYNCS.clear()
    return module
