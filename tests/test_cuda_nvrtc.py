"""NVIDIA's compiler on every kernel, with every set of macros, for every generation of cards: no GPU is needed for that."""

import re

import pytest

from tinyres.kernels.arrays import ceil_div
from tinyres.kernels.cuda import cache, nvrtc, variants
from tinyres.kernels.cuda.common import BLOCK
from tinyres.kernels.cuda.sources import SOURCES, kernel_names, source

needs_nvrtc = pytest.mark.skipif(bool(nvrtc.missing()), reason=f"no compiler for GPUs: {nvrtc.missing()}")
FILES = sorted(path.stem for path in SOURCES.glob("*.cu"))
REGISTERS = 65536  # of a multiprocessor, since sm_35


@pytest.fixture(
    params=[
        *(pytest.param((file, True), id=f"{file}-one") for file in FILES),
        *(pytest.param((file, False), id=file, marks=pytest.mark.kernels) for file in FILES),
    ]
)
def compiled(request):
    """A file and its builds, one of them or each: (macros, architecture, what came of it)."""
    file, one = request.param
    if one:
        _, macros, architecture = next(build for build in nvrtc.builds(file) if build[2] == 90)
        return file, [(macros, architecture, nvrtc.compile_source(source(file), macros, architecture))]
    return file, [(macros, architecture, made) for (_, macros, architecture), made in nvrtc.compile_all(file).items()]


def threads(text, name, macros):
    """How many threads a block of a kernel may have, as its launch bounds say; without them, as many as a launch has that
    says nothing.
    """
    bounds = re.search(rf"__launch_bounds__\(([^,)]+)[^)]*\)\s*{name}\s*\(", text)
    if not bounds:
        return BLOCK
    known = dict(re.findall(r"#define (\w+) (\S+)", text)) | dict(macros)
    for several in re.findall(r"constexpr int ([^;{}]+);", re.sub("//.*", "", text)):
        known |= dict(re.findall(r"(\w+) = ([^,]+)", several))

    def value(expression):
        return eval(re.sub(r"[A-Za-z_]\w*", lambda word: f"({value(known[word[0]])})", expression).replace("/", "//"))

    return value(bounds[1])


def test_every_source_file_is_registered():
    assert sorted(variants.VARIANTS) == FILES


def test_the_threads_of_a_block_are_read_from_the_launch_bounds():
    text = """constexpr int A = N / 4, B = 2 * A;
    extern "C" __global__ void __launch_bounds__(A * B, 2) f(int* x) {}
    extern "C" __global__ void g(int* x) {}"""
    assert threads(text, "f", (("N", "64"),)) == 512 and threads(text, "g", ()) == BLOCK


def test_macros_that_are_not_registered_are_refused():
    assert variants.check("elementwise", (("REAL", "half"),)).capability == 75
    with pytest.raises(LookupError, match=r"elementwise\.cu with REAL=int is not in"):
        variants.check("elementwise", (("REAL", "int"),))
    with pytest.raises(LookupError, match="with no macros"):
        variants.check("elementwise", ())


def test_a_file_that_uses_index_is_registered_for_large_arrays_too():
    assert variants.check("elementwise", (("INDEX", "long long"), ("REAL", "half")))
    with pytest.raises(LookupError):
        variants.check("step", (("INDEX", "long long"),))


@needs_nvrtc
def test_every_variant_compiles_without_a_warning(compiled):
    file, builds = compiled
    assert builds
    for macros, architecture, made in builds:
        if isinstance(made, nvrtc.CompileError):
            raise made
        assert sorted(made.kernels) == sorted(kernel_names(source(file)))
        assert made.cubin[:4] == b"\x7fELF"
        assert not made.warnings, (macros, architecture)


@needs_nvrtc
def test_no_kernel_spills_registers_or_uses_local_memory(compiled):
    file, builds = compiled
    for macros, architecture, made in builds:
        allowed = variants.check(file, macros).stack
        for name, needs in getattr(made, "kernels", {}).items():
            assert needs.spills == 0, f"{name} {macros} sm_{architecture}"
            assert needs.stack == 0 or allowed, f"{name} {macros} sm_{architecture}: {needs.stack} bytes of local memory"


@needs_nvrtc
def test_a_block_of_every_kernel_fits_into_the_registers_and_the_static_shared_memory(compiled):
    file, builds = compiled
    text = source(file)
    for macros, architecture, made in builds:
        for name, needs in getattr(made, "kernels", {}).items():
            of_a_warp = ceil_div(needs.registers * 32, 256) * 256  # they are given out to warps, 256 at a time
            taken = of_a_warp * ceil_div(threads(text, name, macros), 32)
            assert taken <= REGISTERS, f"{name} {macros} sm_{architecture}: {needs.registers} registers per thread"
            assert needs.shared <= 48 << 10


@needs_nvrtc
@pytest.mark.kernels
def test_the_table_of_resources_is_what_the_compiler_says():
    kept = nvrtc.TABLE.read_text("utf-8")
    made_by = re.match(r"# NVRTC ([\d.]+):", kept)[1]
    if made_by != nvrtc.version():
        pytest.skip(f"resources.txt was made by NVRTC {made_by}, this is {nvrtc.version()}")
    assert nvrtc.table(nvrtc.compile_all()) == kept, "make it anew: python -m tinyres.kernels.cuda.nvrtc --write"


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    """As if nothing had been compiled before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache.folder.cache_clear()
    yield
    cache.folder.cache_clear()


@needs_nvrtc
def test_what_is_compiled_is_kept_by_source_macros_architecture_and_compiler(no_cache, monkeypatch):
    text = 'extern "C" __global__ void f(REAL* x) { *x += 1; }'
    arguments = [
        (text, (("REAL", "float"),), 90),
        (text, (("REAL", "double"),), 90),
        (text, (("REAL", "float"),), 80),
        (text.replace("1", "2"), (("REAL", "float"),), 90),
    ]
    first = [nvrtc.compile_source(*one) for one in arguments]
    assert len({made.cubin for made in first}) == len(first) and all(made.kernels["f"].registers for made in first)
    monkeypatch.setattr(nvrtc, "_compile", lambda *_: pytest.fail("it compiles again"))
    assert [nvrtc.compile_source(*one) for one in arguments] == first
    monkeypatch.setattr(nvrtc, "_build", lambda: "another version")
    with pytest.raises(pytest.fail.Exception, match="again"):
        nvrtc.compile_source(*arguments[0])


@needs_nvrtc
def test_builds_are_compiled_once_and_each_file_is_told_when_it_is_done(no_cache):
    told = []
    first = nvrtc.compile_all("step", "augment", tell=told.append)
    assert [line.partition(" builds")[0] for line in told] == [
        f"{n}.cu: {len(nvrtc.builds(n))}" for n in ("step", "augment")
    ]
    assert list(first) == nvrtc.builds("step", "augment")
    assert nvrtc.compile_all("step", "augment", tell=told.append) == first and len(told) == 2


@needs_nvrtc
def test_an_error_in_a_source_is_reported_with_the_compilers_log():
    with pytest.raises(nvrtc.CompileError, match=r"(?s)sm_90.*identifier \"y\" is undefined"):
        nvrtc.compile_source('extern "C" __global__ void f(int* x) { *x = y; }', (), 90)


@needs_nvrtc
def test_spills_local_and_shared_memory_are_seen():
    text = """extern "C" __global__ void __launch_bounds__(1024, 2) f(float* x, int n) {
        __shared__ float s[64];
        float a[100];
        for (int i = 0; i < 100; i++) a[i] = x[i * 1024 + threadIdx.x];
        s[threadIdx.x % 64] = a[n];
        __syncthreads();
        x[threadIdx.x] = s[n];
    }
    extern "C" __global__ void __launch_bounds__(1024, 2) g(float* x) {
        float a[100];
        #pragma unroll
        for (int i = 0; i < 100; i++) a[i] = x[i * 1024 + threadIdx.x];
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 100; i++) x[i * 1024 + threadIdx.x] = a[99 - i];
    }"""
    f, g = (nvrtc.compile_source(text, (), 90).kernels[name] for name in "fg")
    assert f.shared == 256 and f.stack == 400
    assert g.registers == 32 and g.spills > 0


def test_without_nvrtc_the_reason_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(nvrtc, "_candidates", lambda: ["/nowhere/libnvrtc.so"])
    nvrtc._library.cache_clear()
    try:
        assert nvrtc.missing() == "NVRTC was not found: pip install nvidia-cuda-nvrtc-cu12"
    finally:
        nvrtc._library.cache_clear()
