# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import copy
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from medloc_jax.data import annotated, coco

RAW = Path(__file__).resolve().parents[2] / "../shared/data/raw"

CONTENT = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 40, "height": 20, "patient_id": "p7"},
        {"id": 2, "file_name": "b.png", "width": 40, "height": 20},
    ],
    "annotations": [
        {"id": 10, "image_id": 1, "bbox": [1, 2, 10, 5], "category_id": 3, "iscrowd": 0},
        {"id": 11, "image_id": 1, "bbox": [4, 2.5, 36, 5], "category_id": 4},
        {"id": 12, "image_id": 2, "bbox": [0, 0, 40, 20], "category_id": 3},
    ],
    "categories": [{"id": 3, "name": "cyst"}, {"id": 4, "name": "nodule"}],
}


def write(folder, content=None, *, name="annotation.json", images="images"):
    """A data set of two images, its annotation file as given."""
    for stem in ("a", "b"):
        path = folder / images / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (40, 20)).save(path)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(CONTENT if content is None else content))
    return path


def read(source, **options):
    refused = annotated.Refusals()
    return {image.id: image for image in coco.read(source, refused, **options)}, refused.all


def test_boxes_labels_and_groups(tmp_path):
    file = write(tmp_path)
    found, refused = read(tmp_path)
    assert refused == []
    assert found["a"] == annotated.AnnotatedImage(
        id="a",
        image_path=tmp_path / "images/a.png",
        width=40,
        height=20,
        targets=(
            annotated.Target((1.0, 2.0, 11.0, 7.0), "cyst"),
            annotated.Target((4.0, 2.5, 40.0, 7.5), "nodule"),
        ),
        group="p7",
    )
    assert found["b"].targets[0].box_px == (0, 0, 40, 20)
    assert read(file)[0] == found


def test_roboflow_has_a_file_in_each_split(tmp_path):
    for split in ("train", "valid", "test"):
        write(tmp_path, name=f"{split}/_annotations.coco.json", images=split)
    found, refused = read(tmp_path)
    assert refused == [] and len(found) == 6
    assert {image.split for image in found.values()} == {"train", "val", "test"}
    assert all(
        image.split == ("val" if "valid" in str(image.image_path) else image.image_path.parent.name)
        for image in found.values()
    )


def test_official_layout(tmp_path):
    """The same file names in both splits; captions are not boxes."""
    for split in ("train2017", "val2017"):
        write(tmp_path, name=f"annotations/instances_{split}.json", images=split)
    write(tmp_path, name="annotations/captions_train2017.json", images="train2017")
    (tmp_path / "package.json").write_text("[1]")
    found, refused = read(tmp_path)
    assert refused == [] and len(found) == 4
    assert found["val2017/a"].split == "val"
    only, _ = read(tmp_path / "annotations/instances_val2017.json")
    assert {image.split for image in only.values()} == {"val"}
    chosen, refused = read(tmp_path, annotations="annotations/instances_val2017.json")
    assert chosen == only and refused == []


def test_several_files_without_a_split(tmp_path):
    write(tmp_path)
    write(tmp_path, name="other.json")
    with pytest.raises(ValueError, match="annotation.json, other.json.*--annotations"):
        read(tmp_path)


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match="no annotation file: looked for JSON.*--annotations"):
        read(tmp_path)


def changed(*path, value):
    """The content with one thing changed; value is put at the path, or deleted if None."""
    content = copy.deepcopy(CONTENT)
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (changed("annotations", 0, "bbox", value=[1, 2, 0, 5]), "annotation 10: [1, 2, 1, 7] is e"),
        (changed("annotations", 0, "bbox", value=[1, 2, -3, 5]), "reversed"),
        (changed("annotations", 0, "bbox", value=[30, 2, 12, 5]), "outside its image"),
        (changed("annotations", 0, "bbox", value=[30, 2, 12]), "annotation 10: bbox"),
        (changed("annotations", 0, "bbox", value=[30, 2, "1", 2]), "bbox"),
        (changed("annotations", 0, "bbox", value=None), "bbox"),
        (changed("annotations", 0, "bbox", value=[float("nan"), 2, 1, 2]), "not finite"),
        (changed("annotations", 0, "iscrowd", value=1), "annotation 10: a crowd"),
        (changed("annotations", 0, "category_id", value=9), "category_id 9 is not in categories"),
        (changed("annotations", 1, "id", value=10), "its id stands twice"),
        (changed("images", 0, "width", value=80), "said to be 80 x 20 px and is 40 x 20"),
        (changed("images", 0, "width", value="40"), "write whole pixels"),
        (changed("images", 0, "file_name", value="c/none.png"), "'c/none.png' is not below"),
        (changed("images", 0, "file_name", value=7), "file_name is 7"),
        (changed("images", 0, "id", value=None), "'a.png' has no id"),
    ],
)
def test_what_is_wrong_leaves_its_image_out(content, words, tmp_path):
    write(tmp_path, content)
    found, refused = read(tmp_path)
    assert set(found) == {"b"}
    assert any(words in refusal.reason for refusal in refused), refused
    with pytest.raises(ValueError):
        coco.read(tmp_path, annotated.Refusals(strict=True))


def test_ids_that_stand_twice(tmp_path):
    write(tmp_path, changed("images", 0, "id", value=2))
    found, refused = read(tmp_path)
    assert found == {}
    assert sum("its id 2 stands 2 times" in refusal.reason for refusal in refused) == 2
    assert sum("image_id 1 is no image" in refusal.reason for refusal in refused) == 2


def test_an_image_twice(tmp_path):
    write(tmp_path, changed("images", 1, "file_name", value="images/a.png"))
    found, refused = read(tmp_path)
    assert found == {}
    assert sum("is described 2 times" in refusal.reason for refusal in refused) == 2
    assert sum("no annotation file names it" in refusal.reason for refusal in refused) == 1


def test_images_without_boxes(tmp_path):
    write(tmp_path, changed("annotations", 2, value=None))
    Image.new("L", (4, 4)).save(tmp_path / "images/c.png")
    found, refused = read(tmp_path)
    assert set(found) == {"a"}
    reasons = {Path(refusal.path).name: refusal.reason for refusal in refused}
    assert "no box" in reasons["b.png"] and "no annotation file names it" in reasons["c.png"]


def test_ids_may_be_numbers_or_strings(tmp_path):
    write(tmp_path, changed("annotations", 2, "image_id", value="2"))
    assert set(read(tmp_path)[0]) == {"a", "b"}


@pytest.mark.parametrize("text", ["{", '{"images": [], "annotations": 3}', "[]", "\xff"])
def test_broken_files(text, tmp_path):
    file = write(tmp_path)
    file.write_bytes(text.encode("latin-1"))
    found, refused = read(file)
    assert found == {} and refused[0].path == str(file)


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("BUSI_coco", 12, ("benign (1)", (262, 145, 308, 173), "benign")),
        (
            "brain_mri_coco",
            6,
            ("TCGA_CS_4941_19960909_11", (171, 131, 269, 227), "BrainTumor"),
        ),
    ],
)
def test_published_sets(name, count, first, tmp_path):
    if not (RAW / name).is_dir():
        pytest.skip(f"the published sample {name} is not at hand")
    found, refused = read(RAW / name)
    assert refused == [] and len(found) == count
    (target,) = found[first[0]].targets
    assert (target.box_px, target.label) == first[1:]
    # The same with one image lost and one damaged at its head.
    shutil.copytree(RAW / name, tmp_path / name)
    paths = sorted((tmp_path / name / "images").iterdir())
    paths[0].unlink()
    paths[1].write_bytes(b"\0" * 100)
    found, refused = read(tmp_path / name)
    assert len(found) == count - 2
    assert paths[0].name in refused[0].reason and refused[1].path == str(paths[1])
