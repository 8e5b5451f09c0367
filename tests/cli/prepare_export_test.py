# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A manifest for other trainers: what comes back is what went in."""

import json

import numpy as np
import pytest
import small_runs
from PIL import Image

from medloc_jax.cli import main
from medloc_jax.data import annotated, batching, coco, examples
from medloc_jax.model import config as model_config
from medloc_jax.model import processor, tokenizer

PHRASES = ("dark lesion", "bright nodule")


@pytest.fixture
def manifest(tmp_path):
    """Six images in three splits; two questions on one of them; boxes that are no whole pixels."""
    path = small_runs.write_manifest(tmp_path / "data", [(64, 48), (100, 70)] * 3)
    lines = small_runs.lines(path)
    for index, line in enumerate(lines):
        line["split"] = ("train", "train", "val", "test", "train", "test")[index]
        line["query"] = PHRASES[index % 2]
        line["boxes_px"] = [[0.1 + index, 3.3, 31.7, 40.9]]
        line["label"] = "nv"
        line["group"] = f"p{index}"
    lines.append(lines[0] | {"id": "second", "query": PHRASES[1], "boxes_px": [[2, 2, 9, 9.5]]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _export(manifest, *flags):
    out = manifest.parent.parent / "out"
    assert main.main(["prepare", f"{manifest}", f"--out={out}", *flags]) == 0
    return out


def test_our_own_importer_reads_coco_back(manifest):
    out = _export(manifest, "--export=coco")
    refused = annotated.Refusals()
    found = coco.read(out, refused)
    assert refused.all == []
    got = sorted(
        (image.split, image.group, target.label, *np.round(target.box_px, 9))
        for image in found
        for target in image.targets
    )
    rows = examples.load_manifest(manifest)
    assert got == sorted(
        (row.split, row.group, row.query, *np.round(row.box_px, 9)) for row in rows
    )
    for image in found:
        (row, *_) = [row for row in rows if row.group == image.group]
        assert image.image_path.read_bytes() == (manifest.parent / row.image).read_bytes()


def test_a_made_up_name_takes_no_other_images_place(manifest):
    """The third file would be called case-2.png, which the first is called by itself."""
    lines = small_runs.lines(manifest)[:3]
    for line, split, name in zip(
        lines, ("train", "train", "test"), ("b/case-2", "a/case", "c/case"), strict=True
    ):
        (manifest.parent / name).parent.mkdir()
        (manifest.parent / line["image"]).rename(manifest.parent / f"{name}.png")
        line |= {"image": f"{name}.png", "split": split}
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = _export(manifest, "--export=coco", "--config=configs/demo.py")
    named = {
        image["file_name"]: image["group"]
        for path in out.glob("instances_*.json")
        for image in json.loads(path.read_text())["images"]
    }
    assert sorted(named.values()) == ["p0", "p1", "p2"] and len(list(out.glob("images/*"))) == 3
    for line in lines:
        (name,) = [name for name, group in named.items() if group == line["group"]]
        stored = (out / "images" / name).read_bytes()
        assert stored == (manifest.parent / line["image"]).read_bytes()


def test_the_captions_are_groundingdinos(manifest):
    out = _export(manifest, "--export=coco", "--images=link")
    content = json.loads((out / "instances_train.json").read_text())
    assert [one["name"] for one in content["categories"]] == sorted(PHRASES)
    assert [one["id"] for one in content["categories"]] == [0, 1]
    image = content["images"][0]
    assert image["caption"] == "dark lesion . bright nodule ."
    for one in content["annotations"]:
        caption = content["images"][one["image_id"] - 1]["caption"]
        ((start, end),) = one["tokens_positive"]
        assert caption[start:end] == content["categories"][one["category_id"]]["name"]
    (line, *_) = small_runs.lines(out / "train_odvg.jsonl")
    assert line["filename"] == image["file_name"] and (out / "images/0.png").is_symlink()
    assert line["grounding"]["regions"][0] == {"bbox": [0.1, 3.3, 31.7, 40.9], "phrase": PHRASES[0]}
    assert line["grounding"]["caption"] == image["caption"]
    told = json.loads((out / "datasets.json").read_text())
    for part in (told["train"][0], told["val"][0]):
        assert (out / "images").samefile(part["root"]) and out in part_path(part).parents
    assert part_path(told["val"][0]).name == "instances_val.json"


def part_path(part):
    path = type(small_runs.ROOT)(part["anno"])
    assert path.is_file()
    return path


@pytest.mark.parametrize("template", ["vlm_r1", "medloc", "box"])
def test_llama_factory_learns_what_our_sft_learns(manifest, template):
    """Token by token, and the same pixels: against the rows that our own loader makes."""
    limits = {"min_pixels": 1024, "max_pixels": 2048}
    overrides = [f"--config.data.{name}={value}" for name, value in limits.items()]
    overrides += [f"--config.data.template={template}", "--config.sft.box_scale=1.5"]
    overrides += ["--config.model.preset=tiny"]
    config = "--config=configs/sft/ham10000_3b.py"
    out = _export(manifest, "--export=llama_factory", config, *overrides)
    info = json.loads((out / "dataset_info.json").read_text())
    assert set(info) == {"medloc_train", "medloc_val", "medloc_test"}
    sizes = model_config.preset("tiny")
    words = tokenizer.load("", sizes)
    loader = batching.RowLoader(
        config=sizes,
        processor=processor.ImageProcessor.for_model(sizes.vision, **limits),
        tokenizer=words,
        template=template,
        completion_length=256,
        box_scale=1.5,
    )
    rows = [row for row in examples.load_manifest(manifest) if row.split == "train"]
    records = json.loads((out / info["medloc_train"]["file_name"]).read_text())
    assert len(records) == len(rows) == 4
    assert all(
        loader.processor.resized_size(row.height, row.width)[0] != row.height for row in rows
    )
    for row, record in zip(rows, records, strict=True):
        ours = loader(row)
        user, assistant = record["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert tuple(words.encode_completion(assistant["content"])) == ours.completion_ids
        with Image.open(out / record["images"][0]) as picture:
            pixels, grid = loader.processor(picture)
            resized = (picture.width, picture.height)
        assert resized == (ours.frame.resized_width, ours.frame.resized_height)
        whole, _ = loader.processor(processor.open_image(row.image_path))
        np.testing.assert_array_equal(pixels, whole)
        image_tokens = grid[1] * grid[2] // sizes.vision.spatial_merge_size**2
        asked = user["content"].removeprefix("<image>")
        assert asked != user["content"]
        assert words.encode_prompt(asked, [image_tokens]) == ours.packed.input_ids.tolist()


def test_val_is_cut_as_a_run_cuts_it(manifest):
    lines = small_runs.lines(manifest)
    for line in lines:
        line["split"] = "train" if line["split"] == "val" else line["split"]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = _export(manifest, "--export=coco", "--config=configs/demo.py")
    rows = examples.cut_val(examples.load_manifest(manifest), 0.1, seed=0)
    content = json.loads((out / "instances_val.json").read_text())
    names = [one["example_id"] for one in content["annotations"]]
    assert names == [row.id for row in rows if row.split == "val"] != []


def test_a_folder_is_replaced_only_when_told(manifest, capsys):
    _export(manifest, "--export=coco")
    argv = ["prepare", "--export=coco", f"{manifest}", f"--out={manifest.parent.parent / 'out'}"]
    assert main.main(argv) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main.main([*argv, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--export=yolo", "{m}", "--out=x"], "--export=yolo: choose one of coco, llama_factory"),
        (["--export=coco", "{m}"], "--out is missing"),
        (["--export=coco", "--out={m}x"], "0 manifests"),
        (["--export=coco", "no.jsonl", "--out={m}x"], "no.jsonl: cannot be read"),
        (["--export=coco", "{m}", "--out={m}/../x"], "lie in each other"),
        (["--export=llama_factory", "{m}", "--out={m}/../../x"], "--config is missing"),
        (
            [
                *("--export=llama_factory", "{m}", "--out={m}/../../x"),
                "--config=configs/ham10000_tiny_sft.py",
            ],
            "data.augment=('hflip', 'vflip') is drawn anew",
        ),
    ],
)
def test_a_mistake_is_one_line(manifest, capsys, flags, message):
    assert main.main(["prepare", *(flag.format(m=manifest) for flag in flags)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("medloc prepare: error: ") and message in line
