# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medloc_jax.evaluation import gallery, run_folder
from tests.evaluation import made_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("gallery")
    folders = made_runs.write_methods(
        root, ("fixed", "medloc"), seeds=2, pictures=12, num_steps=8, examples=12
    )
    return [run_folder.load(folder) for folder in folders]


def _ious(made):
    return {
        told["id"]: np.mean([answers[index][0] for answers in made.data["answers"]])
        for index, told in enumerate(made.data["examples"])
    }


def test_every_prediction_of_one_seed_of_each_method_is_there(runs):
    made = gallery.build(runs)
    assert made.data["methods"] == ["Fixed 0.5, seed 0", "MedLoc (piecewise), seed 0"]
    assert len(made.data["examples"]) == len(made.data["images"]) == 12
    assert "left out" not in made.note and "without their image" not in made.note
    lines = {p["id"]: p for p in runs[0].of_split("test")[-1].predictions()}
    for told, answer in zip(made.data["examples"], made.data["answers"][0], strict=True):
        line = lines[told["id"]]
        assert answer[0] == pytest.approx(line["iou"], abs=1e-4)
        assert (answer[1] is not None) == line["valid"] and answer[2] == line["completion"]
        assert told["label"] == line["label"] and told["target"] == line["target_boxes_px"][0]
        with Image.open(io.BytesIO(base64.b64decode(made.data["images"][told["image"]]))) as image:
            assert image.format == "JPEG" and image.size == tuple(told["size"])


def test_images_stop_at_the_limit_hardest_first_and_the_page_says_so(runs):
    whole = gallery.build(runs)
    limit = sum(map(len, whole.data["images"])) / 2 / 1e6
    made = gallery.build(runs, megabytes=limit)
    embedded = [told for told in made.data["examples"] if told["image"] >= 0]
    assert sum(map(len, made.data["images"])) <= limit * 1e6
    assert 0 < len(embedded) == len(made.data["images"]) < 12
    left_out = 12 - len(embedded)
    assert f"{left_out} of 12 examples are shown without their image" in made.note
    assert "--gallery_mb" in made.note
    ious = _ious(made)
    assert embedded[0]["id"] == min(ious, key=lambda name: ious[name])
    assert all(min(told["size"]) > 0 for told in made.data["examples"])
    none = gallery.build(runs, megabytes=0.0)
    assert none.data["images"] == [] and "12 of 12" in none.note


def test_of_too_many_examples_the_hardest_are_kept(runs):
    made = gallery.build(runs, most=4)
    assert "4 of 12 examples are here" in made.note
    all_ious = _ious(gallery.build(runs))
    hardest = sorted(all_ious, key=lambda name: all_ious[name])[:2]
    assert set(hardest) <= {told["id"] for told in made.data["examples"]}
    assert all(len(answers) == 4 for answers in made.data["answers"])


def test_lost_images_leave_frames_that_hold_every_box(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs[0].folder, folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("/pictures/", "/elsewhere/"))
    made = gallery.build([run_folder.load(folder)])
    assert made.data["images"] == [] and "of 12 examples were not found" in made.note
    for told, answer in zip(made.data["examples"], made.data["answers"][0], strict=True):
        for box in (told["target"], answer[1]):
            assert box is None or (box[2] <= told["size"][0] and box[3] <= told["size"][1])


def test_no_predictions_no_gallery_and_limits_are_checked(runs):
    bare = run_folder.Run(runs[0].folder, runs[0].config, runs[0].rows, (), (), ())
    assert gallery.build([bare]) is None
    with pytest.raises(ValueError, match="-1 MB"):
        gallery.build(runs, megabytes=-1.0)
    for limit in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"{limit:g} MB.*--gallery_mb"):
            gallery.build(runs, megabytes=limit)


@pytest.mark.parametrize("megabytes", [6.0, 0.0])
def test_a_broken_image_is_lost_and_ends_nothing(runs, tmp_path, megabytes):
    folder = tmp_path / "run"
    shutil.copytree(runs[0].folder, folder)
    pictures = Path(runs[0].config["data"]["manifest"]).parent
    shutil.copytree(pictures, tmp_path / "pictures")
    config = json.loads((folder / "config.json").read_text())
    config["data"]["manifest"] = str(tmp_path / "pictures" / "manifest.jsonl")
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "pictures/images/0003.png").write_bytes(b"no image")
    made = gallery.build([run_folder.load(folder)], megabytes=megabytes)
    assert "images of 1 examples were not found or cannot be read" in made.note
    assert len(made.data["images"]) == (11 if megabytes else 0)
