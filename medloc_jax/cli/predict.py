# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One image and one sentence in; text, a box and a picture of it out.

    medloc predict --checkpoint=DIR --image=FILE_OR_FOLDER [--image=...] --query="thyroid nodule"
                   [--prompt="the whole user text"] [--template=vlm_r1] [--max_new_tokens=256]
                   [--dtype=float32] [--num_samples=8 --temperature=0.9] [--json] [--out=DIR]

The checkpoint is a Hugging Face folder, a converted one, a run's folder or one of its steps. Images
are JPEG, PNG, TIFF, BMP, WebP or DICOM; of a folder all are taken. Boxes are x1, y1, x2, y2 in
pixels of the stored image, x2 and y2 exclusive. Pictures go to DIR/<id>.png (--out= writes none).
With --json one object an image is printed: id, completion, token_ids, token_logprobs, boxes_px,
boxes_resized_px, width, height, seconds and more; with --num_samples also samples, agreement (mean
IoU over all pairs) and consensus_px (`medloc_jax/grounding/consensus.py` says how it is made).
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from tqdm import tqdm


def main(argv: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    given = _flags(argv)
    if bool(given.query.strip()) == bool(given.prompt.strip()):
        raise ValueError("give --query or --prompt, one of the two and not both")
    # These import jax's backends.
    from medloc_jax.cli import job as open_job
    from medloc_jax.evaluation import grounder, overlay

    images = _images(given.image)
    names = _names(images)
    open_job.use_compilation_cache()
    model = grounder.Grounder.load(
        given.checkpoint,
        dtype=given.dtype,
        template=given.template,
        max_new_tokens=given.max_new_tokens,
        tokenizer_folder=given.tokenizer,
        min_pixels=given.min_pixels,
        max_pixels=given.max_pixels,
    )
    answers = model.ground(
        images,
        given.query,
        prompt=given.prompt,
        source=given.source,
        num_samples=given.num_samples,
        temperature=given.temperature,
        seed=given.seed,
        batch_size=given.batch_size,
    )
    bar = tqdm(answers, total=len(images), unit="image", disable=True if len(images) == 1 else None)
    for name, grounding in zip(names, bar, strict=True):
        target = Path(given.out) / f"{name}.png" if given.out else None
        if target is not None:
            overlay.write(target, grounding.overlay())
        with tqdm.external_write_mode(file=sys.stdout):
            if given.json:
                print(json.dumps({**grounding.to_json(), "id": name}), flush=True)
            else:
                print(_told(name, grounding, target), flush=True)
    return 0


def _flags(argv: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()

    def text(name: str, default: str | None, what: str) -> None:
        flags.DEFINE_string(name, default, what, flag_values=values)

    def number(name: str, default: int, what: str) -> None:
        flags.DEFINE_integer(name, default, what, lower_bound=0, flag_values=values)

    text("checkpoint", None, "folder with weights")
    flags.DEFINE_multi_string("image", None, "image file or folder", flag_values=values)
    text("query", "", "what to find; the template makes the question")
    text("prompt", "", "the whole user text, instead of a query")
    text("template", "", "vlm_r1, medloc or box; default: as trained")
    text("source", "", "data set whose wording the medloc template uses: ham10000, heel, tn3k")
    text("tokenizer", "", "folder with tokenizer files; default: that of the weights")
    text("dtype", "float32", "float32 or bfloat16")
    text("out", "predictions", "folder for pictures; empty: none")
    number("max_new_tokens", 0, "longest completion; 0: as in training")
    number("min_pixels", 0, "smallest area of a resized image, px^2; 0: as in training")
    number("max_pixels", 0, "largest area of a resized image, px^2; 0: as in training")
    number("num_samples", 1, "completions an image")
    number("batch_size", 8, "images decoded together")
    number("seed", 0, "of the sampling")
    flags.DEFINE_float(
        "temperature", None, "of sampling; default: greedy, 0.9 for groups", flag_values=values
    )
    flags.DEFINE_bool("json", False, "print one JSON object an image", flag_values=values)
    flags.mark_flags_as_required(["checkpoint", "image"], flag_values=values)
    rest = values(["predict", *argv])[1:]
    if rest:
        raise ValueError(f"unknown argument {rest[0]!r}: flags are written --name=value")
    return values


def _images(given: Sequence[str]) -> list[Path]:
    """The files that were named, and all images of the folders."""
    from medloc_jax.data import picture

    found: list[Path] = []
    for name in given:
        path = Path(name)
        if not name:
            raise ValueError("--image= is empty: name a file or a folder")
        if path.is_dir():
            inside = picture.list_images(path)
            if not inside:
                kinds = ", ".join(picture.IMAGE_SUFFIXES)
                raise ValueError(f"--image={path}: no image in that folder ({kinds})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise ValueError(f"--image={path}: no such file or folder")
    return found


def _names(images: Sequence[Path]) -> list[str]:
    """One name an image: the file's own, with its folders' where that is not unique."""
    names = [path.stem for path in images]
    for depth in range(1, max(len(path.parts) for path in images) + 1):
        counts = Counter(names)
        if max(counts.values()) == 1:
            return names
        names = [
            "_".join([*path.parent.parts[-depth:], path.name]) if counts[name] > 1 else name
            for name, path in zip(names, images, strict=True)
        ]
    if max(Counter(names).values()) > 1:
        twice = Counter(names).most_common(1)[0][0]
        raise ValueError(f"--image: {twice} is named twice: give every image once")
    return names


def _told(name: str, grounding, target: Path | None) -> str:
    """What the terminal says of one image."""
    lines = [f"{name}  {grounding.width} x {grounding.height} px, {grounding.seconds:.2f} s"]
    for number, one in enumerate(grounding.completions):
        label = "  text" if len(grounding.completions) == 1 else f"  {number + 1:>4}"
        cut = " (cut off)" if one.truncated else ""
        lines.append(f"{label}  {one.text.strip()}{cut}")
        if len(grounding.completions) > 1:
            lines.append(f"        {_box(one.box_px, one.reason)}")
    if len(grounding.completions) == 1:
        only = grounding.completions[0]
        outside = ", clipped to the image" if only.clipped else ""
        lines.append(f"  box   {_box(only.box_px, only.reason)}{outside}")
    else:
        lines.append(f"  box   {_box(grounding.box_px, 'no completion has one')}, the consensus")
        lines.append(f"  agreement {grounding.agreement:.3f} (mean IoU over all pairs)")
    if target is not None:
        lines.append(f"  picture {target}")
    return "\n".join(lines)


def _box(box_px, reason: str) -> str:
    return (
        f"none ({reason})" if box_px is None else str([round(side, 1) for side in box_px.tolist()])
    )
