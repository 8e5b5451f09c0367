# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Prompt templates: how a box is asked for, how an answer is written, what counts as its format.

Boxes in prompts and completions are pixels of the resized image, Qwen2.5-VL's own convention.

References: `vlm_r1` is VLM-R1's task type `rec` (om-ai-lab/VLM-R1, `vlm_modules/qwen_module.py`);
`medloc` is MedLoc-R1 (arXiv 2603.28120), Figures 4 and 8, spacing normalised; `boxmed` is BoxMed-RL
as that paper compares with it: its question, and nothing else; `chain_of_box` is our reading of
MedGround-R1 (arXiv 2507.02994), whose released code does not have it (see `ChainOfBox`).
Departures: a query without a final full stop gets one; sources the paper does not have get a
wording of its kind that names the query; an SFT target has an empty reasoning block, since none is
annotated.
"""

import json
import re
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from medloc_jax.grounding import answer

VLM_R1_QUESTION = (
    "Please provide the bounding box coordinate of the region this sentence describes: {query}."
)
VLM_R1_INSTRUCTION = (
    "{question} First output the thinking process in <think> </think> tags and then output the "
    "final answer in <answer> </answer> tags. Output the final answer in JSON format."
)
CHAIN_OF_BOX_INSTRUCTION = (
    "{question} First output the thinking process in <think> </think> tags, in which you write the "
    "bounding box of every region that you look at as [x1, y1, x2, y2], and then output the final "
    "answer in <answer> </answer> tags. Output the final answer in JSON format."
)
BOXMED_QUESTION = "Provide the bounding box for {target}."
MEDLOC_PROMPTS = {  # by the manifest's `source`
    "heel": (
        "Identify the X-ray image and provide the bounding box for the calcaneus region. Ensure "
        "the bounding box accurately covers the calcaneus area and does not include too much "
        "unrelated areas. Output the bounding box coordinate in the format [xmin, ymin, xmax, "
        "ymax]. Also generate your thinking process on how you determined the bounding box."
    ),
    "tn3k": (
        "Identify the thyroid ultrasound image and provide the bounding box for any thyroid nodule "
        "present. Ensure the bounding box accurately covers the nodule area and does not include "
        "too much unrelated tissue. Output the bounding box coordinates in the format [xmin, ymin, "
        "xmax, ymax]. Generate your thinking process on how you determined the bounding box."
    ),
    "ham10000": (
        "Identify the image and provide the bounding box for the skin lesion area. Ensure the "
        "bounding box accurately covers the lesion area and does not include excessive healthy "
        "skin. The output should be four numbers representing the coordinates of the top-left and "
        "bottom-right corners of the lesion area, in the format [xmin, ymin, xmax, ymax]. Also, "
        "generate your thinking process on how you determined the bounding box."
    ),
}
MEDLOC_OTHER_SOURCE = (
    "Identify the image and provide the bounding box for the {query}. Ensure the bounding box "
    "accurately covers the {query} and does not include too much unrelated areas. Output the "
    "bounding box coordinates in the format [xmin, ymin, xmax, ymax]. Also generate your thinking "
    "process on how you determined the bounding box."
)

# VLM-R1 searches for one pattern, these parts with `.*?` or `.*` between them. Found one after
# another they give the same verdict, but in linear time on a completion that repeats boxes until it
# is cut off, where the single pattern takes minutes.
_VLM_R1_FORMAT = tuple(
    re.compile(part)
    for part in (
        r"<think>",
        r"</think>\s*<answer>",
        r"\{",
        r"\[\d+,\s*\d+,\s*\d+,\s*\d+\]",
        r"\}",
        r"</answer>",
    )
)
_REGION = re.compile(r"\[\d+,\s*\d+,\s*\d+,\s*\d+\]")
_BOX_FORMAT = re.compile(r"\[[0-9]+,[0-9]+,[0-9]+,[0-9]+\]")


@runtime_checkable
class Template(Protocol):
    """What a template can do."""

    def user_text(self, query: str, source: str) -> str:
        """Returns the user's message, images not included."""
        ...

    def completion_text(
        self, box_resized_px: Float64[np.ndarray, "4"], label: str | None = None
    ) -> str:
        """Returns a completion that answers with this box, as an SFT target (no end token)."""
        ...

    def format_score(self, text: str) -> float:
        """Returns 1.0 if a completion has the form that the template asks for, else 0.0."""
        ...


class VlmR1:
    """VLM-R1's question and tags; the answer is JSON."""

    def user_text(self, query: str, source: str) -> str:
        """Asks for the region that `query` describes, the same for every source."""
        question = VLM_R1_QUESTION.format(query=query.strip().removesuffix("."))
        return VLM_R1_INSTRUCTION.format(question=question)

    def completion_text(
        self, box_resized_px: Float64[np.ndarray, "4"], label: str | None = None
    ) -> str:
        """Writes empty reasoning and one JSON member, without a label where it is None."""
        name = "" if label is None else f', "label": {json.dumps(label, ensure_ascii=False)}'
        numbers = ", ".join(map(str, rounded(box_resized_px)))
        member = f'{{"bbox_2d": [{numbers}]{name}}}'
        return f"<think></think><answer>```json\n[{member}]\n```</answer>"

    def format_score(self, text: str) -> float:
        """Finds reasoning tags, then answer tags around a JSON object that holds a box."""
        position = 0
        for part in _VLM_R1_FORMAT:
            match = part.search(text, position)
            if match is None:
                return 0.0
            position = match.end()
        return 1.0


class MedLoc:
    """The paper's prompts, one a data set; the answer is prose that ends with a bare box."""

    def user_text(self, query: str, source: str) -> str:
        """Asks in the paper's words for its data sets, and after their model for others."""
        if source in MEDLOC_PROMPTS:
            return MEDLOC_PROMPTS[source]
        return MEDLOC_OTHER_SOURCE.format(query=query.strip().removesuffix("."))

    def completion_text(
        self, box_resized_px: Float64[np.ndarray, "4"], label: str | None = None
    ) -> str:
        """Writes the box alone."""
        return _bare(box_resized_px)

    def format_score(self, text: str) -> float:
        """Asks only that a box can be read: the paper prescribes nothing else."""
        return float(answer.parse(text).valid)


class BoxMed:
    """BoxMed-RL's question; how it wants the answer written is not published: a bare box."""

    def user_text(self, query: str, source: str) -> str:
        """Asks for the query, the same for every source."""
        return BOXMED_QUESTION.format(target=query.strip().removesuffix("."))

    def completion_text(
        self, box_resized_px: Float64[np.ndarray, "4"], label: str | None = None
    ) -> str:
        """Writes the box alone."""
        return _bare(box_resized_px)

    def format_score(self, text: str) -> float:
        """Asks only that a box can be read."""
        return float(answer.parse(text).valid)


class ChainOfBox:
    """VLM-R1's question and answer, with boxes in the reasoning: our reading of MedGround-R1.

    Its abstract says that the Chain-of-Box template "integrates visual information of referring
    bounding boxes into the <think> reasoning process". The released code has no such template, and
    no output that was published with it has a box in its reasoning. Ours, therefore: the question
    asks for the box of every region that is looked at, in the reasoning, as numbers (the pixels of
    a region are not shown to the model again); the format is VLM-R1's, and there is such a box
    between the first <think> and the </think> after it. Which box that is, is not judged.
    """

    def user_text(self, query: str, source: str) -> str:
        """Asks for the region that `query` describes, the same for every source."""
        question = VLM_R1_QUESTION.format(query=query.strip().removesuffix("."))
        return CHAIN_OF_BOX_INSTRUCTION.format(question=question)

    def completion_text(
        self, box_resized_px: Float64[np.ndarray, "4"], label: str | None = None
    ) -> str:
        """Looks at the true box, the only region that is annotated, and answers with it."""
        looked_at = ", ".join(map(str, rounded(box_resized_px)))
        told = VlmR1().completion_text(box_resized_px, label)
        return told.replace("<think></think>", f"<think>[{looked_at}]</think>", 1)

    def format_score(self, text: str) -> float:
        """Asks for VLM-R1's format and a box in the reasoning."""
        _, _, rest = text.partition("<think>")
        reasoning, closed, _ = rest.partition("</think>")
        if not closed or _REGION.search(reasoning) is None:
            return 0.0
        return VlmR1().format_score(text)


class Box:
    """The shortest prompt and answer, for the tiny model."""

    def user_text(self, query: str, source: str) -> str:
        """Is the query itself."""
        return query.strip()

    def completion_text(
        self, box_resized_px: Float64[np.ndarray, "4"], label: str | None = None
    ) -> str:
        """Writes the box alone, without spaces."""
        return "[" + ",".join(map(str, rounded(box_resized_px))) + "]"

    def format_score(self, text: str) -> float:
        """Asks for the box and nothing else."""
        return float(_BOX_FORMAT.fullmatch(text.strip()) is not None)


TEMPLATES: dict[str, Template] = {
    "vlm_r1": VlmR1(),
    "medloc": MedLoc(),
    "boxmed": BoxMed(),
    "chain_of_box": ChainOfBox(),
    "box": Box(),
}


def _bare(box_resized_px: Float64[np.ndarray, "4"]) -> str:
    return "[" + ", ".join(map(str, rounded(box_resized_px))) + "]"


def rounded(box_px: Float64[np.ndarray, "4"]) -> list[int]:
    """Rounds a box to whole pixels; one thinner than a pixel is widened, so that it stays a box.

    Raises:
        ValueError: the box is empty or not finite.
    """
    low, high = box_px[:2], box_px[2:]
    if not (np.all(np.isfinite(box_px)) and np.all(low < high)):
        raise ValueError(f"cannot write the box {box_px.tolist()}: it is empty or not finite")
    thin = np.rint(low) >= np.rint(high)
    low = np.where(thin, np.floor(low), np.rint(low))
    high = np.where(thin, np.ceil(high), np.rint(high))
    return [int(number) for number in (*low, *high)]
