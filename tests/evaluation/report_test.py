# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from medloc_jax.cli import main as cli_main
from medloc_jax.cli import report as report_verb
from medloc_jax.evaluation import (
    contact_sheet,
    plot_style,
    report,
    result_tables,
    results,
    run_folder,
    tables,
)


def _section(markdown, heading):
    return markdown.split(f"## {heading}\n")[1].split("\n## ")[0]


def _rows(text):
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_report_of_a_grpo_run_has_every_picture_and_the_numbers_of_its_files(make_run):
    folder = make_run("run", num_steps=120)
    paths = report.write_report([folder])
    out = folder / "report"
    assert {path.name for path in paths if path.parent == out} == {
        "report.md",
        "report.html",
        "results.md",
        "results.tex",
        "results.csv",
        "reward_and_threshold.png",
        "accuracy.png",
        "iou_histogram.png",
        "examples.png",
        "group_health.png",
        "blocked.png",
    }
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.width == 540 and np.asarray(image.convert("L")).std() > 5

    markdown = (out / "report.md").read_text()
    saved = json.loads((folder / "eval" / "test-119" / "metrics.json").read_text())
    rows = _rows(_section(markdown, "Evaluations"))
    test_row = next(row for row in rows if row[:2] == ["test", "step 119"])
    low, high = saved["a50_ci"]
    assert test_row[3] == f"{100 * saved['a50']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    floor_row = next(row for row in rows if row[:2] == ["test", "floor"])
    assert floor_row[3].startswith(f"{100 * saved['floor']['a50']:.1f} ")
    assert [row[1] for row in rows if row[0] == "val"] == ["step 0", "step 119", "floor"]
    assert "0.3 from step 0, 0.45 from step 30, 0.6 from step 55, 0.7 from step 90" in markdown
    assert "Not there" not in markdown
    for name in re.findall(r"\]\((.+?\.png)\)", markdown):
        assert (out / name).is_file()


def test_html_is_one_page_that_needs_no_other_file(make_run):
    folder = make_run("run")
    page = report.write_report([folder])[1].read_text()
    assert page.count("data:image/png;base64,") == 6
    # Two scripts, both the page's own: the gallery's data and what pages through it.
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page) and page.count("<script") == 2
    assert "&lt;b&gt;|*[1,2" in page and "<b>" not in page  # a completion is text, never markup


def test_report_of_an_sft_run_shows_its_loss(make_run):
    folder = make_run("warm", method="sft")
    names = {path.name for path in report.write_report([folder])}
    assert "loss.png" in names and "reward_and_threshold.png" not in names
    assert "threshold" not in (folder / "report" / "report.md").read_text()


def test_what_is_missing_is_said_and_the_rest_is_drawn(make_run):
    folder = make_run("run")
    for path in ("config.json", "rollouts.jsonl", "eval/test-119/predictions.jsonl"):
        (folder / path).unlink()
    shutil.rmtree(folder / "data")
    names = {path.name for path in report.write_report([folder])}
    assert "reward_and_threshold.png" in names and "examples.png" not in names
    missing = _section((folder / "report" / "report.md").read_text(), "Not there")
    for word in ("config.json", "rollouts.jsonl", "test-119/predictions.jsonl", "images of the"):
        assert word in missing


def test_a_run_with_metrics_alone_and_one_with_an_evaluation_alone(make_run):
    curves = make_run("curves")
    shutil.rmtree(curves / "eval")
    names = {path.name for path in report.write_report([curves])}
    assert "reward_and_threshold.png" in names and "accuracy.png" in names
    evaluated = make_run("evaluated")
    (evaluated / "metrics.jsonl").unlink()
    names = {path.name for path in report.write_report([evaluated])}
    assert "accuracy.png" in names and "reward_and_threshold.png" not in names


def test_no_metrics_at_all_is_an_error_with_a_cure(tmp_path):
    with pytest.raises(ValueError, match="no such folder.*workdir"):
        report.write_report([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="neither metrics.jsonl nor.*medloc evaluate"):
        report.write_report([tmp_path])
    with pytest.raises(ValueError, match="no workdir"):
        report.write_report([])


def test_a_broken_line_is_named_and_a_torn_last_one_noted(make_run):
    folder = make_run("run")
    metrics = folder / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole + '{"step": 120, "rew')
    run = run_folder.load(folder)
    assert run.last_step == 119 and any("cut off" in note for note in run.missing)
    lines = whole.splitlines()
    metrics.write_text("\n".join([lines[0], "{oops", *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl: line 2: not JSON"):
        run_folder.load(folder)
    metrics.write_text('{"reward/total": 1}\n')
    with pytest.raises(ValueError, match="line 1.*step"):
        run_folder.load(folder)


def test_one_broken_image_and_half_a_character_end_no_report(make_run):
    folder = make_run("run")
    (folder / "data/images/0.png").write_bytes(b"no image")
    path = folder / "eval/test-119/predictions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["completion"] = "\ud800 alone"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = json.loads((folder / "rollouts.jsonl").read_text())
    row["completions"][0][0] = "\udfff too"
    (folder / "rollouts.jsonl").write_text(json.dumps(row) + "\n")
    markdown, page, *_ = report.write_report([folder])
    assert "\ufffd too" in markdown.read_text() and "not to be read" in markdown.read_text()
    assert "\ufffd alone" in page.read_text(encoding="utf-8")


def test_a_limit_that_is_no_number_is_refused_before_anything_is_drawn(make_run):
    folder = make_run("run")
    with pytest.raises(ValueError, match="nan MB.*--gallery_mb"):
        report.write_report([folder], gallery_megabytes=float("nan"))
    assert not (folder / "report").exists()


def test_a_report_among_the_folders_is_left_out_and_the_report_says_so(make_run, tmp_path):
    folder, made = make_run("run"), tmp_path / "report"
    made.mkdir()
    (made / "report.md").write_text("# Comparison\n")
    (markdown, *_) = report.write_report([folder, made])
    assert "report: left out, it is a report" in markdown.read_text()
    with pytest.raises(ValueError, match="is a report: name the folders of runs"):
        report.write_report([made])


def test_a_detectors_boxes_are_not_decoded(make_run):
    folder = make_run("run")
    (folder / "metrics.jsonl").unlink()
    config = {"method": "predictions", "label": "yolo", "seed": 0, "num_steps": 0}
    (folder / "config.json").write_text(json.dumps(config))
    text = report.write_report([folder])[0].read_text()
    assert "reedy" not in text and "Boxes of an outside detector" in text


def test_null_metrics_are_left_out_of_the_curves(make_run):
    folder = make_run("run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 120, "reward/total": null, "iou/raw_mean": 0.5}\n')
    run = run_folder.load(folder)
    assert run.series("reward/total").steps[-1] == 119
    assert run.series("iou/raw_mean").steps[-1] == 120


def test_comparison_takes_mean_and_deviation_over_seeds_only(make_run, tmp_path):
    runs = [
        make_run("medloc0", seed=0),
        make_run("medloc1", seed=1),
        make_run("fixed", schedule="fixed"),
        make_run("big", group_size=16),
    ]
    paths = report.write_report(runs, options=result_tables.Options(allow=["budget"]))
    assert [path.name for path in paths[:3]] == ["report.md", "report.html", "comparison.png"]
    assert paths[0].parent == tmp_path / "report"
    rows = _rows(_section(paths[0].read_text(), "Results on synthetic"))
    a50 = [json.loads((run / "eval/test-119/metrics.json").read_text())["a50"] for run in runs[:2]]
    mean = f"{100 * np.mean(a50):.1f} ± {100 * np.std(a50, ddof=1):.1f}"
    seeds = next(row for row in rows if row[:2] == ["MedLoc (piecewise), rl.group_size=8", "2"])
    assert re.sub("</?[bu]>", "", seeds[2]) == mean
    assert any(row[:2] == ["MedLoc (piecewise), rl.group_size=16", "1"] for row in rows)
    rows = _rows(_section(paths[0].read_text(), "Every run's last evaluation, test split"))
    row = next(row for row in rows if row[0] == "medloc1")
    assert row[1:6] == ["MedLoc (piecewise), rl.group_size=8", "1", "119", "0.7", "80"]
    assert sum(row[0] == "floor" for row in rows) == 1


def test_runs_from_warm_starts_of_their_own_are_one_group(make_run):
    def runs(seed_of_start):
        found = []
        for seed in (0, 1):
            start = make_run(f"sft{seed}-{seed_of_start}", method="sft", seed=seed)
            folder = make_run(f"grpo{seed}-{seed_of_start}", seed=seed)
            config = json.loads((folder / "config.json").read_text())
            config["model"]["init_from"] = str(start)
            (folder / "config.json").write_text(json.dumps(config))
            found.append(run_folder.load(folder))
        return found

    same = runs("a")
    assert len(run_folder.groups_by_seed(same)) == 1
    # A warm start that differs in more than its seed makes another experiment.
    path = same[0].config["model"]["init_from"] + "/config.json"
    with open(path) as file:
        config = json.load(file)
    with open(path, "w") as file:
        json.dump(config | {"num_steps": 7}, file)
    assert len(run_folder.groups_by_seed(same)) == 2


def test_group_labels_are_unique_and_say_what_differs(make_run):
    folders = [make_run(f"g{size}", group_size=size) for size in (4, 8)] + [
        make_run("sft", method="sft")
    ]
    groups = run_folder.groups_by_seed([run_folder.load(folder) for folder in folders])
    labels = results.group_labels(groups)
    sizes = [f"MedLoc (piecewise), rl.group_size={size}" for size in (4, 8)]
    assert labels == [*sizes, "SFT"]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 16, 17, 100])
def test_contact_sheet_shows_no_example_twice(n):
    ious = np.random.default_rng(n).random(n)
    chosen = contact_sheet.choose(ious, columns=4, seed=0)
    flat = np.concatenate(list(chosen.values()))
    assert len(set(flat.tolist())) == len(flat) <= 16
    assert ious[chosen["best"]].max() == ious.max()
    if n >= 2:
        assert ious[chosen["worst"]].min() == ious.min()
    if n == 100:
        assert [len(indices) for indices in chosen.values()] == [4, 4, 4, 4]
        middle = np.sort(ious)[46:54]
        assert np.isin(ious[chosen["median"]], middle).all()


def test_trailing_mean_never_looks_ahead():
    values = np.array([1.0, 2.0, 3.0, 10.0])
    assert plot_style.trailing_mean(values, 2).tolist() == [1.0, 1.5, 2.5, 6.5]
    assert plot_style.trailing_mean(values[:0], 2).tolist() == []


def test_percent_and_deviation_texts():
    assert tables.percent(0.5413, [0.491, 0.588]) == "54.1 [49.1, 58.8]"
    assert tables.percent(None) == "-"
    assert tables.mean_and_deviation([0.1, 0.3]) == "20.0 ± 14.1"
    assert tables.mean_and_deviation([0.1]) == "10.0"


def test_help_tells_every_flag(capsys):
    assert cli_main.main(["report", "--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"  --{name}" in told for name in ("out", "allow", "reference", "split"))
    assert "  --gallery_mb (6.0): limit" in told


def test_verb_prints_where_the_pictures_are(make_run, tmp_path, capsys):
    folder = make_run("run")
    assert report_verb.main([str(folder), f"--out={tmp_path / 'here'}"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert str(tmp_path / "here" / "accuracy.png") in printed
    for bad, message in (([], "no workdir"), (["--nope=1", "x"], "nope")):
        with pytest.raises(ValueError, match=message):
            report_verb.main(bad)
