# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Skin-like pictures with lesion-like targets, drawn from a seed: the embedded default data set.

A picture shows textured, unevenly lit skin with hairs, freckles and highlights, and one or two
targets of irregular outline: a dark lesion, a bright nodule. Where both are there, only the query
says which is meant. Everything is a function of (variant, seed, index).
"""

import dataclasses
import json
import math
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw
from tqdm import tqdm

from medloc_jax.data import examples, masks

# (width, height) px: aspect ratios 3:4 to 4:3, most of them no multiple of a patch, so that
# original and resized pixels differ.
SIZES = ((64, 64), (72, 72), (72, 56), (56, 72), (80, 60), (60, 80))
QUERIES = ("dark lesion", "bright nodule")
# Test pictures are drawn from here on, so that they stay the same when num_train changes.
FIRST_TEST_INDEX = 1_000_000
PARAMETERS_NAME = "synthetic.json"
# Part of the parameters: raise it when render() draws other pixels, and old folders are refused.
RENDER_VERSION = 6


@dataclasses.dataclass(frozen=True)
class Variant:
    """What the pictures of a variant look like. Ranges are (low, high), drawn uniformly."""

    diameter_px: tuple[float, float]  # of a circle of the target's area, before the cap
    max_share: float  # cap: that diameter over the shorter side of the picture
    elongation: tuple[float, float]  # longer over shorter axis
    contrast: tuple[float, float]  # of target against skin, 1 = black or white
    edge_px: tuple[float, float]  # width of the blurred edge
    irregularity: float  # relative size of the dents in the outline
    noise: float  # standard deviation of the pixel noise; intensities are 0..1
    texture: float  # standard deviation of the skin's texture
    clutter: int  # at most so many hairs, freckles and highlights of each kind
    two_targets: float  # share of the pictures that show both kinds of target


# "easy" is the domain of a warm start: the same picture with larger, clearer targets.
VARIANTS = {
    "lesions": Variant(
        diameter_px=(25.0, 46.0),
        max_share=0.70,
        elongation=(1.0, 1.6),
        contrast=(0.40, 0.70),
        edge_px=(1.0, 3.5),
        irregularity=0.12,
        noise=0.04,
        texture=0.03,
        clutter=3,
        two_targets=0.10,
    ),
    "easy": Variant(
        diameter_px=(24.0, 48.0),
        max_share=0.70,
        elongation=(1.0, 1.5),
        contrast=(0.45, 0.75),
        edge_px=(1.0, 3.0),
        irregularity=0.08,
        noise=0.03,
        texture=0.03,
        clutter=2,
        two_targets=0.15,
    ),
}


def variant_named(name: str) -> Variant:
    """An entry of VARIANTS.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in VARIANTS:
        raise ValueError(f"synthetic variant {name!r} is unknown: choose {' or '.join(VARIANTS)}")
    return VARIANTS[name]


def render(
    variant: str, seed: int, index: int
) -> tuple[Image.Image, str, tuple[float, float, float, float]]:
    """Draws one picture.

    Args:
        variant: an entry of VARIANTS.
        seed: of the data set, >= 0.
        index: of the picture, >= 0.

    Returns:
        The RGB picture, the query, and the tight box (xyxy px, half-open) of the target it names.
    """
    style = variant_named(variant)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index])))
    width, height = SIZES[generator.integers(len(SIZES))]
    outlines = _place_targets(generator, style, width, height)
    kinds = generator.permutation(len(QUERIES))[: len(outlines)]

    # One grey field (how much light) times a skin colour; targets blend towards their own colour.
    light = 1.0 + _texture(generator, width, height, 2, 0.06)
    light += _texture(generator, width, height, 6, style.texture)
    light += _texture(generator, width, height, 3, style.texture, finest=True)
    skin = np.array([0.80, 0.62, 0.52]) + generator.uniform(-0.06, 0.06, 3)
    pixels = light[:, :, None] * skin.astype(np.float32)
    for kind, outline in zip(kinds, outlines, strict=True):
        contrast = generator.uniform(*style.contrast)
        colour = _target_colour(generator, QUERIES[kind], skin, contrast)
        edge_px = generator.uniform(*style.edge_px)
        # 0.5 on the outline, so that the box is where an eye would put it.
        alpha = 1.0 / (1.0 + np.exp(np.clip(-4.0 * outline / edge_px, -30.0, 30.0)))
        mottle = 1.0 + _texture(generator, width, height, 5, 2.0 * style.texture)
        target = mottle[:, :, None] * colour.astype(np.float32)
        pixels += alpha[:, :, None] * (target - pixels)
    picture = Image.fromarray(_to_bytes(pixels))
    _draw_clutter(generator, picture, style.clutter)
    noisy = np.asarray(picture, np.float32) / 255.0
    noise = generator.standard_normal((height, width, 1), np.float32) * style.noise
    noise = noise + generator.standard_normal((height, width, 3), np.float32) * (style.noise / 2)
    box = masks.tight_box_px(outlines[0] > 0)
    return Image.fromarray(_to_bytes(noisy + noise)), QUERIES[kinds[0]], tuple(box.tolist())


@dataclasses.dataclass(frozen=True)
class _Ellipse:
    """A target before it is drawn; px and radians."""

    radius: float  # of a circle of the same area
    stretch: float  # longer axis over that
    turn: float
    centre: Float[np.ndarray, "2"]
    half_extent: Float[np.ndarray, "2"]  # of a box that holds it, dents and blur included


def _place_targets(
    generator: np.random.Generator, style: Variant, width: int, height: int
) -> list[Float[np.ndarray, "h w"]]:
    """Outlines of one or two targets whose boxes do not overlap; the first one is asked for.

    Both are drawn alike, and the pair again until it fits, so that neither size nor place tells
    which one is meant.
    """
    count = 2 if generator.random() < style.two_targets else 1
    while True:
        ellipses = [_ellipse(generator, style, width, height) for _ in range(count)]
        gap = np.abs(ellipses[0].centre - ellipses[-1].centre)
        if count == 1 or np.any(gap > ellipses[0].half_extent + ellipses[1].half_extent):
            return [_outline(generator, style, ellipse, width, height) for ellipse in ellipses]


def _ellipse(generator: np.random.Generator, style: Variant, width: int, height: int) -> _Ellipse:
    """An ellipse that lies wholly in the picture."""
    room = 1 + 1.5 * style.irregularity
    stretch = math.sqrt(generator.uniform(*style.elongation))
    radius = min(
        generator.uniform(*style.diameter_px) / 2,
        style.max_share * min(width, height) / 2,
        (min(width, height) / 2 - 2) / (stretch * room),
    )
    turn = generator.uniform(0, math.pi)
    cos, sin = math.cos(turn), math.sin(turn)
    half_extent = (
        radius * room * np.hypot([stretch * cos, stretch * sin], [sin / stretch, cos / stretch])
    )
    half_extent += 1
    centre = generator.uniform(half_extent, np.array([width, height]) - half_extent)
    return _Ellipse(radius, stretch, turn, centre, half_extent)


def _outline(
    generator: np.random.Generator, style: Variant, ellipse: _Ellipse, width: int, height: int
) -> Float[np.ndarray, "h w"]:
    """About the distance (px) of every pixel to the dented edge of an ellipse, positive inside."""
    x = (np.arange(width)[None, :] + 0.5 - ellipse.centre[0]).astype(np.float32)
    y = (np.arange(height)[:, None] + 0.5 - ellipse.centre[1]).astype(np.float32)
    cos, sin = math.cos(ellipse.turn), math.sin(ellipse.turn)
    along = (cos * x + sin * y) / ellipse.stretch
    across = (cos * y - sin * x) * ellipse.stretch
    angle = np.arctan2(across, along)
    bumps = np.zeros_like(angle)
    phases = generator.uniform(0, 2 * math.pi, 3).tolist()
    for frequency, phase in zip((2, 3, 5), phases, strict=True):
        bumps += np.cos(frequency * angle + phase) * (style.irregularity / 2)
    return ellipse.radius * (1 + bumps) - np.hypot(along, across)


def _texture(
    generator: np.random.Generator,
    width: int,
    height: int,
    cells: int,
    deviation: float,
    *,
    finest: bool = False,
) -> Float[np.ndarray, "h w"]:
    """Smooth noise: `cells` independent values along each side (with `finest`, one every 3 px)."""
    shape = (height // 3, width // 3) if finest else (cells + 1, cells + 1)
    coarse = generator.standard_normal(shape, np.float32) * np.float32(deviation)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _target_colour(
    generator: np.random.Generator, kind: str, skin: Float[np.ndarray, "3"], contrast: float
) -> Float[np.ndarray, "3"]:
    """Skin moved by `contrast` towards a brown that is nearly black, or a pale pink."""
    if kind == "dark lesion":
        towards = np.array([0.16, 0.08, 0.06]) + generator.uniform(0, 0.08, 3)
        share = min(1.0, contrast * 1.5)
    else:
        towards = np.array([1.0, 0.93, 0.90]) + generator.uniform(-0.05, 0.05, 3)
        share = min(1.0, contrast * 1.8)
    return skin + share * (towards - skin)


def _draw_clutter(generator: np.random.Generator, picture: Image.Image, most: int) -> None:
    """Hairs, freckles and highlights: thin or small, so that none passes for a target."""
    width, height = picture.size
    draw = ImageDraw.Draw(picture, "RGBA")
    hairs, freckles, highlights = generator.integers(0, most + 1, 3)
    for _ in range(hairs):
        # A parabola through three random points, from border to border.
        start, middle, end = generator.uniform(-0.1, 1.1, (3, 2)) * (width, height)
        t = np.linspace(0, 1, 12)[:, None]
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
        shade = int(generator.integers(25, 70))
        draw.line([tuple(point) for point in curve], fill=(shade, shade // 2, shade // 3, 170))
    for number in range(freckles + highlights):
        x, y = generator.uniform(0, 1, 2) * (width, height)
        radius = generator.uniform(0.8, 1.8)
        fill = (95, 55, 40, 160) if number < freckles else (255, 250, 245, 210)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _to_bytes(pixels: Float[np.ndarray, "h w c"]) -> np.ndarray:
    return (np.clip(pixels, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def write(
    out_dir: str | os.PathLike[str],
    *,
    variant: str = "lesions",
    num_train: int = 3000,
    num_test: int = 400,
    seed: int = 0,
) -> Path:
    """Draws a data set into a folder, all or nothing; one that is there already is used again.

    Args:
        out_dir: the folder, new, empty, or of an earlier call with the same parameters.
        variant: an entry of VARIANTS.
        num_train: pictures of the train split, up to FIRST_TEST_INDEX.
        num_test: pictures of the test split; they do not change with num_train.
        seed: of the pictures, >= 0.

    Returns:
        The path of the manifest.

    Raises:
        ValueError: a parameter is out of range, or the folder holds something else.
    """
    variant_named(variant)
    for name, value, most in (
        ("num_train", num_train, FIRST_TEST_INDEX),
        ("num_test", num_test, FIRST_TEST_INDEX),
        ("seed", seed, 2**63),
    ):
        if not 0 <= value <= most:
            raise ValueError(f"synthetic {name} is {value}: it must be from 0 to {most}")
    if num_train + num_test == 0:
        raise ValueError("synthetic num_train and num_test are both 0: raise one of them")
    parameters = {
        "variant": variant,
        "num_train": num_train,
        "num_test": num_test,
        "seed": seed,
        "render_version": RENDER_VERSION,
    }
    out_dir = Path(out_dir)
    if _is_written(out_dir, parameters):
        return out_dir / examples.MANIFEST_NAME

    out_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp makes it private to this user
        _write_files(temporary, parameters)
        try:
            os.replace(temporary, out_dir)
        except OSError:
            # Another process of the same run was faster; then its folder is as good as ours.
            if not _is_written(out_dir, parameters):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out_dir / examples.MANIFEST_NAME


def _is_written(out_dir: Path, parameters: dict[str, object]) -> bool:
    """Whether the folder holds this very data set; ValueError if it holds something else."""
    if not out_dir.exists():
        return False
    if not out_dir.is_dir():
        raise ValueError(f"{out_dir}: is a file: give a folder for the synthetic data set")
    try:
        found = json.loads((out_dir / PARAMETERS_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        if any(out_dir.iterdir()):
            raise ValueError(
                f"{out_dir}: is not empty and holds no synthetic data set: give another folder"
            ) from None
        return False
    if found != parameters:
        raise ValueError(
            f"{out_dir}: holds another synthetic data set ({found}), and {parameters} is wanted: "
            "delete it or give another folder"
        )
    return True


def _write_files(folder: Path, parameters: dict) -> None:
    (folder / "images").mkdir()
    variant, seed = parameters["variant"], parameters["seed"]
    plan = [("train", index) for index in range(parameters["num_train"])]
    plan += [("test", FIRST_TEST_INDEX + index) for index in range(parameters["num_test"])]
    lines = []
    for split, index in tqdm(plan, desc=f"drawing {variant}", unit="image", disable=None):
        picture, query, box = render(variant, seed, index)
        name = f"images/{split}_{index % FIRST_TEST_INDEX:06d}.png"
        # Level 1: noise hardly compresses, and the higher levels take most of the time.
        picture.save(folder / name, compress_level=1)
        lines.append(
            examples.Example(
                id=f"{variant}-{seed}-{index}",
                image=name,
                width=picture.width,
                height=picture.height,
                query=query,
                boxes_px=(box,),
                label=query,
                split=split,
                group=None,
                source="synthetic",
            )
        )
    examples.write_manifest(folder / examples.MANIFEST_NAME, lines)
    (folder / PARAMETERS_NAME).write_text(json.dumps(parameters) + "\n", encoding="utf-8")
