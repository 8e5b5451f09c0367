# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What accelerators can do, by their datasheets, and how much of it to count on.

Rates are of one device and bytes are decimal where nothing else is said. Link rates are of one
direction, all of a device's links together: a datasheet's "bidirectional" figure is twice that.
"""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Device:
    """One kind of accelerator.

    Attributes:
        kind: its short name, a key of `DEVICES`.
        peak_flops: dense bfloat16, FLOP/s, by the datasheet.
        memory_bytes: device memory.
        memory_rate: of that memory, byte/s, by the datasheet.
        link_rate: to its neighbours (NVLink, ICI), byte/s in one direction.
        usable_flops: what a large matrix product reaches, FLOP/s: floors count with it.
        usable_memory_rate: likewise, byte/s.
        devices_per_host: that NVLink joins; 0 = the whole slice is on one interconnect (TPU).
        network_rate: share of the host's network, byte/s in one direction; 0 for a slice.
    """

    kind: str
    peak_flops: float
    memory_bytes: int
    memory_rate: float
    link_rate: float
    usable_flops: float
    usable_memory_rate: float
    devices_per_host: int = 0
    network_rate: float = 0.0


# Measured on an H200: 790 of 989 TFLOP/s in bfloat16 matrix products, 4.3 of 4.8 TB/s. Others are
# derated alike where nobody has measured them; so are links, for want of a measurement.
_MATRIX_SHARE = 790 / 989
_MEMORY_SHARE = 4.3 / 4.8
LINK_SHARE = 0.8


def _tpu(
    kind: str, *, peak_flops: float, memory_bytes: int, memory_rate: float, link_rate: float
) -> Device:
    return Device(
        kind=kind,
        peak_flops=peak_flops,
        memory_bytes=memory_bytes,
        memory_rate=memory_rate,
        link_rate=link_rate,
        usable_flops=peak_flops * _MATRIX_SHARE,
        usable_memory_rate=memory_rate * _MEMORY_SHARE,
    )


# NVIDIA: dense figures are half of those "with sparsity"; NVLink's are of both directions. The
# network is the DGX/HGX reference design's: one 400 Gbit/s adapter a GPU (A100: 200).
# TPU: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}; chips, not cores. Memory is as XLA counts it.

# NVIDIA H100 Tensor Core GPU datasheet, SXM: 1979 TFLOP/s sparse, 80 GB, 3.35 TB/s, 900 GB/s.
_H100 = Device(
    kind="h100",
    peak_flops=989e12,
    memory_bytes=80 * 2**30,
    memory_rate=3.35e12,
    link_rate=450e9,
    usable_flops=790e12,
    usable_memory_rate=3.0e12,
    devices_per_host=8,
    network_rate=50e9,
)

DEVICES: dict[str, Device] = {
    "h100": _H100,
    # The H100 with NVLink cut to 400 GB/s: HGX H800 datasheet.
    "h800": dataclasses.replace(_H100, kind="h800", link_rate=200e9),
    # NVIDIA H200 datasheet, SXM: as H100, 141 GB (143771 MiB are reported), 4.8 TB/s, 900 GB/s.
    "h200": dataclasses.replace(
        _H100,
        kind="h200",
        memory_bytes=143771 * 2**20,
        memory_rate=4.8e12,
        usable_memory_rate=4.3e12,
    ),
    # NVIDIA A100 80GB datasheet, SXM: 312 TFLOP/s dense, 2039 GB/s, 600 GB/s.
    "a100": Device(
        kind="a100",
        peak_flops=312e12,
        memory_bytes=80 * 2**30,
        memory_rate=2.039e12,
        link_rate=300e9,
        usable_flops=270e12,
        usable_memory_rate=1.75e12,
        devices_per_host=8,
        network_rate=25e9,
    ),
    # v4: 275 TFLOP/s, 32 GiB at 1228 GB/s, 2400 Gbit/s.
    "v4": _tpu(
        "v4",
        peak_flops=275e12,
        memory_bytes=32 * 2**30,
        memory_rate=1228e9,
        link_rate=300e9,
    ),
    # v5e: 197 TFLOP/s, 16 GB at 819 GB/s, 1600 Gbit/s (400 GB/s in both directions).
    "v5e": _tpu(
        "v5e",
        peak_flops=197e12,
        memory_bytes=16 * 2**30,
        memory_rate=819e9,
        link_rate=200e9,
    ),
    # v5p: 459 TFLOP/s, 95 GB at 2765 GB/s, 4800 Gbit/s.
    "v5p": _tpu(
        "v5p",
        peak_flops=459e12,
        memory_bytes=95 * 2**30,
        memory_rate=2765e9,
        link_rate=600e9,
    ),
    # v6e: 918 TFLOP/s, 32 GB at 1600 GB/s, 3200 Gbit/s (800 GB/s in both directions).
    "v6e": _tpu(
        "v6e",
        peak_flops=918e12,
        memory_bytes=32 * 2**30,
        memory_rate=1600e9,
        link_rate=400e9,
    ),
}

# What jax calls them. Boards of the same name with other rates (PCIe, NVL, Grace) are not matched:
# no utilisation is better than a wrong one.
_JAX_KINDS: tuple[tuple[str, str], ...] = (
    (r"NVIDIA H100( 80GB HBM3| SXM5?.*)?", "h100"),
    (r"NVIDIA H800( 80GB HBM3| SXM5?.*)?", "h800"),
    (r"NVIDIA H200( SXM5?.*)?", "h200"),
    (r"NVIDIA A100-SXM4-80GB", "a100"),
    (r"TPU v4", "v4"),
    (r"TPU (v5 lite|v5e)", "v5e"),
    (r"TPU (v5|v5p)", "v5p"),
    (r"TPU (v6 lite|v6e)", "v6e"),
)


def of(device_kind: str) -> Device | None:
    """The device that jax calls by that name (`device.device_kind`), or one of `DEVICES`.

    Returns:
        None for a CPU, and for what the table does not know.
    """
    if device_kind in DEVICES:
        return DEVICES[device_kind]
    for pattern, kind in _JAX_KINDS:
        if re.fullmatch(pattern, device_kind, re.IGNORECASE):
            return DEVICES[kind]
    return None
