# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`medloc prepare DATASET --source=DIR --out=DIR`: a published data set becomes a manifest.

Data sets: ham10000, heel, tn3k, ph2 in their published layouts; coco, yolo, voc, csv, vlm_r1, masks
and dicom for your own; `medloc prepare synthetic --out=DIR` draws one. `medloc prepare DATASET
--help` lists the flags. `medloc prepare --export=coco|llama_factory MANIFEST --out=DIR` writes a
manifest for other trainers. Written are manifest.jsonl, images/, statistics.md and .json,
overlay.png and refused.jsonl.
"""

import collections
import dataclasses
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from medloc_jax.cli import prepare_export, prepare_flags, prepare_report, verb_flags
from medloc_jax.data import (
    annotated,
    coco,
    csv_boxes,
    dicom_folder,
    examples,
    ham10000,
    heel,
    importing,
    mask_folder,
    output_folder,
    path_fields,
    questions,
    splits,
    synthetic,
    tn3k,
    vlm_r1,
    voc,
    yolo,
)
from medloc_jax.evaluation import data_sheet

OVERLAY_NAME = "overlay.png"
OWN_LICENCE = "That of your data set."
_BY_LABEL = "{label}"


@dataclasses.dataclass(frozen=True)
class DataSet:
    """How one data set is prepared.

    Attributes:
        read: `read(source, refused, *, options)` -> annotated images.
        query: what is asked where neither --query nor the data set says it; "": --query is needed.
        split: the rule, of splits.RULES, that is used without --split.
        options: the reader's own flags, with their help; their defaults are the reader's.
        licence: of the images, as far as it is published.
    """

    read: Callable[..., list[annotated.AnnotatedImage]]
    query: str
    split: str = "auto"
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    licence: str = OWN_LICENCE


_ANNOTATIONS = {"annotations": "annotation file below the source; found by its content if empty"}
_COLUMNS = {"columns": "meaning=column pairs, where the CSV has names or positions of its own"}

DATASETS = {
    "ham10000": DataSet(
        ham10000.read,
        query="skin lesion",
        split="paper",
        options={"metadata": "the table below the source; HAM10000_metadata.csv if empty"},
        licence="HAM10000: CC BY-NC-SA 4.0 (Tschandl, Rosendahl, Kittler 2018, "
        "doi:10.7910/DVN/DBW86T). Not for commercial use; share alike.",
    ),
    "heel": DataSet(
        heel.read,
        query="calcaneus",
        split="paper",
        options={
            "boxes": "format of the boxes: yolo, voc, coco or csv; detected if empty",
            **_COLUMNS,
        },
        licence="HEEL: that of the place where you got it.",
    ),
    "tn3k": DataSet(
        tn3k.read,
        query="thyroid nodule",
        split="paper",
        options={
            "nodules": "one: images with one nodule, as in the paper; all: every image, the box of "
            "all nodules; each: every image, a box a nodule (see --one_box)",
            "fold": "0 to 4: trainval in train and val as published; -1: all of it is train",
        },
        licence="TN3K: published for research with TRFE-Net (Gong et al. 2021, "
        "github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation, code MIT); no licence of "
        "the images is stated.",
    ),
    "ph2": DataSet(
        mask_folder.read_ph2,
        query="skin lesion",
        licence="PH2: free for research and education (Mendonca et al. 2013, ADDI project, Porto); "
        "no licence to pass it on is stated.",
    ),
    "masks": DataSet(
        mask_folder.read,
        query="",
        options={
            "image_files": "folder of the images below the source, or a pattern such as **/*.png",
            "mask_files": "folder of the masks, or a pattern",
            "mask_suffix": "what a mask's name has and its image's has not, such as _lesion; "
            "_segmentation, _mask, _lesion, _seg, _gt or nothing if empty",
            "threshold": "grey values above it are target, 0 to 255",
        },
    ),
    "coco": DataSet(coco.read, query=_BY_LABEL, options=_ANNOTATIONS),
    "yolo": DataSet(
        yolo.read,
        query=_BY_LABEL,
        options={"names": "class names in order, or a file of them; from data.yaml if empty"},
    ),
    "voc": DataSet(
        voc.read,
        query=_BY_LABEL,
        options={"origin": "of the corners: 1 as VOC defines them, 0 half-open, auto"},
    ),
    "csv": DataSet(csv_boxes.read, query=_BY_LABEL, options=_ANNOTATIONS | _COLUMNS),
    "vlm_r1": DataSet(vlm_r1.read, query=_BY_LABEL, options=_ANNOTATIONS),
    "dicom": DataSet(dicom_folder.read, query=_BY_LABEL, options=_ANNOTATIONS | _COLUMNS),
}


def main(argv: Sequence[str]) -> int:
    """Runs the verb.

    Args:
        argv: what follows `medloc prepare`.

    Returns:
        The exit code.

    Raises:
        ValueError: a wrong command line or input; one line with the cure.
    """
    if verb_flags.is_given(argv, "export"):
        return prepare_export.main(argv)
    names = (*DATASETS, "synthetic")
    if verb_flags.wants_help(argv) and argv[0] not in names:
        print(help_text())
        return 0
    if not argv or argv[0] not in names:
        given = f"{argv[0]!r} is no data set" if argv else "no data set is named"
        raise ValueError(
            f"{given}: write `medloc prepare DATASET --source=DIR --out=DIR`, DATASET of "
            f"{', '.join(names)}"
        )
    data_set = DATASETS.get(argv[0])
    values = (
        prepare_flags.of_reader(
            data_set.read, data_set.options, query=data_set.query, split=data_set.split
        )
        if data_set
        else prepare_flags.of_synthetic()
    )
    if verb_flags.wants_help(argv):
        print(prepare_flags.help_text(argv[0], values))
        return 0
    prepare_flags.parse(values, argv)
    print(prepare(argv[0], values, argv) if data_set else _draw_synthetic(values))
    return 0


def help_text() -> str:
    """What the verb does, and the flags that it takes with any data set."""
    any_set = prepare_flags.of_reader(lambda: [], {}, query="", split="that of the data set")
    return (
        f"{(__doc__ or '').strip()}\n\nFlags of every data set but synthetic; ham10000, heel, "
        f"tn3k and ph2 have a query of their own:\n{verb_flags.help_text(any_set)}\n\n"
        f"With --export:\n{prepare_export.help_text()}"
    )


def prepare(name: str, values: flags.FlagValues, argv: Sequence[str]) -> str:
    """Prepares a data set of DATASETS.

    Args:
        name: of the data set.
        values: its flags.
        argv: the command line, for the record.

    Returns:
        The report for the terminal.

    Raises:
        ValueError: nothing can be prepared, or the first refusal when strict.
    """
    source, out = Path(values.source), Path(values.out)
    refused = annotated.Refusals(strict=values.strict)
    _check(values, DATASETS[name])
    output_folder.check_target(out, source, overwrite=values.overwrite)
    # Held from the start: of two runs that write one folder the second is told at once.
    with output_folder.new_folder(out, overwrite=values.overwrite, say=_say) as folder:
        summary, rows = _write(folder, name, values, refused, argv)
        has_sheet = _draw_overlay(folder / OVERLAY_NAME, rows, values.seed)
    return prepare_report.to_text(out, summary, has_sheet=has_sheet)


def _say(sentence: str) -> None:
    print(f"medloc prepare: {sentence}", file=sys.stderr)


def _write(
    folder: Path,
    name: str,
    values: flags.FlagValues,
    refused: annotated.Refusals,
    argv: Sequence[str],
) -> tuple[dict[str, Any], list[examples.Example]]:
    """Everything but the sheet; the summary that `statistics.json` holds, and the manifest."""
    data_set = DATASETS[name]
    checked, asked = _read(data_set, Path(values.source), refused, values)
    images = [item.image for item in checked]
    split = splits.split_images(
        values.split or data_set.split,
        images,
        data_set=name,
        test_fraction=values.test_fraction,
        seed=values.seed,
    )
    rows = importing.write_manifest(
        folder,
        checked,
        split.splits,
        asked,
        source=values.name or name,
        placement=values.images,
    )
    parted = {row.group for row in rows if row.group} - {image.group for image in images}
    if parted:
        crossing = splits.crossing_groups(images, split.splits)
        refused.note(prepare_report.parted_note(len(crossing), min(parted)))
    summary = {
        "data_set": name,
        "command": shlex.join(["medloc", "prepare", *argv]),
        "seed": values.seed,
        "split_rule": split.rule,
        "query": values.query or _own_query(checked) or data_set.query,
        "one_box": values.one_box,
        **data_sheet.statistics(rows, *_by_file(checked, split.splits)),
        "notes": refused.notes,
        **prepare_report.counts_by_reason(refused),
        "licence": data_set.licence,
    }
    importing.write_record(folder, summary, refused)
    (folder / "statistics.md").write_text(data_sheet.to_markdown(summary), encoding="utf-8")
    return summary, rows


def _read(
    data_set: DataSet, source: Path, refused: annotated.Refusals, values: flags.FlagValues
) -> tuple[list[importing.Checked], dict[str, list[questions.Question]]]:
    """The images that can be used, and their questions by image id."""
    options = {option: values[option].value for option in data_set.options}
    images = path_fields.add_path_fields(
        data_set.read(source, refused, **options),
        source,
        refused,
        label_pattern=values.label_pattern,
        group_pattern=values.group_pattern,
    )
    checked = importing.check_images(images, refused, placement=values.images)
    asked = importing.ask_all(
        checked,
        refused,
        query=values.query,
        default_query=data_set.query,
        one_box=values.one_box,
    )
    checked = [item for item in checked if item.image.id in asked]
    if not checked:
        print(prepare_report.refused_text(refused), file=sys.stderr)
        raise ValueError(f"{source}: no image in it can be used; the reasons stand above")
    return checked, asked


def _own_query(checked: Sequence[importing.Checked]) -> str:
    return "of the data set itself" if any(item.image.query for item in checked) else ""


def _by_file(
    checked: Sequence[importing.Checked], split_of: Sequence[str]
) -> tuple[list[annotated.AnnotatedImage], list[str], list[str]]:
    """Images, splits and digests with every file once: several questions may be asked of one."""
    files = {
        item.image.image_path: (item.image, split, item.digest)
        for item, split in zip(checked, split_of, strict=True)
    }
    images, splits_, digests = map(list, zip(*files.values(), strict=True))
    return images, splits_, digests


def _draw_overlay(path: Path, rows: Sequence[examples.Example], seed: int) -> bool:
    """Draws the sheet; False where matplotlib, an extra, is not installed."""
    try:
        data_sheet.draw_overlay(path, rows, seed=seed)
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        return False
    return True


def _check(values: flags.FlagValues, data_set: DataSet) -> None:
    """What can be said of the flags before a file is opened."""
    if not Path(values.source).exists():
        raise ValueError(f"--source={values.source}: there is no such folder")
    if not (values.query or data_set.query):
        raise ValueError(
            "--query is missing: say what the boxes are round, such as --query='skin lesion', or "
            "--query='{label}' where they have labels"
        )


def _draw_synthetic(values: flags.FlagValues) -> str:
    """Draws the synthetic data set; what was written, in two lines."""
    manifest = synthetic.write(
        values.out,
        variant=values.variant,
        num_train=values.num_train,
        num_test=values.num_test,
        seed=values.seed,
    )
    rows = examples.load_manifest(manifest)
    counts = collections.Counter(row.split for row in rows)
    shown = ", ".join(f"{counts[name]} {name}" for name in examples.SPLITS if counts[name])
    low, middle, high = np.percentile(data_sheet.box_area_percent(rows), [5, 50, 95])
    return (
        f"{manifest}: {shown}\n"
        f"box area, 5th / 50th / 95th percentile: {low:.0f} / {middle:.0f} / {high:.0f} % "
        "of the image"
    )
