# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Score a checkpoint on a split, greedily, every example once.

    medloc evaluate --workdir=RUN [--checkpoint=STEP_FOLDER] [--split=test] [--manifest=FILE]
    medloc evaluate --config=configs/x.py --checkpoint=FOLDER --workdir=OUT [--split=test]

The first form reads the run's own configuration and its newest checkpoint; the second scores any
checkpoint under any configuration. Results go to WORKDIR/eval/<split>-<step>/.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from medloc_jax import distributed


def main(argv: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    distributed.initialize()
    # These import jax's backends, which must not happen before the line above.
    from medloc_jax import checkpoint
    from medloc_jax.cli import job as jobs
    from medloc_jax.training import job as training_jobs
    from medloc_jax.training import programs

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "the run's folder", flag_values=values)
        flags.DEFINE_string("checkpoint", "", "what to score; default: newest", flag_values=values)
        flags.DEFINE_string("split", "", "train, val or test", flag_values=values)
        flags.DEFINE_string("manifest", "", "other data than the run's", flag_values=values)
        flags.mark_flag_as_required("workdir", flag_values=values)

    given = jobs.parse(argv, "evaluate", define)
    workdir = Path(given.workdir)
    config = given.config if given.config is not None else jobs.read_config(workdir)
    config.eval.final_split = given.split or config.eval.final_split or config.eval.split
    if given.manifest:
        config.data.manifest = given.manifest
    job = jobs.open_job(config, workdir)
    source = given.checkpoint or str(workdir)
    like = jobs.params_struct(job.model, job.mesh)
    restored = checkpoint.load_items(source, {"params": like})
    evaluate = training_jobs.Evaluator(job, programs.encode_program(job.model, job.mesh))
    params = restored.arrays["params"]
    print(programs.compile_all(evaluate.tasks(params), job.buckets))
    split = config.eval.final_split
    for name, value in evaluate(params, split, restored.step).items():
        if distributed.is_primary():
            print(f"{name} {value:.4f}")
    if distributed.is_primary():
        print(f"written to {workdir / 'eval' / f'{split}-{restored.step}'}")
    return 0
