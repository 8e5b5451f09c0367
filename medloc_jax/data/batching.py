# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From an example to a row of a batch, and from rows to the batch the training loop sees.

Letters: B prompts, C completion tokens.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32, UInt8

from medloc_jax.data import augment, examples, feature_cache
from medloc_jax.grounding import boxes, prompts
from medloc_jax.model import config as model_config
from medloc_jax.model import geometry, processor, tokenizer


class LoadedRow(NamedTuple):
    """One prompt with its image, ready to be padded and stacked."""

    example: examples.Example
    packed: geometry.Row
    frame: boxes.Frame
    target_box_px: Float64[np.ndarray, "4"]
    completion_ids: tuple[int, ...] | None
    image_key: str | None = None  # of the image's content, where the loader was asked for it
    picture: UInt8[np.ndarray, "_ _ 3"] | None = None  # augmented, where asked for


class Batch(NamedTuple):
    """The rows of one step that this process holds; numpy arrays, B is the leading axis."""

    inputs: geometry.ModelInputs
    examples: list[examples.Example]
    frames: list[boxes.Frame]  # stored and resized size of each image
    target_boxes_px: Float64[np.ndarray, "B 4"]  # as augmented, in pixels of the stored image
    row_valid: Bool[np.ndarray, " B"]  # false: a repeat that only fills an evaluation batch up
    completions: Int32[np.ndarray, "B 1 C"] | None  # SFT: the text to learn; else None
    completion_mask: Bool[np.ndarray, "B 1 C"] | None  # true = token to learn, end token included
    num_skipped: int = 0  # rows that hold another example, since the image of theirs is unreadable
    image_keys: list[str] | None = None  # feature_cache.row_key of each row, where asked for
    pictures: list[np.ndarray] | None = None  # RGB, stored size, as augmented, where asked for


@dataclasses.dataclass(frozen=True)
class RowLoader:
    """Turns an example into a row: a function of (example, position) and of these fields alone.

    It holds no open file and can be pickled, so that it works in another process.
    """

    config: model_config.ModelConfig
    processor: processor.ImageProcessor
    tokenizer: tokenizer.Tokenizer
    template: str  # an entry of prompts.TEMPLATES
    augment: tuple[str, ...] = ()  # entries of augment.AUGMENTATIONS, for rows with a position
    seed: int = 0  # of the augmentation
    completion_length: int | None = None  # SFT: C, the longest target text in tokens; None: no text
    box_scale: float = 1.0  # SFT: target boxes are written this many times too wide and too high
    box_jitter: float = 0.0  # SFT: std of the shift of each side, as a share of the box's size
    image_keys: bool = False  # make keys for the feature cache, of rows with a position
    pictures: bool = False  # hand the images on, for scores that look at them, with a position

    def __post_init__(self) -> None:
        """Refuses unknown names before any image is read."""
        augment.check_names(self.augment)
        if self.template not in prompts.TEMPLATES:
            raise ValueError(
                f"data.template {self.template!r} is unknown: choose of "
                f"{', '.join(prompts.TEMPLATES)}"
            )

    def row_shape(self, example: examples.Example) -> geometry.RowShape:
        """How large the row of an example will be; its image is not opened.

        Raises:
            ValueError: the image's proportions or the query are refused; names the image.
        """
        try:
            grid = self.processor.grid_thw(example.height, example.width)
            prompt_ids = self._prompt_ids(example, grid)
        except ValueError as error:
            raise _named(error, example) from error
        return geometry.row_shape([grid], len(prompt_ids), self.config.vision)

    def __call__(self, example: examples.Example, position: int | None = None) -> LoadedRow:
        """Loads one row.

        Args:
            example: what to load.
            position: of the row in the endless stream of training rows, which seeds the
                augmentation; None: no augmentation.

        Raises:
            ValueError: the image cannot be read or is not of the stated size, or the target text
                is too long; one line that names the image.
        """
        try:
            return self._load(example, position)
        except ValueError as error:
            raise _named(error, example) from error

    def _load(self, example: examples.Example, position: int | None) -> LoadedRow:
        picture = processor.open_image(example.image_path)
        if picture.size != (example.width, example.height):
            raise ValueError(
                f"is {picture.width} x {picture.height} px, and the manifest says "
                f"{example.width} x {example.height}: correct the line or the file"
            )
        target = np.array(example.box_px, np.float64)
        if position is not None and self.augment:
            picture, target = augment.augment(
                picture, target, self.augment, seed=self.seed, position=position
            )
        pixel_values, grid = self.processor(picture)
        resized_height, resized_width = self.processor.resized_size(example.height, example.width)
        frame = boxes.Frame(example.width, example.height, resized_width, resized_height)
        prompt_ids = self._prompt_ids(example, grid)
        packed = geometry.pack_row(prompt_ids, [(pixel_values, grid)], self.config)
        keyed = self.image_keys and position is not None
        return LoadedRow(
            example=example,
            packed=packed,
            frame=frame,
            target_box_px=target,
            completion_ids=self._completion_ids(example, target, frame, position),
            image_key=feature_cache.image_key(packed) if keyed else None,
            picture=np.asarray(picture) if self.pictures and position is not None else None,
        )

    def _jittered(
        self, box_resized_px: Float64[np.ndarray, "4"], frame: boxes.Frame, position: int
    ) -> Float64[np.ndarray, "4"]:
        """Shifts each side at random; a function of (seed, position), as the augmentation is."""
        random = np.random.default_rng([self.seed, position])
        size = np.tile(box_resized_px[2:] - box_resized_px[:2], 2)
        shifted = box_resized_px + random.normal(0.0, self.box_jitter, 4) * size
        shifted, _ = boxes.clip_px(shifted, frame.resized_width, frame.resized_height)
        # A shift large enough to turn the box inside out is not made.
        return shifted if (shifted[2:] - shifted[:2] >= 1).all() else box_resized_px

    def _prompt_ids(self, example: examples.Example, grid: geometry.Grid) -> list[int]:
        text = prompts.TEMPLATES[self.template].user_text(example.query, example.source)
        image_tokens = geometry.merged_tokens(grid, self.config.vision)
        return self.tokenizer.encode_prompt(text, [image_tokens])

    def _completion_ids(
        self,
        example: examples.Example,
        target_px: Float64[np.ndarray, "4"],
        frame: boxes.Frame,
        position: int | None,
    ) -> tuple[int, ...] | None:
        """Tokens of the text to learn; refused rather than cut when there are too many."""
        if self.completion_length is None:
            return None
        resized = target_resized_px(target_px, frame, self.box_scale)
        if self.box_jitter and position is not None:
            resized = self._jittered(resized, frame, position)
        text = prompts.TEMPLATES[self.template].completion_text(resized, example.label)
        ids = self.tokenizer.encode_completion(text)
        if len(ids) > self.completion_length:
            raise ValueError(
                f"the target text {text!r} takes {len(ids)} tokens, and rl.max_completion_tokens "
                f"is {self.completion_length}: set it to at least {len(ids)}"
            )
        return tuple(ids)


def target_resized_px(
    target_px: boxes.BoxesLike, frame: boxes.Frame, box_scale: float
) -> Float64[np.ndarray, "4"]:
    """The box that SFT writes for a target: in pixels of what the model sees, scaled, clipped."""
    resized = boxes.to_resized_px(np.asarray(target_px, np.float64), frame)
    return boxes.scale_about_centre(resized, box_scale, frame.resized_width, frame.resized_height)


def _named(error: ValueError, example: examples.Example) -> ValueError:
    """The same error as one line that names the image and the manifest's line."""
    message = " ".join(str(error).split())
    where = f"(example {example.id!r}{', ' if example.line else ''}{example.line})"
    if example.image_path not in message:
        message = f"{example.image_path} {where}: {message}"
    elif example.line and example.line not in message:
        message = f"{message} {where}"
    unreadable = isinstance(error, processor.UnreadableImageError)
    return (processor.UnreadableImageError if unreadable else ValueError)(message)


def make_batch(
    rows: Sequence[LoadedRow],
    row_valid: Sequence[bool],
    bucket: geometry.Bucket,
    loader: RowLoader,
    num_skipped: int = 0,
) -> Batch:
    """Pads rows to a bucket and stacks them; B is len(rows)."""
    completions = completion_mask = None
    if loader.completion_length is not None:
        shape = (len(rows), 1, loader.completion_length)
        completions = np.full(shape, loader.tokenizer.pad_id, np.int32)
        completion_mask = np.zeros(shape, bool)
        for index, row in enumerate(rows):
            ids = row.completion_ids or ()
            completions[index, 0, : len(ids)] = ids
            completion_mask[index, 0, : len(ids)] = True
    keys = [feature_cache.row_key(row.image_key, bucket) for row in rows if row.image_key]
    return Batch(
        inputs=geometry.collate([row.packed for row in rows], bucket, loader.config),
        examples=[row.example for row in rows],
        frames=[row.frame for row in rows],
        target_boxes_px=np.stack([row.target_box_px for row in rows]),
        row_valid=np.array(row_valid, bool),
        completions=completions,
        completion_mask=completion_mask,
        num_skipped=num_skipped,
        image_keys=keys or None,
        pictures=[row.picture for row in rows if row.picture is not None] or None,
    )
