# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Devices to compile for that need not be there.

A TPU slice is compiled for by the real TPU compiler (libtpu, the `tpu` extra), an NVIDIA GPU by the
real GPU compiler (the `cuda` extra); neither needs the chip. Without the extra, XLA compiles the
same partitioned program for as many pretended CPU devices: memory and collectives are then those of
another compiler, and `Topology.note` says so.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax._src import xla_bridge  # whether backends have started is told nowhere else
from jax.experimental import topologies

from medloc_jax import devices
from medloc_jax.planning import plan

# Slices that can be had, by the number of chips.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {
    **{1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4"},
    **{128: "4x4x8", 256: "4x8x8", 512: "8x8x8", 1024: "8x8x16"},
}
TPU_SLICES = {"v5e": _FLAT, "v6e": _FLAT, "v5p": _CUBES}
_CHIPS_PER_HOST = 4  # unless told
# Chips of one host -> its part of the slice.
_HOST_BOUNDS = {1: (1, 1, 1), 4: (2, 2, 1), 8: (2, 4, 1)}

GPUS = ("h100", "h800", "h200")
KINDS = (*GPUS, *TPU_SLICES, "cpu")

_PRETENDED_FLAG = "--xla_force_host_platform_device_count"

# What libtpu asks the machine for on start; here it runs without a TPU.
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Compiling takes no chip, so that it need not wait for another process that does the same.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
        kind: one of KINDS.
        name: what the compiler was told: "v5e:4x4" for a TPU, "2x8" (hosts x GPUs) for GPUs.
        devices: as `jax.sharding.Mesh` takes them; nothing can run on them unless pretended.
        processes: hosts.
        compiled_by: one of plan.TPU_COMPILER, plan.GPU_COMPILER, plan.PRETENDED.
        note: what that means for the figures; "" for the real compiler.
    """

    kind: str
    name: str
    devices: Sequence[Any]
    processes: int
    compiled_by: str
    note: str


def find(device_kind: str, num_devices: int = 0, processes: int = 0) -> Topology:
    """The devices of that kind and number.

    Args:
        device_kind: one of KINDS; for a TPU also with the slice, "v5p:4x4x4".
        num_devices: of all hosts; 0 = as the slice says, else 1.
        processes: hosts; 0 = as many as the hardware has (4 chips or 8 GPUs each).

    Raises:
        ValueError: there is no such kind or slice, or another process holds the TPU compiler.
    """
    kind, _, slice_name = device_kind.partition(":")
    if kind not in KINDS:
        raise ValueError(f"--device_kind={device_kind}: choose one of {', '.join(KINDS)}")
    if kind in TPU_SLICES:
        slice_name = slice_name or _default_slice(kind, num_devices or 1)
        chips = _chips(kind, slice_name)
        if num_devices not in (0, chips):
            raise ValueError(
                f"--device_kind={device_kind} has {chips} chips, not --devices={num_devices}: "
                "give one of the two"
            )
        if _installed("libtpu"):
            return _tpu(kind, slice_name, chips, processes)
        return _pretended(kind, chips, processes, "install medloc_jax's `tpu` extra")
    if slice_name:
        raise ValueError(f"--device_kind={device_kind}: only a TPU has slices, {kind} has none")
    count = num_devices or 1
    if kind in GPUS and _installed("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12"):
        return _gpu(kind, count, processes)
    return _pretended(kind, count, processes, "install medloc_jax's `cuda` extra")


def stay_on_cpu(num_devices: int = 1) -> None:
    """Keeps this process from taking a real accelerator, and pretends that many CPU devices.

    Call it before anything starts JAX's backends; afterwards it changes nothing.
    """
    if not xla_bridge.backends_are_initialized():
        jax.config.update("jax_platforms", "cpu")
        asked = re.findall(_PRETENDED_FLAG + r"=(\d+)", os.environ.get("XLA_FLAGS", ""))
        if num_devices > int(asked[-1] if asked else 1):
            jax.config.update("jax_num_cpu_devices", num_devices)


def _default_slice(kind: str, num_devices: int) -> str:
    slices = TPU_SLICES[kind]
    if num_devices not in slices:
        known = ", ".join(f"{count} ({name})" for count, name in slices.items())
        raise ValueError(
            f"--devices={num_devices} of {kind}: the slices are of {known} chips; name another "
            f"as --device_kind={kind}:{slices[16]}"
        )
    return slices[num_devices]


def _chips(kind: str, slice_name: str) -> int:
    axes = slice_name.split("x")
    wanted = len(TPU_SLICES[kind][16].split("x"))
    if len(axes) != wanted or not all(re.fullmatch("[1-9][0-9]*", axis) for axis in axes):
        raise ValueError(
            f"--device_kind={kind}:{slice_name}: write the slice as {TPU_SLICES[kind][16]}"
        )
    return math.prod(int(axis) for axis in axes)


def _installed(*modules: str) -> bool:
    for module in modules:
        try:
            if importlib.util.find_spec(module) is not None:
                return True
        except ModuleNotFoundError:  # of its parent
            continue
    return False


def _tpu(kind: str, slice_name: str, chips: int, processes: int) -> Topology:
    for name, value in _TPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    stay_on_cpu()
    per_host = chips // processes if processes else min(chips, _CHIPS_PER_HOST)
    if per_host not in _HOST_BOUNDS or (processes and chips % processes):
        raise ValueError(
            f"--processes={processes} for {chips} chips: a TPU host has "
            f"{', '.join(map(str, _HOST_BOUNDS))} chips"
        )
    name = f"{kind}:{slice_name}"
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=name, chips_per_host_bounds=_HOST_BOUNDS[per_host]
        ).devices
    except Exception as error:
        reason = " ".join(str(error).split())
        if "lockfile" in reason or "already in use" in reason:
            raise ValueError(
                "another process is using the TPU compiler, which works for one process at a "
                "time: wait until it has ended, or end it (a lock that nobody holds is "
                "/tmp/libtpu_lockfile)"
            ) from error
        raise ValueError(f"--device_kind={name}: the TPU compiler says {reason}") from error
    return Topology(
        kind=kind,
        name=name,
        devices=found,
        processes=len({device.process_index for device in found}),
        compiled_by=plan.TPU_COMPILER,
        note="",
    )


def _gpu(kind: str, count: int, processes: int) -> Topology:
    stay_on_cpu()
    per_host = _gpus_per_host(kind, count, processes)
    hosts = count // per_host
    shape = f"1x{hosts}x{per_host}"  # partitions x hosts x GPUs
    found = topologies.get_topology_desc(
        platform="cuda", topology_name=kind, topology=shape, target_config=gpu_target(kind)
    ).devices
    return Topology(
        kind=kind,
        name=f"{hosts}x{per_host}",
        devices=found,
        processes=hosts,
        compiled_by=plan.GPU_COMPILER,
        note="",
    )


def _gpus_per_host(kind: str, count: int, processes: int) -> int:
    """GPUs of one host.

    Raises:
        ValueError: they do not divide.
    """
    if processes:
        if processes < 1 or count % processes:
            raise ValueError(f"--devices={count} does not divide over --processes={processes}")
        return count // processes
    most = devices.DEVICES[kind].devices_per_host if kind in devices.DEVICES else count
    if count > most and count % most:
        raise ValueError(
            f"--devices={count}: a host has {most} {kind}; give a multiple, or --processes"
        )
    return min(count, most)


def _pretended(kind: str, count: int, processes: int, cure: str) -> Topology:
    if kind in GPUS:
        processes = count // _gpus_per_host(kind, count, processes)
    elif kind in TPU_SLICES and not processes:
        processes = max(1, count // _CHIPS_PER_HOST)
    processes = processes or 1
    if count % processes:
        raise ValueError(f"--devices={count} does not divide over --processes={processes}")
    stay_on_cpu(count)
    found = jax.devices("cpu")
    if len(found) < count:
        raise ValueError(
            f"{count} pretended CPU devices are needed and JAX has started with {len(found)}: set "
            f"XLA_FLAGS={_PRETENDED_FLAG}={count} before it starts"
        )
    note = (
        ""
        if kind == "cpu"
        else f"compiled by {plan.PRETENDED}, not by the compiler of a {kind}: "
        "its memory and collectives are an approximation, and bfloat16 products are made in "
        f"float32 there; {cure} for the real one"
    )
    return Topology(
        kind=kind,
        name="",
        devices=found[:count],
        processes=processes,
        compiled_by=plan.PRETENDED,
        note=note,
    )


def gpu_target(kind: str) -> str:
    """What XLA's GPU compiler wants to know of a card, as the text of its protocol buffer.

    H100, H800 and H200 are one chip (GH100, 132 multiprocessors of compute capability 9.0); memory
    and its rate differ, and the H800's NVLink, which XLA does not ask for.

    Reference: NVIDIA H100 Tensor Core GPU Architecture (white paper), table "Comparison of NVIDIA
    A100 and H100"; CUDA C++ Programming Guide, table "Technical Specifications per Compute
    Capability".
    """
    card = devices.DEVICES[kind]
    limits = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 1024,
        "shared_memory_per_core": 228 * 1024,
        "threads_per_core_limit": 2048,
        "core_count": 132,
        "fpus_per_core": 128,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": int(card.memory_rate),
        "l2_cache_size": 50 * 2**20,
        "clock_rate_ghz": 1.98,
        "device_memory_size": card.memory_bytes,
        "shared_memory_per_block_optin": 227 * 1024,
        "cuda_compute_capability": "{ major: 9 minor: 0 }",
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    fields = "\n".join(
        f"  {name} {value}" if str(value).startswith("{") else f"  {name}: {value}"
        for name, value in limits.items()
    )
    return (
        f"gpu_device_info {{\n{fields}\n}}\n"
        'platform_name: "CUDA"\n'
        "dnn_version_info { major: 9 minor: 12 patch: 0 }\n"
        f'device_description_str: "NVIDIA {kind.upper()}"\n'
    )
