# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What can be learnt from a model's own answers: hits, groups without signal, settings to start.

    medloc diagnose --workdir=RUN [--first=K | --last=K]        what a run has logged
    medloc diagnose --ious=FILE                                 {"ious": [[...G], ...B]} a line
    medloc diagnose --config=configs/x.py [--checkpoint=FOLDER] --split=val
    medloc diagnose --workdir=RUN --split=train [--checkpoint=FOLDER]

The last two sample --num_samples completions of --num_examples prompts, with the run's sampler and
at its temperature; without --checkpoint from model.init_from, or from the run's newest. Printed are
a table by threshold and by box size, and a schedule, tau0 and margin with the reasons; the rule
stands in medloc_jax/evaluation/diagnose.py. --json=FILE keeps the numbers, --out=DIR draws them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from medloc_jax import config as configuration
from medloc_jax.cli import verb_flags
from medloc_jax.evaluation import diagnose, diagnose_text, run_folder, sampled_groups

PICTURE = "diagnose.png"


def main(argv: Sequence[str]) -> int:
    """Runs the verb.

    Args:
        argv: what follows `medloc diagnose`.

    Returns:
        The exit code.

    Raises:
        ValueError: a wrong command line or input; one line with the cure.
    """
    from medloc_jax import distributed

    if verb_flags.wants_help(argv):
        print(help_text())
        return 0
    if verb_flags.is_given(argv, "split"):
        distributed.initialize()  # before jax's backends are imported
    given = _parse(argv)
    if given.ious:
        groups = sampled_groups.from_records(sampled_groups.read_jsonl(given.ious), given.ious)
        title, config = given.ious, given.config or configuration.default_config()
    elif given.split:
        groups, title, config = _sampled(given)
        if not distributed.is_primary():
            return 0
    else:
        groups, title = _logged(given)
        config = given.config or configuration.read(given.workdir)
    _report(given, groups, title, config)
    return 0


def help_text() -> str:
    """What the verb does, and its flags."""
    return verb_flags.verb_help(__doc__, _define)


def _define(values: flags.FlagValues) -> None:
    text, whole = flags.DEFINE_string, flags.DEFINE_integer
    text("workdir", "", "a run's folder", flag_values=values)
    text("ious", "", "a JSONL of lists of IoUs", flag_values=values)
    whole("first", 0, "only the first so many logged steps", flag_values=values)
    whole("last", 0, "only the last so many logged steps", flag_values=values)
    text("checkpoint", "", "what to sample from", flag_values=values)
    text("split", "", "train, val or test: sample, and read no log", flag_values=values)
    whole("num_examples", 128, "prompts to sample for; 0 = all", flag_values=values)
    whole("num_samples", 0, "completions a prompt; 0 = rl.group_size", flag_values=values)
    text("json", "", "file to write the numbers to", flag_values=values)
    text("out", "", "folder for a picture", flag_values=values)


def _parse(argv: Sequence[str]) -> Any:
    from medloc_jax.cli import job as open_job

    given = open_job.parse(argv, "diagnose", _define)
    if not (given.workdir or given.ious or given.config is not None):
        raise ValueError(
            "nothing to diagnose: give --workdir=RUN, --ious=FILE, or --config=F --split=train"
        )
    if given.ious and (given.workdir or given.split or given.checkpoint):
        raise ValueError("--ious stands alone: leave --workdir, --split and --checkpoint away")
    if given.first < 0 or given.last < 0 or (given.first and given.last):
        raise ValueError("--first=K or --last=K: give one of them, 1 or more")
    if given.split and (given.first or given.last):
        raise ValueError("--first and --last choose logged steps, and --split samples anew")
    if given.checkpoint and not given.split:
        raise ValueError("--checkpoint is sampled from: say of which --split=train, val or test")
    if not (given.workdir or given.ious or given.split):
        raise ValueError("--config alone says no data: add --split=train, val or test")
    if given.num_examples < 0 or given.num_samples < 0 or given.num_samples == 1:
        raise ValueError("--num_examples is 0 (all) or more, --num_samples 2 or more")
    return given


def _logged(given: Any) -> tuple[sampled_groups.Groups, str]:
    """The groups of a run's rollouts.jsonl."""
    run = run_folder.load(given.workdir)
    records: Sequence[Mapping[str, Any]] = run.rollouts
    where = str(Path(given.workdir) / "rollouts.jsonl")
    if not records:
        raise ValueError(
            f"{where} holds nothing: log rollouts with log.rollouts_every, or sample anew with "
            "--split=train"
        )
    if given.first:
        records = records[: given.first]
    elif given.last:
        records = records[-given.last :]
    steps = [record.get("step") for record in records]
    title = f"{given.workdir}, steps {steps[0]} to {steps[-1]} ({len(steps)} logged)"
    return sampled_groups.from_records(records, where, _image_sizes(run)), title


def _image_sizes(run: run_folder.Run) -> dict[str, tuple[int, int]]:
    """(width, height) by example id, where the manifest is still there; else nothing."""
    manifest = str(run.config.get("data", {}).get("manifest", "synthetic"))
    path = run.folder / "data" if manifest == "synthetic" else Path(manifest)
    path = path / "manifest.jsonl" if path.is_dir() else path
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return {line["id"]: (line["width"], line["height"]) for line in lines}


def _sampled(given: Any) -> tuple[sampled_groups.Groups, str, Any]:
    """Groups that are drawn now, their title, and the configuration they were drawn with."""
    from medloc_jax.cli import diagnose_sampling

    config = given.config if given.config is not None else configuration.read(given.workdir)
    source = given.checkpoint or (given.workdir if given.config is None else "")
    if given.num_samples:
        config.rl.group_size = given.num_samples
    groups = diagnose_sampling.sample(
        config,
        split=given.split,
        source=source,
        workdir=given.workdir,
        num_examples=given.num_examples,
    )
    start = source or config.model.init_from or "random weights"
    title = f"{start}, {given.split} split, temperature {config.rl.temperature:g}"
    return groups, title, config


def _report(given: Any, groups: sampled_groups.Groups, title: str, config: Any) -> None:
    """Prints, and writes what was asked for."""
    measured = diagnose.measure(groups)
    options = config.curriculum
    advice = diagnose.recommend(
        groups,
        regimes=options.regimes,
        target=options.threshold_target,
        margin=options.margin,
        normalised=config.rl.advantage_std != "none",
    )
    print(diagnose_text.to_text(title, measured, advice))
    if given.json:
        content = {"title": title, **measured, "recommendation": advice}
        text = json.dumps(content, indent=1, allow_nan=False)
        Path(given.json).write_text(text + "\n", encoding="utf-8")
        print(f"written to {given.json}")
    if given.out:
        try:
            from medloc_jax.evaluation import diagnose_plot  # matplotlib is an extra
        except ModuleNotFoundError as error:
            if error.name != "matplotlib":
                raise
            raise ValueError(
                "--out draws with matplotlib: install it with `pip install medloc_jax[report]`"
            ) from error
        Path(given.out).mkdir(parents=True, exist_ok=True)
        diagnose_plot.draw(Path(given.out) / PICTURE, title, measured, advice)
        print(f"written to {Path(given.out) / PICTURE}")
