# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from medloc_jax.cli import sweep, sweep_launch, sweep_runs
from medloc_jax.evaluation import report, sweep_folder


def _sweep(folder, *runs):
    for name, _, state, _ in runs:
        if state != "waiting":
            (folder / name).mkdir(parents=True)
    entries = [dict(zip(("name", "kind", "state", "why"), run, strict=True)) for run in runs]
    (folder / "sweep.json").write_text(json.dumps({"runs": entries}))
    return folder


def test_a_sweep_stands_for_its_finished_runs(tmp_path):
    folder = _sweep(
        tmp_path / "table1",
        ("warm_start", "warm_start", "finished", ""),
        ("tuning/fixed/0.1", "tuning", "finished", ""),
        ("fixed/42", "run", "finished", ""),
        ("fixed/43", "run", "failed", "exit code 1"),
        ("medloc/42", "run", "finished", ""),
        ("medloc/43", "run", "waiting", ""),
    )
    plain = tmp_path / "plain"
    runs, lacking = sweep_folder.expand([folder, plain, folder / "medloc/42"])
    assert runs == [folder / "fixed/42", folder / "medloc/42", plain]
    assert lacking == ["table1/fixed/43: failed: exit code 1", "table1/medloc/43: waiting"]
    (folder / "fixed/42").rmdir()
    assert sweep_folder.read(folder).lacking[0] == "fixed/42: finished: its folder is gone"


def test_nothing_finished_and_a_broken_account_are_refused(tmp_path):
    folder = _sweep(tmp_path / "s", ("fixed/42", "run", "failed", "no memory"))
    with pytest.raises(ValueError, match="no run of this sweep is finished.*no memory"):
        sweep_folder.expand([folder])
    for text in ("{", "[]", '{"runs": [{"name": "x"}]}'):
        (folder / "sweep.json").write_text(text)
        with pytest.raises(ValueError, match=r"sweep.json: not the account of a sweep"):
            sweep_folder.expand([folder])


def test_a_sweep_says_what_may_differ_and_what_the_reference_is(tmp_path):
    def made(name, state="finished", **account):
        folder = _sweep(tmp_path / name, ("fixed/42", "run", state, ""))
        told = json.loads((folder / "sweep.json").read_text())
        told["runs"][0]["arm"] = "fixed"
        (folder / "sweep.json").write_text(json.dumps(told | account))
        return folder

    here = made("a", allow=["budget"], reference="fixed")
    assert sweep_folder.asked([here, tmp_path / "plain"]) == (("budget",), "fixed")
    assert sweep_folder.asked([here, made("b", reference="medloc")]) == (("budget",), "")
    assert sweep_folder.asked([made("c", "failed", reference="fixed")]) == ((), "")
    assert sweep_folder.asked([made("d")]) == ((), "")  # of an earlier version


def test_a_report_lets_differ_what_the_sweep_lets(tmp_path, make_run):
    runs = [
        make_run("s/fixed", schedule="fixed", seed=1),
        make_run("s/raw", schedule="raw_iou", group_size=4),
    ]
    for run, name in zip(runs, ("fixed", "raw"), strict=True):
        config = json.loads((run / "config.json").read_text()) | {"label": name}
        (run / "config.json").write_text(json.dumps(config))
    entries = [
        {"name": name, "arm": name, "kind": "run", "state": "finished", "why": ""}
        for name in ("fixed", "raw")
    ]
    account = {"runs": entries}
    (tmp_path / "s/sweep.json").write_text(json.dumps(account))
    with pytest.raises(ValueError, match="they differ in budget: .*rl.group_size"):
        report.write_report([tmp_path / "s"])
    account |= {"allow": ["budget"], "reference": "raw"}
    (tmp_path / "s/sweep.json").write_text(json.dumps(account))
    page, *_ = report.write_report([tmp_path / "s"])
    text = page.read_text()
    assert "as --allow or the sweep asks for" in text and "rl.group_size is" in text
    assert "raw \N{MINUS SIGN} Fixed 0.5" in text


def test_the_words_are_those_that_sweeps_write():
    assert sweep_folder.FILE == sweep.RECORD
    assert sweep_launch.FINISHED == "finished"
    assert {sweep_runs.WARM_START, sweep_runs.TUNING}.isdisjoint({"run"})
    assert {"name", "kind", "state", "why"} <= set(sweep_launch.Entry.__dataclass_fields__)
