# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`medloc predict` and `medloc_jax.Grounder`: one image and one sentence in, a box out."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import medloc_jax
from medloc_jax.cli import main
from medloc_jax.grounding import boxes, consensus


@pytest.fixture(scope="module")
def images(sft_run):
    return sft_run / "data" / "images"


@pytest.fixture(scope="module")
def grounder(sft_run):
    return medloc_jax.Grounder.load(sft_run)


def _lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_it_answers_as_evaluation_did(sft_run, grounder, images):
    """The same text and box as the run's own evaluation of its last step."""
    text = (sft_run / "eval/val-3/predictions.jsonl").read_text()
    logged = [json.loads(line) for line in text.splitlines()]
    by_id = {}
    for line in (sft_run / "data/manifest.jsonl").read_text().splitlines():
        example = json.loads(line)
        by_id[example["id"]] = example
    assert len(logged) == 4
    for line in logged:
        got = grounder(sft_run / "data" / line["image"], by_id[line["id"]]["query"])
        assert got.text == line["completion"]
        assert ([] if got.box_px is None else [got.box_px.tolist()]) == line["boxes_px"]


def test_json_has_one_object_an_image(sft_run, images, tmp_path, capsys):
    argv = [f"--checkpoint={sft_run}", f"--image={images}", "--query=bright nodule", "--json"]
    assert main.main(["predict", *argv, f"--out={tmp_path}"]) == 0
    lines = _lines(capsys)
    assert [line["id"] for line in lines] == [path.stem for path in sorted(images.iterdir())]
    for line in lines:
        with Image.open(images / f"{line['id']}.png") as image:
            assert (line["width"], line["height"]) == image.size
        assert len(line["token_ids"]) == len(line["token_logprobs"]) > 0
        assert all(value <= 0 for value in line["token_logprobs"])
        assert line["seconds"] > 0 and line["prompt"] == "bright nodule"
        assert len(line["boxes_px"]) == len(line["boxes_resized_px"]) == int(line["valid"])
        if line["valid"] and not line["clipped"]:
            scale = [line["width"] / line["resized_width"], line["height"] / line["resized_height"]]
            expected = np.array(line["boxes_resized_px"][0]) * np.array(scale * 2)
            np.testing.assert_allclose(line["boxes_px"][0], expected)
        assert (tmp_path / f"{line['id']}.png").is_file()


def test_batches_do_not_change_the_answers(grounder, images):
    files = sorted(images.iterdir())[:5]
    alone = [grounder(path, "bright nodule") for path in files]
    together = list(grounder.ground(files, "bright nodule", batch_size=3))
    assert [one.text for one in together] == [one.text for one in alone]


def test_a_group_is_shown_with_its_agreement(sft_run, images, tmp_path, capsys):
    argv = [f"--checkpoint={sft_run}", f"--image={images / 'test_000001.png'}", "--prompt=lesion"]
    argv += ["--num_samples=6", "--temperature=0.7", "--json", f"--out={tmp_path}"]
    assert main.main(["predict", *argv]) == 0
    (line,) = _lines(capsys)
    assert line["prompt"] == "lesion" and len(line["samples"]) == 6
    said = np.array(
        [one["boxes_px"][0] if one["valid"] else [np.nan] * 4 for one in line["samples"]]
    )
    assert line["agreement"] == consensus.agreement(said)
    agreed = consensus.consensus(said)
    assert (line["consensus_px"] is None) == (agreed is None)
    if agreed is not None:
        assert line["consensus_px"] == agreed[0].tolist()
        nearest = np.argmax(boxes.iou(said, agreed[0]))
        assert line["completion"] == line["samples"][nearest]["completion"]
    assert len({tuple(one["token_ids"]) for one in line["samples"]}) > 1  # drawn, not repeated
    assert main.main(["predict", *argv]) == 0
    again = _lines(capsys)[0]
    assert again["samples"] == line["samples"]  # the same seed
    assert main.main(["predict", *argv, "--seed=1"]) == 0
    assert _lines(capsys)[0]["samples"] != line["samples"]


def test_a_sample_depends_on_the_picture_and_not_on_its_company(grounder, images):
    first, second = sorted(images.iterdir())[:2]

    def drawn(*files):
        asked = grounder.ground(files, "lesion", num_samples=3, seed=5)
        return [[one.token_ids for one in answer.completions] for answer in asked]

    assert drawn(second, first) == drawn(first, second)[::-1]
    assert drawn(second) == drawn(first, second)[1:]


def test_a_picture_that_cannot_be_read_loses_no_other(sft_run, images, tmp_path, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in ("a", "c", "d"):
        (folder / f"{name}.png").write_bytes((images / "test_000000.png").read_bytes())
    (folder / "b.png").write_text("no picture")
    whole = (images / "test_000001.png").read_bytes()
    (folder / "e.png").write_bytes(whole[: len(whole) // 2])  # its header is sound
    argv = ["predict", f"--checkpoint={sft_run}", "--query=lesion", "--json", "--out="]
    assert main.main([*argv, f"--image={folder}"]) == 1
    told = capsys.readouterr()
    lines = {line["id"]: line for line in map(json.loads, told.out.splitlines())}
    assert lines.keys() == {"a", "b", "c", "d", "e"}
    assert {name for name, line in lines.items() if "error" in line} == {"b", "e"}
    assert "2 of 5 images could not be read" in told.err
    for name in "be":
        assert f"{name}.png" in lines[name]["error"] and f"{name}.png" in told.err
    assert main.main([*argv, f"--image={folder}", "--strict"]) == 2
    assert "b.png" in capsys.readouterr().err.splitlines()[-1]


def test_weights_inside_a_runs_folder_are_not_taken_for_its_own(sft_run, images, tmp_path):
    """An export that lies in a run's folder has image sizes of its own."""
    copied = tmp_path / "run"
    shutil.copytree(sft_run, copied)
    assert main.main(["convert", f"--source={copied}", f"--target={tmp_path / 'out'}"]) == 0
    shutil.move(tmp_path / "out", copied / "exported")
    (copied / "exported/preprocessor_config.json").write_text(
        (copied / "exported/preprocessor_config.json").read_text().replace("4096", "1024")
    )
    path = images / "test_000000.png"
    run, exported = (
        medloc_jax.Grounder.load(folder)(path, "lesion") for folder in (copied, copied / "exported")
    )
    assert run.resized_width * run.resized_height > 1024
    assert exported.resized_width * exported.resized_height <= 1024


def test_help_names_every_flag(capsys):
    assert main.main(["predict", "--checkpoint=x", "--help"]) == 0
    out = capsys.readouterr().out
    for name in (
        "checkpoint",
        "tokenizer",
        "max_pixels",
        "batch_size (8)",
        "strict",
        "temperature",
    ):
        assert f"--{name}" in out


def test_the_terminal_is_told_text_box_and_picture(sft_run, images, tmp_path, capsys):
    image = images / "test_000000.png"
    argv = [f"--checkpoint={sft_run / 'checkpoints/2'}", f"--image={image}", "--query=lesion"]
    assert main.main(["predict", *argv, f"--out={tmp_path}", "--max_new_tokens=3"]) == 0
    out = capsys.readouterr().out
    assert "test_000000" in out and "  box   " in out and "(cut off)" in out
    assert f"picture {tmp_path / 'test_000000.png'}" in out
    assert main.main(["predict", *argv, "--out=", "--num_samples=2"]) == 0
    out = capsys.readouterr().out
    assert "picture" not in out and "agreement 0." in out or "agreement 1." in out


def test_arrays_and_images_in_memory_answer_as_files_do(grounder, images):
    path = images / "test_000002.png"
    with Image.open(path) as image:
        from_file = grounder(path, "lesion")
        assert grounder(image.convert("RGB"), "lesion").text == from_file.text
        assert grounder(np.asarray(image.convert("RGB")), "lesion").text == from_file.text
    assert from_file.overlay().width >= from_file.width


def test_half_precision_is_another_program(sft_run, images):
    """Its numbers differ, within what eight bits of mantissa allow."""
    path = images / "test_000000.png"
    exact = medloc_jax.Grounder.load(sft_run)(path, "lesion").completions[0]
    half = medloc_jax.Grounder.load(sft_run, dtype="bfloat16")(path, "lesion").completions[0]
    first = exact.token_logprobs[0], half.token_logprobs[0]
    assert first[0] != first[1] and abs(first[0] - first[1]) < 0.2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--query=lesion"], "--checkpoint is missing"),
        (["--checkpoint={run}", "--query=lesion"], "--image is missing"),
        (["--checkpoint={run}", "--image=", "--query=lesion"], "--image= is empty"),
        (["--checkpoint={run}", "--qury=lesion"], "unknown flag --qury: did you mean --query?"),
        (["--checkpoint={run}", "--image={image}"], "--query or --prompt, one of the two"),
        (["--checkpoint={run}", "--image={image}", "--query=a", "--prompt=b"], "one of the two"),
        (["--checkpoint={run}", "--image=no.png", "--query=a"], "--image=no.png: no such file"),
        (["--checkpoint={run}", "--image={empty}", "--query=a"], "no image in that folder"),
        (["--checkpoint={run}", "--image={text}", "--query=a", "--out="], "not an image"),
        (["--checkpoint=no/where", "--image={image}", "--query=a"], "no/where: there is no such"),
        (["--checkpoint={empty}", "--image={image}", "--query=a"], "it has no config.json: give"),
        (["--checkpoint={run}", "--image={image}", "--query=a", "--dtype=float8"], "float8"),
        (["--checkpoint={run}", "--image={image}", "--query=a", "--template=x"], "template 'x'"),
        (["--checkpoint={run}", "--image={image}", "--query=a", "--temperature=0"], "above 0"),
        (["--checkpoint={run}", "--image={image}", "--query=<|image_pad|>"], "<|image_pad|>"),
        (["--checkpoint={run}", "--image={image}", "--image={image}", "--query=a"], "named twice"),
        (["--checkpoint={run}", "--image={image}", "--query=a", "extra"], "extra: no such file"),
    ],
)
def test_a_mistake_is_one_line(sft_run, images, tmp_path, capsys, argv, message):
    (tmp_path / "a.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    names = {
        "run": sft_run,
        "image": images / "test_000000.png",
        "empty": tmp_path / "empty",
        "text": tmp_path / "a.txt",
    }
    assert main.main(["predict", *(flag.format(**names) for flag in argv)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("medloc predict: error: ") and message in line
