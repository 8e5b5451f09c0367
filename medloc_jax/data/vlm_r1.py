# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""VLM-R1's data: one question on one image an entry, a box in pixels of the stored image.

Three shapes, each as a JSON list or as JSONL:

    {"image": "a.jpg", "problem": "...", "solution": [x1, y1, x2, y2]}
    {"id": 1, "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>..."},
                                                  {"from": "gpt", "value": "[x1, y1, x2, y2]"}]}
    {"images": ["a.jpg"], "messages": [{"role": "user", "content": "<image>..."}, ...]}

The last is what their SFT files have. Of VLM-R1's standard question the phrase becomes the query;
another question is the query as it is. `normalized_solution` is not read.

Reference: om-ai-lab/VLM-R1, README and `src/open-r1-multimodal/src/open_r1/grpo_jsonl.py`.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medloc_jax.data import annotated, records, source_folder
from medloc_jax.grounding import answer, prompts

_BEFORE, _AFTER = prompts.VLM_R1_QUESTION.split("{query}")
_QUESTION = re.compile(re.escape(_BEFORE) + r"(.*?)" + re.escape(_AFTER) + "?", re.DOTALL)
_TEMPLATE_TAIL = prompts.VLM_R1_INSTRUCTION.removeprefix("{question}")
_FENCE = re.compile(r"```(?:json)?(.*?)```", re.DOTALL)
_TAGS = re.compile(r"<think>.*?</think>|</?answer>", re.DOTALL)

# Who speaks, by key of the turn and of its text; the question first.
_TURNS = {
    "conversations": ("from", "value", ("human", "user"), ("gpt", "assistant")),
    "messages": ("role", "content", ("user", "human"), ("assistant", "gpt")),
}


def read(
    source: Path, refused: annotated.Refusals, *, annotations: str = ""
) -> list[annotated.AnnotatedImage]:
    """Reads questions and boxes in VLM-R1's formats.

    Args:
        source: the folder that image paths start from, or the JSON or JSONL file.
        refused: gets every image and entry that cannot be used.
        annotations: the file in the folder, several separated by commas; "": found by content,
            one alone or one for each split.

    Raises:
        ValueError: no such file, or several without a choice; the first refusal, when strict.
    """
    root = source_folder.folder_of(source)
    files = source_folder.annotation_files(
        *(source, root, annotations, find_files),
        looked_for="JSON or JSONL files of objects with image and problem, conversations or "
        "messages",
    )
    finder = source_folder.ImageFinder(root)
    found: list[records.Record] = []
    for path, split in files.items():
        for line, name, entry in _entries(path, refused):
            try:
                found.append(_record(entry, path, line, name, split, finder))
            except ValueError as error:
                where = f"{name}: " if line is None else ""
                refused.add(path, f"{where}{error}", line)
    return records.to_images(found, root, refused, what="VLM-R1 images", repeats=True)


def find_files(root: Path) -> dict[Path, str | None]:
    """Every JSON or JSONL file below `root` whose first entry is a question, with its split."""
    found = {}
    for path in sorted(root.rglob("*.json*")):
        if path.suffix not in (".json", ".jsonl") or path.name.startswith("."):
            continue
        first = next(_entries(path, annotated.Refusals()), None)
        if first is not None and _is_question(first[2]):
            found[path] = source_folder.split_of_file(path, root)
    return found


def _is_question(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and bool({"image", "images"} & entry.keys())
        and bool({"problem", "conversations", "messages"} & entry.keys())
    )


def _entries(path: Path, refused: annotated.Refusals) -> Iterator[tuple[int | None, str, Any]]:
    """(line, name, object) of each entry; JSON lists have no line, and are counted from 1.

    The content decides, not the suffix: both are published under both.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        refused.add(path, f"cannot be read as UTF-8 text ({error}): replace the file")
        return
    if text.lstrip().startswith("["):
        try:
            entries = json.loads(text)
        except (ValueError, RecursionError) as error:
            refused.add(path, f"cannot be read as JSON ({error}): replace the file")
            return
        for number, entry in enumerate(entries, start=1):
            yield None, f"entry {number}", entry
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, f"line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            refused.add(path, f"not JSON ({error}): every line must be one object", number)


def _record(
    entry: object,
    path: Path,
    line: int | None,
    name: str,
    split: str | None,
    finder: source_folder.ImageFinder,
) -> records.Record:
    """One question; raises ValueError(reason)."""
    if not isinstance(entry, dict):
        raise ValueError(f"not an object but {type(entry).__name__}: write {{...}}")
    question, said = _question_and_answer(entry)
    image_path = finder.find(_image_name(entry), near=path, split=split)
    query = _query(question)
    if not query:
        raise ValueError("the question is empty: write what to find")
    width, height = entry.get("width"), entry.get("height")
    return records.Record(
        path=path,
        image_path=image_path,
        boxes=[records.RawBox(box, label, line, name) for box, label in _boxes(said)],
        line=line,
        stated_size=(width, height) if type(width) is int and type(height) is int else None,
        split=split or source_folder.split_of_image(image_path, finder.root),
        query=query,
    )


def _image_name(entry: Mapping[str, Any]) -> str:
    names = entry.get("image", entry.get("images"))
    names = names if isinstance(names, list) else [names]
    if len(names) != 1:
        raise ValueError(f"{len(names)} images, and one question is asked of one image: split it")
    if not isinstance(names[0], str) or not names[0].strip():
        raise ValueError(f"image is {names[0]!r}: write its path")
    return names[0]


def _question_and_answer(entry: Mapping[str, Any]) -> tuple[str, object]:
    """The question's text, and the answer as it stands; raises ValueError(reason)."""
    if "problem" in entry:
        if not isinstance(entry["problem"], str) or "solution" not in entry:
            raise ValueError("problem must be a text, with a solution beside it: correct the entry")
        return entry["problem"], entry["solution"]
    key = next((key for key in _TURNS if key in entry), None)
    if key is None:
        raise ValueError("no problem, conversations or messages: see the format's description")
    speaker, text, askers, answerers = _TURNS[key]
    turns = entry[key]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"{key} must be a list of turns: correct the entry")
    turns = [turn for turn in turns if turn.get(speaker) != "system"]
    speakers = [turn.get(speaker) for turn in turns]
    if len(turns) != 2 or speakers[0] not in askers or speakers[1] not in answerers:
        raise ValueError(
            f"{key} are of {speakers}: needed is one question and one answer; write one entry a "
            "question"
        )
    if not isinstance(turns[0].get(text), str):
        raise ValueError(f"the question has no text {text!r}: correct the entry")
    return turns[0][text], turns[1].get(text)


def _query(question: str) -> str:
    """What is to be found, without the image's place, VLM-R1's wording and its instruction."""
    text = question.replace("<image>", "").strip().removesuffix(_TEMPLATE_TAIL).strip()
    match = _QUESTION.fullmatch(text)
    return match.group(1).strip() if match else text


def _boxes(said: object) -> list[tuple[annotated.Box, str | None]]:
    """The boxes of an answer with their labels; raises ValueError(reason)."""
    if isinstance(said, str):
        said = _parse_text(_TAGS.sub("", said))
    members = said if isinstance(said, list) and _holds_boxes(said) else [said]
    boxes: list[tuple[annotated.Box, str | None]] = []
    for member in members:
        label = None
        if isinstance(member, dict):
            label = member["label"] if isinstance(member.get("label"), str) else None
            member = member.get("bbox_2d", member.get("bbox"))
        boxes.append((records.box_of(member), label))
    return boxes


def _parse_text(text: str) -> object:
    """JSON, fenced or not, a Python literal, or the one box of a sentence; raises ValueError."""
    fence = _FENCE.search(text)
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse((fence.group(1) if fence else text).strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    found = answer.parse(text)
    # Which of several boxes in a sentence counts would be a guess.
    if found.box is None or text.count("[") != 1:
        raise ValueError(
            f"the answer {text.strip()[:60]!r} is not one box [x1, y1, x2, y2] in pixels: "
            "correct it"
        )
    return found.box.tolist()


def _holds_boxes(values: list[Any]) -> bool:
    return all(isinstance(value, list | dict) for value in values)
