# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Score a checkpoint on a split, greedily, every example once.

    medloc evaluate --workdir=RUN [--checkpoint=FOLDER] [--split=test] [--manifest=FILE]
                    [--out=DIR] [--config=configs/x.py]

Reads the run's own configuration (or the one given) and its newest checkpoint, and writes to
RUN/eval/<split>-<step>/. With other data or a checkpoint from elsewhere (a step, another run, a
Hugging Face folder), --out says where to.
"""

from collections.abc import Sequence

from absl import flags

from medloc_jax import config as configuration
from medloc_jax import distributed, storage


def main(argv: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    distributed.initialize()
    # These import jax's backends, which must not happen before the line above.
    from medloc_jax import checkpoint
    from medloc_jax.cli import job as open_job
    from medloc_jax.convert import parameters
    from medloc_jax.training import job as jobs
    from medloc_jax.training import programs

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "the run's folder", flag_values=values)
        flags.DEFINE_string("checkpoint", "", "what to score; default: newest", flag_values=values)
        flags.DEFINE_string("split", "", "train, val or test", flag_values=values)
        flags.DEFINE_string("manifest", "", "other data than the run's", flag_values=values)
        flags.DEFINE_string("out", "", "default: in the run's eval folder", flag_values=values)
        flags.mark_flag_as_required("workdir", flag_values=values)

    given = open_job.parse(argv, "evaluate", define)
    workdir, home = storage.path(given.workdir), storage.resolved(given.workdir)
    own = not given.checkpoint or home in storage.resolved(given.checkpoint).parents
    if not given.out and (given.manifest or not own):
        raise ValueError(
            "--out=DIR is needed with --manifest or a checkpoint of another run: the run's own "
            "results would be replaced"
        )
    config = given.config if given.config is not None else configuration.read(workdir)
    split = given.split or config.eval.final_split or config.eval.split
    if given.manifest:
        config.data.manifest = given.manifest
    if given.checkpoint and not config.model.init_from:
        config.model.init_from = given.checkpoint  # so that its tokenizer is found
    open_job.resolve(config)
    open_job.use_compilation_cache()
    job = open_job.open_job(config, workdir, only_split=split)
    like = open_job.params_struct(job.model, job.mesh)
    source = given.checkpoint or str(workdir)
    if parameters.is_hf_folder(source):
        step, params = 0, parameters.load(source, job.model.config, like)
    else:
        restored = checkpoint.load_items(source, {"params": like})
        step, params = restored.step, restored.arrays["params"]
    evaluate = jobs.Evaluator(job, programs.encode_program(job.model, job.mesh))
    compiled = programs.compile_all(evaluate.tasks(params), job.buckets)
    out = storage.path(given.out) if given.out else None
    measures = evaluate(params, split, step, out=out)
    if distributed.is_primary():
        print(compiled)
        for name, value in measures.items():
            print(f"{name} {value:.4f}")
        print(f"written to {out or workdir / 'eval' / f'{split}-{step}'}")
    return 0
