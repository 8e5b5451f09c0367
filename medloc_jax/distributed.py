# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Starts JAX's distributed runtime, and gathers what the hosts know.

Every process runs the same program. Where the processes find each other is read from the
environment, first match first:

* `MEDLOC_COORDINATOR` (host:port), `MEDLOC_NUM_PROCESSES`, `MEDLOC_PROCESS_ID`: they work
  everywhere, and `launch/local.sh` sets them. `MEDLOC_COORDINATOR=auto` alone leaves everything
  to JAX's own detection (a Cloud TPU VM, whose environment names nothing).
* SLURM: a step (`srun`) of more than one task; one a node has all of its GPUs, one a GPU that one.
* GKE: `TPU_WORKER_HOSTNAMES` with more than one name, or a multislice coordinator.

With none of them there is one process, and every function here is the identity.

SIGTERM is the notice of a preemption everywhere (SLURM, Kubernetes, Cloud TPU). JAX's own service
for it takes the signal in C++ at start-up, so that a process that is still starting would no longer
end by it, and loses it to the first handler that Python installs. It is switched off: the run's
handler (`training.job.StopSignal`) notes the signal, and the processes agree once a step on who was
asked, in the gather that also checks that they hold the same (`agree`).
"""

import dataclasses
import os
import socket
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_COORDINATOR = "MEDLOC_COORDINATOR"
_NUM_PROCESSES = "MEDLOC_NUM_PROCESSES"
_PROCESS_ID = "MEDLOC_PROCESS_ID"

# After so long without a heartbeat of its own, JAX's runtime ends a run with a log that names no
# host. Long, because the watchdog is there to be earlier; where none runs, still an end.
_RUNTIME_HEARTBEAT_SECONDS = 600


class DisagreementError(RuntimeError):
    """The processes hold different states, so that the run is no longer one run."""

    exit_code = 77  # in the table of watchdog.py


def initialize() -> None:
    """Joins the other processes, if there are any. Call it before JAX touches a device.

    Raises:
      ValueError: if the variables are set in part, or not to numbers that make sense.
    """
    arguments = settings(os.environ)
    if arguments is None:
        return
    # Several processes on CPU need a transport for their collectives; other platforms ignore this.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=_RUNTIME_HEARTBEAT_SECONDS)


def settings(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns the arguments of `jax.distributed.initialize`, or None for a run of one process.

    Raises:
      ValueError: as `initialize`.
    """
    names = (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)
    given = {name: environment[name] for name in names if environment.get(name)}
    if given == {_COORDINATOR: "auto"}:
        return {}
    if given:
        return _plain_settings(given, names)
    # Only a job step has this one: the batch script around it also sees SLURM_NTASKS, and is alone.
    if int(environment.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        return _slurm_settings(environment)
    names = (environment.get("TPU_PROCESS_ADDRESSES"), environment.get("TPU_WORKER_HOSTNAMES"))
    on_gke = any("," in name for name in names if name)
    return {} if on_gke or environment.get("MEGASCALE_COORDINATOR_ADDRESS") else None


def _slurm_settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """JAX knows SLURM, and gives each task the one GPU of its number: a task alone takes all."""
    alone = environment["SLURM_STEP_NUM_TASKS"] == environment.get("SLURM_STEP_NUM_NODES")
    num_gpus = int(environment.get("SLURM_GPUS_ON_NODE") or 0)
    return {"local_device_ids": list(range(num_gpus))} if alone and num_gpus > 1 else {}


def _plain_settings(given: Mapping[str, str], names: tuple[str, ...]) -> dict[str, Any] | None:
    missing = [name for name in names if name not in given]
    if missing:
        raise ValueError(
            f"{', '.join(given)} is set but not {', '.join(missing)}: set all of "
            f"{', '.join(names)}, or none for a run of one process"
        )
    try:
        num_processes, process_id = int(given[_NUM_PROCESSES]), int(given[_PROCESS_ID])
    except ValueError:
        num_processes, process_id = 0, 0
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"{_PROCESS_ID}={given[_PROCESS_ID]} and {_NUM_PROCESSES}={given[_NUM_PROCESSES]} must "
            "be whole numbers with 0 <= id < number"
        )
    if not given[_COORDINATOR].rpartition(":")[2].isdigit() or ":" not in given[_COORDINATOR]:
        raise ValueError(f"{_COORDINATOR}={given[_COORDINATOR]} must be host:port, or auto")
    if num_processes == 1:
        return None
    return {
        "coordinator_address": given[_COORDINATOR],
        "num_processes": num_processes,
        "process_id": process_id,
    }


def is_primary() -> bool:
    """Whether this is the process that writes files and talks to the terminal."""
    return jax.process_index() == 0


def all_hosts(array: np.ndarray) -> np.ndarray:
    """Concatenates one host array of every process, in process order; all processes call it.

    Args:
      array: numbers or booleans, 1-D or more, of the same shape and dtype on every process.

    Returns:
      The same on every process, bit for bit: leading axis `process_count` times as long.
    """
    array = np.ascontiguousarray(array)
    if jax.process_count() == 1:
        return array
    # As bytes: JAX would round float64 and int64 to 32 bits.
    gathered = multihost_utils.process_allgather(np.frombuffer(array.tobytes(), np.uint8))
    stacked = np.asarray(gathered).view(array.dtype)
    return stacked.reshape(-1, *array.shape[1:])


@dataclasses.dataclass(frozen=True)
class Agreed:
    """What all processes told each other at the end of a step.

    Attributes:
      asked: whether any was asked to stop.
      total: the sum of what each counted.
    """

    asked: bool
    total: int


def agree(same: Mapping[str, float | int], *, asked: bool = False, count: int = 0) -> Agreed:
    """Checks that all processes hold the same, and gathers two facts, in one small gather.

    Args:
      same: numbers that must be equal everywhere, by name, in the same order on every process.
      asked: whether this process was asked to stop.
      count: a number of this process to add up.

    Returns:
      The same on every process.

    Raises:
      DisagreementError: on every process; names what differs, the processes, hosts and values.
    """
    mine = np.array([[asked, count, *same.values()]], np.float64)
    everyone = all_hosts(mine)
    for column, name in enumerate(same, start=2):
        values = everyone[:, column]
        if np.unique(values.view(np.int64)).size > 1:
            raise DisagreementError(_differ(name, values))
    return Agreed(bool(everyone[:, 0].any()), int(everyone[:, 1].sum()))


def _differ(name: str, values: np.ndarray) -> str:
    """Who holds what; every process calls it, since hosts tell their names."""
    host = socket.gethostname().encode("ascii", "replace")[:64]
    hosts = all_hosts(np.frombuffer(host.ljust(64), np.uint8)[None])
    holders: dict[float, list[str]] = {}
    for index, value in enumerate(values.tolist()):
        holders.setdefault(value, []).append(f"{index} ({hosts[index].tobytes().decode().strip()})")
    told = "; ".join(
        f"{value:.17g} on process{'es' if len(who) > 1 else ''} {', '.join(who[:8])}"
        + (f" and {len(who) - 8} more" if len(who) > 8 else "")
        for value, who in sorted(holders.items(), key=lambda item: len(item[1]))
    )
    return (
        f"the processes do not hold the same {name}: {told}: start all of them again with the same "
        "program and config; the run goes on from its last checkpoint"
    )


def barrier(name: str) -> None:
    """Waits until every process has come to the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
