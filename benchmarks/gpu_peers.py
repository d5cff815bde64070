"""PyTorch's training steps on a GPU, in the configurations that its users choose.

    python -m tinyres.benchmarks.gpu_peers NETWORK BATCH CONFIGURATION     # milliseconds of a step, several times, as JSON

CuPy and PyTorch share the card's context here, and both use its default stream, so their work runs in the order in which it
was started. Their memory is separate: see `release`.
"""

import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

from tinyres.benchmarks import peers, spread

CONFIGURATIONS = ("torch eager", "torch channels_last autocast", "torch cuda graph")
COMPILED = "torch compile max-autotune"  # takes minutes, and cannot be stopped: it gets a process of its own


def available() -> bool:
    """Whether PyTorch is installed and sees a GPU."""
    if not peers.installed():
        return False
    import torch

    return torch.cuda.is_available()


def release() -> None:
    """Gives the memory that PyTorch has in reserve back to the card."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def step(network: Any, configuration: str, batch: int) -> Callable[[], object]:
    """A training step of a torch module on random images, as a function that returns before the GPU is done.

    "autocast" uses bfloat16; in float32, convolutions use TF32 (PyTorch's default). "cuda graph" captures the whole step:
    nothing of ours may then be left to the garbage collector (see `gpu_run.Run.release`).
    """
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # all batches have one size: cuDNN may look for the fastest algorithm
    model = network.cuda().train()
    x, y = torch.randn(batch, 3, 32, 32, device="cuda"), torch.randint(0, 10, (batch,), device="cuda")
    half = "autocast" in configuration
    if "channels_last" in configuration:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    run = torch.compile(model, mode="max-autotune") if "compile" in configuration else model

    def train() -> object:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            loss = F.cross_entropy(run(x), y)
        loss.backward()
        optimizer.step()
        return loss

    if "cuda graph" not in configuration:
        return train
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            train()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train()

    def replay(kept: object = train) -> None:  # the graph knows weights and images only by address
        graph.replay()

    return replay


def elapsed_ms(run: Callable[[], object], repeats: int) -> float:
    """Milliseconds per run on the GPU, the mean over ``repeats`` in a row."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats


def matmul_tflops(dtype: str, n: int = 8192) -> float:
    """TFLOP/s of a matrix product by cuBLAS: "float32" (exact), "tf32", "float16" or "bfloat16"."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    try:
        a, b = (torch.randn(n, n, device="cuda", dtype=getattr(torch, dtype, torch.float32)) for _ in range(2))
        a @ b
        best = min(elapsed_ms(lambda: a @ b, 5) for _ in range(5))
    finally:
        torch.set_float32_matmul_precision(before)
    return 2 * n**3 / best / 1e9


def limits() -> dict[str, float]:
    """`matmul_tflops` of each type that the card can multiply; empty if PyTorch has no GPU or is not installed."""
    found: dict[str, float] = {}
    for dtype in ("float32", "tf32", "float16", "bfloat16") if available() else ():
        with contextlib.suppress(RuntimeError):  # an old card has no bfloat16
            found[f"matmul_{dtype}_tflops"] = matmul_tflops(dtype)
    return found


def resnet9() -> Any:
    """David Page's ResNet-9 (DAWNBench, 2018), wide and shallow, so that the tensor cores have work. It takes the mean of
    each map at the end, not its maximum, like ours in `gpu_steps`.
    """
    from torch import nn

    def block(i: int, o: int, pool: bool = False) -> Any:
        layers = [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))

    class Residual(nn.Module):
        def __init__(self, c: int) -> None:
            super().__init__()
            self.branch = nn.Sequential(block(c, c), block(c, c))

        def forward(self, x: Any) -> Any:
            return x + self.branch(x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            early = block(3, 64), block(64, 128, True), Residual(128)
            late = block(128, 256, True), block(256, 512, True), Residual(512)
            self.body = nn.Sequential(*early, *late, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head = nn.Linear(512, 10)

        def forward(self, x: Any) -> Any:
            return self.head(self.body(x))

    return Net()


def main(network: str, batch: str, configuration: str) -> None:
    run = step(peers.network(network), configuration, int(batch))
    for _ in range(5):  # compiles, captures, and gets the slow ones over with
        run()
    print(json.dumps([elapsed_ms(run, 30) for _ in range(spread.LEAST_OF_TWO)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
