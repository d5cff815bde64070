"""Atomic writing: at any moment the old file or the new one is there, whole."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import tinyres
from tinyres.files import atomic_write, write_atomically


def test_a_new_file_and_a_file_in_place_of_an_old_one(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    assert path.read_bytes() == b"old"
    atomic_write(str(path), lambda file: [file.write(part) for part in (b"n", b"ew")])
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [ValueError("no"), OSError("disk full"), KeyboardInterrupt()])
def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(error, tmp_path):
    def writer(file):
        file.write(b"half of the new")
        file.flush()
        raise error

    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        atomic_write(path, writer)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_an_error_while_renaming_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_the_bytes_reach_the_disk_before_they_take_the_name_and_the_name_after(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor):
        steps.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        if steps[-1] == "sync file":
            assert os.fstat(descriptor).st_size == 3  # flushed before
        fsync(descriptor)

    def note_replace(*names):
        steps.append("rename")
        assert {os.path.dirname(name) for name in names} == {str(tmp_path)}  # across disks it would not be atomic
        replace(*names)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_atomically(tmp_path / "file", b"new")
    assert steps == ["sync file", "rename", "sync folder"]


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    program = (
        "import os, signal, sys\n"
        "from tinyres.files import atomic_write\n"
        "def writer(file):\n"
        "    file.write(b'half of the new')\n"
        "    file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "atomic_write(sys.argv[1], writer)\n"
    )
    root = str(Path(tinyres.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program, path], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True
    )
    assert done.returncode == -9, done.stderr
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")  # what the kill left behind is in nobody's way
    assert path.read_bytes() == b"new"


def test_a_symbolic_link_keeps_pointing_at_its_file(tmp_path):
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "folder" / "file")
    write_atomically(link, b"new")
    assert link.is_symlink() and (tmp_path / "folder" / "file").read_bytes() == b"new"


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path):
    write_atomically(tmp_path / "file", b"")
    (tmp_path / "other").write_bytes(b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_name_without_a_folder_means_the_current_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_atomically("file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
