"""The launches on a GPU, without one: a module in CuPy's place writes down what is asked of it, in order."""

import contextlib
import sys
import types

import numpy as np
import pytest

from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda import gpu, launch, sources, variants


class Array:
    """What the launcher looks at of a CuPy array."""

    def __init__(self, shape, dtype="float32"):
        self.shape, self.dtype, self.size = shape, np.dtype(dtype), int(np.prod(shape))
        self.flags = types.SimpleNamespace(c_contiguous=True)
        self.device = types.SimpleNamespace(id=0)


Array.__module__ = "cupy"


class FakeCuPy(types.ModuleType):
    """CuPy's names, and ``log``: what was called, with the stream that was current."""

    def __init__(self):
        super().__init__("cupy")
        self.log, self.streams, self.allocators = [], ["default"], [None]
        self.capability, self.fails, self.capturing = "90", None, False
        fake = self

        class Function:
            max_dynamic_shared_size_bytes, shared_size_bytes = 48 << 10, 1024

            def __init__(self, name):
                self.name = name

            def __call__(self, grid, block, args, *, shared_mem=0):
                fake.log.append(("run", self.name, grid, block, args, shared_mem, fake.streams[-1]))

        class RawModule:
            def __init__(self, *, code, options, backend):
                fake.log.append(("compile", options, backend))
                assert code == sources.source("elementwise")

            def get_function(self, name):
                fake.log.append(("get", name))
                return Function(name)

        class Stream:
            def __init__(self, non_blocking=False, name="own"):
                self.name, self.non_blocking = name, non_blocking

            def __enter__(self):
                fake.streams.append(self.name)

            def __exit__(self, *_):
                fake.streams.pop()

            def record(self):
                fake.log.append(("record", self.name))
                return f"event of {self.name}"

            def wait_event(self, event):
                fake.log.append(("wait", self.name, event))

            def is_capturing(self):
                return fake.capturing

            def begin_capture(self):
                assert self.non_blocking and fake.streams[-1] == self.name
                fake.capturing = True
                fake.log.append(("begin",))

            def end_capture(self):
                fake.capturing = False
                fake.log.append(("end",))
                if fake.fails:
                    raise fake.fails
                return types.SimpleNamespace(launch=lambda: fake.log.append(("replay", fake.streams[-1])))

        class MemoryPool:
            def __init__(self, allocator):
                self.malloc = allocator

        @contextlib.contextmanager
        def using_allocator(allocator):
            fake.allocators.append(allocator)
            try:
                yield
            finally:
                fake.allocators.pop()

        class Device:
            def __init__(self, number=0):
                self.id, self.compute_capability = number, fake.capability

        self.ndarray, self.RawModule, self.asarray = Array, RawModule, lambda a: ("on the device", a)
        self.cuda = types.ModuleType("cupy.cuda")
        self.cuda.__dict__.update(
            Stream=Stream,
            MemoryPool=MemoryPool,
            using_allocator=using_allocator,
            Device=Device,
            Memory=lambda size: types.SimpleNamespace(size=size),
            MemoryPointer=lambda memory, offset: memory,
            get_current_stream=lambda: Stream(name=fake.streams[-1]),
            runtime=types.SimpleNamespace(
                cudaDevAttrMaxSharedMemoryPerBlockOptin=97, deviceGetAttribute=lambda attribute, device: 227 << 10
            ),
        )


@pytest.fixture
def cupy(monkeypatch):
    fake = FakeCuPy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setitem(sys.modules, "cupy.cuda", fake.cuda)
    caches = (gpu._module, gpu._function, gpu._shared_limit)
    for cache in caches:
        cache.cache_clear()
    yield fake
    for cache in caches:
        cache.cache_clear()


def relu(x, y, **options):
    launch.kernel("elementwise", "relu", REAL="float")(3, 256, x, y, 600, 150, **options)


def runs(cupy):
    return [entry for entry in cupy.log if entry[0] == "run"]


def test_a_kernel_gets_its_arguments_in_order_as_the_exact_types_of_its_signature(cupy):
    x, y = Array((600,)), Array((600,))
    relu(x, y)
    ((_, name, grid, block, args, shared, stream),) = runs(cupy)
    assert (name, grid, block, shared, stream) == ("relu", (3, 1, 1), (256, 1, 1), 0, "default")
    assert args[0] is x and args[1] is y and args[2:] == (600, 150)
    assert [type(a) for a in args[2:]] == [np.int32, np.int32]


def test_none_is_passed_as_a_null_pointer_of_eight_bytes(cupy):
    kernel = launch.kernel("elementwise", "relu", REAL="float")
    gpu.launch(kernel, (1, 1, 1), (32, 1, 1), 0, [None, Array((1,)), np.int32(1), np.int32(0)])
    null = runs(cupy)[0][4][0]
    assert null == 0 and null.nbytes == 8


def test_a_source_is_compiled_once_for_all_its_kernels_and_launches(cupy):
    x, y = Array((600,)), Array((600,))
    relu(x, y)
    relu(x, y)
    launch.kernel("elementwise", "relu6", REAL="float")(1, 256, x, y, 600, 150)
    assert [e for e in cupy.log if e[0] == "compile"] == [("compile", ("--std=c++17", "-DREAL=float"), "nvrtc")]
    assert [e[1] for e in cupy.log if e[0] == "get"] == ["relu", "relu6"]
    assert len(runs(cupy)) == 3


def test_more_shared_memory_than_48_kb_is_asked_for_first(cupy):
    x, y = Array((600,)), Array((600,))
    relu(x, y, shared=48 << 10)
    function = gpu._function(launch.kernel("elementwise", "relu", REAL="float"), 0)
    assert "max_dynamic_shared_size_bytes" not in vars(function)
    relu(x, y, shared=100_000)
    assert function.max_dynamic_shared_size_bytes == 100_000
    assert [run[5] for run in runs(cupy)] == [48 << 10, 100_000]


def test_more_shared_memory_than_the_card_has_is_unsupported(cupy):
    with pytest.raises(Unsupported, match="relu needs 232448 bytes of shared memory, 231424 are left"):
        relu(Array((600,)), Array((600,)), shared=227 << 10)  # with 1 KB of static shared memory
    assert not runs(cupy)


def test_a_card_that_is_too_old_for_a_variant_is_unsupported(cupy, monkeypatch):
    cupy.capability = "75"
    relu(Array((600,)), Array((600,)))
    gpu._module.cache_clear()
    gpu._function.cache_clear()
    monkeypatch.setattr(variants, "check", lambda file, macros: variants.Variant(macros, 80))
    with pytest.raises(Unsupported, match=r"compute capability 7\.5: it needs 8\.0"):
        relu(Array((600,)), Array((600,)))
    assert len(runs(cupy)) == 1


def test_a_variant_that_is_not_registered_is_not_compiled(cupy):
    kernel = launch.Kernel.__new__(launch.Kernel)  # past whatever the launcher itself refuses
    kernel.file, kernel.name, kernel.macros = "elementwise", "relu", (("REAL", "int"),)
    with pytest.raises(LookupError, match="REAL=int"):
        gpu.launch(kernel, (1, 1, 1), (32, 1, 1), 0, [])
    assert not cupy.log


def test_a_capture_runs_on_a_stream_and_in_memory_of_its_own_and_is_replayed_on_the_current_stream(cupy):
    x, y, graph = Array((600,)), Array((600,)), gpu.Graph()
    with graph.capture():
        assert cupy.allocators[-1] == graph._allocate
        relu(x, y)
    assert cupy.streams == ["default"] and cupy.allocators == [None]
    graph.replay()
    graph.replay()
    order = [entry[0] for entry in cupy.log if entry[0] not in ("compile", "get")]
    assert order == ["begin", "run", "end", "replay", "replay"]
    assert runs(cupy)[0][-1] == "own" and cupy.log[-1] == ("replay", "default")


def test_a_warm_up_waits_for_the_current_stream_which_then_waits_for_it(cupy):
    graph = gpu.Graph()
    with graph.memory():
        assert cupy.allocators[-1] == graph._allocate
        relu(Array((600,)), Array((600,)))
    order = [entry for entry in cupy.log if entry[0] in ("record", "wait", "run")]
    assert order[:2] == [("record", "default"), ("wait", "own", "event of default")]
    assert order[2][0] == "run" and order[2][-1] == "own"
    assert order[3:] == [("record", "own"), ("wait", "default", "event of own")]


def test_memory_that_was_handed_out_for_a_graph_lives_as_long_as_the_graph(cupy):
    graph = gpu.Graph()
    with graph.capture():
        given = cupy.allocators[-1](512)
    assert given.size == 512 and graph._kept == [given]


def test_an_error_inside_ends_the_capture_and_is_the_one_that_is_raised(cupy):
    graph = gpu.Graph()
    with graph.capture():
        pass
    cupy.fails = RuntimeError("cudaErrorStreamCaptureInvalidated")
    with pytest.raises(ZeroDivisionError), graph.capture():
        raise ZeroDivisionError
    assert cupy.log[-1] == ("end",)
    assert not cupy.capturing and cupy.streams == ["default"] and cupy.allocators == [None]
    graph.replay()  # what it held before
    assert cupy.log[-1] == ("replay", "default")


def test_a_capture_that_the_driver_refuses_raises_and_leaves_nothing_to_replay(cupy):
    graph = gpu.Graph()
    cupy.fails = RuntimeError("cudaErrorStreamCaptureInvalidated")
    with pytest.raises(RuntimeError, match="Invalidated"), graph.capture():
        relu(Array((600,)), Array((600,)))
    assert cupy.streams == ["default"] and cupy.allocators == [None]
    with pytest.raises(RuntimeError, match="nothing has been captured"):
        graph.replay()


def test_an_upload_while_a_graph_is_captured_is_an_error(cupy):
    assert gpu.to_device(3) == ("on the device", 3)
    with gpu.Graph().capture(), pytest.raises(RuntimeError, match="upload it before"):
        gpu.to_device(3)
