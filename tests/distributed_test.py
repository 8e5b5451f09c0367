# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reading the environment, and two real processes over loopback."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from medloc_jax import distributed

ROOT = Path(__file__).resolve().parents[1]
PLAIN = {
    "MEDLOC_COORDINATOR": "10.0.0.1:1234",
    "MEDLOC_NUM_PROCESSES": "4",
    "MEDLOC_PROCESS_ID": "3",
}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"MEDLOC_COORDINATOR": ""},
        PLAIN | {"MEDLOC_NUM_PROCESSES": "1", "MEDLOC_PROCESS_ID": "0"},
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"},  # the batch script itself
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
    ],
)
def test_one_process_joins_nobody(environment):
    assert distributed.settings(environment) is None


def test_plain_variables_are_the_arguments():
    assert distributed.settings(PLAIN) == {
        "coordinator_address": "10.0.0.1:1234",
        "num_processes": 4,
        "process_id": 3,
    }


@pytest.mark.parametrize(
    "environment",
    [
        {"MEDLOC_COORDINATOR": "auto"},
        {"SLURM_STEP_NUM_TASKS": "2"},
        {"TPU_WORKER_HOSTNAMES": "a,b"},
        {"MEGASCALE_COORDINATOR_ADDRESS": "a"},
    ],
)
def test_clusters_are_left_to_jax(environment):
    assert distributed.settings(environment) == {}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"MEDLOC_PROCESS_ID": ""}, "not MEDLOC_PROCESS_ID"),
        ({"MEDLOC_COORDINATOR": ""}, "not MEDLOC_COORDINATOR"),
        ({"MEDLOC_COORDINATOR": "10.0.0.1"}, "host:port"),
        ({"MEDLOC_PROCESS_ID": "4"}, "0 <= id < number"),
        ({"MEDLOC_PROCESS_ID": "-1"}, "0 <= id < number"),
        ({"MEDLOC_NUM_PROCESSES": "four"}, "MEDLOC_NUM_PROCESSES=four"),
    ],
)
def test_half_set_or_wrong_variables_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        distributed.settings(PLAIN | change)


def test_one_process_is_primary_and_gathers_itself():
    distributed.initialize()
    assert distributed.is_primary()
    array = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(distributed.all_hosts(array), array)
    distributed.barrier("alone")


_TWO = """
    import sys
    from medloc_jax import checkpoint, distributed
    distributed.initialize()
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    me = jax.process_index()
    assert distributed.is_primary() == (me == 0)
    ious = np.array([[0.1 + 0.2 + me, 1e-300]])  # float64, which JAX alone would round
    everyone = distributed.all_hosts(ious)
    np.testing.assert_array_equal(everyone, [[0.1 + 0.2, 1e-300], [0.1 + 0.2 + 1, 1e-300]])
    assert everyone.dtype == np.float64
    assert distributed.all_hosts(np.array([me == 1])).tolist() == [False, True]
    distributed.barrier("here")

    mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), axis_types=(AxisType.Auto,))
    shard = NamedSharding(mesh, PartitionSpec("fsdp"))
    rows = jax.device_count()
    w = jax.make_array_from_callback((rows, 3), shard, lambda i: np.ones((1, 3)) * i[0].start)
    n = jax.device_put(np.float32(5), NamedSharding(mesh, PartitionSpec()))
    saver = checkpoint.Checkpointer(sys.argv[1], keep_last=1, keep_best=0)
    for step in (1, 2):
        assert saver.save(step, {"params": {"w": w, "n": n}}, {"step": step}).saved
    assert saver.steps() == [2]
    two = jax.make_mesh((2, rows // 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    other = NamedSharding(two, PartitionSpec("fsdp"))
    like = {"params": {"w": jax.ShapeDtypeStruct((rows, 3), jnp.float32, sharding=other),
                       "n": jax.ShapeDtypeStruct((), jnp.float32, sharding=n.sharding)}}
    restored = saver.restore(like)
    assert restored.host_state == {"step": 2}
    got = restored.arrays["params"]["w"]
    assert got.sharding == other
    for piece in got.addressable_shards:
        np.testing.assert_array_equal(piece.data[:, 0], np.arange(rows)[piece.index[0]])
    print("done", me)
"""


def _launch(arguments, timeout=180):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHON": sys.executable,
    }
    return subprocess.run(
        ["bash", "launch/local.sh", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        cwd=ROOT,
    )


@pytest.mark.multiprocess
def test_two_processes_gather_and_checkpoint_together(tmp_path):
    code = textwrap.dedent(_TWO)
    done = _launch(["2", sys.executable, "-c", code, str(tmp_path / "c")])
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"[0] done 0", "[1] done 1"} <= set(done.stdout.splitlines())


@pytest.mark.multiprocess
def test_when_one_process_fails_the_others_are_ended(tmp_path):
    script = """
        if [ "$MEDLOC_PROCESS_ID" = 1 ]; then sleep 0.5; printf 'torn line'; exit 7; fi
        sleep 100 & echo $! > "$0/$MEDLOC_PROCESS_ID"; wait
    """
    done = _launch(["3", "bash", "-c", script, str(tmp_path)], timeout=60)
    assert done.returncode == 7
    assert "[1] torn line" in done.stdout.splitlines()
    for process in "02":
        pid = int((tmp_path / process).read_text())
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().split()[2] == "Z"


def test_a_command_that_is_not_there_ends_at_once():
    """Processes are ended before they have opened their pipes; the launcher hung now and then."""
    for _ in range(8):
        done = _launch(["3", "no-such-command"], timeout=20)
        assert done.returncode == 127 and "no-such-command" in done.stdout


def test_the_launcher_says_how_to_use_it():
    done = _launch(["two", "true"])
    assert done.returncode == 2 and "usage:" in done.stderr
