"""TAB in a shell: bash itself completes the command, and what a script would see of it is as without completion."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tinyres as tr

BASH = shutil.which("bash")
SCRIPT = """
source <(register-python-argcomplete tinyres)
read -ra COMP_WORDS <<< "$COMP_LINE"
[[ $COMP_LINE == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_POINT=${#COMP_LINE} COMP_TYPE=9 COMP_KEY=9
complete -p tinyres | grep -q _python_argcomplete || exit 1
_python_argcomplete tinyres
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(not (BASH and importlib.util.find_spec("argcomplete")), reason="needs bash and argcomplete")
@pytest.mark.parametrize(
    ("line", "offered", "not_offered"),
    [
        ("tinyres su", ["summary"], ["train"]),
        ("tinyres train --model wrn", ["wrn16_8", "wrn40_4"], ["resnet20"]),
        ("tinyres train --data ", ["cifar10", "shapes", "flowers/"], []),
        ("tinyres train --backend cuda", ["cuda-emulated"], ["cupy"]),
        ("tinyres train --recipe ", ["onecycle", "he2015"], ["flowers/"]),
        ("tinyres lab le", ["lesion"], ["landscape"]),
        ("tinyres where add_r", ["add_relu"], []),
        ("tinyres exercise check 8.", ["8.1", "8.3"], []),
        ("tinyres eval fl", ["flowers/"], []),
    ],
)
def test_bash_completes(line, offered, not_offered, tmp_path):
    (tmp_path / "flowers").mkdir()
    command = tmp_path / "bin" / "tinyres"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tinyres "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join([str(command.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "COMP_LINE": line, "PYTHONPATH": str(Path(tr.__file__).parents[1])}
    done = subprocess.run([BASH, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True)
    found = {word.strip() for word in done.stdout.splitlines()}
    assert {*offered} <= found and found.isdisjoint(not_offered), done


def test_the_command_itself_does_not_load_argcomplete(tmp_path):
    script = "import sys, tinyres.cli; tinyres.cli.main(['data', 'list']); print('argcomplete' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(tr.__file__).parents[1]), "TINYRES_DATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done
