# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The compiler's options: who sets them, and that the installed compilers know every name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medloc_jax import xla_flags

ROOT = Path(__file__).resolve().parents[1]


def only(*modules):
    return lambda module: module in modules


def test_they_are_set_for_what_is_installed():
    environment = {}
    added = xla_flags.apply(environment, only("jax_plugins.xla_cuda13"))
    assert environment == {"XLA_FLAGS": " ".join(added)}
    assert {one.partition("=")[0] for one in added} == set(xla_flags.GPU)
    environment = {xla_flags.SWITCH: "loops"}
    added = xla_flags.apply(environment, only("jax_plugins.xla_cuda12"))
    assert {one.partition("=")[0] for one in added} == {*xla_flags.GPU, *xla_flags.GPU_LOOPS}
    environment = {}
    assert xla_flags.apply(environment, only()) == [] and environment == {}


def test_what_the_user_has_set_wins():
    name = "--xla_gpu_enable_pipelined_all_gather"
    environment = {"XLA_FLAGS": f"--xla_dump_to=/x {name}=false"}
    added = xla_flags.apply(environment, only("jax_plugins.xla_cuda12"))
    assert not [one for one in added if one.startswith(name)]
    assert environment["XLA_FLAGS"].split()[:2] == ["--xla_dump_to=/x", f"{name}=false"]
    assert xla_flags.apply(environment, only("jax_plugins.xla_cuda12")) == []  # twice is once


def test_the_switch():
    environment = {xla_flags.SWITCH: "off"}
    cuda = only("jax_plugins.xla_cuda13")
    assert xla_flags.apply(environment, cuda) == [] and len(environment) == 1
    with pytest.raises(ValueError, match=xla_flags.SWITCH):
        xla_flags.apply({xla_flags.SWITCH: "0"}, cuda)


def test_an_unknown_jax_gets_none(monkeypatch):
    monkeypatch.setattr(xla_flags.importlib.metadata, "version", lambda _: "0.99.0")
    assert xla_flags.apply({}, only("jax_plugins.xla_cuda13")) == []


def test_pretended_devices_get_threads_enough():
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    assert xla_flags.apply(environment, only()) == ["PJRT_NPROC=32"]
    assert xla_flags.apply(environment, only()) == []
    for name in ("NPROC", "PJRT_NPROC"):
        told = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", name: "9"}
        assert xla_flags.apply(told, only()) == [] and told[name] == "9"
    one = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    assert xla_flags.apply(one, only()) == []


MANY_COLLECTIVES = """
import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P

mesh = jax.make_mesh((8,), ("x",))
x = jax.device_put(jnp.ones((512, 64)), jax.NamedSharding(mesh, P("x")))

def summed(x):
    squares = [jnp.tanh(x @ x.T * i) for i in range(12)]
    sums = [jax.lax.all_gather(one, "x").sum(0) for one in squares]
    return sum(sums) + sum(jax.lax.psum(jnp.sin(one), "x") for one in squares)

run = jax.jit(jax.shard_map(summed, mesh=mesh, in_specs=P("x"), out_specs=P("x")))
for _ in range(300):
    y = run(x)
print("done", y.block_until_ready().shape)
"""


@pytest.mark.parametrize("threads", [8, 32])
def test_many_collectives_at_once_end_where_there_are_threads_enough(threads):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8"
        " --xla_cpu_collective_call_warn_stuck_timeout_seconds=3"
        " --xla_cpu_collective_call_terminate_timeout_seconds=6",
        "PJRT_NPROC": str(threads),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-c", MANY_COLLECTIVES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    if threads == 8 and not xla_flags.importlib.metadata.version("jaxlib").startswith("0.10."):
        return  # newer clients take one collective after the other
    assert (done.returncode == 0) == (threads == 32), done.stderr[-2000:]


def test_a_tpus_options_stand_where_it_reads_them(monkeypatch):
    made_up = ("LIBTPU_INIT_ARGS", {"--xla_made_up": ("1", "why")}, ("libtpu",))
    monkeypatch.setitem(xla_flags.PLATFORMS, "tpu", made_up)
    environment = {}
    xla_flags.apply(environment, only("libtpu"))
    assert environment == {"LIBTPU_INIT_ARGS": "--xla_made_up=1"}


def accepts(flags, program, variable="XLA_FLAGS"):
    """Whether a fresh process with these options comes to its end."""
    environment = dict(os.environ) | {variable: flags, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = str(ROOT)
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, timeout=120
    )
    return ran.returncode == 0


def joined(options):
    return " ".join(f"{name}={value}" for name, (value, _) in options.items())


def test_every_gpu_option_is_known():
    """All of XLA's options stand in one list, whatever the platform."""
    program = "import jax; jax.devices()"
    assert accepts(joined({**xla_flags.GPU, **xla_flags.GPU_LOOPS}), program)
    assert not accepts(
        joined({**xla_flags.GPU, **xla_flags.GPU_LOOPS}) + " --xla_gpu_no_such_option=1", program
    )


COMPILE = """
from medloc_jax.planning import topology
import jax
from jax.sharding import SingleDeviceSharding
where = SingleDeviceSharding(topology.find("{kind}").devices[0])
x = jax.ShapeDtypeStruct((8, 128), "float32", sharding=where)
jax.jit(lambda x: x @ x.T).lower(x).compile()
"""


def test_the_gpu_compiler_takes_them():
    pytest.importorskip("jax_plugins.xla_cuda13", reason="the `cuda` extra is not installed")
    program = COMPILE.format(kind="h200")
    assert accepts(joined({**xla_flags.GPU, **xla_flags.GPU_LOOPS}), program)
    assert not accepts(
        joined({**xla_flags.GPU, **xla_flags.GPU_LOOPS}) + " --xla_gpu_no_such_option=1", program
    )


def test_the_tpu_compiler_takes_them():
    pytest.importorskip("libtpu", reason="the `tpu` extra is not installed")
    program = COMPILE.format(kind="v5e:2x2")
    wrong = joined(xla_flags.TPU) + " --xla_tpu_no_such_option=1"
    assert accepts(joined(xla_flags.TPU), program, "LIBTPU_INIT_ARGS")
    assert not accepts(wrong, program, "LIBTPU_INIT_ARGS")
