# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import os
import re
from pathlib import Path

import drawn_data
import pytest

from medloc_jax.data import annotated, examples, importing, output_folder

BOX = (1.0, 2.0, 20.0, 22.0)


def _image(path, name=None, *, boxes=(BOX,), size=(40, 30), group=None):
    return annotated.AnnotatedImage(
        id=name or path.stem,
        image_path=path,
        width=size[0],
        height=size[1],
        targets=tuple(annotated.Target(box, "nv") for box in boxes),
        label="nv",
        group=group,
    )


def _check(images, placement="copy"):
    refused = annotated.Refusals()
    return importing.check_images(images, refused, placement=placement), refused


@pytest.fixture
def images(tmp_path):
    paths = [
        drawn_data.write_image(tmp_path / "set" / name, seed=seed)
        for seed, name in enumerate(("a.png", "sub/a.png", "c.jpg"))
    ]
    return [_image(path, name) for path, name in zip(paths, ("a", "sub/a", "A"), strict=True)]


def _write(out, images, *, placement="copy", splits=None):
    checked, refused = _check(images, placement)
    asked = importing.ask_all(
        checked, refused, query=None, default_query="skin lesion", one_box="refuse"
    )
    with output_folder.new_folder(out, overwrite=True, say=print) as folder:
        importing.write_manifest(
            *(folder, checked, splits or ["train"] * len(checked), asked),
            source="drawn",
            placement=placement,
        )
        importing.write_record(folder, {"data_set": "drawn"}, refused)
    return examples.load_manifest(out)


def test_images_that_open_pass_with_their_digest(images):
    checked, refused = _check(images)
    assert [item.image for item in checked] == images and not refused.all
    assert len({item.digest for item in checked}) == 3


def test_images_that_cannot_be_used_are_refused(tmp_path, images):
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(images[2].image_path.read_bytes()[:-300])
    text = tmp_path / "text.png"
    text.write_text("no image")
    path = images[0].image_path
    wrong = [
        (_image(cut), "broken or truncated image"),
        (_image(text), "not an image"),
        (_image(tmp_path / "none.png"), "no such image file"),
        (_image(path, "size", size=(41, 30)), "40 x 30 px, and its annotation says 41 x 30"),
        (_image(path, "outside", boxes=[(0.0, 0.0, 41.0, 30.0)]), r"box \[0.0, 0.0, 41.0, 30.0\]"),
        (_image(path, "empty", boxes=[(5.0, 0.0, 5.0, 30.0)]), "is empty or outside"),
        (_image(path, "nan", boxes=[(float("nan"), 0.0, 5.0, 30.0)]), "is empty or outside"),
        (_image(path, "boxless", boxes=[]), "has no box"),
    ]
    checked, refused = _check([*images, *(image for image, _ in wrong)])
    assert [item.image for item in checked] == images
    reasons = [entry.reason for entry in refused.all]
    assert len(reasons) == len(wrong)
    for (_, pattern), reason in zip(wrong, reasons, strict=True):
        assert re.search(pattern, reason), reason
    assert (
        _check([images[0], _image(images[1].image_path, "a")])[1]
        .all[0]
        .reason.startswith("id 'a' is that of")
    )


@pytest.mark.parametrize("placement", importing.PLACEMENTS)
def test_images_are_copied_linked_or_referred_to(tmp_path, images, placement):
    rows = _write(tmp_path / "out", images, placement=placement)
    assert [row.id for row in rows] == ["a", "sub/a", "A"]
    for row, image in zip(rows, images, strict=True):
        path = Path(row.image_path)
        assert path.read_bytes() == image.image_path.read_bytes()
        assert path.is_symlink() == (placement == "link")
        assert os.path.samefile(path, image.image_path) == (placement != "copy")
    names = [row.image for row in rows]
    if placement == "reference":
        assert names[0] == "../set/a.png" and not (tmp_path / "out" / "images").exists()
    else:  # A.jpg and a.png are told apart where case is not
        assert names == ["images/a.png", "images/sub_a.png", "images/A.jpg"]


def test_names_that_differ_by_case_alone_are_told_apart(tmp_path):
    paths = [drawn_data.write_image(tmp_path / part / "x.png") for part in ("p", "q", "r")]
    rows = _write(
        tmp_path / "out",
        [_image(path, name) for path, name in zip(paths, ("b", "B", "../b"), strict=True)],
    )
    assert [row.image for row in rows] == ["images/b.png", "images/B-2.png", "images/_b.png"]


def test_one_file_is_copied_once_for_several_questions(tmp_path, images):
    twice = [images[0], _image(images[0].image_path, "a-2")]
    rows = _write(tmp_path / "out", twice)
    assert [row.image for row in rows] == ["images/a.png"] * 2
    assert len(os.listdir(tmp_path / "out" / "images")) == 1


def test_a_group_in_several_splits_is_one_group_a_split(tmp_path):
    paths = [drawn_data.write_image(tmp_path / f"{name}.png") for name in "abc"]
    images = [_image(p, group=g) for p, g in zip(paths, ("g", "g", "h"), strict=True)]
    rows = _write(tmp_path / "one", images, splits=["train", "train", "test"])
    assert [row.group for row in rows] == ["g", "g", "h"]
    rows = _write(tmp_path / "two", images, splits=["train", "test", "test"])
    assert [row.group for row in rows] == ["g@train", "g@test", "h"]


def test_the_record_lists_everything_by_kind(tmp_path):
    refused = annotated.Refusals()
    refused.add("a.csv", "bad", 3)
    refused.leave_out("b.png", "a rule")
    refused.warn("c.png", "odd")
    refused.add_question("d.png", "two boxes")
    refused.add("e.png", "broken")
    importing.write_record(tmp_path, {"seed": 42}, refused)
    lines = (tmp_path / importing.REFUSED_NAME).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"kind": "refused", "path": "a.csv", "reason": "bad", "line": 3, "what": "line"},
        {
            "kind": "refused",
            "path": "d.png",
            "reason": "two boxes",
            "line": None,
            "what": "question",
        },
        {"kind": "refused", "path": "e.png", "reason": "broken", "line": None, "what": "file"},
        {"kind": "left_out", "path": "b.png", "reason": "a rule", "line": None, "what": "file"},
        {"kind": "warning", "path": "c.png", "reason": "odd", "line": None, "what": "file"},
    ]
    assert json.loads((tmp_path / output_folder.STATISTICS_NAME).read_text())["seed"] == 42


def _ask(images, one_box, query=None):
    refused = annotated.Refusals()
    checked, _ = _check(images)
    asked = importing.ask_all(
        checked, refused, query=query, default_query="{label}", one_box=one_box
    )
    return asked, refused


def test_the_users_query_goes_before_the_data_sets_and_that_before_the_default(images):

    own = dataclasses.replace(images[0], query="own")
    assert [q[0].text for q in _ask([own, images[1]], "refuse")[0].values()] == ["own", "nv"]
    assert [q[0].text for q in _ask([own], "refuse", "mine")[0].values()] == ["mine"]


def test_what_a_one_box_rule_does_is_said(images):
    path = images[0].image_path
    several = [_image(path, boxes=[BOX, (0.0, 0.0, 5.0, 5.0)]), images[1]]
    asked, refused = _ask(several, "refuse")
    assert list(asked) == ["sub/a"] and "2 boxes answer 'nv'" in refused.all[0].reason
    assert refused.all[0].what == "question"
    assert refused.notes == ["Images without a question left, and so not in the manifest: 1."]
    _, refused = _ask(several, "largest")
    assert refused.notes == [
        "1 images have several boxes for a question; --one_box=largest has made one of them."
    ]
    _, refused = _ask(several, "split")
    assert refused.notes[0].startswith("2 examples ask the same of one image")
    with pytest.raises(ValueError, match="--one_box=first: choose one of refuse"):
        _ask(several, "first")


def test_dicom_is_rendered_and_never_linked(tmp_path, monkeypatch):
    from PIL import Image

    from medloc_jax.data import dicom

    path = tmp_path / "PATIENT^NAME.dcm"
    path.write_bytes(b"\0" * 128 + b"DICM" + b"Doe^Jane")
    picture = Image.new("RGB", (40, 30), (7, 7, 7))
    monkeypatch.setattr(dicom, "read_image", lambda _: picture)
    checked, refused = _check([_image(path, "one")], "link")
    assert not checked and "holds the patient's name, so it is not linked" in refused.all[0].reason
    (row,) = _write(tmp_path / "out", [_image(path, "one")])
    assert row.image == "images/one.png"
    written = [file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert not any(b"Doe" in content or b"PATIENT" in content for content in written)
