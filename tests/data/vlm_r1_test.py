# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import json

import pytest
from PIL import Image

from medloc_jax.data import annotated, vlm_r1
from medloc_jax.grounding import prompts

QUESTION = "Please provide the bounding box coordinate of the region this sentence describes: {}."


def turns(question, said, **more):
    speak = [{"from": "human", "value": question}, {"from": "gpt", "value": said}]
    return {"id": 1, "image": "images/a.png", "conversations": speak, **more}


def messages(question, said):
    speak = [{"role": "system", "content": "Help."}, {"role": "user", "content": question}]
    return {"images": ["a.png"], "messages": [*speak, {"role": "assistant", "content": said}]}


def problem(question, said, **more):
    return {"image": "a.png", "problem": question, "solution": said, **more}


def write(folder, *entries, name="train.jsonl"):
    for stem in ("a", "b"):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.new("L", (40, 20)).save(folder / "images" / f"{stem}.png")
    path = folder / name
    lines = "\n".join(json.dumps(entry) for entry in entries)
    path.write_text(lines if name.endswith("l") else json.dumps(list(entries)))
    return path


def read(source, **options):
    refused = annotated.Refusals()
    return vlm_r1.read(source, refused, **options), refused.all


BOX = [1, 2.5, 30, 20]


@pytest.mark.parametrize("name", ["train.jsonl", "train.json"])
@pytest.mark.parametrize(
    "entry",
    [
        problem(QUESTION.format("the left cyst"), BOX, normalized_solution=[0, 0, 1, 1]),
        problem(QUESTION.format("the left cyst"), str(BOX), width=40, height=20),
        problem("the left cyst", {"bbox_2d": BOX}),
        turns("<image>" + QUESTION.format("the left cyst"), BOX),
        turns("<image>\n" + QUESTION.format("the left cyst"), str(BOX)),
        turns(
            prompts.TEMPLATES["vlm_r1"].user_text("the left cyst", ""),
            f"<answer>{json.dumps({'bbox_2d': BOX})}</answer>",
        ),
        turns(
            "the left cyst", f"<think>[1, 2]</think>```json\n[{json.dumps({'bbox_2d': BOX})}]\n```"
        ),
        turns("the left cyst", f"The box is {BOX}."),
        turns("the left cyst", str([{"bbox_2d": BOX}])),
        messages("<image>" + QUESTION.format("the left cyst"), str(BOX)),
    ],
)
def test_shapes_of_an_entry(entry, name, tmp_path):
    path = write(tmp_path, entry, name=name)
    (image,), refused = read(tmp_path)
    assert refused == []
    assert image == annotated.AnnotatedImage(
        id="a",
        image_path=tmp_path / "images/a.png",
        width=40,
        height=20,
        targets=(annotated.Target((1.0, 2.5, 30.0, 20.0)),),
        split="train",
        query="the left cyst",
    )
    assert read(path)[0] == [image]


def test_a_json_list_may_be_called_jsonl_and_the_reverse(tmp_path):
    path = write(tmp_path, problem("cyst", BOX), name="a.json")
    path.rename(tmp_path / "a.jsonl")
    assert len(read(tmp_path)[0]) == 1
    path = write(tmp_path, problem("cyst", BOX), problem("node", BOX), name="a.jsonl")
    path.rename(tmp_path / "a.json")
    path.with_suffix(".jsonl").unlink(missing_ok=True)
    assert len(read(tmp_path)[0]) == 2


def test_several_questions_on_one_image(tmp_path):
    write(tmp_path, problem("cyst", BOX), problem("node", [3, 4, 5, 6]))
    found, refused = read(tmp_path)
    assert refused == []
    assert [(image.id, image.query) for image in found] == [("a#1", "cyst"), ("a#2", "node")]


def test_several_boxes_with_labels(tmp_path):
    said = [{"bbox_2d": BOX, "label": "cyst"}, {"bbox_2d": [3, 4, 5, 6], "label": "node"}]
    write(tmp_path, turns("all of them", json.dumps(said)))
    (image,), _ = read(tmp_path)
    assert [target.label for target in image.targets] == ["cyst", "node"]


def test_splits_by_file(tmp_path):
    write(tmp_path, problem("cyst", BOX), name="rec_train.jsonl")
    write(tmp_path, problem("cyst", BOX, image="b.png"), name="rec_val.json")
    (tmp_path / "dataset_info.json").write_text('{"a": 1}')
    found, _ = read(tmp_path)
    assert {image.split for image in found} == {"train", "val"}
    write(tmp_path, problem("cyst", BOX), name="other.json")
    with pytest.raises(ValueError, match="--annotations"):
        read(tmp_path)
    assert len(read(tmp_path, annotations="other.json")[0]) == 1


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (problem("cyst", [1, 2, 3]), "four numbers"),
        (problem("cyst", [30, 2, 1, 20]), "reversed"),
        (problem("cyst", [1, 2, 400, 300]), "outside its image of 40 x 20"),
        (problem("cyst", BOX, width=80, height=40), "80 x 40 px and is 40 x 20"),
        (problem("cyst", "nothing there"), "is not one box"),
        (problem("cyst", "first [1, 2, 3, 4], then [5, 6, 7, 8]"), "is not one box"),
        (problem("cyst", "maybe [1, 2, 3, 4] or [5, 6, 7]"), "is not one box"),
        (problem("cyst", "__import__('os').getcwd()"), "is not one box"),
        (problem("cyst", None), "four numbers"),
        (problem("cyst", []), "no box"),
        (problem("cyst", BOX, image="c.png"), "'c.png' is not below"),
        (problem("cyst", BOX, image=["a.png", "b.png"]), "2 images"),
        (problem("cyst", BOX, image=3), "image is 3"),
        (problem("", BOX), "the question is empty"),
        (problem(QUESTION.format(""), BOX), "the question is empty"),
        ({"image": "a.png", "problem": "cyst"}, "with a solution"),
        ({"image": "a.png"}, "no problem, conversations or messages"),
        ({"image": "a.png", "conversations": "?"}, "must be a list"),
        (
            turns("cyst", BOX, conversations=[{"from": "gpt", "value": "x"}]),
            "one question and one answer",
        ),
        (
            turns("cyst", BOX, conversations=turns("cyst", BOX)["conversations"] * 2),
            "one question and one answer",
        ),
        ([1], "not an object but list"),
    ],
)
@pytest.mark.parametrize("name", ["train.jsonl", "train.json"])
def test_bad_entries(entry, words, name, tmp_path):
    path = write(tmp_path, problem("cyst", BOX, image="b.png"), entry, name=name)
    found, refused = read(tmp_path)
    assert [image.id for image in found] == ["b"]
    (refusal,) = refused
    assert words in refusal.reason and "\n" not in refusal.reason
    if refusal.path == str(path):
        assert refusal.line == (2 if name.endswith("l") else None)
        assert refusal.line or "entry 2" in refusal.reason or "images/a.png" in refusal.reason


def test_a_line_that_is_no_json(tmp_path):
    path = write(tmp_path, problem("cyst", BOX))
    path.write_text(path.read_text() + "\n\n{\n")
    found, refused = read(tmp_path)
    assert len(found) == 1 and (refused[0].line, len(refused)) == (3, 1)
    with pytest.raises(ValueError, match="train.jsonl:3: not JSON"):
        vlm_r1.read(tmp_path, annotated.Refusals(strict=True))


def test_no_file(tmp_path):
    write(tmp_path, {"x": 1})
    with pytest.raises(ValueError, match="looked for JSON or JSONL"):
        read(tmp_path)
