"""The command where it runs: outputs that are closed, encodings that lack a character, users without a home folder."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_cli_commands import error_of, process

import tinyres as tr
from tinyres.cli import main


@pytest.mark.skipif(not Path("/bin/sh").exists(), reason="this system has no shell to close the output with")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_output_stops_no_job(closed: str, tmp_path: Path) -> None:
    assert tr.__file__
    environment = {**os.environ, "PYTHONPATH": str(Path(tr.__file__).parent.parent)}
    for arguments in (["summary", "resnet8"], ["info"]):
        command = ["sh", "-c", f'"$0" -m tinyres "$@" {closed}', sys.executable, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert (done.returncode, done.stderr) == (0, ""), arguments


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_name_that_the_terminal_cannot_show_is_shown_escaped(encoding: str) -> None:
    assert tr.__file__
    environment = {**os.environ, "PYTHONPATH": str(Path(tr.__file__).parent.parent), "PYTHONIOENCODING": encoding}
    done = process("eval", "größe-网.safetensors", "--data", "shapes", env=environment, encoding=encoding)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert "\\u7f51" in done.stderr


def test_without_a_home_folder_it_says_what_to_set(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def expanduser(path: Path) -> Path:
        if str(path).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.delenv("TINYRES_DATA", raising=False)
    monkeypatch.setattr(Path, "expanduser", expanduser)
    assert main(["data", "list"]) == 0
    assert "set TINYRES_DATA" in " ".join(capsys.readouterr().out.split())
    assert "set TINYRES_DATA" in error_of(capsys, main(["train", "--data", "cifar10"]))
    assert main(["info"]) == 0
