# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Train, or go on training.

    medloc train --config=configs/demo.py --workdir=runs/mine [--config.seed=43 ...]

The same command continues a run that was stopped or killed. A run starts from another's weights by
--config.model.init_from=OTHER_WORKDIR.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from medloc_jax import distributed


def main(argv: Sequence[str]) -> int:
    """Runs the verb; returns the exit code: 143 after SIGTERM."""
    distributed.initialize()
    # These import jax's backends, which must not happen before the line above.
    from medloc_jax.cli import job as jobs
    from medloc_jax.training import grpo, sft

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "the run's folder", flag_values=values)
        flags.mark_flags_as_required(["config", "workdir"], flag_values=values)

    given = jobs.parse(argv, "train", define)
    workdir = Path(given.workdir)
    jobs.use_compilation_cache()
    jobs.resolve(given.config)
    job = jobs.open_job(given.config, workdir)
    jobs.write_config(given.config, workdir)
    if given.config.method == "sft":
        return sft.train(job, jobs.sft_loader(job))
    return grpo.train(job)
