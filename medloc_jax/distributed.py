# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Starts JAX's distributed runtime, and gathers what the hosts know.

Every process runs the same program. Where the processes find each other is read from the
environment, first match first:

* `MEDLOC_COORDINATOR` (host:port), `MEDLOC_NUM_PROCESSES`, `MEDLOC_PROCESS_ID`: they work
  everywhere, and `launch/local.sh` sets them. `MEDLOC_COORDINATOR=auto` alone leaves everything
  to JAX's own detection (a Cloud TPU VM, whose environment names nothing).
* SLURM: a step (`srun`) of more than one task.
* GKE: `TPU_WORKER_HOSTNAMES` with more than one name, or a multislice coordinator.

With none of them there is one process, and every function here is the identity.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_COORDINATOR = "MEDLOC_COORDINATOR"
_NUM_PROCESSES = "MEDLOC_NUM_PROCESSES"
_PROCESS_ID = "MEDLOC_PROCESS_ID"


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
    jax.distributed.initialize(**arguments)


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
        return {}
    on_gke = "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    return {} if on_gke or environment.get("MEGASCALE_COORDINATOR_ADDRESS") else None


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


def barrier(name: str) -> None:
    """Waits until every process has come to the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
