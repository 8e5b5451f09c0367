# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Score a checkpoint on a split, greedily, every example once; or an outside detector's boxes.

    medloc evaluate --workdir=RUN [--checkpoint=FOLDER] [--split=test] [--manifest=FILE]
                    [--out=DIR] [--config=configs/x.py]
    medloc evaluate --predictions=FILE --manifest=FILE --out=DIR [--split=test] [--label=NAME]
                    [--missing=no_box] [--seed=N] [--val_fraction=0.1]

Reads the run's own configuration (or the one given) and its newest checkpoint, and writes to
RUN/eval/<split>-<step>/. With other data or a checkpoint from elsewhere (a step, another run, a
Hugging Face folder), --out says where to.

With --predictions no model is loaded. A line of FILE is {"id": ..., "boxes_px": [[x1, y1, x2, y2],
...], "scores": [...]}, pixels of the stored image, of which the box of the highest score counts
(medloc_jax/evaluation/outside_predictions.py). DIR becomes a folder that `medloc report` takes
beside those of runs, under the name --label; --seed tells trainings of one detector apart. It holds
one file's boxes for each split.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from medloc_jax import config as configuration
from medloc_jax import distributed, storage
from medloc_jax.cli import verb_flags
from medloc_jax.data import examples
from medloc_jax.evaluation import outside_predictions, predict


def main(argv: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    if verb_flags.wants_help(argv):
        print(help_text())
        return 0
    if verb_flags.is_given(argv, "predictions"):
        return score_predictions(argv)
    distributed.initialize()
    # These import jax's backends, which must not happen before the line above.
    from medloc_jax import checkpoint
    from medloc_jax.cli import job as open_job
    from medloc_jax.convert import parameters
    from medloc_jax.training import job as jobs
    from medloc_jax.training import programs

    given = open_job.parse(argv, "evaluate", _define)
    workdir, home = storage.path(given.workdir), storage.resolved(given.workdir)
    own = not given.checkpoint or home in storage.resolved(given.checkpoint).parents
    if not given.out and (given.manifest or not own):
        raise ValueError(
            "--out=DIR is needed with --manifest or a checkpoint of another run: the run's own "
            "results would be replaced"
        )
    config = given.config if given.config is not None else configuration.read(workdir)
    if not (given.checkpoint or config.num_steps or checkpoint.is_checkpoint(workdir)):
        start = config.model.init_from
        raise ValueError(
            f"{workdir} holds no checkpoint: this run took no step, and its evaluation is in its "
            "eval folder; "
            + (f"for another give --checkpoint={start} --out=DIR" if start else "start a new run")
        )
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


def help_text() -> str:
    """What the verb does, and the flags of both its forms."""
    values = _prediction_flags()
    return (
        f"{verb_flags.verb_help(__doc__, _define)}\n\n"
        f"With --predictions, and nothing else:\n{verb_flags.help_text(values)}"
    )


def _define(values: flags.FlagValues) -> None:
    text = flags.DEFINE_string
    text("workdir", None, "the run's folder", flag_values=values)
    text("checkpoint", "", "what to score; the newest if empty", flag_values=values)
    text("split", "", "train, val or test; the run's final one if empty", flag_values=values)
    text("manifest", "", "other data than the run's", flag_values=values)
    text("out", "", "folder to write; in the run's eval folder if empty", flag_values=values)
    flags.mark_flag_as_required("workdir", flag_values=values)


def _prediction_flags() -> flags.FlagValues:
    values, text = flags.FlagValues(), flags.DEFINE_string
    defaults: Any = configuration.default_config()
    text("predictions", "", "JSONL of boxes with scores", flag_values=values)
    text("manifest", "", "that the examples are of", flag_values=values)
    text("split", "test", "train, val or test", flag_values=values)
    text("out", "", "folder to write, for `medloc report`", flag_values=values)
    text("label", "", "name in reports; the file's if empty", flag_values=values)
    text("missing", "error", "an example without a line: error or no_box", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the detector's training", flag_values=values)
    flags.DEFINE_float(
        "val_fraction",
        defaults.data.val_fraction,
        "cut from train, where the manifest has no val; as data.val_fraction",
        flag_values=values,
    )
    return values


def score_predictions(argv: Sequence[str]) -> int:
    """Scores the boxes of an outside detector; returns the exit code.

    Args:
        argv: what follows the verb, --predictions among it.

    Raises:
        ValueError: a wrong flag, file or line, with the cure.
    """
    values = _prediction_flags()
    rest = verb_flags.parse("evaluate", values, argv, ("predictions", "manifest", "out"))
    if rest:
        raise ValueError(f"unknown argument {rest[0]!r}: flags are written --name=value")
    path, out = Path(values.predictions), Path(values.out)
    # As a run cuts it, so that both look at the same examples and have the same floor.
    rows = examples.cut_val(examples.load_manifest(values.manifest), values.val_fraction, seed=0)
    chosen = examples.select(rows, values.split)
    answers = outside_predictions.read(path, rows, split=values.split, missing=values.missing)
    train = [row for row in rows if row.split == "train"]
    predictions, summary = outside_predictions.score(answers, chosen, train, path=path)
    manifest = values.manifest
    config = {
        "method": outside_predictions.METHOD,
        "label": values.label or path.stem,
        "seed": values.seed,
        "num_steps": 0,
        # Of each split that was scored: another file's boxes are other results.
        outside_predictions.DIGESTS: {values.split: outside_predictions.digest(path)},
        # As a run's, so that a report knows the same data.
        "data": {
            "manifest": manifest if storage.is_remote(manifest) else str(Path(manifest).resolve()),
            "val_fraction": values.val_fraction,
        },
    }
    _write_config(out, config)
    folder = out / "eval" / f"{values.split}-0"
    predict.write(folder, predictions, summary)
    for name in ("a50", "a80", "miou", "map", "valid_rate"):
        print(f"eval/{values.split}/{name} {summary[name]:.4f}")
    told = summary["decoding"]
    print(
        f"boxes clipped to their image {told['clipped_rate']:.1%}, no line {told['without_line']}"
    )
    print(f"written to {folder}")
    return 0


def _write_config(out: Path, config: dict[str, Any]) -> None:
    """Refuses a folder that holds anything else; other splits of the same detector stay."""
    path, digests = out / configuration.FILE, outside_predictions.DIGESTS
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        known = found.get(digests, {})
        if found | {digests: 0} != config | {digests: 0}:
            raise ValueError(f"--out={out} holds other results: give another folder, or remove it")
        for split, digest in config[digests].items():
            if known.get(split, digest) != digest:
                raise ValueError(
                    f"--out={out} holds the results of another file for split {split}: give "
                    "another folder (and --seed, for another training), or remove it"
                )
        config = config | {digests: known | config[digests]}
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"--out={out} is not empty and was not written here: give another folder")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
