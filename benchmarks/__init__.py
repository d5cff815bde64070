"""The benchmarks behind ``tinyres bench``: every figure that the project quotes comes from here.

    machine   what the machine is, and its limits measured in the same run
    timing    interleaved repetitions, medians and ratios of pairs
    peers     the same networks in PyTorch, in each of its configurations
    steps     whole training steps and inference        (tinyres bench train)
    layers    each kernel at the layers of the networks  (tinyres bench ops)
    floors    the time of a step by kernel, and a floor  (tinyres bench profile)
    memory    peak memory of a step, in a process of its own
    report    tables, JSON, comparison of two results
    plots     pictures of a result

    gpu           all that only a GPU can show           (tinyres bench gpu)
    gpu_run       its plan, its clock, the device, commands with a time limit
    gpu_parity    kernels and whole steps against NumPy and PyTorch
    gpu_steps     whole steps and a training run
    gpu_peers     PyTorch on a GPU, in each of its configurations
    gpu_small_step  what compute-sanitizer watches

It is installed as ``tinyres.benchmarks``.
"""
