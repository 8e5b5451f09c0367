# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What `medloc convert` does once its flags are read: the two directions, and the comparison."""

import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import tqdm

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
from medloc_jax.data import examples
from medloc_jax.grounding import prompts
from medloc_jax.model import config as model_config

# --dtype: what weights are stored as; None: as they are.
_DTYPES: dict[str, np.dtype | None] = {
    "keep": None,
    **{dtype.name: dtype for dtype in hf_folder.DTYPES.values()},
}
_SPARE = 64 << 20  # bytes for what lies beside the weights


@dataclasses.dataclass(frozen=True)
class Request:
    """The flags; `medloc convert --help` says what they mean."""

    source: Path
    target: Path
    dtype: str
    max_shard_size: str
    base: str
    verify: bool


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        hf: the folder of the two that is Hugging Face's.
        ours: the other one.
        config: of the model.
        dtype: that the weights were converted to; None: as they were.
    """

    hf: Path
    ours: Path
    config: model_config.ModelConfig
    dtype: np.dtype | None


def run(request: Request, check: Callable[[], object]) -> Conversion:
    """Converts, in the direction that the source has.

    Args:
        request: what the user wants.
        check: called between blocks, also by other threads; raises to stop.

    Raises:
        ValueError: a source, target or flag that does not fit; one line with the cure.
    """
    # No accelerator is needed, and its memory may be another program's.
    jax.config.update("jax_platforms", "cpu")
    source, target, dtype = request.source, request.target, _DTYPES[request.dtype]
    if request.verify:
        verify.check_installed()
    start = time.monotonic()
    if hf_folder.is_hf_folder(source):
        if request.base:
            raise ValueError("--base is for the other direction: leave it out")
        config = _to_orbax(source, target, dtype, check)
        done = Conversion(source, target, config, dtype)
    elif checkpoint.is_checkpoint(source):
        shard_size = hf_writer.parse_size(request.max_shard_size)
        config = _to_hf(source, target, dtype, shard_size, request.base, check)
        done = Conversion(target, source, config, dtype)
    else:
        raise ValueError(
            f"--source={source} holds neither safetensors files nor a checkpoint: give a Hugging "
            "Face folder, the workdir of a run, or one of its steps"
        )
    for what in side_files.missing(target):
        print(f"medloc convert: warning: {target} has no {what}", file=sys.stderr)
    print(f"{time.monotonic() - start:.1f} s, peak memory {_peak_bytes() / 2**30:.2f} GiB")
    return done


def verified(done: Conversion) -> bool:
    """Compares the two sides and prints the verdict; whether they are the same model."""
    print(
        f"verify: both models in float32, about {verify.memory_bytes(done.config) / 1e9:.1f} GB "
        "of memory"
    )
    report = verify.compare(done.hf, done.ours, done.config, done.dtype)
    print(f"verify: {report}: {'passed' if report.passed else 'FAILED'}")
    return report.passed


def _to_orbax(
    source: Path, target: Path, dtype: np.dtype | None, check: Callable[[], object]
) -> model_config.ModelConfig:
    config = hf_folder.read_config(source)
    tensors = hf_folder.open_folder(source, config)
    hf_folder.check_tied_head(tensors, config)
    kept = {name: tensors[name] for name in mapping.hf_shapes(config)}
    size = sum(tensor.nbytes for tensor in kept.values())
    stored = [(t.nbytes, dtype or t.dtype, t.dtype) for t in kept.values()]
    written = sum(n * new.itemsize // old.itemsize for n, new, old in stored)
    staging.check_room(target, written + _SPARE)
    print(f"{source}: {len(tensors)} tensors, {size / 1e9:.2f} GB, to an orbax checkpoint")
    with staging.folder(target, check) as folder, _bar(size) as bar:
        (folder / "checkpoints").mkdir()
        from_hf.write(
            kept,
            config,
            folder / "checkpoints" / "0",
            dtype=dtype,
            progress=_counted(bar, check),
            host_state={"converted_from": str(source.absolute())},
        )
        beside = side_files.copy_published(source, folder)
        if dtype is not None:
            side_files.set_dtype(folder, dtype)
    print(f"{target}: checkpoints/0, {', '.join(beside)}")
    return config


def _to_hf(
    source: Path,
    target: Path,
    dtype: np.dtype | None,
    max_shard_size: int,
    base: str,
    check: Callable[[], object],
) -> model_config.ModelConfig:
    opened = checkpoint.open_item(source, "params")
    beside = _config_file(opened.folder, base)
    run = side_files.read_run(beside)
    from_base = bool(base) and beside.parent == Path(base)
    if run is not None:
        config, published = side_files.run_model(run, base)
    elif base and not from_base:
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
    with staging.folder(target, check) as folder, _bar(size) as bar:
        writer = hf_writer.Writer(folder, specs, max_shard_size)
        to_hf.write(opened.arrays, config, writer, _counted(bar, check))
        if run is not None:
            side_files.write_for_run(run, config, published, folder)
        elif from_base:
            side_files.copy_published(beside.parent, folder, with_description=False)
        else:
            side_files.copy_published(beside.parent, folder)
        if run is not None or from_base:
            card = model_card.Card(
                name=target.absolute().name,
                config=config,
                run=None if run is None else run.content,
                step=opened.step,
                workdir=None if run is None else beside.parent,
                prompt="" if run is None else _prompt(run, beside.parent),
                dtype=dtypes[-1].name,
            )
            (folder / "README.md").write_text(model_card.render(card), encoding="utf-8")
        side_files.set_dtype(folder, dtypes[-1])
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    print(f"{target}: {', '.join(names)}")
    if run is None and from_base:
        print(
            f"medloc convert: warning: {opened.folder} has no config.json of a run: how it was "
            "trained and asked is unknown; README.md says so",
            file=sys.stderr,
        )
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


def _prompt(run: side_files.Run, workdir: Path) -> str:
    """A user text of the run's training, for the model card; with {query} where none is found."""
    if run.template not in prompts.TEMPLATES:
        raise ValueError(f"the run's data.template {run.template!r} is unknown to this version")
    template = prompts.TEMPLATES[run.template]
    for query, source in _asked(run, workdir):
        return template.user_text(query, source)
    return template.user_text("{query}", "")


def _asked(run: side_files.Run, workdir: Path) -> Iterator[tuple[str, str]]:
    """Query and source of a training example, if the manifest or a log of rollouts is here."""
    manifest = Path(str(run.content["data"].get("manifest", "")))
    if manifest == Path("synthetic"):
        manifest = workdir / "data"
    if manifest.is_dir():
        manifest = manifest / examples.MANIFEST_NAME
    for line in _lines(manifest):
        if line.get("split") == "train" and line.get("query"):
            yield str(line["query"]), str(line.get("source", ""))
    # A line of a log does not say the source, in whose words the paper's template asks.
    if run.template != "medloc":
        for line in _lines(workdir / "rollouts.jsonl"):
            yield from ((str(query), "") for query in line.get("queries", []))


def _lines(path: Path) -> Iterator[dict]:
    """The objects of a JSONL file: those that can be read, none where there is no file."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue  # a card needs one example, not a sound manifest
            if isinstance(line, dict):
                yield line


def _counted(bar: tqdm.tqdm, check: Callable[[], object]) -> Callable[[int], None]:
    """Moves the bar, and stops after Ctrl-C."""

    def progress(num_bytes: int) -> None:
        bar.update(num_bytes)
        check()

    return progress


def _bar(total: int) -> tqdm.tqdm:
    # None: no bar where nobody looks.
    return tqdm.tqdm(total=total, unit="B", unit_scale=True, disable=None)


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
