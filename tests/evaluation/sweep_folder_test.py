# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from medloc_jax.cli import sweep, sweep_launch, sweep_runs
from medloc_jax.evaluation import sweep_folder


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


def test_the_words_are_those_that_sweeps_write():
    assert sweep_folder.FILE == sweep.RECORD
    assert sweep_launch.FINISHED == "finished"
    assert {sweep_runs.WARM_START, sweep_runs.TUNING}.isdisjoint({"run"})
    assert {"name", "kind", "state", "why"} <= set(sweep_launch.Entry.__dataclass_fields__)
