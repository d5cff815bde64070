"""The folder of a run: who may work in it, and what a mistake does not destroy."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyres as tr
from tinyres.errors import UsageError
from tinyres.train import Trainer, checkpoint
from tinyres.train.folder import RunFolder
from tinyres.train.progress import Silent


def trainer(out: Path | None, **settings: Any) -> Trainer:
    data = tr.data.shapes(n_train=32, n_test=16)
    return Trainer("resnet8", data, out=out, **{"epochs": 1, "batch_size": 16, "display": Silent(), **settings})


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_folder_that_is_not_there_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"typo does not exist, so there is no run to resume"):
        trainer(tmp_path / "typo").fit(resume=True)
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("left", ["config.json", "metrics.jsonl", "best.safetensors"])
def test_a_run_without_its_checkpoint_is_not_resumed_and_nothing_is_changed(left: str, tmp_path: Path) -> None:
    trainer(tmp_path).fit()
    for name in content(tmp_path):
        if name != left:
            (tmp_path / name).unlink()
    before = content(tmp_path)
    for resume in (True, False):
        with pytest.raises(UsageError, match=f"{left}.*nothing was changed"):
            trainer(tmp_path, epochs=2).fit(resume=resume)
    assert content(tmp_path) == before


def test_a_second_process_in_the_folder_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="this system has no file locks")
    trainer(tmp_path).fit()
    (tmp_path / ".last.safetensors.1.tmp").write_bytes(b"being written")
    before = content(tmp_path)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, os, sys, time\n"
            f"handle = os.open({str(tmp_path)!r}, os.O_RDONLY); fcntl.flock(handle, fcntl.LOCK_EX); print(1, flush=True)\n"
            "time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout and holder.stdout.readline()
        with pytest.raises(UsageError, match="another process is training in"):
            trainer(tmp_path).fit(resume=True)
        assert content(tmp_path) == before
    finally:
        holder.kill()
        holder.communicate()
    trainer(tmp_path).fit(resume=True)  # the lock went with the process
    with RunFolder(tmp_path).claimed(True), pytest.raises(UsageError, match="another process"):
        trainer(tmp_path).fit(resume=True)


@pytest.mark.parametrize("changed", [{"threads": 99}, {"backend": "abacus"}, {"numpy": "0.1"}])
def test_resuming_elsewhere_says_that_the_last_bits_may_differ(changed: dict[str, Any], tmp_path: Path) -> None:
    class Listening(Silent):
        def message(self, text: str) -> None:
            said.append(text)

    said: list[str] = []
    trainer(tmp_path).fit()
    trainer(tmp_path, display=Listening()).fit(resume=True)
    assert not any("last bits" in text for text in said)
    config = json.loads((tmp_path / "config.json").read_text())
    config["processes"][-1] |= changed
    (tmp_path / "config.json").write_text(json.dumps(config))
    trainer(tmp_path, display=Listening()).fit(resume=True)
    ((key, value),) = changed.items()
    assert any(f"{key} " in text and f"instead of {value}" in text and "last bits" in text for text in said)


# --- fit and what it leaves alone ---


def test_a_second_fit_of_a_run_that_is_done_says_so() -> None:
    run = trainer(None)
    run.fit()
    with pytest.raises(UsageError, match=r"all 1 epochs are done; to go on with the model, give it to a new Trainer"):
        run.fit()


def test_modules_that_were_frozen_stay_so() -> None:
    run = trainer(None)
    run.model.layer1.eval()
    frozen = {name: b.data.copy() for name, b in run.model.layer1.named_buffers()}
    run.fit()
    assert run.model.training and not any(m.training for m in run.model.layer1.modules())
    for name, b in run.model.layer1.named_buffers():
        np.testing.assert_array_equal(b.data, frozen[name])
    run = trainer(None)
    run.model.eval()
    run.fit()
    assert all(m.training for m in run.model.modules())


def test_parameters_that_were_frozen_stay_so() -> None:
    run = trainer(None)
    for p in run.model.layer1.parameters():
        p.requires_grad = False
    before = run.model.state_dict()
    run.fit()
    for name, p in run.model.named_parameters():
        assert np.array_equal(p.data, before[name]) == name.startswith("layer1."), name


class Raising(Silent):
    """Raises a signal after the first step, and does its own thing in ``inside``."""

    def __init__(self, name: signal.Signals) -> None:
        self.name, self.shown = name, 0

    def step(self, *_: Any) -> None:
        self.shown += 1
        if self.shown == 1:
            signal.raise_signal(self.name)


SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@pytest.mark.parametrize("name", SIGNALS, ids=lambda name: name.name)
def test_a_request_to_end_saves_as_ctrl_c_does(name: signal.Signals, tmp_path: Path) -> None:
    before = signal.signal(name, signal.default_int_handler if name == signal.SIGINT else signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer(tmp_path / "run", display=Raising(name)).fit()
        assert signal.getsignal(name) in (signal.SIG_DFL, signal.default_int_handler)
    finally:
        signal.signal(name, before)
    trainer(tmp_path / "run").fit(resume=True)
    trainer(tmp_path / "unbroken").fit()
    a, b = (checkpoint.read(tmp_path / run / "best.safetensors").arrays for run in ("run", "unbroken"))
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", SIGNALS, ids=lambda name: name.name)
def test_what_the_host_ignores_or_handles_itself_is_left_alone(name: signal.Signals, monkeypatch: Any) -> None:
    before = signal.signal(name, signal.SIG_IGN)
    try:
        assert len(trainer(None, display=Raising(name)).fit()) == 1
        assert signal.getsignal(name) == signal.SIG_IGN
        monkeypatch.setattr(signal, "getsignal", lambda _: None)  # as where the handler is not Python's
        assert len(trainer(None).fit()) == 1
    finally:
        signal.signal(name, before)


def test_a_profile_of_nothing_is_a_sentence() -> None:
    with tr.profile() as p:
        pass
    p.seconds = 0.0
    assert p.table("kernel") == "nothing was measured: no kernel ran inside the profile"
