# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The compiler's options, all of them, in one place: what `medloc` sets before JAX starts.

They stand in the environment, from which XLA reads them once. What is set there already wins.
`MEDLOC_XLA_FLAGS` is "on" (the default), "loops" (also `GPU_LOOPS`) or "off" (none). None of them
changes what is computed. An XLA that does not know an option ends the process, so that they are set
for the JAX versions alone that they were tried with (tests/xla_flags_test.py tries every name with
the compilers that are installed).

What needs no option: the latency-hiding scheduler; CUDA graphs of the kernels between two loops;
autotuning results, kept with the compiled programs (JAX's persistent cache); matrix products by
Triton; a TPU's asynchronous collectives. What was tried and left out is in benchmarks/NOTES.md.
"""

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Callable, Mapping, MutableMapping

SWITCH = "MEDLOC_XLA_FLAGS"
JAXLIB = ("0.10.", "0.11.", "0.12.")  # versions whose names these are

# Option -> (value, why).
GPU: Mapping[str, tuple[str, str]] = {
    "--xla_gpu_enable_pipelined_all_gather": (
        "true",
        "weights of the next layer are gathered beside this layer's arithmetic: of the bytes that "
        "3B's update moves in its loops on 4 H800, 65 % had a matrix product beside them, now all",
    ),
    "--xla_gpu_enable_pipelined_reduce_scatter": ("true", "likewise, gradients of the last layer"),
    "--xla_gpu_enable_pipelined_all_reduce": ("true", "likewise, over `tensor` and `data`"),
}
# Not by default: XLA has crashed on a loop's second run (openxla/xla pull request 35760), and what
# it gains, a launch from the host for each token, is small where a token is one graph already.
GPU_LOOPS: Mapping[str, tuple[str, str]] = {
    "--xla_gpu_enable_command_buffer": (
        "+WHILE",
        "the whole decoding loop is one CUDA graph, its condition evaluated on the device",
    ),
}
TPU: Mapping[str, tuple[str, str]] = {}  # its compiler's defaults: nothing that was tried paid

# Platform -> the environment's name, the options, and the modules of which one must be there.
PLATFORMS: Mapping[str, tuple[str, Mapping[str, tuple[str, str]], tuple[str, ...]]] = {
    "gpu": ("XLA_FLAGS", GPU, ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")),
    "tpu": ("LIBTPU_INIT_ARGS", TPU, ("libtpu",)),
}

# Pretended CPU devices share one pool of threads, one a device unless told. A collective holds its
# thread until all devices have joined it, and jax 0.10's CPU client starts independent ones at
# once: a device with two in hand leaves another without a thread, and XLA ends the process after
# 40 s. This many a device is enough for our programs (tests/xla_flags_test.py shows both ends).
CPU_THREADS = "PJRT_NPROC"
THREADS_PER_PRETENDED_DEVICE = 4
_PRETENDED = re.compile(r"--xla_force_host_platform_device_count=(\d+)")


def apply(
    environment: MutableMapping[str, str] = os.environ,
    installed: Callable[[str], bool] | None = None,
) -> list[str]:
    """Adds the options for what is installed; call it before JAX's backends start.

    Args:
        environment: that XLA will read.
        installed: tells of a module whether it is there; None: asks Python.

    Returns:
        What was added, as name=value.

    Raises:
        ValueError: the switch has another value.
    """
    switch = environment.get(SWITCH, "on")
    if switch not in ("on", "loops", "off"):
        raise ValueError(f"{SWITCH}={switch}: set it to on, loops or off")
    if switch == "off" or not importlib.metadata.version("jaxlib").startswith(JAXLIB):
        return []
    added = _threads(environment)
    for platform, (name, options, modules) in PLATFORMS.items():
        if not any(map(installed or _installed, modules)):
            continue
        if platform == "gpu" and switch == "loops":
            options = {**options, **GPU_LOOPS}
        given = environment.get(name, "")
        told = {word.partition("=")[0] for word in given.split()}
        new = [f"{flag}={value}" for flag, (value, _) in options.items() if flag not in told]
        if new:
            environment[name] = " ".join([*given.split(), *new])
        added += new
    return added


def _threads(environment: MutableMapping[str, str]) -> list[str]:
    """Sets the pool's size where several devices are pretended and nobody has said it."""
    told = _PRETENDED.findall(environment.get("XLA_FLAGS", ""))
    if not told or int(told[-1]) < 2 or {CPU_THREADS, "NPROC"} & environment.keys():
        return []
    environment[CPU_THREADS] = str(THREADS_PER_PRETENDED_DEVICE * int(told[-1]))
    return [f"{CPU_THREADS}={environment[CPU_THREADS]}"]


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False
