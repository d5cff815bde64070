"""What is no file is refused at once, for reading and for writing; and no text of a file reaches the terminal as it is."""

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_data_cifar import SPEC
from test_hostile_files import RESULT

import tinyres as tr
from tinyres.benchmarks import report
from tinyres.cli import main
from tinyres.data.cifar import load_archive, md5_of
from tinyres.data.download import get_archive
from tinyres.data.unpickle import load_batch
from tinyres.errors import DataError, TinyresError, UsageError
from tinyres.files import open_file, printable, read_json, shown, write_atomically
from tinyres.train import checkpoint, load_network
from tinyres.train.progress import Lines, Silent
from tinyres.weights import load_file, save_safetensors

# --- the terminal ----------------------------------------------------------------------------------------------------------


def test_control_characters_are_shown_escaped():
    assert printable("a\x1b[2Jb\x07\x9b\u202ec\td\ne é 本") == "a\\x1b[2Jb\\x07\\x9b\\u202ec\td\ne é 本"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", printable("".join(map(chr, range(256)))))
    assert shown("a\n\tb\x1b\ud800") == r"a\n\tb\x1b\ud800"
    assert shown(range(9)) == "range(0, 9)"
    assert len(shown("x" * 10**6)) == 200


def test_names_in_a_file_do_not_reach_the_terminal_as_they_are(tmp_path, capsys):
    name = "\x1b]0;mine\x07[bold red]w"
    path = tmp_path / "w.safetensors"
    save_safetensors(path, {name: np.ones((2, 3), np.float32)})
    assert main(["import-weights", str(path), "--model", "resnet20", "--out", str(tmp_path / "out.safetensors")]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error and "\x07" not in error and "[bold red]" in error
    row = {"row": name, "median_seconds": 0.5}
    result = {**RESULT, "cases": [{"model": name, "batch": 1, "rows": [row]}]}
    (tmp_path / "a.json").write_text(json.dumps(result))
    assert main(["bench", "compare", *[str(tmp_path / "a.json")] * 2]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "use",
    [
        lambda name: tr.models.resnet(8).load_state_dict({name: np.ones(2)}),
        lambda name: tr.data.load(name),
        lambda name: tr.models.build(name),
        lambda name: open_file(name),
    ],
)
def test_an_error_of_the_library_shows_no_control_characters_either(use):
    with pytest.raises((TinyresError, OSError, TypeError)) as caught:
        use("\x1b[2J\x9bmine")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", str(caught.value))


def test_a_line_of_a_run_shows_no_control_characters(capsys):
    Lines().message("\x1b[2Jfolder\x07")
    assert capsys.readouterr().out == "\\x1b[2Jfolder\\x07\n"


def test_an_error_about_a_million_names_is_no_million_names_long(tmp_path, capsys):
    path = tmp_path / "w.safetensors"
    save_safetensors(path, {f"layer.{i}.\n{'x' * 1000}": np.ones(2, np.float32) for i in range(200)})
    data = {"network": {"name": "resnet8", "num_classes": 10}, "normalisation": {"mean": 0.5, "scale": 1.0}}
    arrays = tr.models.resnet(8).state_dict() | load_file(path)[0]
    checkpoint.write(path, arrays, {}, data)
    assert main(["eval", str(path)]) == 2
    error = capsys.readouterr().err
    assert len(error) < 3200 and error.count("\n") == 1 and "characters more" in error


# --- what is no file -------------------------------------------------------------------------------------------------------

PIPES = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")


def no_files(folder):
    """(path, what the error says of it)"""
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(folder / "socket"))  # (a socket's path may be no longer than 108 bytes)
    os.symlink("fifo", folder / "link")
    wrong = dict.fromkeys(("fifo", "socket", "link"), "pipe, a socket or a device")
    return [(folder / n, what) for n, what in wrong.items()] + [(Path("/dev/zero"), "device"), (folder, "irectory")]


@PIPES
@pytest.mark.parametrize(
    "read", [load_file, load_batch, report.load, checkpoint.read, load_network, open_file, read_json, md5_of]
)
def test_a_fifo_a_device_or_a_folder_is_refused_at_once(read, tmp_path):
    for path, what in no_files(tmp_path):
        with pytest.raises((TinyresError, OSError), match=what):
            read(path)


@PIPES
def test_nothing_but_a_file_is_replaced_by_one(tmp_path):
    for path, what in no_files(tmp_path):
        if path.is_relative_to("/dev"):
            continue  # it would be lost if this failed
        before = path.lstat()
        with pytest.raises(OSError, match=what):
            write_atomically(path, b"new")
        assert os.path.samestat(path.lstat(), before)


@PIPES
def test_a_data_set_of_pipes_is_refused(tmp_path, monkeypatch):
    for name in (SPEC.filename, f"{SPEC.filename}.part"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match=f"{name} is a folder, a pipe or a device"):
            get_archive(SPEC, tmp_path, progress=False)
        if not name.endswith("part"):
            with pytest.raises(DataError, match=rf"cannot read .*{name}: a pipe"):
                load_archive(SPEC, tmp_path)
            (tmp_path / "mirror").mkdir()
            (tmp_path / name).rename(tmp_path / "mirror" / name)
    os.unlink(tmp_path / f"{SPEC.filename}.part")
    monkeypatch.setenv("TINYRES_CIFAR_MIRROR", (tmp_path / "mirror").as_uri())
    with pytest.raises(DataError, match=r"file://.*a pipe, a socket or a device"):
        get_archive(replace(SPEC, home="file:///no/where"), tmp_path, progress=False)
    (tmp_path / SPEC.folder).mkdir()
    for file in SPEC.files:
        os.mkfifo(tmp_path / SPEC.folder / file)
    with pytest.raises(DataError, match="not found"):
        load_archive(SPEC, tmp_path)


@PIPES
@pytest.mark.parametrize("name", ["best.safetensors", "metrics.jsonl", "curves.png", "config.json"])
def test_a_run_with_a_pipe_among_its_files_is_not_resumed(name, tmp_path):
    data = tr.data.shapes(n_train=16, n_test=4)

    def trainer(epochs):
        return tr.train.Trainer("resnet8", data, epochs=epochs, batch_size=16, out=tmp_path / "run", display=Silent())

    with tr.use_backend("numpy"):
        trainer(1).fit()
        (tmp_path / "run" / name).unlink()
        os.mkfifo(tmp_path / "run" / name)
        with pytest.raises(UsageError, match=f"{name} is a folder, a pipe or a device"):
            trainer(1).fit(resume=True)


COMMANDS = """
import os, sys
sys.path.insert(0, sys.argv[1])
from tinyres.cli import main
for command in (
    "eval fifo --data shapes",
    "explain --checkpoint fifo",
    "import-weights fifo --model resnet20 --out out.safetensors",
    "import-weights /dev/null --model resnet20 --out fifo",
    "bench compare fifo fifo",
    "train --data shapes --out fifo",
):
    assert main(command.split()) == 2, command
"""


@PIPES
def test_no_command_waits_for_a_fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    found = subprocess.run(
        [sys.executable, "-c", COMMANDS, str(Path(__file__).parent.parent)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    errors = found.stderr.splitlines()
    assert found.returncode == 0 and len(errors) == 6, found.stderr
    assert all(
        what in error
        for what, error in zip(("a pipe", "a pipe", "a pipe", "exists", "a pipe", "no folder"), errors, strict=True)
    )
