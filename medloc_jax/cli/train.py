# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Train, or go on training.

    medloc train --config=configs/demo.py --workdir=runs/mine [--config.seed=43 ...]

The same command continues a run that was stopped or killed. A run starts from another's weights by
--config.model.init_from=OTHER_WORKDIR.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from medloc_jax import distributed, storage, watchdog


def main(argv: Sequence[str]) -> int:
    """Runs the verb; returns the exit code (the table in watchdog.py)."""
    distributed.initialize()
    # These import jax's backends, which must not happen before the line above.
    import jax

    from medloc_jax.cli import job as jobs
    from medloc_jax.training import diagnostics

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "the run's folder", flag_values=values)
        flags.mark_flags_as_required(["config", "workdir"], flag_values=values)

    given = jobs.parse(argv, "train", define)
    workdir = storage.path(given.workdir)
    jobs.use_compilation_cache()
    dog = watchdog.Watchdog(
        given.workdir,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        attempt=int(distributed.all_hosts(np.array([time.time_ns()]))[0]),
        **given.config.watchdog.to_dict(),
    )
    try:
        with watchdog.watching(dog):
            return _train(given.config, workdir)
    except (distributed.DisagreementError, diagnostics.NonFiniteError) as error:
        print(f"medloc train: error: {error}", file=sys.stderr)
        return error.exit_code


def _train(config: Any, workdir: Any) -> int:
    from medloc_jax.cli import job as jobs
    from medloc_jax.training import grpo, sft

    jobs.resolve(config)
    job = jobs.open_job(config, workdir)
    jobs.write_config(config, workdir)
    if config.method == "sft":
        return sft.train(job, jobs.sft_loader(job))
    return grpo.train(job)
