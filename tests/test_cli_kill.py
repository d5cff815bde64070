"""The training command as a process: killed at any moment, interrupted, and watched through a pipe and a terminal."""

import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import tinyres as tr
from tinyres.train import checkpoint

# The command with a data set of 64 + 16 images: making all 6,000 would take most of each process's time.
DRIVER = """
import functools, sys, tinyres.data
tinyres.data.shapes = functools.partial(tinyres.data.shapes, n_train=64, n_test=16)
from tinyres.cli import main
sys.exit(main())
"""
TRAIN = ["train", "--data", "shapes", "--model", "resnet8", "--epochs", "6", "--batch-size", "16"]


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    assert tr.__file__
    environment = {**os.environ, "PYTHONPATH": str(Path(tr.__file__).parent.parent)}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments],
        text=True,
        env=environment,
        # A test run in the background of a shell hands down an ignored SIGINT, which the command would respect.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def finish(*arguments: str) -> str:
    process = start(*arguments)
    out, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (0, "")
    return out


def outcome(folder: Path) -> Any:
    """All that a run leaves, apart from its speed, in a form that compares by bits."""
    arrays, kept, texts = checkpoint.read(folder / "last.safetensors")
    best, _, about = checkpoint.read(folder / "best.safetensors")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert texts["run"]["state"].pop("lines") == lines
    del texts["run"]["state"]["seconds"]
    for line in lines:
        del line["seconds"], line["images_per_second"]
    texts["run"]["options"] = []
    bits = [{name: array.tobytes() for name, array in group.items()} for group in (arrays, *kept.values(), best)]
    return bits, texts, about, lines


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on the default backend of this machine: with Numba, the compiled kernels."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert "\x1b" not in finish(*TRAIN, "--out", str(folder))
    return outcome(folder)


def wait_for_saves(process: subprocess.Popen[str], path: Path, count: int) -> None:
    """Until the file was written that many times, or the process has ended."""
    seen = path.stat().st_mtime_ns if path.exists() else 0
    while count and process.poll() is None:
        now = path.stat().st_mtime_ns if path.exists() else 0
        count -= now != seen
        seen = now
        time.sleep(0.001)


def test_a_run_that_is_killed_ten_times_ends_with_the_same_bits(tmp_path: Path, unbroken: Any) -> None:
    chance, folder, killed = random.Random(1), tmp_path / "run", 0
    for _ in range(10):
        process = start(*TRAIN, "--out", str(folder), "--save-every", "0", *(["--resume"] if folder.is_dir() else []))
        assert process.stdout
        with process:
            process.stdout.readline()  # its first line, which comes just before it opens its folder
            wait_for_saves(process, folder / "last.safetensors", chance.randrange(6))
            time.sleep(0.06 * chance.random())
            process.kill()
        killed += process.returncode == -signal.SIGKILL
    assert killed >= 7
    finish("train", "--out", str(folder), "--resume")
    assert outcome(folder) == unbroken
    assert not list(folder.glob(".*.tmp"))


def test_ctrl_c_saves_and_tells_the_command_that_goes_on(tmp_path: Path, unbroken: Any) -> None:
    folder = tmp_path / "my run"
    process = start(*TRAIN, "--out", str(folder))
    assert process.stdout
    while not process.stdout.readline().startswith("epoch 1/6"):
        pass
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    command = re.search(r"Continue with:\n  (\S+) -m tinyres (.*)\n$", error)
    assert command
    assert command[2] == f"train --resume --out '{folder}'"
    assert 1 <= checkpoint.read(folder / "last.safetensors").texts["run"]["state"]["epoch"] < 6
    finish("train", "--resume", "--out", str(folder))
    assert outcome(folder) == unbroken


def test_a_reader_of_the_run_that_leaves_makes_no_traceback_and_the_run_can_go_on(tmp_path: Path, unbroken: Any) -> None:
    with start(*TRAIN, "--out", str(tmp_path / "run")) as process:
        assert process.stdout
        assert process.stderr
        while not process.stdout.readline().startswith("epoch 1/6"):
            pass
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
    finish("train", "--resume", "--out", str(tmp_path / "run"))
    assert outcome(tmp_path / "run") == unbroken


def test_on_a_terminal_there_is_a_bar_below_the_lines_of_the_epochs(tmp_path: Path) -> None:
    pytest.importorskip("rich", reason="the bar is drawn by rich")
    pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
    master, slave = pty.openpty()
    process = start(*TRAIN, "--out", str(tmp_path / "run"), stdout=slave, stderr=slave, stdin=slave)
    os.close(slave)
    shown = b""
    while select.select([master], [], [], 60)[0]:
        try:
            shown += os.read(master, 4096)
        except OSError:  # its end, on Linux
            break
    os.close(master)
    assert process.wait(60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "\x1b[" in shown.decode()
    assert re.search(r"epoch \d/6(, test)? [━╸╺]+ *\d/\d", text)  # it is drawn five times a second: not at every step
    assert re.findall(r"epoch (\d)/6  loss .* test loss", text) == list("123456")
