# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`medloc prepare --export=FORMAT MANIFEST --out=DIR`: a manifest in the format of another trainer.

    medloc prepare --export=coco MANIFEST --out=DIR             GroundingDINO and other detectors
    medloc prepare --export=llama_factory MANIFEST --out=DIR --config=configs/sft/x.py

coco links or copies the images; llama_factory stores them as the model sees them, and takes model,
template, sizes and val from an SFT experiment. Split val is cut from train as a run cuts it.
"""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from medloc_jax import config as configuration
from medloc_jax.cli import verb_flags
from medloc_jax.data import examples, export_coco, export_llama_factory, output_folder
from medloc_jax.grounding import prompts
from medloc_jax.model import config as model_config
from medloc_jax.model import processor

PLACEMENTS = ("copy", "link")


def main(argv: Sequence[str]) -> int:
    """Runs the export.

    Args:
        argv: what follows `medloc prepare`.

    Returns:
        The exit code.

    Raises:
        ValueError: a wrong command line or manifest; one line with the cure.
    """
    values = _flags(argv)
    if verb_flags.wants_help(argv):
        print(f"{__doc__}\n{help_text()}")
        return 0
    rest = verb_flags.parse("prepare", values, argv, ("out",))
    if values.export not in EXPORTS:
        raise ValueError(f"--export={values.export}: choose one of {', '.join(EXPORTS)}")
    if len(rest) != 1:
        raise ValueError(
            f"{len(rest)} manifests: write `medloc prepare --export={values.export} MANIFEST "
            "--out=DIR`"
        )
    config: Any = values.config if values.config is not None else configuration.default_config()
    rows = examples.load_manifest(rest[0])
    rows = examples.cut_val(rows, config.data.val_fraction, seed=0)
    out = Path(values.out)
    output_folder.check_target(out, Path(rows[0].folder), overwrite=values.overwrite)
    with output_folder.new_folder(out, overwrite=values.overwrite, say=_say) as folder:
        said = EXPORTS[values.export](folder, rows, values, config)
        # By this file the folder is known as ours, and may be replaced.
        record = {
            "written_by": output_folder.WRITTEN_BY,
            "command": shlex.join(["medloc", "prepare", *argv]),
            "export": values.export,
        }
        text = json.dumps(record, indent=1)
        (folder / output_folder.STATISTICS_NAME).write_text(text + "\n", encoding="utf-8")
    print("\n".join([*said, f"written to {out}"]))
    return 0


def help_text() -> str:
    """The flags, a line each."""
    return verb_flags.help_text(_flags(()))


def _flags(argv: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("export", "", "coco or llama_factory", flag_values=values)
    flags.DEFINE_string("out", "", "folder to write, beside the manifest's", flag_values=values)
    flags.DEFINE_enum(
        "images", "copy", list(PLACEMENTS), "coco: copy the images or link", flag_values=values
    )
    flags.DEFINE_bool("overwrite", False, "replace what prepare has written", flag_values=values)
    config_flags.DEFINE_config_file(
        "config", None, "the experiment", flag_values=values, sys_argv=["prepare", *argv]
    )
    return values


def _coco(folder: Path, rows: list[examples.Example], values: Any, config: Any) -> list[str]:
    del config
    (folder / "images").mkdir()
    names: dict[str, str] = {}
    taken: set[str] = set()
    for row in rows:
        if row.image in names:
            continue
        path = Path(row.image_path)
        name, number = path.name, len(taken)
        while name.lower() in taken:  # another image's own name may be of this form
            name, number = f"{path.stem}-{number}{path.suffix}", number + 1
        taken.add(name.lower())
        names[row.image] = name
        if values.images == "link":
            os.symlink(path.resolve(), folder / "images" / name)
        else:
            shutil.copyfile(path, folder / "images" / name)
    return export_coco.write(folder, rows, names, Path(values.out).resolve())


def _llama_factory(
    folder: Path, rows: list[examples.Example], values: Any, config: Any
) -> list[str]:
    if values.config is None:
        raise ValueError(
            "--config is missing: name the SFT experiment to be checked, such as "
            "--config=configs/sft/ham10000_3b.py"
        )
    data = config.data
    if data.template not in prompts.TEMPLATES:
        raise ValueError(
            f"data.template={data.template!r}: choose one of {', '.join(prompts.TEMPLATES)}"
        )
    for name, drawn in (("data.augment", data.augment), ("sft.box_jitter", config.sft.box_jitter)):
        if drawn:
            raise ValueError(
                f"{name}={drawn!r} is drawn anew at every step, and a file holds one: export with "
                f"--config.{name}={'()' if name == 'data.augment' else 0} and train so, too"
            )
    vision = model_config.preset(config.model.preset).vision
    pixels = processor.ImageProcessor.for_model(
        vision, min_pixels=data.min_pixels, max_pixels=data.max_pixels
    )
    said = export_llama_factory.write(
        folder, rows, pixels, template=data.template, box_scale=config.sft.box_scale
    )
    largest = max(
        height * width
        for height, width in {pixels.resized_size(row.height, row.width) for row in rows}
    )
    return [*said, f"LLaMA-Factory must not shrink them: image_max_pixels of at least {largest}"]


# By --export.
EXPORTS: dict[str, Callable[..., list[str]]] = {"coco": _coco, "llama_factory": _llama_factory}


def _say(sentence: str) -> None:
    print(f"medloc prepare: {sentence}", file=sys.stderr)
