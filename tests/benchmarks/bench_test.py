# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The harness reads, renders and refuses; nothing is measured here."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import bench  # noqa: E402
import bench_report  # noqa: E402
import bench_sections  # noqa: E402
import peer_environments  # noqa: E402
import sweeps  # noqa: E402

PROVENANCE = {
    "commit": "0abc123",
    "machine": "a machine",
    "quick": False,
    "command": "the command",
    "versions": {"ours": {"jax": "1"}},
    "load": [0.1, 0.2],
}


def of_items(**items):
    return {**PROVENANCE, "items": items}


def no_flags(**flags):
    return argparse.Namespace(**({"peerbench": "", "peers": "", "tunix": ""} | flags))


def goal_rows(results):
    text = bench_report.render(results)
    rows = text.partition("## Goals")[2].partition('\n\n"probe"')[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[4:]]


def test_a_ratio_is_the_peers_median_over_ours_of_all_rounds():
    item = {"transformers": [[9.0, 1.0], [4.0, 4.2]], "ours": [[1.0, 2.0], [2.0, 9.0]]}
    value, each = bench_report.ratio(item, "transformers")
    assert value == pytest.approx(4.1 / 2.0)
    assert each == pytest.approx([5.0 / 1.5, 4.1 / 5.5])
    assert bench_report.ratio(item, "TRL") is None


@pytest.mark.parametrize(
    ("theirs", "met", "ahead"), [(4.5, "yes", True), (4.4, "no, see NOTES.md", True)]
)
def test_a_goal_is_met_from_its_ratio_on(theirs, met, ahead):
    item = {"transformers": [[theirs]], "ours": [[1.0]]}
    row = goal_rows({"short": of_items(generate_b8=item)})[0]
    assert row[0] == "generate, 8 rows (`generate_b8`)" and row[1] == "transformers"
    assert row[4] == f"**{theirs:.2f}**" and row[6:8] == ["4.5", met]
    assert row[8] == ("3.8 (ahead)" if ahead else "3.8 (behind)")


def test_behind_the_probe_is_said():
    item = {"transformers": [[3.7]], "ours": [[1.0]]}
    assert goal_rows({"short": of_items(generate_b8=item)})[0][8] == "3.8 (behind)"


def test_every_goal_has_a_line_even_unmeasured():
    rows = goal_rows({})
    assert len(rows) == len(bench_report.GOALS) == 9
    assert all(row[2] == "not run" and row[7] == "" for row in rows)


def test_goals_of_one_item_are_told_apart_by_their_peer():
    item = {"transformers": [[4.0]], "TRL": [[3.0]], "ours": [[1.0]]}
    rows = goal_rows({"short": of_items(grpo_step_g8p4=item)})
    found = {row[1]: (row[4], row[7]) for row in rows if row[4]}
    assert found == {"transformers": ("**4.00**", "yes"), "TRL": ("**3.00**", "no, see NOTES.md")}


def test_peers_that_were_not_run_are_named():
    section = of_items(tunix_step={"ours": [[1.5, 1.7]]}) | {"not_run": "tunix"}
    text = bench_report.render({"tunix": section})
    assert "The peers (tunix) were not run" in text and "1600 [1500 to 1700]" in text


def test_an_item_without_samples_is_refused():
    with pytest.raises(ValueError, match="generate_b8 has no samples_s"):
        bench_sections.samples_of({"results": {"generate_b8": {"median_s": 1.0}}}, "torch")
    for bad in ([], [0.0], ["1.0"], [-1.0]):
        with pytest.raises(ValueError, match="torch: generate_b8"):
            bench_sections.samples_of({"results": {"generate_b8": {"samples_s": bad}}}, "torch")
    with pytest.raises(ValueError, match="wrote no results"):
        bench_sections.samples_of({"results": {}}, "torch")
    with pytest.raises(ValueError, match="without samples"):
        bench_report.median([[]])


def test_a_side_that_is_missing_in_a_round_is_refused():
    document = {"results": {"item": {"samples_s": [1.0, 2.0]}}}
    sides = {"ours": [document, document], "TRL": [document]}
    with pytest.raises(ValueError, match="TRL answered in 1 of 2 rounds"):
        bench_sections.pool(sides, 2)
    found = bench_sections.pool({"ours": [document, document]}, 2)
    assert found == {"item": {"ours": [[1.0, 2.0], [1.0, 2.0]]}}


def test_a_named_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="PEERBENCH is .*: there is no side_by_side.py"):
        peer_environments.find_places(no_flags(peerbench=str(tmp_path)), {})
    with pytest.raises(ValueError, match="PEERS is nowhere: there is no such file"):
        peer_environments.find_places(no_flags(), {"PEERS": "nowhere"})


def test_without_the_folder_the_cure_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(peer_environments, "BESIDE", tmp_path / "nothing")
    places = peer_environments.find_places(no_flags(), {})
    assert places == (None, None, None)
    assert peer_environments.complete(places, str(tmp_path / "venv")) == places
    (said,) = peer_environments.cures(places, compared=True, tunix=True)
    assert "PEERBENCH=/path" in said
    assert not peer_environments.cures(places, compared=False, tunix=False)


def test_an_environment_that_is_there_is_not_made_again(tmp_path):
    wanted = peer_environments.ENVIRONMENTS["tunix"]
    folder = tmp_path / "venv-tunix"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    (folder / ".installed").write_text(repr(wanted.steps))
    made = peer_environments.make("tunix", str(tmp_path / "venv"))
    assert made == str(folder / "bin" / "python")


def test_an_unknown_section_is_refused(capsys):
    assert bench.names_of("sweeps,tunix") == ["tunix", *bench.SWEEPS]
    assert bench.main(["--only", "shrot", "--results", os.devnull]) == 2
    assert "--only shrot: choose of peers, sweeps" in capsys.readouterr().err


# What stands in for the peers' script: as it does, it writes what each side answered.
SIDE_BY_SIDE = """
import json, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert flags["--threads"] == "1" and flags["--clock"] == "cpu", flags
assert "peer_items.py" in flags["--jax-cmd"] and "{out}" in flags["--jax-cmd"], flags
one = {"results": {"grpo_step_g8p4": {"median_s": 1.0, "samples_s": [1.0, 3.0]}}}
runs = {"torch": [one] * SIDES, "jax": [one] * SIDES}
with open(flags["--out"], "w") as file:
    json.dump({"versions": {"torch": {"torch": "2"}, "jax": {}}, "runs": runs}, file)
"""


def fake_places(folder, script):
    folder.mkdir()
    (folder / "side_by_side.py").write_text(script)
    return peer_environments.Places(folder, sys.executable, None)


def test_what_the_peers_script_writes_is_read(tmp_path):
    places = fake_places(tmp_path / "peers", SIDE_BY_SIDE.replace("SIDES", "1"))
    found = bench_sections.compare("unshared", places, True, tmp_path)
    sides = {"transformers": [[1.0, 3.0]], "ours": [[1.0, 3.0]]}
    assert found["items"] == {"grpo_step_g8p4": sides}
    assert "--share 0" in found["command"] and str(tmp_path) not in found["command"]
    assert found["versions"]["transformers"] == {"torch": "2"}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (SIDE_BY_SIDE.replace("SIDES", "0"), "transformers answered in 0 of 1 rounds"),
        ("raise SystemExit(3)", "ended with status 3"),
    ],
)
def test_a_peer_that_fails_is_refused(tmp_path, script, said):
    places = fake_places(tmp_path / "peers", script)
    with pytest.raises(ValueError, match=said):
        bench_sections.compare("unshared", places, True, tmp_path)


LEARNER = """
class GRPOLearner:
    def __init__(self, rl_cluster, reward_fns, algo_config):
        self.reward = reward_fns
    def train(self, steps):
        return [self.reward(["p"] * 2, ["1 2", "3"], x=1) for _ in range(steps)]
"""
SCRIPT = """
from tunix.rl.grpo import grpo_learner as gl
learner = gl.GRPOLearner(rl_cluster=0, reward_fns=lambda p, c, **kw: [1.0] * len(c), algo_config=0)
assert learner.train(STEPS) == [[1.0, 1.0]] * STEPS
"""


@pytest.mark.parametrize(("steps", "status"), [(4, 0), (2, 1)])
def test_tunix_is_timed_from_reward_to_reward(tmp_path, steps, status):
    package = tmp_path / "tunix" / "rl" / "grpo"
    package.mkdir(parents=True)
    (package / "grpo_learner.py").write_text(LEARNER)
    (tmp_path / "google_tunix-9.dist-info").mkdir()
    (tmp_path / "google_tunix-9.dist-info" / "METADATA").write_text("Version: 9\n")
    (tmp_path / "script.py").write_text(SCRIPT.replace("STEPS", str(steps)))
    out = tmp_path / "out.json"
    words = ["--script", str(tmp_path / "script.py"), "--clock", "wall", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "tunix_peer.py"), *words],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    if status:
        assert "3 are needed" in done.stderr
        return
    found = json.loads(out.read_text())
    assert len(found["results"]["tunix_step"]["samples_s"]) == 2
    assert found["rows"] == 2 and found["mean_length"] == 1.5


def point(at, **more):
    program = {"compile_s": 2.0, "argument_bytes": 10**6, "output_bytes": 0, "temp_bytes": 10**6}
    names = ("encode_images", *bench_report.PROGRAMS)
    programs = dict.fromkeys(names, program | {"collective_bytes": {"x": 10**6}})
    step = {
        "samples_s": [0.2, 0.4],
        "phases_s": {"rollout": 0.1, "reward": 0.0, "reference": 0.05, "update": 0.15},
    }
    timed = {"generate_s": [0.5, 0.5], "new_tokens": 100, "step": step}
    return {"at": at, "programs": programs} | timed | more


def test_sweeps_are_rendered_and_drawn(tmp_path):
    results = {"group": PROVENANCE | {"points": [point(1), point(8)]}}
    results["depth"] = PROVENANCE | {"points": [point(2), point(64)]}
    places = [point("none x1"), point("fsdp x2"), point("data x8"), point("tensor x4")]
    results["devices"] = PROVENANCE | {"points": places}
    bench_report.write(results, tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| 8 | 500 | 200 | 300 [200 to 400] | 100 | 50.0 | 150 | 8 | 2 | 2 | 2 |" in text
    assert "| fsdp = 2 | 1.0 | 1.0 | 1.0 | 1.0 | x 1.0 | 2 |" in text
    pictures = re.findall(r"\]\((\w+\.png)\)", text)
    assert len(pictures) == 3 and all((tmp_path / one).is_file() for one in pictures)


SWEEPS = """
import sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if flags["--sweep"] == "group":
    raise SystemExit(1)
open(flags["--out"], "w").write('{"points": [{"at": 1}]}')
"""


def test_a_sweep_that_fails_leaves_the_others(tmp_path, monkeypatch):
    (tmp_path / "sweeps.py").write_text(SWEEPS)
    monkeypatch.setattr(bench_sections, "FOLDER", tmp_path)
    found = dict(bench_sections.sweep(("image", "group", "batch"), False, tmp_path))
    assert found["group"] is None and found["image"]["points"] == [{"at": 1}]
    assert found["batch"]["command"] == "python benchmarks/sweeps.py --sweep batch"


def test_the_sizes_of_every_point_are_flags_that_are_known():
    for name, (few, more) in sweeps.POINTS.items():
        for at in few + more:
            flags = sweeps.flags_of(name, at)
            assert all(word.startswith("--") for word in flags[::2]) and len(flags) % 2 == 0
    assert sweeps.flags_of("prompt", 64)[2:4] == ["--text-tokens", "58"]
    assert set(sweeps.POINTS) == set(bench.SWEEPS)


BEFOREHAND = """
import bench_report, one_step, peer_items
sizes = "--hidden 32 --heads 4 --kv-heads 2 --inter 32 --vocab 64 --layers 1 --vdepth 1"
sizes += " --vhidden 16 --vheads 2 --vinter 16 --fullatt 0 --image-size 56 --text-tokens 10"
given = peer_items.parse([*sizes.split(), "--new-tokens", "4"])
side = peer_items.Side(given, 1, 2)
tasks = one_step.OneStep(side).tasks()
assert set(bench_report.PROGRAMS) < set(tasks), tasks
program, args = tasks["encode_images"]
assert program is side.made.encode
assert program.key(args) == program.key((side.params, side.inputs()))
"""


def test_what_is_compiled_beforehand_is_what_the_step_runs():
    # In a process of its own: the stand-ins for a tokenizer and a loader are not of their types,
    # which are checked in this one.
    path = os.pathsep.join([str(BENCHMARKS), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", BEFOREHAND],
        env={**os.environ, "PYTHONPATH": path, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_what_is_kept_is_read_back_as_it_was():
    results = {"short": of_items(a={"ours": [[1.0]]}), "group": PROVENANCE | {"points": [point(1)]}}
    assert json.loads(bench_report.dump(results)) == results


def test_the_report_is_what_the_kept_results_give():
    results = json.loads((BENCHMARKS / "results.json").read_text())
    text = bench_report.render(results)
    assert (BENCHMARKS / "RESULTS.md").read_text() == text, "python benchmarks/bench.py --render"
    pictures = re.findall(r"\]\((\w+\.png)\)", text)
    assert all((BENCHMARKS / one).is_file() for one in pictures)
