# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The replica's verdicts and pages, from made-up runs; nothing is trained."""

import csv
import importlib.util
import io
import itertools
import json
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "replica"))

import claims  # noqa: E402
import claims_page  # noqa: E402
import controls  # noqa: E402
import readings  # noqa: E402
import verdicts  # noqa: E402
import wall_clock  # noqa: E402
import write  # noqa: E402

from medloc_jax.evaluation import document, report, significance  # noqa: E402
from medloc_jax.evaluation.document import Heading  # noqa: E402
from tests.evaluation import made_runs  # noqa: E402

MAP = (readings.accuracy("map"),)
SKILLS = {"medloc": 0.95, "raw_iou": 0.6, "fixed": 0.3}
SCHEDULES = {"medloc": "medloc", "raw_iou": "raw_iou", "fixed": "fixed"}


def make_sweep(folder, skills=SKILLS, seeds=(42, 43, 44), file=claims_page.REPLICA):
    """A sweep's folder with runs of these skills, and a failed one."""
    entries = made_runs.draw_pictures(folder / "pictures", 8)
    for arm, skill in skills.items():
        for seed in seeds:
            made_runs.write_run(
                folder / arm / str(seed),
                folder / "pictures",
                entries,
                label=arm,
                skill=skill,
                curriculum={"schedule": SCHEDULES.get(arm, "medloc")},
                seed=seed,
                num_steps=24,
                examples=30,
            )
    names = [f"{arm}/{seed}" for arm in skills for seed in seeds]
    noted = [_entry(name, "finished") for name in names] + [_entry("sft/42", "failed")]
    account = {
        "command": ["medloc", "sweep", f"--config={file}:synthetic", f"--workdir={folder}"],
        "commit": "ab" * 20,
        "base": "configs/demo.py",
        "note": "a note",
        "seeds": list(seeds),
        "runs": noted,
    }
    (folder / "sweep.json").write_text(json.dumps(account))
    return folder


def _entry(name, state):
    arm, seed = name.split("/")
    return {
        "name": name,
        "arm": arm,
        "kind": "run",
        "seed": int(seed),
        "state": state,
        "why": "" if state == "finished" else "out of memory",
        "seconds": 80.0,
        "commit": "ab" * 20,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_sweep(tmp_path_factory.mktemp("made") / "sweep")


@pytest.fixture(scope="module")
def sweep(folder):
    (only,) = verdicts.read(folder)
    return only


def of_seeds(sweep, seeds):
    """The same sweep with fewer seeds."""
    arms = {
        name: _replace(one, finals=tuple(f for f in one.finals if f.seed in seeds))
        for name, one in sweep.arms.items()
    }
    return _replace(sweep, arms=arms)


def _replace(one, **changes):
    return type(one)(**{**vars(one), **changes})


# ---- rules ----


def test_a_clear_difference_holds_and_the_other_way_round_it_does_not(sweep):
    assert verdicts.Better("medloc", ("fixed",), MAP).judge(sweep).verdict == verdicts.HOLDS
    swapped = verdicts.Better("fixed", ("medloc",), MAP).judge(sweep)
    assert swapped.verdict == verdicts.FAILS and "MedLoc" in swapped.why


def test_runs_that_were_filed_under_the_wrong_arm_turn_the_verdict(sweep):
    rule = verdicts.Better("medloc", ("fixed",), MAP)
    arms = {"medloc": sweep.arms["fixed"], "fixed": sweep.arms["medloc"]}
    assert rule.judge(_replace(sweep, arms=arms)).verdict == verdicts.FAILS


@pytest.mark.parametrize("seeds", [(42,), (42, 43)])
def test_few_seeds_decide_nothing_whatever_they_show(sweep, seeds):
    for rule in (
        verdicts.Better("medloc", ("fixed",), MAP),
        verdicts.Better("fixed", ("medloc",), MAP),
        verdicts.Close("medloc", ("fixed",), MAP),
    ):
        finding = rule.judge(of_seeds(sweep, seeds))
        assert finding.verdict == verdicts.OPEN and "too few seeds" in finding.why


def test_one_rival_that_is_better_is_enough_against(sweep):
    finding = verdicts.Better("raw_iou", ("fixed", "medloc"), MAP).judge(sweep)
    assert finding.verdict == verdicts.FAILS
    assert [part.verdict for part in finding.parts] == [verdicts.HOLDS, verdicts.FAILS]


def test_a_claim_does_not_hold_while_a_rival_has_no_run(sweep):
    finding = verdicts.Better("medloc", ("fixed", "boxmed"), MAP).judge(sweep)
    assert finding.verdict == verdicts.OPEN and "BoxMed" in finding.why
    for rule in (
        verdicts.Better("medloc", ("boxmed",), MAP),
        verdicts.Better("boxmed", ("fixed",), MAP),
        verdicts.Close("medloc", ("boxmed",), MAP),
        verdicts.Imprecise("boxmed", 0.1),
        verdicts.Cheap("boxmed", 0.1),
    ):
        assert rule.judge(sweep).verdict == verdicts.NO_RUN


def test_an_effect_smaller_than_what_counts_does_not_hold(sweep):
    reading = readings.accuracy("map", smallest=0.99)
    finding = verdicts.Better("medloc", ("fixed",), (reading,)).judge(sweep)
    assert finding.verdict == verdicts.FAILS


def test_arms_that_are_the_same_runs_differ_by_nothing(sweep):
    twin = _replace(sweep, arms={"medloc": sweep.arms["medloc"], "twin": sweep.arms["medloc"]})
    assert verdicts.Better("medloc", ("twin",), MAP).judge(twin).verdict == verdicts.FAILS
    assert verdicts.Close("medloc", ("twin",), MAP).judge(twin).verdict == verdicts.HOLDS


def test_what_lies_far_apart_is_not_close(sweep):
    assert verdicts.Close("medloc", ("fixed",), MAP).judge(sweep).verdict == verdicts.FAILS


def test_a_rival_that_takes_no_step_is_the_same_under_every_seed(sweep):
    fixed = sweep.arms["fixed"].finals[0]
    still = _replace(fixed.run, config={**fixed.run.config, "num_steps": 0})
    for run, verdict in ((fixed.run, verdicts.OPEN), (still, verdicts.HOLDS)):
        finals = (_replace(fixed, run=run),)
        arms = {**sweep.arms, "zero_shot": _replace(sweep.arms["fixed"], finals=finals)}
        finding = verdicts.Better("medloc", ("zero_shot",), MAP).judge(_replace(sweep, arms=arms))
        assert finding.verdict == verdict


def test_an_unclear_difference_is_not_decided(sweep):
    values = {"medloc": (0.5, 0.6, 0.4), "fixed": (0.5, 0.4, 0.5)}
    told = readings.Reading(
        "made",
        0.01,
        lambda one: dict(zip((42, 43, 44), values[one.method], strict=True)),
    )
    finding = verdicts.Better("medloc", ("fixed",), (told,)).judge(sweep)
    assert finding.verdict == verdicts.OPEN and "includes 0" in finding.why


def test_the_interval_over_seeds_is_students():
    test = significance.paired_t_test(*map(_array, ((0.3, 0.5, 0.4), (0.1, 0.2, 0.3))))
    low, high = verdicts.seed_interval(test)
    differences = [0.2, 0.3, 0.1]
    expected = stats.t.interval(0.95, 2, 0.2, stats.sem(differences))
    assert (low, high) == pytest.approx(expected)
    assert verdicts.seed_interval(significance.paired_t_test(_array([1.0]), _array([0.5]))) is None


def _array(values):
    return np.asarray(values, float)


def test_more_parts_ask_for_more_against_a_claim():
    """A single part that fails at 95 % alone does not, as one of twenty."""
    test = significance.paired_t_test(*map(_array, ((0.1, 0.14, 0.12), (0.15, 0.16, 0.16))))
    assert verdicts.seed_interval(test)[1] < 0.01 < verdicts.seed_interval(test, 0.9975)[1]


def test_failures_are_sorted_by_run(sweep):
    finding = verdicts.Imprecise("fixed", 0.1).judge(sweep)
    assert finding.parts or "20 failed answers" in finding.why
    many = verdicts.Imprecise("medloc", 0.1).judge(sweep)  # hardly any failure
    assert many.verdict == verdicts.OPEN


def test_the_cost_is_the_schedules_time_in_a_step(sweep):
    ticks = itertools.count()

    def judged(step_seconds, updates=10):
        finals = []
        for final in sweep.arms["medloc"].finals:
            rows = tuple({**row, "speed/update_seconds": step_seconds} for row in final.run.rows)
            rl = {"group_size": 8, "prompts_per_step": 4}
            config = {**final.run.config, "rl": rl}
            finals.append(_replace(final, run=_replace(final.run, rows=rows, config=config)))
        one = _replace(sweep.arms["medloc"], finals=tuple(finals))
        # A clock that goes on by a second a look: 0.1 s an update.
        rule = verdicts.Cheap("medloc", 0.01, updates, clock=lambda: float(next(ticks)))
        return rule.judge(_replace(sweep, arms={"medloc": one}))

    assert judged(20.0).verdict == verdicts.HOLDS
    assert judged(1.0).verdict == verdicts.FAILS
    assert verdicts.Cheap("medloc", 0.01).judge(sweep).verdict == verdicts.OPEN  # no seconds logged


def test_readings_are_larger_where_a_run_is_better(sweep):
    raw, ours = (sweep.arms[name].finals[0].run for name in ("raw_iou", "medloc"))
    assert readings.with_signal(raw) == 1.0 and 0.3 < readings.with_signal(ours) < 0.7
    assert readings.early(ours) > readings.early(sweep.arms["fixed"].finals[0].run)
    assert readings.no_drop(ours) <= 0 and readings.steady("no/such")(ours) is None
    ratio = readings.by_run("x", 0.1, readings.early, ratio=True)
    assert ratio.told(math.log(1.1)) == "+10.0 %" and MAP[0].told(-0.012) == "−1.2"


def test_methods_are_read_after_the_same_seconds(sweep):
    def at_cost(name, seconds):
        finals = []
        for final in sweep.arms[name].finals:
            rows = [{"step": step, "speed/update_seconds": seconds} for step in range(1, 25)]
            rows += [{"step": 0, "eval/val/map": 0.1}, {"step": 24, "eval/val/map": 0.5}]
            run = _replace(final.run, rows=tuple(sorted(rows, key=lambda row: row["step"])))
            finals.append(_replace(final, run=_replace(run, evaluations=())))
        return _replace(sweep.arms[name], finals=tuple(finals))

    made = wall_clock.table([at_cost("medloc", 2.0), at_cost("raw_iou", 3.0)])
    medloc, raw = made.rows
    assert medloc[1:3] == ["2000", "48"] and raw[1:3] == ["3000", "72"]
    # 48 s: all of the first's 24 steps, 16 of the other's, two thirds of the way from 10 to 50.
    assert medloc[-1].startswith("50.0") and raw[-1].startswith("36.7")
    assert not wall_clock.table(list(sweep.arms.values())).rows  # no seconds logged


def test_controls_have_the_sign_of_their_name(sweep, monkeypatch):
    monkeypatch.setattr(controls, "PAIRS", (("medloc", "fixed"), ("fixed", "medloc")))
    rows = [row for row in controls.table(sweep).rows if row[1] == "mAP"]
    assert [row[2][0] for row in rows] == ["+", "\N{MINUS SIGN}"]
    assert rows[0][0] == "MedLoc (piecewise) \N{MINUS SIGN} Fixed 0.5"
    monkeypatch.setattr(controls, "PAIRS", (("rivals", "fixed"),))
    assert not controls.table(sweep).rows


# ---- the claims ----


def _arms(file):
    spec = importlib.util.spec_from_file_location("sweep", ROOT / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {one.name: one for one in module.get_config().arms}


def test_every_claims_arms_are_in_its_sweep():
    there = {file: _arms(file) for file in claims_page.WORKDIRS}
    for claim in claims.CLAIMS:
        assert bool(claim.why_not) != bool(claim.cases) and bool(claim.sweep) == bool(claim.cases)
        for rule in claim.cases.values():
            assert set(rule.arms) <= set(there[claim.sweep]), claim.name
    names = [claim.name for claim in claims.CLAIMS]
    assert len(set(names)) == len(names) >= 14


def test_the_ablations_are_arms_of_the_papers_tables():
    ablations = _arms(claims_page.ABLATIONS)
    for table, method in {"table2": "all_step", "table3": "piecewise", "figure7": "window_030",
                          "table7": "medloc_g8"}.items():  # fmt: skip
        arms = _arms(f"configs/sweeps/{table}.py")
        assert method in arms and method not in ablations
    assert (
        ablations["window_060"].changes == _arms("configs/sweeps/figure7.py")["window_060"].changes
    )
    assert ablations["default"].changes == () and ablations["default"].method == "medloc"


def test_without_runs_no_claim_has_a_verdict():
    for claim in claims.CLAIMS:
        ((_, finding, _),) = claims_page.findings(claim, [])
        expected = verdicts.UNTESTABLE if claim.why_not else verdicts.NO_RUN
        assert finding.verdict == expected


def test_a_sweep_speaks_for_the_claims_that_name_it(sweep, tmp_path):
    text = document.to_markdown(claims_page.blocks(claims.CLAIMS, [sweep]))
    assert "abababa" in text and str(sweep.folder) in text
    assert (
        "| 7 | Without any one of reward, margin and stability it gets worse. | no run yet |"
        in text
    )
    denser = next(one for one in claims.CLAIMS if one.name == "denser reward")
    found = {label.split("against ")[1]: one.verdict
             for label, one, _ in claims_page.findings(denser, [sweep])}  # fmt: skip
    assert found["raw IoU"] == verdicts.FAILS and found["fixed 0.8"] == verdicts.NO_RUN


def test_claims_md_is_what_the_claims_say():
    text = claims.PAGE.read_text()
    assert text.startswith(claims_page.HEAD.split("\n")[0])
    for claim in claims.CLAIMS:
        assert claim.text in text


def test_writing_between_marks_twice_changes_nothing(tmp_path):
    page = tmp_path / "page.md"
    marks = claims_page.MARKS
    claims_page.put(page, marks, "one\n", "# Head\n\n")
    page.write_text(page.read_text() + "by hand\n")
    claims_page.put(page, marks, "two\n")
    first = page.read_text()
    claims_page.put(page, marks, "two\n")
    assert page.read_text() == first
    assert first == f"# Head\n\n{marks[0]}two\n{marks[1]}by hand\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match=r"page\.md.*marks"):
        claims_page.put(page, marks, "three")
    assert page.read_text() == "no marks"


def test_a_folder_that_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no sweep\.json"):
        verdicts.read(tmp_path)


def test_an_arm_of_two_configurations_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "sweep")
    config = copy / "fixed" / "44" / "config.json"
    changed = json.loads(config.read_text())
    changed["optim"] = {"learning_rate": 1.0}
    config.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="fixed differ in more than their seed"):
        verdicts.read(copy)


# ---- RESULTS.md ----


def test_results_without_runs_say_so(tmp_path):
    text = document.to_markdown(write.page([], tmp_path))
    assert "No run yet" in text and "replica.py:DATA" in text
    assert "no run yet" in write.readme([], [])


def test_results_hold_every_table_and_the_same_twice(sweep, folder, tmp_path, monkeypatch):
    def no_report(runs, out, options):
        (out).mkdir(exist_ok=True)
        (out / "failures.png").write_bytes(b"a picture")

    monkeypatch.setattr(report, "write_report", no_report)
    chosen = {
        "arm": "fixed",
        "field": "optim.learning_rate",
        "chosen": 6e-4,
        "tries": [{"value": 3e-4, "result": 0.31}, {"value": 6e-4, "result": 0.42}],
    }
    (folder / "tuning" / "fixed").mkdir(parents=True, exist_ok=True)
    (folder / "tuning" / "fixed" / "chosen.json").write_text(json.dumps(chosen))
    blocks = write.page([sweep], tmp_path)
    text = document.to_markdown(blocks)
    titles = [block.text for block in blocks if isinstance(block, Heading)]
    for title in ("Differences and their tests", "Stability", "Steps to a given accuracy",
                  "Failures by kind", "Groups without a signal, and the threshold by seed",
                  "Tuning", "Seconds"):  # fmt: skip
        assert title in titles
    assert "0.0003: 31.0, 0.0006: 42.0" in text and "ab" * 20 in text
    assert "sft/42: failed: out of memory" in text
    assert (tmp_path / f"replica_{sweep.data_set}_failures.png").read_bytes() == b"a picture"
    assert document.to_markdown(write.page([sweep], tmp_path)) == text


def test_every_run_is_a_line_of_the_csv(sweep):
    rows = list(csv.DictReader(io.StringIO(write.runs_csv([sweep]))))
    assert len(rows) == 9 and {row["commit"] for row in rows} == {"ab" * 20}
    for row in rows:
        (final,) = [f for f in sweep.arms[row["arm"]].finals if str(f.seed) == row["seed"]]
        assert float(row["map"]) == final.evaluation.metrics["map"]
        assert Path(row["folder"]) == final.run.folder


def test_the_readme_says_whether_the_papers_order_holds(sweep, monkeypatch):
    text = write.readme([sweep], [])
    assert "is not decided" in text  # baselines have no runs
    assert "| MedLoc (piecewise) | 3 |" in text and "theirs" not in text
    for ours, words in (("medloc", "order holds"), ("fixed", "order does not hold")):
        others = tuple(name for name in SKILLS if name != ours)
        rule = verdicts.Better(ours, others, MAP)
        claim = _replace(claims.CLAIMS[3], cases={"": rule})
        monkeypatch.setattr(write, "CLAIMS", (claim,))
        assert words in write.readme([sweep], [])


def test_what_the_replicas_readme_names_is_there():
    text = (ROOT / "benchmarks" / "replica" / "README.md").read_text()
    named = set(re.findall(r"(?:configs|benchmarks)/[\w/]+\.py", text))
    named |= {f"benchmarks/replica/{name}" for name in re.findall(r"`(\w+\.py)`", text)}
    assert len(named) >= 7 and not [name for name in named if not (ROOT / name).is_file()]
    for file, workdir in claims_page.WORKDIRS.items():
        for data in re.findall(rf"--config={file}:(\w+)", text):
            assert f"--workdir={workdir.replace('DATA', data)}" in text
