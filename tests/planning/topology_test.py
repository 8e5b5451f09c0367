# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import jax
import pytest

from medloc_jax import devices, sharding
from medloc_jax.planning import plan, topology


@pytest.fixture
def no_compilers(monkeypatch):
    """As where neither extra is installed."""
    monkeypatch.setattr(topology, "_installed", lambda *modules: False)


@pytest.fixture
def tpu_compiler(monkeypatch):
    """A stand-in for libtpu's topologies; returns what it was asked for."""
    asked = {}

    def get(platform, topology_name, **options):
        asked.update(options, platform=platform, name=topology_name)
        return type("Description", (), {"devices": jax.devices()[:4]})

    monkeypatch.setattr(topology, "_installed", lambda *modules: True)
    monkeypatch.setattr(topology.topologies, "get_topology_desc", get)
    return asked


def test_without_a_compiler_devices_are_pretended_and_it_says_so(no_compilers):
    found = topology.find("h800", 4)
    assert len(found.devices) == 4 and found.compiled_by == plan.PRETENDED and found.name == ""
    assert "not by the compiler of a h800" in found.note and "`cuda` extra" in found.note
    assert "`tpu` extra" in topology.find("v5e:2x2").note
    assert topology.find("cpu", 8).note == ""
    assert sharding.make_mesh(data=1, fsdp=2, tensor=2, devices=found.devices).size == 4


def test_more_pretended_devices_than_jax_started_with_are_refused(no_compilers):
    with pytest.raises(ValueError, match="device_count=64 before it starts"):
        topology.find("v5p", 64)


@pytest.mark.parametrize(
    ("asked", "hosts"),
    [
        (("h800", 32), 4),
        (("h800", 8), 1),
        (("h800", 4), 1),
        (("h800", 32, 2), 2),
        (("v5p", 32), 8),
        (("v5e", 1), 1),
        (("v5e", 8, 1), 1),
        (("cpu", 32), 1),
    ],
)
def test_pretended_devices_have_as_many_hosts_as_the_real_ones(
    asked, hosts, no_compilers, monkeypatch
):
    monkeypatch.setattr(topology.jax, "devices", lambda *_: [None] * 32)
    found = topology.find(*asked)
    assert found.compiled_by == plan.PRETENDED and found.processes == hosts


def test_pretended_gpus_that_fill_no_hosts_are_refused(no_compilers):
    with pytest.raises(ValueError, match="a host has 8 h800"):
        topology.find("h800", 12)


@pytest.mark.parametrize(
    ("asked", "name", "bounds"),
    [
        (("v5e", 16), "v5e:4x4", (2, 2, 1)),
        (("v5e", 1), "v5e:1x1", (1, 1, 1)),
        (("v5e", 8, 1), "v5e:2x4", (2, 4, 1)),
        (("v6e:2x4",), "v6e:2x4", (2, 2, 1)),
        (("v5p", 8), "v5p:2x2x2", (2, 2, 1)),
        (("v5p", 64), "v5p:4x4x4", (2, 2, 1)),
        (("v5p", 256), "v5p:4x8x8", (2, 2, 1)),
        (("v5p:4x4x4", 64, 16), "v5p:4x4x4", (2, 2, 1)),
    ],
)
def test_slices_of_tpus(asked, name, bounds, tpu_compiler):
    found = topology.find(*asked)
    assert found.name == name == tpu_compiler["name"] and found.compiled_by == plan.TPU_COMPILER
    assert tpu_compiler["chips_per_host_bounds"] == bounds


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("v9",), "choose one of h100"),
        (("v5e", 5), "slices are of .*name another as --device_kind=v5e:4x4"),
        (("v5e:4x4x4",), "write the slice as 4x4"),
        (("v5p:4x4",), "write the slice as 2x2x4"),
        (("v5e:4x4", 8), "has 16 chips, not --devices=8"),
        (("v5e", 16, 3), "--processes=3 for 16 chips"),
        (("h800:2x2",), "only a TPU has slices"),
        (("h800", 12), "a host has 8 h800"),
        (("h800", 9, 2), "does not divide over --processes=2"),
    ],
)
def test_what_cannot_be_is_refused(asked, message, tpu_compiler):
    with pytest.raises(ValueError, match=message):
        topology.find(*asked)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("ABORTED: Internal error when accessing libtpu multi-process lockfile.", "one process at"),
        ("INVALID_ARGUMENT: Topology layout is not divisible", "compiler says INVALID_ARGUMENT"),
    ],
)
def test_what_the_tpu_compiler_refuses_is_one_line(words, message, monkeypatch, tpu_compiler):
    def refuse(*_, **__):
        raise jax.errors.JaxRuntimeError(words)

    monkeypatch.setattr(topology.topologies, "get_topology_desc", refuse)
    with pytest.raises(ValueError, match=message):
        topology.find("v5e:2x2")


def test_gpus_are_put_into_hosts_of_eight(monkeypatch):
    asked = []

    def get(platform, topology_name, **options):
        asked.append((platform, options["topology"], options["target_config"]))
        return type("Description", (), {"devices": jax.devices()})

    monkeypatch.setattr(topology, "_installed", lambda *modules: True)
    monkeypatch.setattr(topology.topologies, "get_topology_desc", get)
    assert topology.find("h800", 32).processes == 4
    assert topology.find("h200").name == "1x1"
    assert topology.find("h100", 8, 2).processes == 2
    assert [shape for _, shape, _ in asked] == ["1x4x8", "1x1x1", "1x2x4"]
    assert f"device_memory_size: {devices.DEVICES['h200'].memory_bytes}" in asked[1][2]


def test_every_kind_has_its_datasheet():
    assert set(topology.KINDS) - {"cpu"} <= devices.DEVICES.keys()
