# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""XLA's options for tests, which compile a lot and compute little."""

import importlib.metadata
import os


def flags(num_devices):
    """Options for so many pretended devices, by name.

    Without LLVM's optimizations compiling takes half the time. XLA's newer way to make fusions
    takes three times as long as the older one, which jax 0.12's XLA no longer has (and an XLA that
    does not know an option aborts).
    """
    options = {
        "--xla_force_host_platform_device_count": str(num_devices),
        "--xla_backend_optimization_level": "0",
    }
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        options["--xla_cpu_use_fusion_emitters"] = "false"
    return options


def joined(num_devices):
    """The same as XLA_FLAGS takes them."""
    return " ".join(f"{name}={value}" for name, value in flags(num_devices).items())


def threads(num_devices):
    """PJRT_NPROC for so many pretended devices: medloc_jax/xla_flags.py says why."""
    return str(max(os.cpu_count() or 1, 4 * num_devices if num_devices > 1 else 1))
