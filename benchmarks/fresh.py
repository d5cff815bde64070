"""A function of the benchmarks, called in a process of its own.

python -m tinyres.benchmarks.fresh MODULE FUNCTION JSON
"""

import importlib
import json
import subprocess
import sys
from typing import Any

from tinyres.errors import UsageError


def call(module: str, function: str, **arguments: Any) -> Any:
    """What ``tinyres.benchmarks.MODULE.FUNCTION(**arguments)`` returns there; both ways as JSON."""
    words = [sys.executable, "-m", __name__, module, function, json.dumps(arguments)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        given = ", ".join(str(value) for value in arguments.values())
        raise UsageError(f"{function} of {given} failed in a process of its own: {last}")
    return json.loads(done.stdout.splitlines()[-1])  # libraries may print, too


if __name__ == "__main__":
    found = getattr(importlib.import_module(f"tinyres.benchmarks.{sys.argv[1]}"), sys.argv[2])
    print("\n" + json.dumps(found(**json.loads(sys.argv[3]))))
