# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face folder to an orbax checkpoint, or a checkpoint to a Hugging Face folder.

    medloc convert --source=DIR --target=DIR [--dtype=keep|float32|bfloat16|float16]
                   [--max_shard_size=5GB] [--base=DIR] [--verify]

The direction is found from the source: a folder with safetensors files becomes an orbax checkpoint;
the workdir of a run, one of its steps, or a converted folder becomes a folder that transformers and
vLLM read. The target must be new or empty, and gets its name when all of it is written. --base is
the folder of the base model, where the run's configuration names one that is not here. --verify
compares a forward pass with transformers and needs torch.
"""

import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import tqdm
from absl import flags

from medloc_jax import checkpoint
from medloc_jax.convert import (
    from_hf,
    hf_folder,
    hf_writer,
    mapping,
    model_card,
    side_files,
    staging,
    to_hf,
    verify,
)
from medloc_jax.grounding import prompts
from medloc_jax.model import config as model_config

# --dtype: what weights are stored as; None: as they are.
DTYPES: dict[str, np.dtype | None] = {
    "keep": None,
    **{dtype.name: dtype for dtype in hf_folder.DTYPES.values()},
}
_SPARE = 64 << 20  # bytes for what lies beside the weights


def main(argv: Sequence[str]) -> int:
    """Runs the verb.

    Args:
        argv: what follows `medloc convert`.

    Returns:
        The exit code; 1 where --verify finds a difference.

    Raises:
        ValueError: a wrong command line or source; one line with the cure.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("source", "", "what to convert", flag_values=values)
    flags.DEFINE_string("target", "", "folder to write, new or empty", flag_values=values)
    flags.DEFINE_string("dtype", "keep", "of the weights", flag_values=values)
    flags.DEFINE_string("max_shard_size", "5GB", "of a safetensors file", flag_values=values)
    flags.DEFINE_string("base", "", "the base model's folder", flag_values=values)
    flags.DEFINE_bool("verify", False, "compare with transformers", flag_values=values)
    _parse(values, argv)
    # No accelerator is needed, and its memory may be another program's.
    jax.config.update("jax_platforms", "cpu")
    source, target = Path(values.source), Path(values.target)
    if values.dtype not in DTYPES:
        raise ValueError(f"--dtype={values.dtype} is none of {', '.join(DTYPES)}")
    if not source.is_dir():
        raise ValueError(f"--source={source}: there is no such folder")
    if values.verify:
        verify.check_installed()
    staging.check_target(target)
    start = time.monotonic()
    if hf_folder.is_hf_folder(source):
        if values.base:
            raise ValueError("--base is for the other direction: leave it out")
        config = _to_orbax(source, target, DTYPES[values.dtype])
    elif checkpoint.is_checkpoint(source):
        shard_size = hf_writer.parse_size(values.max_shard_size)
        config = _to_hf(source, target, DTYPES[values.dtype], shard_size, values.base)
    else:
        raise ValueError(
            f"--source={source} holds neither safetensors files nor a checkpoint: give a Hugging "
            "Face folder, the workdir of a run, or one of its steps"
        )
    print(f"{time.monotonic() - start:.1f} s, peak memory {_peak_bytes() / 2**30:.2f} GiB")
    if values.verify and not _verified(source, target, config, DTYPES[values.dtype]):
        return 1
    return 0


def _to_orbax(source: Path, target: Path, dtype: np.dtype | None) -> model_config.ModelConfig:
    config = hf_folder.read_config(source)
    tensors = hf_folder.open_folder(source, config)
    hf_folder.check_tied_head(tensors, config)
    kept = {name: tensors[name] for name in mapping.hf_shapes(config)}
    size = sum(tensor.nbytes for tensor in kept.values())
    stored = [(t.nbytes, dtype or t.dtype, t.dtype) for t in kept.values()]
    written = sum(n * new.itemsize // old.itemsize for n, new, old in stored)
    staging.check_room(target, written + _SPARE)
    print(f"{source}: {len(tensors)} tensors, {size / 1e9:.2f} GB, to an orbax checkpoint")
    with staging.folder(target) as folder, _bar(size) as bar:
        (folder / "checkpoints").mkdir()
        from_hf.write(
            kept,
            config,
            folder / "checkpoints" / "0",
            dtype=dtype,
            progress=bar.update,
            host_state={"converted_from": str(source.absolute())},
        )
        beside = side_files.copy_published(source, folder)
        if dtype is not None:
            side_files.set_dtype(folder, dtype)
    print(f"{target}: checkpoints/0, {', '.join(beside)}")
    return config


def _to_hf(
    source: Path, target: Path, dtype: np.dtype | None, max_shard_size: int, base: str
) -> model_config.ModelConfig:
    opened = checkpoint.open_item(source, "params")
    beside = _config_file(opened.folder, base)
    run = side_files.read_run(beside)
    if run is not None:
        config, published = side_files.run_model(run, base)
    elif base and beside.parent != Path(base):
        raise ValueError(
            f"--base is for the checkpoint of a run, {beside} is a model's: leave it out"
        )
    else:
        config, published = model_config.from_hf(beside), beside.parent
    to_hf.check(opened.arrays, config, str(opened.folder))
    specs = to_hf.specs(opened.arrays, config, dtype)
    dtypes = sorted({kind for _, kind in specs.values()}, key=lambda kind: kind.itemsize)
    size = sum(int(np.prod(shape)) * kind.itemsize for shape, kind in specs.values())
    staging.check_room(target, size + _SPARE)
    print(
        f"{opened.folder}: step {opened.step}, {len(specs)} tensors, {size / 1e9:.2f} GB, to a "
        "Hugging Face folder"
    )
    with staging.folder(target) as folder, _bar(size) as bar:
        writer = hf_writer.Writer(folder, specs, max_shard_size)
        to_hf.write(opened.arrays, config, writer, bar.update)
        if run is None:
            side_files.copy_published(beside.parent, folder)
        else:
            side_files.write_for_run(run, config, published, folder)
            card = model_card.Card(
                name=target.absolute().name,
                config=config,
                run=run.content,
                step=opened.step,
                workdir=beside.parent,
                prompt=_prompt(run),
                dtype=dtypes[-1].name,
            )
            (folder / "README.md").write_text(model_card.render(card), encoding="utf-8")
        side_files.set_dtype(folder, dtypes[-1])
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    print(f"{target}: {', '.join(names)}")
    return config


def _config_file(step_folder: Path, base: str) -> Path:
    """The config.json that a checkpoint goes with: of its workdir, or of the base model."""
    places = [step_folder.parent.parent, step_folder.parent, *([Path(base)] if base else [])]
    for place in places:
        if (place / "config.json").is_file():
            return place / "config.json"
    raise ValueError(
        f"{step_folder} has no config.json in the folder it belongs to: name the model's by --base"
    )


def _prompt(run: side_files.Run) -> str:
    """A user text of the run's template, for the model card."""
    if run.template not in prompts.TEMPLATES:
        raise ValueError(f"the run's data.template {run.template!r} is unknown to this version")
    return prompts.TEMPLATES[run.template].user_text("skin lesion", "")


def _verified(
    source: Path, target: Path, config: model_config.ModelConfig, dtype: np.dtype | None
) -> bool:
    print(
        f"verify: both models in float32, about {verify.memory_bytes(config) / 1e9:.1f} GB of "
        "memory"
    )
    to_orbax = hf_folder.is_hf_folder(source)
    folder, ours = (source, target) if to_orbax else (target, source)
    report = verify.compare(folder, ours, config, dtype)
    print(f"verify: {report}: {'passed' if report.passed else 'FAILED'}")
    return report.passed


def _bar(total: int) -> tqdm.tqdm:
    # None: no bar where nobody looks.
    return tqdm.tqdm(total=total, unit="B", unit_scale=True, disable=None)


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _parse(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Reads the flags; nothing may be left over, and both folders must be named."""
    usage = f"the flags of `medloc convert` are {', '.join(f'--{name}' for name in sorted(values))}"
    try:
        rest = values(["convert", *argv])[1:]
    except flags.Error as error:
        raise ValueError(f"{error}: {usage}") from error
    if rest:
        raise ValueError(f"{rest[0]!r} is not understood: {usage}")
    for name in ("source", "target"):
        if not values[name].value:
            raise ValueError(f"--{name} is missing: {usage}")
