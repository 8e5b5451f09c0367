# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The table of accelerators, and the names by which jax knows them."""

import pytest

from medloc_jax import devices


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H800", "h800"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("h800", "h800"),
    ],
)
def test_jaxs_names_are_known(name, kind):
    device = devices.of(name)
    assert device is not None and device.kind == kind


@pytest.mark.parametrize(
    "name",
    [
        *(
            "cpu",
            "",
            "NVIDIA H100 PCIe",
            "NVIDIA H100 NVL",
            "NVIDIA H200 NVL",
            "NVIDIA GH200 480GB",
        ),
        *("NVIDIA A100-SXM4-40GB", "NVIDIA GeForce RTX 4090", "TPU v5 litepod", "TPU v7x"),
    ],
)
def test_a_board_with_other_rates_has_none(name):
    assert devices.of(name) is None


def test_the_table_is_sane():
    assert all(kind == device.kind for kind, device in devices.DEVICES.items())
    for device in devices.DEVICES.values():
        assert 0.75 < device.usable_flops / device.peak_flops < 0.9
        assert 0.85 < device.usable_memory_rate / device.memory_rate < 0.9
        # FLOPs that a byte must bring before arithmetic is the limit: alike everywhere.
        assert 100 < device.peak_flops / device.memory_rate < 600
        assert (device.devices_per_host > 0) == (device.network_rate > 0)
        assert device.network_rate < device.link_rate < device.memory_rate
    assert devices.DEVICES["h800"].link_rate * 2 == 400e9
    assert devices.DEVICES["h200"].usable_flops == 790e12
    assert devices.DEVICES["h200"].usable_memory_rate == 4.3e12
    assert devices.DEVICES["h800"].usable_memory_rate == 3.0e12
