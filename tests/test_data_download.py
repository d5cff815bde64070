"""A download goes on where it broke off, tries each mirror, and accepts nothing but the published bytes.

The server is local, and has the faults that servers have.
"""

import hashlib
import io
import re
import socket
import sys
import tarfile
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from tinyres.data import download, get
from tinyres.data.cifar import ARCHIVES
from tinyres.data.download import get_archive, mirrors
from tinyres.errors import DataError, UsageError


def archive_bytes():
    """A tar.gz with the files of CIFAR-10, 300 kB of noise."""
    out = io.BytesIO()
    spec = ARCHIVES["cifar10"]
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for i, file in enumerate(spec.files):
            data = np.random.default_rng(i).bytes(43_000)
            member = tarfile.TarInfo(f"{spec.folder}/{file}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


DATA = archive_bytes()
SPEC = replace(ARCHIVES["cifar10"], size=len(DATA), md5=hashlib.md5(DATA).hexdigest())


class Handler(BaseHTTPRequestHandler):
    """Serves one file. `faults` of the server holds what each request in turn does wrong."""

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append((self.path, asked))
        fault = server.faults.pop(0) if server.faults else {}
        if "status" in fault:
            self.send_error(fault["status"])
            return
        data = fault.get("data", DATA)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and not fault.get("no_range") else 0
        self.send_response(206 if start else 200)
        if start:
            start += fault.get("shift", 0)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if not fault.get("no_length"):
            self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : start + fault.get("cut", len(data))])
        self.wfile.flush()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv(download.MIRROR_VARIABLE, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests, server.faults = [], []
        server.url = f"http://127.0.0.1:{server.server_port}/files"
        server.spec = replace(SPEC, home=server.url + "/")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ranges(server):
    return [asked for _, asked in server.requests]


def is_complete(root):
    folder = root / SPEC.folder
    expected = {file: np.random.default_rng(i).bytes(43_000) for i, file in enumerate(SPEC.files)}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
    assert (root / SPEC.filename).read_bytes() == DATA
    assert not (root / (SPEC.filename + ".part")).exists()
    return True


def test_the_archive_is_downloaded_and_unpacked_and_not_downloaded_again(server, tmp_path):
    root = tmp_path / "new" / "folder"
    assert get_archive(server.spec, root, progress=False) == root / SPEC.folder
    assert is_complete(root)
    assert server.requests == [(f"/files/{SPEC.filename}", None)]
    archive = (root / SPEC.filename).rename(root / "elsewhere")
    assert get_archive(server.spec, root, progress=False) == root / SPEC.folder
    archive.rename(root / SPEC.filename)
    (root / SPEC.folder / "test_batch").unlink()
    get_archive(server.spec, root, progress=False)  # from the archive that is still there
    assert is_complete(root)
    assert len(server.requests) == 1


def test_a_broken_connection_is_taken_up_where_it_broke(server, tmp_path):
    server.faults = [{"cut": 70_000}, {"cut": 100_000}]
    get_archive(server.spec, tmp_path, progress=False)
    assert is_complete(tmp_path)
    assert ranges(server) == [None, "bytes=70000-", "bytes=170000-"]


def test_the_next_run_goes_on_where_the_last_was_left(server, tmp_path):
    server.faults = [{"cut": 70_000}, {"cut": 0}]
    with pytest.raises(DataError, match=r"ended after 70,000 of .*\n70,000 of .* are kept, and the same command continues"):
        get_archive(server.spec, tmp_path, progress=False)
    assert (tmp_path / (SPEC.filename + ".part")).read_bytes() == DATA[:70_000]
    get_archive(server.spec, tmp_path, progress=False)
    assert is_complete(tmp_path)
    assert ranges(server) == [None, "bytes=70000-", "bytes=70000-"]


def test_a_server_without_ranges_starts_over(server, tmp_path):
    (tmp_path / (SPEC.filename + ".part")).write_bytes(b"?" * 70_000)
    server.faults = [{"no_range": True}]
    get_archive(server.spec, tmp_path, progress=False)
    assert is_complete(tmp_path)
    assert ranges(server) == ["bytes=70000-"]


def test_a_part_that_is_whole_but_for_its_name_is_not_downloaded_again(server, tmp_path):
    (tmp_path / (SPEC.filename + ".part")).write_bytes(DATA)
    get_archive(server.spec, tmp_path, progress=False)
    assert is_complete(tmp_path)
    assert server.requests == []


@pytest.mark.parametrize("part", [b"?" * 70_000, b"?" * len(DATA), DATA + b"?"], ids=["short", "whole", "long"])
def test_a_part_of_other_bytes_is_thrown_away_and_downloaded_anew(part, server, tmp_path):
    (tmp_path / (SPEC.filename + ".part")).write_bytes(part)
    get_archive(server.spec, tmp_path, progress=False)
    assert is_complete(tmp_path)
    assert ranges(server)[-1] is None


def test_an_answer_of_another_range_is_not_appended(server, tmp_path):
    (tmp_path / (SPEC.filename + ".part")).write_bytes(DATA[:70_000])
    server.faults = [{"shift": 1}]
    with pytest.raises(DataError, match=r"asked for bytes from 70000 on and answered 'bytes 70001-"):
        get_archive(server.spec, tmp_path, progress=False)
    assert (tmp_path / (SPEC.filename + ".part")).read_bytes() == DATA[:70_000]


def test_other_bytes_of_the_right_size_are_refused_and_removed(server, tmp_path):
    server.faults = [{"data": DATA[:-1] + b"?"}]
    with pytest.raises(DataError, match=rf"md5 [0-9a-f]{{32}}, expected {SPEC.md5}; it was removed"):
        get_archive(server.spec, tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests) == 1


@pytest.mark.parametrize("part", [b"", DATA[:70_000]], ids=["from the start", "from a part"])
@pytest.mark.parametrize("data", [DATA + bytes(1000), DATA[:80_000]], ids=["longer", "shorter"])
def test_a_file_of_another_size_is_not_begun(part, data, server, tmp_path):
    if part:
        (tmp_path / (SPEC.filename + ".part")).write_bytes(part)
    server.faults = [{"data": data}]
    with pytest.raises(DataError, match=rf"offers {len(data):,} bytes, where the published file has {len(DATA):,}"):
        get_archive(server.spec, tmp_path, progress=False)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [part] * bool(part)
    assert len(server.requests) == 1


def test_a_file_that_does_not_end_is_not_taken_for_long(server, tmp_path):
    server.faults = [{"data": DATA + bytes(1_000_000), "no_length": True, "no_range": True}] * 2
    with pytest.raises(DataError, match=rf"sent more than the {len(DATA):,} bytes"):
        get_archive(server.spec, tmp_path, progress=False)
    assert (tmp_path / (SPEC.filename + ".part")).stat().st_size <= len(DATA)


def test_mirrors_come_first_and_each_failure_is_told_with_its_reason(server, tmp_path, monkeypatch):
    with socket.socket() as closed:  # bound, but nobody listens
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv(download.MIRROR_VARIABLE, f"{nobody}, {server.url}/mirror/ ,no url,{(tmp_path / 'no').as_uri()}")
        server.faults = [{"status": 404}, {"status": 503}]
        with pytest.raises(DataError) as failed:
            get_archive(server.spec, tmp_path, progress=False)
    first, *lines = str(failed.value).split("\n")
    assert SPEC.filename in first
    expected = [
        (f"{nobody}/", "refused"),
        (f"{server.url}/mirror/", "404"),
        ("no url/", "unknown url"),
        (f"{(tmp_path / 'no').as_uri()}/", "No such file"),
        (f"{server.url}/", "503"),
    ]
    for line, (base, reason) in zip(lines, expected, strict=False):
        assert line.startswith(f"  {base}{SPEC.filename}: ")
        assert reason in line
    assert download.MIRROR_VARIABLE in lines[-1]
    assert SPEC.md5 in lines[-1]
    assert len(lines) == len(expected) + 1
    assert [path for path, _ in server.requests] == [f"/files/mirror/{SPEC.filename}", f"/files/{SPEC.filename}"]


def test_the_second_mirror_takes_up_what_the_first_left(server, tmp_path, monkeypatch):
    monkeypatch.setenv(download.MIRROR_VARIABLE, server.url + "/mirror")
    server.faults = [{"cut": 70_000}, {"status": 500}]
    get_archive(server.spec, tmp_path, progress=False)
    assert is_complete(tmp_path)
    assert server.requests[-1] == (f"/files/{SPEC.filename}", "bytes=70000-")


def test_a_folder_can_be_the_mirror(tmp_path, monkeypatch, server):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / SPEC.filename).write_bytes(DATA)
    (tmp_path / (SPEC.filename + ".part")).write_bytes(b"?" * 70_000)
    monkeypatch.setenv(download.MIRROR_VARIABLE, (tmp_path / "mirror").as_uri())
    get_archive(server.spec, tmp_path, progress=False)
    assert is_complete(tmp_path)
    assert server.requests == []


def test_without_a_mirror_the_home_page_is_asked(monkeypatch):
    monkeypatch.delenv(download.MIRROR_VARIABLE, raising=False)
    assert mirrors(ARCHIVES["cifar10"]) == ["https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"]
    monkeypatch.setenv(download.MIRROR_VARIABLE, "http://a/b/,http://c")
    assert mirrors(ARCHIVES["cifar100"]) == [
        "http://a/b/cifar-100-python.tar.gz",
        "http://c/cifar-100-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    ]


def test_a_silent_server_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        spec = replace(SPEC, home=f"http://127.0.0.1:{silent.getsockname()[1]}/")
        with pytest.raises(DataError, match="timed out"):
            get_archive(spec, tmp_path, progress=False)


def test_another_file_of_the_archives_name_is_left_alone(server, tmp_path):
    (tmp_path / SPEC.filename).write_bytes(b"mine")
    with pytest.raises(DataError, match="is not the published archive"):
        get_archive(server.spec, tmp_path, progress=False)
    assert (tmp_path / SPEC.filename).read_bytes() == b"mine"
    assert server.requests == []


def test_a_root_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot make the folder .*file.*--data-dir"):
        get_archive(server.spec, tmp_path / "file" / "root", progress=False)


def test_get_takes_the_name_of_a_set_and_a_root(server, tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHIVES, "cifar10", server.spec)
    assert get("cifar10", tmp_path, progress=False) == tmp_path / SPEC.folder
    monkeypatch.setenv("TINYRES_DATA", str(tmp_path))
    assert get("cifar10", progress=False) == tmp_path / SPEC.folder
    with pytest.raises(UsageError, match="'shapes' to download; there are cifar10, cifar100"):
        get("shapes")


# --- Progress ---------------------------------------------------------------------------------------------------------


def test_a_line_for_each_tenth_is_printed_where_there_is_no_terminal(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(download, "BLOCK", 1000)
    get_archive(server.spec, tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    lines = [rf"{SPEC.filename}: {percent} %, 0\.\d of 0\.3 MB, \d+\.\d\d MB/s\n" for percent in range(0, 101, 10)]
    assert re.fullmatch("".join(lines), err)


def test_nothing_is_printed_without_progress(server, tmp_path, capsys):
    get_archive(server.spec, tmp_path, progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_bar_is_drawn_on_a_terminal(server, tmp_path, capsys, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    get_archive(server.spec, tmp_path)
    err = capsys.readouterr().err
    assert SPEC.filename in err
    assert "\x1b[" in err
    assert "━" in err
