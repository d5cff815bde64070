"""How the kernels are compiled, and kept for later processes in Numba's cache on disk.

A file of the cache may be damaged: half written on a full disk, restored wrongly, of another function. Numba would fail at
it in every later process, or run what it finds. Here each file begins with a digest of its content, and code is kept with
the key that it was compiled for. What does not fit is removed and compiled anew; what cannot be kept is said once.
"""

import atexit
import contextlib
import hashlib
import os
import pickle
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import numba
from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile, NullCache
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock

from tinyres.kernels.arrays import compile_listeners

config: Any = numba.config
DIGEST = hashlib.sha256().digest_size
ADVICE = "so every process compiles them anew; set NUMBA_CACHE_DIR to a folder to keep them in"
_said: list[str] = []


class Damaged(Exception):
    """A file of the cache is not what was written."""


class _Files(IndexDataCacheFile):
    """A function's files: an index that leads from keys to files of code, and these."""

    def save(self, key: Any, data: Any) -> None:
        super().save(key, (key, data))

    def load(self, key: Any) -> Any:
        entry = super().load(key)
        if entry is not None and entry[0] != key:
            raise Damaged("of another key")
        return None if entry is None else entry[1]

    def remove(self) -> None:
        """All that can be removed; what is left is written over."""
        for name in [self._index_name, *self._names()]:
            path = os.path.join(self._cache_path, name)
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)

    def _names(self) -> list[str]:
        with contextlib.suppress(OSError):
            before, after = self._data_name_pattern.split("{number:d}")
            return [n for n in os.listdir(self._cache_path) if n.startswith(before) and n.endswith(after)]
        return []

    def _load_index(self) -> dict[Any, str]:
        with contextlib.suppress(FileNotFoundError):
            version, stamp, overloads = self._read(self._index_path)
            if (version, stamp) == (self._version, self._source_stamp):
                return overloads
        return {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        self._write(self._index_path, (self._version, self._source_stamp, overloads))

    def _load_data(self, name: str) -> Any:
        return self._read(self._data_path(name))

    def _save_data(self, name: str, data: Any) -> None:
        self._write(self._data_path(name), data)

    def _read(self, path: str) -> Any:
        with open(path, "rb") as file:
            digest, data = file.read(DIGEST), file.read()
        if hashlib.sha256(data).digest() != digest:
            raise Damaged(path)
        return pickle.loads(data)

    def _write(self, path: str, what: Any) -> None:
        data = self._dump(what)
        with self._open_for_write(path) as file:  # whole or not at all
            file.write(hashlib.sha256(data).digest() + data)


class Cache(FunctionCache):
    """Numba's cache of one function. ``more`` is part of the key: Numba itself does not notice that code from another file
    has changed.
    """

    def __init__(self, function: Callable[..., Any], more: str) -> None:
        super().__init__(function)
        self.more, own = more, self._cache_file
        self._cache_file = _Files(own._cache_path, self._impl.filename_base, own._source_stamp)

    def _index_key(self, signature: Any, codegen: Any) -> Any:
        own = self._impl.filename_base, self._cache_file._source_stamp  # (Numba leaves out the constants of a function)
        return (*super()._index_key(signature, codegen), *own, self.more)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # whatever comes of a damaged file
            self._cache_file.remove()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            try:
                super().save_overload(sig, data)
            except Exception:
                self._cache_file.remove()
                super().save_overload(sig, data)
        except Exception as error:
            _say(f"the kernels that Numba compiles cannot be kept in {self.cache_path} ({error}), {ADVICE}")


def _say(text: str) -> None:
    if not _said:
        _said.append(text)
        warnings.warn(text, stacklevel=2)


def find_a_cache() -> None:
    """Where Numba finds no place to write what it compiles (a package and a home folder that are read-only), it gets a
    folder of this process alone, and that is said.
    """
    try:
        Cache(find_a_cache, "")
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        with contextlib.suppress(OSError):  # where nothing at all can be written, nothing is kept
            folder = tempfile.TemporaryDirectory(prefix="tinyres-numba-")
            atexit.register(folder.cleanup)
            config.CACHE_DIR = folder.name
        _say(f"there is no place that may be written to for the kernels that Numba compiles, {ADVICE}")


def _cache(function: Callable[..., Any], more: str = "") -> Any:
    try:
        return Cache(function, more)
    except (RuntimeError, OSError) as error:
        _say(f"the kernels that Numba compiles cannot be kept ({error}), {ADVICE}")
        return NullCache()


def compiled(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: the function, compiled for a signature. It runs without the interpreter's lock."""

    def decorate(function: Callable[..., Any]) -> Any:
        if config.DISABLE_JIT:
            return function
        dispatcher: Any = njit(nogil=True)(function)
        dispatcher._cache = _cache(function)
        dispatcher.compile(signature)
        dispatcher.disable_compile()
        return dispatcher

    return decorate


def compiled_job(function: Callable[..., None], signature: Any, more: str = "", **options: Any) -> Any:
    """A function compiled to machine code, from the cache on disk if it is there; C code calls its ``address``."""
    with global_compiler_lock:
        job = CFunc(function, (signature.args, signature.return_type), locals={}, options={"nopython": True, **options})
        job._cache = _cache(function, more)
        began = time.perf_counter()
        job.compile()
        for listener in compile_listeners:
            listener(time.perf_counter() - began)
        return job


find_a_cache()
