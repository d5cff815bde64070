"""Other ``.cu`` sources than the package's own, for a test: kernels that are made to fail, and known-wrong versions."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinyres.kernels.cuda import emulator, launch

NEEDS_COMPILER = pytest.mark.skipif(emulator.compiler() is None, reason="the emulation needs a C++ compiler")


@contextlib.contextmanager
def sources(new: dict[str, str] | None = None, replace: tuple[str, str, str] | None = None) -> Iterator[None]:
    """Kernels come from the package's sources with ``new`` files beside them ({name: text}), and with a text of one file
    replaced: (name, old, new), where old must stand there exactly once."""
    original = launch.SOURCES
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        changed = Path(folder) / "src"
        shutil.copytree(original, changed)
        for name, text in (new or {}).items():
            (changed / name).write_text(text, "utf-8")
        if replace:
            name, old, text = replace
            whole = (changed / name).read_text("utf-8")
            assert whole.count(old) == 1, f"{name} has this {whole.count(old)} times: {old}"
            (changed / name).write_text(whole.replace(old, text), "utf-8")
        patch.setattr(launch, "SOURCES", changed)
        _forget()
        try:
            yield
        finally:
            _forget()


def _forget() -> None:
    launch.source.cache_clear()
    launch.kernel.cache_clear()
