"""The emulation beside the rest of a process: signals, threads, forks, the compiler and its cache, AddressSanitizer."""

import errno
import faulthandler
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from backends import BACKENDS
from cuda_sources import SOURCE, sources

from tinyres.kernels.cuda import cache, emulator
from tinyres.kernels.cuda.launch import kernel
from tinyres.kernels.cuda.sources import KernelFault

__test__ = "cuda-emulated" in BACKENDS  # else none of these tests is collected
rng = np.random.default_rng(4)


@pytest.fixture(autouse=True)
def own_source():
    with sources({"own.cu": SOURCE}):
        yield


def check_sums():
    x, y = rng.integers(-9, 9, 64).astype("f4"), np.empty((64, 2), "f4")
    kernel("own", "sums")(1, 64, x, y)
    np.testing.assert_array_equal(y, np.broadcast_to([x.sum(), 2 * x.sum()], (64, 2)))


# --- the process -----------------------------------------------------------------------------------------------------


def fault():
    with pytest.raises(KernelFault, match="touches"):
        kernel("own", "beyond")(1, 1, np.zeros(4, "f4"), np.zeros(4, "f4"), 4)


def test_faults_are_found_beside_pythons_fault_handler_which_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYRES_EMULATOR", "checked")
    was = faulthandler.is_enabled()
    with open(tmp_path / "crashes", "w+") as file:
        faulthandler.enable(file)
        try:
            fault()
        finally:
            faulthandler.disable()
            if was:
                faulthandler.enable()
        assert file.read() == ""


CRASH = """
import ctypes, faulthandler, sys, threading
import numpy as np
from tinyres.kernels.cuda import elementwise
faulthandler.enable()
x = np.ones(1 << 24, np.float32)  # so that nearly all of the time is spent in the kernel
elementwise.relu(x)
threading.Thread(target=lambda: [elementwise.relu(x) for _ in range(10000)], daemon=True).start()
import time; time.sleep(0.05)
ctypes.string_at(8)
"""


def run_python(code, **environment):
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path, **environment}, capture_output=True, text=True
    )


def test_a_crash_elsewhere_while_a_kernel_runs_is_that_threads_own():
    done = run_python(CRASH)
    assert done.returncode < 0 and "Segmentation fault" in done.stderr and "string_at" in done.stderr


def test_threads_find_faults_of_their_own(monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR", "checked")
    wrong = []

    def work():
        try:
            for _ in range(10):
                fault()
                check_sums()
        except BaseException as error:
            wrong.append(error)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def child(results):
    with sources({"own.cu": SOURCE}):
        y = np.zeros(3, "f4")
        kernel("own", "writes")(1, 4, y, y, 1)
        results.put(y.tolist())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_launches_although_its_parents_thread_held_the_lock(monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR", "checked")
    check_sums()
    context, held, go_on = multiprocessing.get_context("fork"), threading.Event(), threading.Event()

    def hold():
        with emulator._lock:
            held.set()
            go_on.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    results = context.Queue()
    process = context.Process(target=child, args=(results,))
    process.start()
    try:
        assert results.get(timeout=30) == [0, 1, 0]
    finally:
        go_on.set()
        holder.join()
        process.kill()
        process.join()


def test_a_forked_process_has_guarded_memory_of_its_own():
    mapping = emulator._Mapping(emulator.PAGE)
    mapping.inside[0] = 7
    child = os.fork()
    if not child:
        mapping.inside[0] = 9
        os._exit(0)
    os.waitpid(child, 0)
    assert mapping.inside[0] == 7


# --- the compiler ----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    """As if nothing had been compiled, in this process or before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache.folder.cache_clear()
    emulator._library.cache_clear()
    yield tmp_path / "tinyres" / "cuda-emulated"
    cache.folder.cache_clear()
    emulator._library.cache_clear()


def test_an_error_in_a_source_is_one_line_with_its_place(no_cache):
    text = '#include "common.cuh"\n\nextern "C" __global__ void bad(int* x) { *x = nothing; y = 1; }\n'
    with sources({"bad.cu": text}), pytest.raises(RuntimeError) as raised:
        kernel("bad", "bad")(1, 1, np.zeros(1, "i4"))
    assert "bad.cu:3:" in str(raised.value) and "nothing" in str(raised.value) and "\n" not in str(raised.value)


def test_a_kernel_with_the_name_of_a_c_function_is_an_error_if_declared_and_else_runs(no_cache):
    text = 'extern "C" __global__ void {}(int* x) {{ *x = 5; }}\n'
    with sources({"taken.cu": text.format("exp"), "hidden.cu": text.format("setgrent")}):
        with pytest.raises(RuntimeError, match="a kernel cannot have the name of a C function"):
            kernel("taken", "exp")(1, 1, np.zeros(1, "i4"))
        x = np.zeros(1, "i4")
        kernel("hidden", "setgrent")(1, 1, x)
        assert x[0] == 5


def test_what_is_compiled_stays_for_later_processes(no_cache, monkeypatch):
    check_sums()
    kept = list(no_cache.iterdir())
    assert len(kept) == 1 and kept[0].suffix == ".so"
    emulator._library.cache_clear()
    monkeypatch.setattr(emulator, "_compile", lambda command: "error: it compiles again")
    with sources({"own.cu": SOURCE}):
        check_sums()


@pytest.mark.parametrize("damage", ["empty", "half", "all but the end", "one bit", "folder", "broken link"])
def test_a_damaged_file_is_removed(damage, tmp_path):
    kept = cache.write(tmp_path / "file", bytes(range(256)))
    assert kept == tmp_path / "file" and cache.read(kept) == bytes(range(256))
    whole = kept.read_bytes()
    kept.unlink()
    if damage == "folder":
        (kept / "inside").mkdir(parents=True)
    elif damage == "broken link":
        kept.symlink_to("nowhere")
    else:
        data = {"empty": b"", "half": whole[:144], "all but the end": whole[:-1], "one bit": b"\x01" + whole[1:]}
        kept.write_bytes(data[damage])
    assert cache.read(kept) is None and not list(tmp_path.iterdir())


def test_a_library_that_was_cut_short_is_compiled_anew_and_whole_afterwards(no_cache):
    """The loader would die of it by SIGBUS."""
    code = "import numpy as np\nfrom tinyres.kernels.cuda import relu\nprint(relu(np.array([-1, 2], 'f4')).tolist())"
    with_cache = {"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]}
    assert run_python(code, **with_cache).stdout == "[0.0, 2.0]\n"
    (kept,) = no_cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:8192])
    done = run_python(code, **with_cache)
    assert done.stdout == "[0.0, 2.0]\n", (done.returncode, done.stderr)
    assert cache.read(kept)


def test_a_library_that_cannot_be_kept_is_compiled_for_this_process(no_cache, monkeypatch):
    write, full = cache._write, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def on_a_full_disk(path, content):
        if no_cache in path.parents:
            raise full
        return write(path, content)

    monkeypatch.setattr(cache, "_write", on_a_full_disk)
    with pytest.warns(UserWarning, match="cannot be kept.*No space left"):
        check_sums()
    assert not list(no_cache.iterdir())


def test_another_version_of_the_compiler_compiles_again(no_cache, monkeypatch):
    check_sums()
    emulator._library.cache_clear()
    monkeypatch.setattr(emulator, "_compiler_version", lambda cxx: "another")
    with sources({"own.cu": SOURCE}):
        check_sums()
    assert len(list(no_cache.iterdir())) == 2


def test_two_processes_compile_at_the_same_time(no_cache):
    code = "import numpy as np\nfrom tinyres.kernels.cuda import relu\nprint(relu(np.array([-1, 2], 'f4')).tolist())"
    with_cache = {"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]}
    results = []
    workers = [threading.Thread(target=lambda: results.append(run_python(code, **with_cache))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [r.stdout for r in results] == ["[0.0, 2.0]\n"] * 2, results
    assert [path.suffix for path in no_cache.iterdir()] == [".so"]


def test_without_a_writable_cache_it_works_for_this_process(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    done = run_python("from tinyres.kernels.cuda import relu; import numpy as np; print(relu(np.ones(2, 'f4')).tolist())")
    assert done.stdout == "[1.0, 1.0]\n", done.stderr


def test_a_compiler_that_is_missing_or_fails_is_one_clear_error(tmp_path):
    code = (
        "import tinyres as tr\ntry: tr.use_backend('cuda-emulated')\n"
        "except tr.kernels.dispatch.BackendError as error: print(error)\n"
    )
    code = code.replace("import tinyres as tr\n", "import tinyres as tr\nimport tinyres.kernels.dispatch\n")
    done = run_python(code, PATH=str(tmp_path), CXX="", XDG_CACHE_HOME=str(tmp_path))
    assert "backend 'cuda-emulated' cannot run here: it needs a C++ compiler" in done.stdout, done.stderr
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho 'cc1plus: fatal error: no such thing' >&2\nexit 1\n")
    broken.chmod(0o755)
    done = run_python(code, CXX=str(broken), XDG_CACHE_HOME=str(tmp_path))
    assert f"cannot run here: {broken} failed: cc1plus: fatal error: no such thing" in done.stdout, done.stderr


def test_an_older_compiler_does_without_poisoned_locals(no_cache, tmp_path, monkeypatch):
    older = tmp_path / "g++"
    real = shutil.which("g++") or emulator.compiler()
    older.write_text(
        f'#!/bin/sh\nfor a in "$@"; do [ "$a" = {emulator.POISON} ] && '
        f"{{ echo 'error: unrecognized option {emulator.POISON}' >&2; exit 1; }}; done\nexec {real} \"$@\"\n"
    )
    older.chmod(0o755)
    monkeypatch.setenv("CXX", str(older))
    check_sums()


def test_fibers_that_the_c_library_makes_do_as_well_where_there_are_no_others():
    macros = {"TINYRES_UCONTEXT": 1}
    x, y = rng.permutation(96).astype("i4"), np.empty(96, "i4")
    kernel("own", "turn", **macros)(1, 96, x, y, 7)
    np.testing.assert_array_equal(y, np.roll(x, -7))
    with pytest.raises(KernelFault, match="not all lanes"):
        kernel("own", "half_a_warp_waits", **macros)(1, 32, np.zeros(32, "f4"))


# --- with AddressSanitizer -------------------------------------------------------------------------------------------


def address_sanitizer():
    """Its library, or "" if the compiler has none."""
    cxx = emulator.compiler()
    path = subprocess.run([cxx, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip() if cxx else ""
    return path if os.path.isabs(path) and os.path.exists(path) else ""


ASAN = f"""
import sys
import numpy as np
sys.path.insert(0, {str(Path(__file__).resolve().parent)!r})
from cuda_sources import sources
from tinyres.kernels.cuda.launch import kernel
TEXT = '''
extern "C" __global__ void shared(float* y, int at) {{
    __shared__ float first[8], second[8];
    float* p = first;
    p[at] = 1;
    second[0] = 2;
    __syncthreads();
    y[threadIdx.x] = p[at];
}}
'''
with sources({{"asan.cu": TEXT}}):
    for at in map(int, sys.argv[1:] or [7, 8]):
        kernel("asan", "shared")(2, 64, np.zeros(64, "f4"), at)
        print("ran", at, flush=True)
"""


def test_address_sanitizer_finds_an_access_between_two_shared_arrays():
    library = address_sanitizer()
    if not library:
        pytest.skip("the compiler has no AddressSanitizer (libasan)")
    done = run_python(
        ASAN,
        LD_PRELOAD=library,
        ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=0",
        TINYRES_EMULATOR_OPTIONS="-fsanitize=address -fsanitize-sections=cuda_shared",
    )
    assert done.stdout == "ran 7\n" and "AddressSanitizer: global-buffer-overflow" in done.stderr, done.stderr[-2000:]
