"""Whatever happens to the cache of compiled kernels: damage is noticed, the entry is removed and compiled anew, and where
nothing can be kept the kernels run all the same.
"""

import ctypes
import errno
import hashlib
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("numba", reason="Numba is not installed")
from numba import types

import tinyres as tr
from tinyres.kernels.cpu import jit

SIGNATURE = types.int64(types.int64)


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """Two functions of a file, whose cache is a folder of this test."""
    monkeypatch.setattr(jit.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(jit, "_said", [])
    source = tmp_path / "two.py"
    source.write_text("def one(a):\n    return a + 1\n\n\ndef two(a):\n    return a + 2\n", "utf-8")
    spec = importlib.util.spec_from_file_location("two", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "two", module)
    return module.one, module.two


def run(function):
    """What the compiled function makes of 40, and whether it was found in the cache."""
    job = jit.compiled_job(function, SIGNATURE)
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(job.address)(40), job._cache_hits


def files(tmp_path, function):
    """Index and code."""
    (index,) = (tmp_path / "cache").rglob(f"two.{function.__name__}-*.nbi")
    (code,) = (tmp_path / "cache").rglob(f"two.{function.__name__}-*.nbc")
    return index, code


def signed(data):
    return hashlib.sha256(data).digest() + data


def flip(place):
    def damage(path, _):
        data = bytearray(path.read_bytes())
        data[int(place * (len(data) - 1))] ^= 0x10
        path.write_bytes(data)

    return damage


def cut(share):
    return lambda path, _: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def write(data):
    return lambda path, _: path.write_bytes(data)


def folder(path, _):
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("x")


def unreadable(path, _):
    path.unlink()
    path.symlink_to(path.name)  # (what may not be read can be read by root: this cannot by anybody)


def other(path, other):
    shutil.copy(other, path)


CALL = b"cnowhere\nnothing\n(tR."  # a pickle that calls what no module has
DAMAGE = {
    "empty": write(b""),
    "cut at the digest": cut(0.02),
    "cut in half": cut(0.5),
    "cut at the end": cut(0.99),
    "one bit at the beginning": flip(0.0),
    "one bit in the middle": flip(0.5),
    "one bit at the end": flip(1.0),
    "zeros": lambda path, _: path.write_bytes(bytes(path.stat().st_size)),
    "text": write(b"<html>not found</html>\n" * 9),
    "a pickle without a digest": write(pickle.dumps("0.60")),
    "a pickle of something else": write(signed(pickle.dumps(7))),
    "a pickle of a wrong shape": write(signed(pickle.dumps((1, 2, 3)))),
    "a pickle of a module that is not there": write(signed(CALL)),
    "more than was written": lambda path, _: path.write_bytes(path.read_bytes() + b"more"),
    "of another function": other,
    "a folder": folder,
    "unreadable": unreadable,
    "a broken link": lambda path, _: (path.unlink(), path.symlink_to("nowhere")),
    "gone": lambda path, _: path.unlink(),
}


@pytest.mark.parametrize("which", [0, 1], ids=["index", "code"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_compiled_anew_and_whole_afterwards(damage, which, functions, tmp_path):
    one, two = functions
    assert (run(one), run(two)) == ((41, 0), (42, 0))
    assert (run(one), run(two)) == ((41, 1), (42, 1))
    DAMAGE[damage](files(tmp_path, one)[which], files(tmp_path, two)[which])
    assert run(one) == (41, 0)
    assert (run(one), run(two)) == ((41, 1), (42, 1))


def test_both_files_of_another_function_are_not_taken_for_its_own(functions, tmp_path):
    one, two = functions
    run(one), run(two)
    for own, others in zip(files(tmp_path, one), files(tmp_path, two), strict=True):
        shutil.copy(others, own)
    assert run(one) == (41, 0)
    assert run(one) == (41, 1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_what_cannot_be_kept_runs_and_that_is_said_once(number, functions, monkeypatch):
    def full(self, path):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(jit._Files, "_open_for_write", full)
    with pytest.warns(UserWarning, match=rf"cannot be kept in .*cache.*{os.strerror(number)}.*set NUMBA_CACHE_DIR") as said:
        assert [run(f) for f in functions] == [(41, 0), (42, 0)]
    assert len(said) == 1


def test_a_disk_that_is_full_in_the_midst_of_a_file_leaves_nothing_of_it(functions, monkeypatch, tmp_path):
    def full(self, path):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run(functions[0])
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="cannot be kept"):
        patch.setattr(jit._Files, "_write", lambda self, path, what: full(self, path))
        run(functions[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(functions[1]) == (42, 0)
        assert [run(f) for f in functions] == [(41, 1), (42, 1)]


def test_where_no_folder_can_be_made_the_kernels_run(functions, monkeypatch, tmp_path):
    def nowhere(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(jit.config, "CACHE_DIR", "")
    monkeypatch.setattr("tempfile.TemporaryFile", nowhere)
    monkeypatch.setattr("tempfile.TemporaryDirectory", nowhere)
    with pytest.warns(UserWarning, match="no place that may be written to") as said:
        jit.find_a_cache()
        assert [run(f) for f in functions] == [(41, 0), (42, 0)]
    assert len(said) == 1


def test_a_process_with_a_damaged_cache_computes_with_numba(tmp_path):
    script = (
        "import numpy as np, tinyres as tr, tinyres.functional as F\nprint(tr.get_backend(), F.relu(np.ones(3)).data.sum())"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(tr.__file__).parent.parent)}

    def compute():
        return subprocess.run([sys.executable, "-W", "error", "-c", script], env=environment, capture_output=True, text=True)

    assert compute().stdout == "numba 3.0\n"
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) > 10
    for i, path in enumerate(sorted(kept)):
        DAMAGE[["cut in half", "one bit in the middle", "empty", "text"][i % 4]](path, None)
    done = compute()
    assert (done.stdout, done.stderr) == ("numba 3.0\n", "")
