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
        {"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_HOSTNAMES": "a"},
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


# Clusters as they present themselves, read by JAX's own detection.

_SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "gpu[07-10]",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_GPUS_ON_NODE": "8",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
_TPU = {
    "TPU_WORKER_ID": "2",
    "TPU_WORKER_HOSTNAMES": "run-slice-0-0.run,run-slice-0-1.run,run-slice-0-2.run",
}
_TWO_SLICES = _TPU | {
    "MEGASCALE_COORDINATOR_ADDRESS": "run-slice-0-0.run:8080",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
}


@pytest.mark.parametrize(
    ("environment", "on_tpu", "expected"),
    [
        # One task a node takes all of its GPUs.
        (_SLURM, False, ("gpu07:61441", 4, 2, list(range(8)))),
        # One task a GPU takes the one of its number.
        (
            _SLURM
            | {"SLURM_NTASKS": "32", "SLURM_STEP_NUM_TASKS": "32"}
            | {"SLURM_PROCID": "13", "SLURM_LOCALID": "5"},
            False,
            ("gpu07:61441", 32, 13, [5]),
        ),
        # A node without GPUs.
        (_SLURM | {"SLURM_GPUS_ON_NODE": ""}, False, ("gpu07:61441", 4, 2, [0])),
        (_TPU, True, ("run-slice-0-0.run:8482", 3, 2, None)),
        (_TWO_SLICES, True, ("run-slice-0-0.run:8482", 6, 5, None)),
        # A multislice of one host each.
        (
            _TWO_SLICES | {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"},
            True,
            ("run-slice-0-0.run:8482", 2, 1, None),
        ),
    ],
)
def test_jax_finds_the_others_in_what_a_cluster_sets(environment, on_tpu, expected, monkeypatch):
    from jax._src import clusters
    from jax._src.clusters import cloud_tpu_cluster, cluster

    for name in list(os.environ):
        if name.startswith(("SLURM_", "TPU_", "MEGASCALE_", "MEDLOC_")):
            monkeypatch.delenv(name)
    for name, value in (environment | {"TPU_SKIP_MDS_QUERY": "1"}).items():
        monkeypatch.setenv(name, value)
    for module in (cluster, cloud_tpu_cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", on_tpu)
    monkeypatch.setattr("socket.gethostbyname", lambda name: "10.0.0.1")
    # What of several slices is not in the environment, JAX asks the machine about.
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: ("", 200))
    arguments = distributed.settings(os.environ)
    assert arguments is not None
    found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, arguments.get("local_device_ids"), None, 10
    )
    assert found == expected


def test_one_process_agrees_with_itself():
    told = distributed.agree({"step": 3, "threshold": 0.1 + 0.2}, asked=True, count=2)
    assert told == distributed.Agreed(asked=True, total=2)
    assert not distributed.agree({}).asked


def test_what_differs_is_named_with_processes_hosts_and_values(monkeypatch):
    """Four processes, of which two hold other thresholds by the last bit or more."""
    thresholds = [0.3, 0.3, 0.35, 0.1 + 0.2]
    told = [[index == 2, index, 5, threshold, 7] for index, threshold in enumerate(thresholds)]
    hosts = [name.encode().ljust(64) for name in ("a", "b", "c", "d")]

    def all_hosts(array):
        if array.dtype == np.uint8:
            return np.stack([np.frombuffer(name, np.uint8) for name in hosts])
        return np.array(told, np.float64)

    monkeypatch.setattr(distributed, "all_hosts", all_hosts)
    same = {"step": 5, "threshold": 0.3, "schedule checksum": 7}
    with pytest.raises(distributed.DisagreementError) as caught:
        distributed.agree(same)
    text = str(caught.value)
    assert "do not hold the same threshold: " in text
    assert "0.35 on process 2 (c)" in text.replace("0.34999999999999998", "0.35")
    assert "on processes 0 (a), 1 (b)" in text
    assert "0.30000000000000004 on process 3 (d)" in text
    for row in told:
        row[3] = 0.3
    assert distributed.agree(same) == distributed.Agreed(asked=True, total=6)


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
    done = _launch(["3", "bash", "-c", script, str(tmp_path)], timeout=150)
    assert done.returncode == 7
    assert "[1] torn line" in done.stdout.splitlines()
    for process in "02":
        pid = int((tmp_path / process).read_text())
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().split()[2] == "Z"


def test_a_command_that_is_not_there_ends_at_once():
    """Processes are ended before they have opened their pipes; the launcher hung now and then."""
    for _ in range(8):
        done = _launch(["3", "no-such-command"], timeout=90)
        assert done.returncode == 127 and "no-such-command" in done.stdout


def test_a_printer_that_comes_late_on_a_busy_machine_ends_too(tmp_path):
    script = (ROOT / "launch" / "local.sh").read_text()
    printer = 'print_lines "$i" <"$pipes/$i" &'
    assert script.count(printer) == 1
    late = f"{{ sleep $((i == 2 ? 1 : 0)); {printer[:-2]}; }} &"
    (tmp_path / "late.sh").write_text(script.replace(printer, late))
    done = subprocess.run(["bash", str(tmp_path / "late.sh"), "3", "false"], timeout=90)
    assert done.returncode == 1


def test_the_launcher_says_how_to_use_it():
    done = _launch(["two", "true"])
    assert done.returncode == 2 and "usage:" in done.stderr
