"""Downloads CIFAR: resumable, from mirrors, checked by md5, with nothing but the standard library.

A download is written to FILE.part and renamed when its md5 is right. One that was interrupted continues from there, in the
same run or the next.
"""

import http.client
import importlib.util
import os
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tinyres.data.cifar import ARCHIVES, Archive, data_root, find_folder, md5_of, unpack
from tinyres.errors import DataError, UsageError
from tinyres.files import open_file

MIRROR_VARIABLE = "TINYRES_CIFAR_MIRROR"
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 16


def get(name: str, root: str | Path | None = None, progress: bool = True) -> Path:
    """Download and unpack "cifar10" or "cifar100" into ``root`` (see `data_root`); returns the unpacked folder.

    What is already there is not downloaded again. The base URLs in TINYRES_CIFAR_MIRROR (separated by commas; http,
    https or file) are tried first, then the home page of the data set. With ``progress``, stderr shows a bar on a
    terminal, or else one line per tenth. Raises `DataError`, and says why, if no URL gives the published archive;
    `UsageError` for a ``name`` that is neither.
    """
    if name not in ARCHIVES:
        raise UsageError(f"no data set {name!r} to download; there are {', '.join(ARCHIVES)}")
    return get_archive(ARCHIVES[name], data_root(root), progress)


def get_archive(spec: Archive, root: Path, progress: bool = True) -> Path:
    """As `get`, for the archive that ``spec`` describes."""
    folder = find_folder(spec, root)
    if folder is not None:
        return folder
    archive, part = root / spec.filename, root / (spec.filename + ".part")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {root}: {error}; name another with --data-dir") from error
    for path in (archive, part):
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is a folder, a pipe or a device, where the download belongs; remove it first")
    if not archive.is_file():
        with _reporter(spec, progress) as report:
            _download(spec, part, report)
        part.replace(archive)
    elif md5_of(archive) != spec.md5:
        raise DataError(f"{archive} is there, but is not the published archive (its md5 is another); remove it first")
    return unpack(spec, archive, root)


def mirrors(spec: Archive) -> list[str]:
    """The URLs to try, in order."""
    bases = [base.strip() for base in os.environ.get(MIRROR_VARIABLE, "").split(",")]
    return [base.rstrip("/") + "/" + spec.filename for base in (*bases, spec.home) if base]


def _download(spec: Archive, part: Path, report: Callable[[int], None]) -> None:
    """Fill ``part`` from the first URL that gives the right bytes."""
    failures = []
    for url in mirrors(spec):
        again = True
        while again:
            before = _size(part)
            try:
                if before != spec.size:
                    _fetch(url, part, spec.size, report)
                if (md5 := md5_of(part)) == spec.md5:
                    return
                part.unlink()
                reason = f"sent a file with md5 {md5}, expected {spec.md5}; it was removed"
                again = before > 0  # the wrong bytes may be those that were here before
            except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no URL at all
                reason = str(error) or type(error).__name__
                again = _size(part) > before  # an attempt that brought something is worth another
        failures.append(f"{url}: {reason}")
    kept = f"\n{_size(part):,} of {spec.size:,} bytes are kept, and the same command continues from there." * part.exists()
    raise DataError(
        f"could not download {spec.filename}:\n  " + "\n  ".join(failures) + kept + f"\nSet {MIRROR_VARIABLE} to the base "
        f"URL of a mirror, or put the file (md5 {spec.md5}) into {part.parent} by other means."
    )


def _fetch(url: str, part: Path, size: int, report: Callable[[int], None]) -> None:
    """Append to ``part`` what it lacks of ``size`` bytes. Raises OSError if the server sends anything else or too little."""
    if url.startswith("file:"):
        open_file(urllib.request.url2pathname(urllib.parse.urlsplit(url).path)).close()  # refuses a pipe
    have = _size(part)
    if have > size:
        have = 0
    request = urllib.request.Request(url, headers={"User-Agent": "tinyres"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status == 206:
            span = response.headers.get("Content-Range", "")
            if not span.startswith(f"bytes {have}-"):
                raise OSError(f"was asked for bytes from {have} on and answered {span!r}")
            total = span.rpartition("/")[2]
        else:  # a server that knows no ranges, or a file:// URL, sends all of it
            have, total = 0, response.headers.get("Content-Length", "")
        if total.isdigit() and int(total) != size:  # a page that asks for a password, say
            raise OSError(f"offers {int(total):,} bytes, where the published file has {size:,}")
        with part.open("ab" if have else "wb") as out:
            report(have)
            while block := response.read(BLOCK):
                have += len(block)
                if have > size:
                    raise OSError(f"sent more than the {size:,} bytes of the published file")
                out.write(block)
                report(have)
    if have != size:
        raise OSError(f"ended after {have:,} of {size:,} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def _reporter(spec: Archive, progress: bool) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of bytes so far: it shows a bar on a terminal, lines elsewhere."""
    if not progress:
        yield lambda done: None
        return
    if sys.stderr.isatty() and importlib.util.find_spec("rich"):
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(spec.filename, total=spec.size)
            yield lambda done: bar.update(task, completed=done)
        return
    yield _Lines(spec)


class _Lines:
    """Prints one line per tenth."""

    def __init__(self, spec: Archive) -> None:
        self.spec, self.tenth, self.start, self.first = spec, -1, time.monotonic(), 0

    def __call__(self, done: int) -> None:
        tenth = 10 * done // self.spec.size
        if self.tenth < 0:
            self.first = done
        if tenth <= self.tenth:
            return
        self.tenth = tenth
        speed = (done - self.first) / max(time.monotonic() - self.start, 1e-3)
        amount = f"{done / 1e6:.1f} of {self.spec.size / 1e6:.1f} MB"
        line = f"{self.spec.filename}: {10 * tenth} %, {amount}, {speed / 1e6:.2f} MB/s"
        print(line, file=sys.stderr, flush=True)
