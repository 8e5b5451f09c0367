# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The one parser of training and evaluation: a completion's text -> the box it answers with.

Where several boxes are said, position decides which one counts, never how well it fits: the best of
many boxes must not be scored. A malformed box in the deciding position is a wrong answer, even when
a good one stands elsewhere.

Rules, in order:
1. If there is an answer block (`<answer>` ... `</answer>`), only the last one is read; a block that
   the completion's end cut off counts if there is no whole one.
2. If boxes stand as `bbox_2d` members of JSON, the first of them counts. Members are found by their
   key, so that single quotes, code fences and a cut-off tail do no harm.
3. Otherwise four numbers in square brackets are a box (spaces, signs, decimals allowed): the first
   one inside an answer block, the last one in untagged prose, where the reasoning comes first.
"""

import dataclasses
import re

import numpy as np
from jaxtyping import Float64

NO_BOX = "no_box"  # nothing reads as four bracketed numbers
NOT_FINITE = "not_finite"  # a coordinate is too large for a float
EMPTY_BOX = "empty_box"  # x1 >= x2 or y1 >= y2

_NUMBER = r"([-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)"
_BOX = re.compile(r"\[\s*" + r"\s*,\s*".join([_NUMBER] * 4) + r"\s*\]")
_JSON_BOX = re.compile(r"""["']bbox_2d["']\s*:\s*(?:\[\s*)?""" + _BOX.pattern)
_OPEN, _CLOSE = "<answer>", "</answer>"

_VLM_R1_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_VLM_R1_BOX = re.compile(r"\[(\d+),\s*(\d+),\s*(\d+),\s*(\d+)]")


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """What a completion says, in pixels of the resized image, not clipped.

    Attributes:
        boxes: [k, 4] every well-formed box of the kind that was read, in the order said.
        box: [4] the one that is scored; None if the answer is not valid.
        valid: whether there is a box to score.
        reason: why there is none (NO_BOX, NOT_FINITE, EMPTY_BOX); "" if valid.
    """

    boxes: Float64[np.ndarray, "k 4"]
    box: Float64[np.ndarray, "4"] | None
    valid: bool
    reason: str


def parse(text: str) -> Answer:
    """Reads the box out of a completion, by the rules above; never raises on any text."""
    block = _last_answer_block(text)
    said = text if block is None else block
    candidates, chosen = _JSON_BOX.findall(said), 0
    if not candidates:
        candidates, chosen = _BOX.findall(said), -1 if block is None else 0
    if not candidates:
        return _no_answer(NO_BOX)
    boxes = np.array([[float(number) for number in numbers] for numbers in candidates])
    faults = [_fault(box) for box in boxes]
    well_formed = boxes[[not fault for fault in faults]]
    if faults[chosen]:
        return Answer(boxes=well_formed, box=None, valid=False, reason=faults[chosen])
    return Answer(boxes=well_formed, box=boxes[chosen], valid=True, reason="")


def parse_strict_vlm_r1(text: str) -> Answer:
    """Reads a completion exactly as VLM-R1's reward does, for parity tests.

    The first answer block, the first four comma-separated unsigned integers in it, no space after
    the bracket, and no check of their order: a reversed box is valid here, and has IoU 0.

    Reference: om-ai-lab/VLM-R1, `vlm_modules/qwen_module.py`, `iou_reward`.
    """
    block = _VLM_R1_BLOCK.search(text)
    numbers = _VLM_R1_BOX.search(block.group(1)) if block else None
    if numbers is None:
        return _no_answer(NO_BOX)
    box = np.array([float(number) for number in numbers.groups()])
    return Answer(boxes=box[None], box=box, valid=True, reason="")


def _last_answer_block(text: str) -> str | None:
    close = text.rfind(_CLOSE)
    start = text.rfind(_OPEN, 0, close) if close >= 0 else -1
    if start >= 0:
        return text[start + len(_OPEN) : close]
    start = text.rfind(_OPEN)
    return None if start < 0 else text[start + len(_OPEN) :]


def _fault(box: Float64[np.ndarray, "4"]) -> str:
    if not np.all(np.isfinite(box)):
        return NOT_FINITE
    return "" if box[0] < box[2] and box[1] < box[3] else EMPTY_BOX


def _no_answer(reason: str) -> Answer:
    return Answer(boxes=np.zeros((0, 4)), box=None, valid=False, reason=reason)
