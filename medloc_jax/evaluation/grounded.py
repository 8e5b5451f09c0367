# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the model answers about one image: completions, their boxes, and what a group agrees on."""

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Float64
from PIL import Image

from medloc_jax.evaluation import overlay
from medloc_jax.grounding import boxes, consensus


@dataclasses.dataclass(frozen=True, eq=False)
class Completion:
    """One completion and what it says.

    Attributes:
        text: as generated, special tokens left out.
        token_ids: as generated, the end token included where there is one.
        token_logprobs: of each token, over the full vocabulary at the sampling temperature (at 1
            where decoding is greedy).
        box_px: the box that counts, clipped to the stored image; None if there is none.
        box_resized_px: the same as said, in pixels of what the model sees.
        clipped: the box reached out of the image.
        reason: why there is no box (`grounding.answer`); "" where there is one.
        truncated: the completion was cut off at the longest length allowed.
    """

    text: str
    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]
    box_px: Float64[np.ndarray, "4"] | None
    box_resized_px: Float64[np.ndarray, "4"] | None
    clipped: bool
    reason: str
    truncated: bool

    def to_json(self) -> dict[str, Any]:
        """The fields that `medloc predict --json` writes of a completion."""
        return {
            "completion": self.text,
            "token_ids": list(self.token_ids),
            "token_logprobs": [round(value, 6) for value in self.token_logprobs],
            "boxes_px": [] if self.box_px is None else [self.box_px.tolist()],
            "boxes_resized_px": (
                [] if self.box_resized_px is None else [self.box_resized_px.tolist()]
            ),
            "valid": self.box_px is not None,
            "clipped": self.clipped,
            "reason": self.reason,
            "truncated": self.truncated,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Grounding:
    """What the model answers about one image.

    Attributes:
        id: the file's name without suffix, or the number of the image.
        place: of the image among those that were asked about, from 0.
        image: the picture that was looked at, RGB.
        prompt: the user's text.
        width: of the stored image, px.
        height: of the stored image, px.
        resized_width: of what the model sees, px.
        resized_height: of what the model sees, px.
        completions: one, or as many as were sampled.
        seconds: for this image, compiling left out; images decoded together share their time.
    """

    id: str
    place: int
    image: Image.Image
    prompt: str
    width: int
    height: int
    resized_width: int
    resized_height: int
    completions: tuple[Completion, ...]
    seconds: float

    @property
    def text(self) -> str:
        """The completion; of a group, the one whose box is nearest to the consensus."""
        return self.completions[self._chosen].text

    @property
    def box_px(self) -> Float64[np.ndarray, "4"] | None:
        """The box of the only completion, or a group's consensus: xyxy, px of the stored image."""
        if len(self.completions) == 1:
            return self.completions[0].box_px
        agreed = self._consensus
        return None if agreed is None else agreed[0]

    @property
    def agreement(self) -> float | None:
        """Mean pairwise IoU of a group in [0, 1]; None for a single completion."""
        return consensus.agreement(self._boxes_px) if len(self.completions) > 1 else None

    def overlay(self) -> Image.Image:
        """The picture with the answer in orange, and the other boxes of a group in blue."""
        others = [one.box_px for one in self.completions if one.box_px is not None]
        said = "no box" if self.box_px is None else _numbers(self.box_px)
        if self.agreement is not None:
            said += f", {len(others)} of {len(self.completions)} with a box"
            said += f", agreement {self.agreement:.2f}"
        return overlay.draw(
            self.image,
            None if self.box_px is None else self.box_px.tolist(),
            [box.tolist() for box in others] if len(self.completions) > 1 else [],
            caption=said,
        )

    def to_json(self) -> dict[str, Any]:
        """One object of `medloc predict --json`.

        A group's has also `samples` (every completion), `agreement` and `consensus_px`; the fields
        of a completion are then those of the one nearest to the consensus.
        """
        chosen = self.completions[self._chosen]
        line = {"id": self.id, **chosen.to_json(), "width": self.width, "height": self.height}
        line |= {"resized_width": self.resized_width, "resized_height": self.resized_height}
        line |= {"prompt": self.prompt, "seconds": round(self.seconds, 4)}
        if len(self.completions) > 1:
            line["agreement"] = self.agreement
            line["consensus_px"] = None if self.box_px is None else self.box_px.tolist()
            line["samples"] = [one.to_json() for one in self.completions]
        return line

    @functools.cached_property
    def _boxes_px(self) -> Float64[np.ndarray, "n 4"]:
        none = np.full(4, np.nan)
        return np.stack([none if c.box_px is None else c.box_px for c in self.completions])

    @functools.cached_property
    def _consensus(self) -> Any:
        return consensus.consensus(self._boxes_px)

    @property
    def _chosen(self) -> int:
        if len(self.completions) == 1 or self._consensus is None:
            return 0
        return int(np.argmax(boxes.iou(self._boxes_px, self._consensus[0])))


def _numbers(box: Float64[np.ndarray, "4"]) -> str:
    return "[" + ", ".join(f"{side:.1f}" for side in box) + "]"
