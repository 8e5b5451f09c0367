# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Every integer that depends on an image grid, made on the host, and the ladder of static shapes.

A row is one prompt with all its images packed one after another. Patches are stored in window
order from the start, so that merged token j of a row is patches 4j to 4j + 3, windows are filled by
one gather, and the device never permutes. `image_index` undoes the window order on the prompt's
side. What depends on one grid alone is cached by grid.

Letters: B rows, P prompt tokens, T tokens of one prompt, N patches, n patches of one image or row,
W windows, S patches in a full window.

Reference: Qwen2.5-VL Technical Report, arXiv:2502.13923, section 2.1 (windows, M-RoPE).
Departures: images only (a grid with t > 1 is refused).
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from medloc_jax.model.config import ModelConfig, VisionConfig

Grid = tuple[int, int, int]  # (t, h, w) in patches, before merging; t is 1 for an image

MAX_ASPECT_RATIO = 200


class ModelInputs(NamedTuple):
    """What one batch of prompts gives the model; numpy on the host, jax arrays on the device."""

    input_ids: Int32[Any, "B P"]
    prompt_lengths: Int32[Any, " B"]
    mrope_positions: Int32[Any, "B 3 P"]  # (time, height, width)
    rope_delta: Int32[Any, " B"]  # position of the first completion token - prompt length
    image_index: Int32[Any, "B P"]  # merged image token that feeds this position, -1 = none
    pixel_values: Float32[Any, "B N patch_dim"]  # window order, zero where padded
    patch_hw: Int32[Any, "B N 2"]  # (row, column) in its image
    segment_ids: Int32[Any, "B N"]  # 1.. = which image of the row, 0 = padding
    window_index: Int32[Any, "B W S"]  # patch in each window slot, -1 = empty slot
    window_slot: Int32[Any, "B N"]  # flat slot in [0, W*S) of each patch; 0 where padded


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """The size an image is resized to: multiples of `factor`, area in [min_pixels, max_pixels].

    Python's round() (a half goes to the even neighbour) is part of the contract: answers are in
    pixels of the resized image, so one step of `factor` more or less moves every box.

    Raises:
        ValueError: an empty image, or one side more than 200 times the other.

    Reference: QwenLM/Qwen2.5-VL, qwen-vl-utils, `smart_resize`.
    """
    if min(height, width) < 1:
        raise ValueError(f"image of height {height} and width {width} is empty")
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise ValueError(
            f"image of height {height} and width {width}: the longer side may be at most "
            f"{MAX_ASPECT_RATIO} times the shorter; crop it"
        )
    if not 0 < min_pixels <= max_pixels:
        raise ValueError(f"min_pixels {min_pixels} must be in 1..max_pixels ({max_pixels})")
    rows, columns = round(height / factor), round(width / factor)
    if rows * columns * factor**2 > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif rows * columns * factor**2 < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / factor)
        columns = math.ceil(width * grow / factor)
    return rows * factor, columns * factor


def _checked(grid_thw: Sequence[int], merge: int) -> Grid:
    t, h, w = (int(value) for value in grid_thw)
    if t != 1:
        raise ValueError(f"grid {(t, h, w)} has {t} frames: only images (one frame) are supported")
    if h < 1 or w < 1 or h % merge or w % merge:
        raise ValueError(
            f"grid {(t, h, w)}: height and width must be positive multiples of the merge size "
            f"{merge}"
        )
    return t, h, w


def merged_tokens(grid_thw: Sequence[int], vision: VisionConfig) -> int:
    """How many prompt positions an image of that patch grid takes."""
    _, h, w = _checked(grid_thw, vision.spatial_merge_size)
    return h * w // vision.merge_unit


def num_windows(grid_thw: Sequence[int], vision: VisionConfig) -> int:
    """How many attention windows an image of that patch grid has."""
    _, h, w = _checked(grid_thw, vision.spatial_merge_size)
    side = vision.window_size // vision.patch_size
    return -(-h // side) * -(-w // side)


def window_order(
    grid_thw: Sequence[int], vision: VisionConfig
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " windows"]]:
    """Merged tokens of one image window by window.

    Returns:
        merged_order: raster indices of the merged tokens (HF's window_index of that image).
        window_lengths: patches in each window, none of them empty.
    """
    _, h, w = _checked(grid_thw, vision.spatial_merge_size)
    merge = vision.spatial_merge_size
    side = vision.window_size // vision.patch_size // merge
    row, column = np.indices((h // merge, w // merge)).reshape(2, -1)
    window = row // side * -(-w // merge // side) + column // side
    return np.argsort(window, kind="stable"), np.bincount(window) * vision.merge_unit


def patch_hw(grid_thw: Sequence[int], merge: int) -> Int32[np.ndarray, "n 2"]:
    """(row, column) of each patch in HF order: raster over merged tokens, raster inside each."""
    _, h, w = _checked(grid_thw, merge)
    places = np.indices((h, w), dtype=np.int32).transpose(1, 2, 0)
    blocks = places.reshape(h // merge, merge, w // merge, merge, 2)
    return blocks.transpose(0, 2, 1, 3, 4).reshape(-1, 2)


@dataclasses.dataclass(frozen=True)
class _ImagePlan:
    """What one grid alone decides; shared by every image of that grid, so read-only."""

    patch_order: Int64[np.ndarray, " n"]  # HF index of the patch stored at each place
    patch_hw: Int32[np.ndarray, "n 2"]
    window_slot: Int32[np.ndarray, " n"]
    merged_place: Int32[np.ndarray, " m"]  # where the merged token of each raster index is stored
    num_windows: int


@functools.lru_cache(maxsize=4096)
def _image_plan(grid_thw: Grid, vision: VisionConfig) -> _ImagePlan:
    merged_order, lengths = window_order(grid_thw, vision)
    unit = vision.merge_unit
    patch_order = (merged_order[:, None] * unit + np.arange(unit)).reshape(-1)
    window = np.repeat(np.arange(len(lengths)), lengths)
    first = np.cumsum(lengths) - lengths
    slot = window * vision.window_patches + np.arange(len(patch_order)) - first[window]
    plan = _ImagePlan(
        patch_order=patch_order,
        patch_hw=patch_hw(grid_thw, vision.spatial_merge_size)[patch_order],
        window_slot=slot.astype(np.int32),
        merged_place=np.argsort(merged_order).astype(np.int32),
        num_windows=len(lengths),
    )
    for array in (plan.patch_order, plan.patch_hw, plan.window_slot, plan.merged_place):
        array.flags.writeable = False
    return plan


def _placeholders(
    input_ids: Int64[np.ndarray, " T"], grids: Sequence[Grid], config: ModelConfig
) -> Int64[np.ndarray, " M"]:
    """Positions of the image placeholders, checked against the grids."""
    if (input_ids == config.video_token_id).any():
        raise ValueError("the prompt holds a video placeholder: only images are supported")
    places = np.flatnonzero(input_ids == config.image_token_id)
    wanted = [merged_tokens(grid, config.vision) for grid in grids]
    if len(places) != sum(wanted):
        raise ValueError(
            f"the prompt has {len(places)} image placeholders, but its {len(grids)} images give "
            f"{sum(wanted)} image tokens"
        )
    last = np.cumsum(wanted, dtype=np.int64) - 1
    first = last - np.asarray(wanted, np.int64) + 1
    if len(grids) and (places[last] - places[first] != last - first).any():
        raise ValueError("the placeholders of an image must stand together in the prompt")
    return places


def mrope_positions(
    input_ids: Sequence[int] | Int32[np.ndarray, " T"] | Int64[np.ndarray, " T"],
    grids_thw: Sequence[Sequence[int]],
    config: ModelConfig,
) -> tuple[Int32[np.ndarray, "3 T"], int]:
    """(time, height, width) position of every prompt token.

    Text counts on in all three; an image stands still in time and spreads over its merged grid;
    the next text starts after the largest position so far.

    Returns:
        positions, and rope_delta: the next position is len(input_ids) + rope_delta.

    Raises:
        ValueError: placeholders and grids do not match, or there is a video placeholder.

    Reference: Qwen2-VL, arXiv:2409.12191, section 2.1 (M-RoPE).
    """
    ids = np.asarray(input_ids, np.int64)
    merge = config.vision.spatial_merge_size
    grids = [_checked(grid, merge) for grid in grids_thw]
    places = _placeholders(ids, grids, config)
    positions = np.empty((3, len(ids)), np.int32)
    done, position, used = 0, 0, 0
    for _, h, w in grids:
        rows, columns = h // merge, w // merge
        start = int(places[used])
        positions[:, done:start] = np.arange(position, position + start - done)
        position += start - done
        done = start + rows * columns
        positions[0, start:done] = position
        positions[1, start:done] = position + np.repeat(np.arange(rows), columns)
        positions[2, start:done] = position + np.tile(np.arange(columns), rows)
        position += max(rows, columns)
        used += rows * columns
    positions[:, done:] = np.arange(position, position + len(ids) - done)
    return positions, position - done


# ---- static shapes ----


@dataclasses.dataclass(frozen=True)
class RowShape:
    """How large one row is; known from image sizes and token counts alone, without pixels."""

    num_patches: int
    num_windows: int
    prompt_length: int


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A compiled shape: rows are padded to it."""

    num_patches: int
    num_windows: int
    prompt_length: int

    def covers(self, row: RowShape) -> bool:
        """Whether a row of that shape fits."""
        return (
            row.num_patches <= self.num_patches
            and row.num_windows <= self.num_windows
            and row.prompt_length <= self.prompt_length
        )


def row_shape(
    grids_thw: Sequence[Sequence[int]], prompt_length: int, vision: VisionConfig
) -> RowShape:
    """Shape of a row with images of those patch grids; prompt_length counts image tokens too."""
    return RowShape(
        num_patches=sum(int(grid[1]) * int(grid[2]) for grid in grids_thw),
        num_windows=sum(num_windows(grid, vision) for grid in grids_thw),
        prompt_length=prompt_length,
    )


def _ladder(first: int, last: int) -> tuple[int, ...]:
    """Powers of two and their one-and-a-half-folds: padding never exceeds a half."""
    rungs = [first]
    while rungs[-1] < last:
        top = rungs[-1]
        power = 1 << (top.bit_length() - 1)
        rungs.append(top + (power // 2 or 1) if top == power else 2 * power)
    return tuple(rungs)


# Patches and prompt tokens start at 16; 131072 patches is twice Qwen's largest single image.
RUNGS = _ladder(16, 131072)
WINDOW_RUNGS = _ladder(1, 16384)


def rung(n: int, ladder: Sequence[int] = RUNGS) -> int:
    """The smallest rung that is at least n.

    Raises:
        ValueError: n is above the ladder.
    """
    for step in ladder:
        if step >= n:
            return step
    raise ValueError(f"a row of size {n} is above the ladder's {ladder[-1]}: lower max_pixels")


def plan_buckets(rows: Sequence[RowShape], max_buckets: int) -> tuple[Bucket, ...]:
    """At most max_buckets nested buckets of rungs that cover every row.

    Shapes are sorted by size and made nested by a running maximum; among the resulting chain the
    buckets are chosen that minimise the padded size summed over rows, with no more buckets than
    that needs. It is a pure function of the rows, so every host plans the same.

    Raises:
        ValueError: no rows, or max_buckets below 1.
    """
    if not rows:
        raise ValueError("no rows to plan shapes for: the split is empty")
    if max_buckets < 1:
        raise ValueError(f"max_buckets must be at least 1, not {max_buckets}")
    sizes, inverse = np.unique(
        [(row.num_patches, row.num_windows, row.prompt_length) for row in rows],
        axis=0,
        return_inverse=True,
    )
    rungs = np.array(
        [(rung(n), rung(max(w, 1), WINDOW_RUNGS), rung(p)) for n, w, p in sizes.tolist()]
    )[inverse.reshape(-1)]
    shapes, counts = np.unique(rungs, axis=0, return_counts=True)
    relative = (shapes / shapes.max(0)).sum(1)
    chain = np.maximum.accumulate(shapes[np.argsort(relative, kind="stable")], axis=0)
    # A shape counts where the chain first covers it, which may be before its own place.
    first = (chain >= shapes[:, None]).all(2).argmax(1)
    counts = np.bincount(first, weights=counts, minlength=len(chain))
    chosen = _cheapest_steps((chain / chain[-1]).sum(1), counts, max_buckets)
    return tuple(Bucket(*chain[i].tolist()) for i in chosen)


def tighten(buckets: Sequence[Bucket], rows: Sequence[RowShape]) -> tuple[Bucket, ...]:
    """The same buckets, each no larger than the rows that it covers need.

    For rows that are all known beforehand, as a run's are: a rung may be half as large again as the
    largest row that it serves, and that padding is computed at every step. What was covered by
    a bucket still is, and the buckets stay nested.

    Args:
        buckets: of `plan_buckets` for the same rows.
        rows: every row that will come.

    Returns:
        As many buckets or fewer: two that become equal are one.

    Raises:
        ValueError: a bucket covers no row.
    """
    tight = []
    for bucket in buckets:
        covered = [row for row in rows if bucket.covers(row)]
        if not covered:
            raise ValueError(f"{bucket} covers none of the rows: plan the buckets for these rows")
        tight.append(
            Bucket(
                round_up(max(row.num_patches for row in covered)),
                max(max(row.num_windows for row in covered), 1),
                round_up(max(row.prompt_length for row in covered)),
            )
        )
    return tuple(dict.fromkeys(tight))


def round_up(n: int) -> int:
    """At most 8 or a sixteenth more: whole tiles for matrix units and compilers."""
    multiple = max(8, 1 << max(0, (n // 16).bit_length() - 1))
    return -(-max(n, 1) // multiple) * multiple


def _cheapest_steps(
    cost: Float64[np.ndarray, " k"], counts: Float64[np.ndarray, " k"], max_steps: int
) -> list[int]:
    """Increasing indices, the last shape's included, of the steps that pad least.

    Every shape is padded to the next step at or after it; a step more is taken only if it saves.
    """
    size = len(cost)
    total = np.concatenate([[0], np.cumsum(counts)])
    best = np.full(size + 1, np.inf)  # cheapest cover of the first i shapes with the steps so far
    best[0] = 0.0
    previous: list[Int64[np.ndarray, " k"]] = []
    answer, answer_cost = [size - 1], np.inf
    for _ in range(min(max_steps, size)):
        # [from, to]: the shapes from..to-1 all padded to shape to-1.
        padded = best[:-1, None] + (total[1:] - total[:-1, None]) * cost
        padded = np.where(np.tri(size, dtype=bool).T, padded, np.inf)
        previous.append(padded.argmin(0))
        best = np.concatenate([[np.inf], padded.min(0)])
        if best[-1] < answer_cost * (1 - 1e-9):
            answer_cost, answer, end = best[-1], [], size
            for choice in reversed(previous):
                answer.insert(0, end - 1)
                end = int(choice[end - 1])
    return answer


def choose_bucket(buckets: Sequence[Bucket], rows: Sequence[RowShape]) -> Bucket:
    """The smallest bucket in which every one of the rows fits.

    Raises:
        ValueError: none of them does.
    """
    for bucket in sorted(buckets, key=lambda b: (b.num_patches, b.num_windows, b.prompt_length)):
        if all(bucket.covers(row) for row in rows):
            return bucket
    largest = RowShape(
        max(row.num_patches for row in rows),
        max(row.num_windows for row in rows),
        max(row.prompt_length for row in rows),
    )
    raise ValueError(f"no compiled shape covers {largest}; the shapes are {tuple(buckets)}")


# ---- rows and batches ----


@dataclasses.dataclass(frozen=True)
class Row:
    """One prompt with its images, packed and not yet padded; fields as in ModelInputs."""

    input_ids: Int32[np.ndarray, " T"]
    mrope_positions: Int32[np.ndarray, "3 T"]
    rope_delta: int
    image_index: Int32[np.ndarray, " T"]
    pixel_values: Float32[np.ndarray, "n patch_dim"]
    patch_hw: Int32[np.ndarray, "n 2"]
    segment_ids: Int32[np.ndarray, " n"]
    window_slot: Int32[np.ndarray, " n"]
    num_windows: int

    @property
    def shape(self) -> RowShape:
        """What a bucket has to cover."""
        return RowShape(len(self.pixel_values), self.num_windows, len(self.input_ids))


def pack_row(
    input_ids: Sequence[int],
    images: Sequence[tuple[Float32[np.ndarray, "_ patch_dim"], Sequence[int]]],
    config: ModelConfig,
) -> Row:
    """Packs one prompt and its images.

    Args:
        input_ids: the prompt, its image placeholders already expanded.
        images: (pixel_values in HF patch order, grid_thw) of each image, in the prompt's order.
        config: the model.

    Raises:
        ValueError: the prompt is empty, its placeholders do not match the images, or the pixels do
            not match their grid.
    """
    ids = np.asarray(input_ids, np.int32)
    if not len(ids):
        raise ValueError("the prompt is empty")
    vision = config.vision
    grids = [_checked(grid, vision.spatial_merge_size) for _, grid in images]
    for (pixels, _), (_, h, w) in zip(images, grids, strict=True):
        if pixels.shape != (h * w, vision.patch_dim):
            raise ValueError(
                f"pixel_values of shape {pixels.shape} do not match a grid of {h} x {w} patches of "
                f"{vision.patch_dim} values"
            )
    plans = [_image_plan(grid, vision) for grid in grids]
    positions, rope_delta = mrope_positions(ids, grids, config)
    pixel_values = np.empty((sum(h * w for _, h, w in grids), vision.patch_dim), np.float32)
    merged_place, window_slot, segments = [], [], []
    patches = windows = 0
    for number, ((pixels, _), plan) in enumerate(zip(images, plans, strict=True), start=1):
        count = len(plan.patch_order)
        np.take(pixels, plan.patch_order, axis=0, out=pixel_values[patches : patches + count])
        merged_place.append(plan.merged_place + np.int32(patches // vision.merge_unit))
        window_slot.append(plan.window_slot + np.int32(windows * vision.window_patches))
        segments.append(np.full(count, number, np.int32))
        patches += count
        windows += plan.num_windows
    image_index = np.full(len(ids), -1, np.int32)
    none = np.zeros(0, np.int32)
    image_index[ids == config.image_token_id] = np.concatenate([none, *merged_place])
    return Row(
        input_ids=ids,
        mrope_positions=positions,
        rope_delta=rope_delta,
        image_index=image_index,
        pixel_values=pixel_values,
        patch_hw=np.concatenate([none.reshape(0, 2), *(plan.patch_hw for plan in plans)]),
        segment_ids=np.concatenate([none, *segments]),
        window_slot=np.concatenate([none, *window_slot]),
        num_windows=windows,
    )


def collate(rows: Sequence[Row], bucket: Bucket, config: ModelConfig) -> ModelInputs:
    """Pads rows to the bucket and stacks them.

    Raises:
        ValueError: a row does not fit, there are no rows, or the bucket splits a merged token.
    """
    if not rows:
        raise ValueError("a batch needs at least one row")
    if bucket.num_patches % config.vision.merge_unit:
        raise ValueError(
            f"{bucket}: num_patches must be a multiple of the {config.vision.merge_unit} patches "
            "of a merged token"
        )
    size, n, p = len(rows), bucket.num_patches, bucket.prompt_length
    slots = bucket.num_windows * config.vision.window_patches
    inputs = ModelInputs(
        input_ids=np.full((size, p), config.pad_token_id, np.int32),
        prompt_lengths=np.array([len(row.input_ids) for row in rows], np.int32),
        mrope_positions=np.zeros((size, 3, p), np.int32),
        rope_delta=np.array([row.rope_delta for row in rows], np.int32),
        image_index=np.full((size, p), -1, np.int32),
        pixel_values=np.zeros((size, n, config.vision.patch_dim), np.float32),
        patch_hw=np.zeros((size, n, 2), np.int32),
        segment_ids=np.zeros((size, n), np.int32),
        window_index=np.full((size, slots), -1, np.int32),
        window_slot=np.zeros((size, n), np.int32),
    )
    for b, row in enumerate(rows):
        if not bucket.covers(row.shape):
            raise ValueError(f"row {b} of {row.shape} does not fit into {bucket}")
        tokens, patches = len(row.input_ids), len(row.pixel_values)
        inputs.input_ids[b, :tokens] = row.input_ids
        inputs.mrope_positions[b, :, :tokens] = row.mrope_positions
        inputs.image_index[b, :tokens] = row.image_index
        inputs.pixel_values[b, :patches] = row.pixel_values
        inputs.patch_hw[b, :patches] = row.patch_hw
        inputs.segment_ids[b, :patches] = row.segment_ids
        inputs.window_slot[b, :patches] = row.window_slot
        inputs.window_index[b, row.window_slot] = np.arange(patches, dtype=np.int32)
    shape = (size, bucket.num_windows, config.vision.window_patches)
    return inputs._replace(window_index=inputs.window_index.reshape(shape))
