"""``tinyres info``: what is installed, and what will run."""

import argparse
import importlib.metadata
import os
import platform
import time
from typing import Any

import numpy as np

import tinyres
from tinyres.kernels import dispatch
from tinyres.kernels.arrays import threads

PACKAGES = ("numpy", "numba", "cupy", "ml_dtypes", "safetensors", "rich", "matplotlib", "threadpoolctl", "torch")
VARIABLES = {
    "TINYRES_BACKEND": "which kernels run by default",
    "TINYRES_THREADS": "how many threads the CPU kernels use",
    "TINYRES_CONV": "the algorithm of 3x3 convolutions: auto, direct, winograd2 or winograd4",
    "TINYRES_TF32": "0: float32 convolutions of the CUDA kernels multiply exactly, not in TF32",
    "TINYRES_DATA": "where data sets are kept",
    "TINYRES_CIFAR_MIRROR": "base URLs from which to download CIFAR, separated by commas",
}


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="versions, kernels, data sets, environment",
        allow_abbrev=False,
        description="Shows what is installed, which kernels can run here and why others cannot, which data sets are "
        "found, and which environment variables matter. It runs one small training step to see what falls back.",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    row("tinyres", f"{tinyres.__version__} in {os.path.dirname(tinyres.__file__)}")
    row("python", f"{platform.python_version()} on {platform.platform()}")
    row("packages", ", ".join(f"{name} {version(name)}" for name in PACKAGES))
    row("processor", f"{processor()}, {os.cpu_count()} cores; {threads()} threads are used")
    for i, (name, reason) in enumerate(tinyres.available_backends().items()):
        in_use = " (in use)" if name == tinyres.get_backend() else ""
        row("" if i else "kernels", f"{name}: {f'no: {reason}' if reason else f'yes{in_use}'}")
    row("step", small_step())
    for _, kernel, reason, times in tinyres.explain_dispatch():
        row("", f"{kernel} fell back to the reference {times} times: {reason}")
    for i, line in enumerate(dispatch.describe()):
        row("" if i else "algorithms", line)
    for i, entry in enumerate(tinyres.data.available()):
        row("" if i else "data", f"{entry.name}: {'' if entry.present else 'not here; '}{entry.where}")
    for i, (name, meaning) in enumerate(VARIABLES.items()):
        value = f"={os.environ[name]}" if name in os.environ else f" is not set: {meaning}"
        row("" if i else "environment", name + value)


def row(label: str, text: str) -> None:
    print(f"{label:12} {text}")


def version(package: str) -> str:
    names = [package] if package != "cupy" else ["cupy", "cupy-cuda12x", "cupy-cuda13x"]
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "no"


def processor() -> str:
    """The name of the processor, if the system tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def small_step() -> str:
    """Trains a small network on eight images for one step, so that `explain_dispatch` has something to tell."""
    from tinyres import functional as F
    from tinyres import models, optim

    device = dispatch.current().device
    model = models.resnet(8).to(device)
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    images = tinyres.tensor(np.zeros((8, 3, 32, 32), np.float32), device=device)
    began = time.perf_counter()
    F.cross_entropy(model(images), np.zeros(8, np.int64)).backward()
    optimizer.step()
    milliseconds = 1000 * (time.perf_counter() - began)
    return f"resnet8, 8 images: forward, backward and update in {milliseconds:.0f} ms, the first time"
