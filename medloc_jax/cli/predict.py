# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One image and one sentence in; text, a box and a picture of it out.

    medloc predict --checkpoint=DIR --image=FILE_OR_FOLDER [--image=...] --query="thyroid nodule"
                   [--prompt="the whole user text"] [--num_samples=8 --temperature=0.9] [--json]

The checkpoint is a Hugging Face folder, a converted one, a run's folder or one of its steps. Images
are JPEG, PNG, TIFF, BMP, WebP or DICOM; of a folder all are taken. Boxes are x1, y1, x2, y2 in
pixels of the stored image, x2 and y2 exclusive. Pictures go to DIR/<id>.png of --out=DIR.
With --json one object an image is printed: id, completion, token_ids, token_logprobs, boxes_px,
boxes_resized_px, width, height, seconds and more; with --num_samples also samples, agreement (mean
IoU over all pairs) and consensus_px (`medloc_jax/grounding/consensus.py` says how it is made).
An image that cannot be read is named on stderr (and as {"id", "error"}), the others are answered,
and the exit code is 1; --strict stops at the first.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from tqdm import tqdm

from medloc_jax.cli import verb_flags


def main(argv: Sequence[str]) -> int:
    """Runs the verb; returns the exit code: 1 where some images could not be read."""
    given = _flags()
    if verb_flags.wants_help(argv):
        print(help_text())
        return 0
    rest = verb_flags.parse("predict", given, argv, required=["checkpoint"])
    if bool(given.query.strip()) == bool(given.prompt.strip()):
        raise ValueError("give --query or --prompt, one of the two and not both")
    # These import jax's backends.
    from medloc_jax.cli import job as open_job
    from medloc_jax.evaluation import grounder, overlay

    # A shell that expands `--image *.png` leaves all names but the first by themselves.
    images = _images([*given.image, *rest])
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
    failed: list[str] = []

    def refused(place: int, reason: str) -> None:
        failed.append(names[place])
        with tqdm.external_write_mode(file=sys.stderr):
            print(f"medloc predict: refused: {reason}", file=sys.stderr, flush=True)
        if given.json:
            print(json.dumps({"id": names[place], "error": reason}), flush=True)

    answers = model.ground(
        images,
        given.query,
        prompt=given.prompt,
        source=given.source,
        num_samples=given.num_samples,
        temperature=given.temperature,
        seed=given.seed,
        batch_size=given.batch_size,
        refused=None if given.strict or len(images) == 1 else refused,
    )
    with tqdm(total=len(images), unit="image", disable=True if len(images) == 1 else None) as bar:
        for grounding in answers:
            bar.update(grounding.place + 1 - bar.n)
            name = names[grounding.place]
            target = Path(given.out) / f"{name}.png" if given.out else None
            if target is not None:
                overlay.write(target, grounding.overlay())
            with tqdm.external_write_mode(file=sys.stdout):
                if given.json:
                    print(json.dumps({**grounding.to_json(), "id": name}), flush=True)
                else:
                    print(_told(name, grounding, target), flush=True)
    if failed:
        print(
            f"medloc predict: {len(failed)} of {len(images)} images could not be read",
            file=sys.stderr,
        )
    return 1 if failed else 0


def help_text() -> str:
    """What --help says."""
    return f"{(__doc__ or '').strip()}\n\n{verb_flags.help_text(_flags())}"


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()

    def text(name: str, default: str | None, what: str) -> None:
        flags.DEFINE_string(name, default, what, flag_values=values)

    def number(name: str, default: int, what: str) -> None:
        flags.DEFINE_integer(name, default, what, lower_bound=0, flag_values=values)

    text("checkpoint", None, "folder with weights")
    flags.DEFINE_multi_string("image", [], "image file or folder; repeatable", flag_values=values)
    text("query", "", "what to find; the template makes the question")
    text("prompt", "", "the whole user text, instead of a query")
    text("template", "", "vlm_r1, medloc, boxmed, chain_of_box or box; as trained if empty")
    text("source", "", "data set whose wording the medloc template uses: ham10000, heel, tn3k")
    text("tokenizer", "", "folder with tokenizer files; that of the weights if empty")
    text("dtype", "float32", "of weights and activations: float32 or bfloat16")
    text("out", "predictions", "folder for pictures; --out= writes none")
    number("max_new_tokens", 0, "longest completion; 0: as in training, else 256")
    number("min_pixels", 0, "smallest area of a resized image, px^2; 0: as in training")
    number("max_pixels", 0, "largest area of a resized image, px^2; 0: as in training")
    number("num_samples", 1, "completions an image")
    flags.DEFINE_float(
        "temperature", None, "of sampling; greedy if empty, 0.9 for groups", flag_values=values
    )
    number("seed", 0, "of the sampling")
    number("batch_size", 8, "images decoded together, where decoding is greedy")
    flags.DEFINE_bool("json", False, "print one JSON object an image", flag_values=values)
    flags.DEFINE_bool("strict", False, "stop at the first image that fails", flag_values=values)
    return values


def _images(given: Sequence[str]) -> list[Path]:
    """The files that were named, and all images of the folders."""
    from medloc_jax.data import picture

    if not given:
        raise ValueError("--image is missing: name a file or a folder")
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
