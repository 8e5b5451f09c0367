# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Two processes of one device each do what one process does with two devices."""

import numpy as np
import pytest
import small_runs

pytestmark = pytest.mark.multiprocess

STEPS = 5
SETTINGS = {"num_steps": STEPS, "model__remat": "none"}  # compiles faster


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("multiprocess")
    preset = small_runs.write_preset(folder / "preset")
    outputs = {}
    for name, devices, launcher in [
        ("one", 2, ()),
        ("two", 1, ("bash", "launch/local.sh", "2")),
    ]:
        argv = small_runs.arguments("train", folder / name, preset, **SETTINGS)
        process = small_runs.start(argv, num_devices=devices, launcher=launcher)
        code, out, error = small_runs.finish(process)
        assert code == 0, out + error
        outputs[name] = out
    return folder, outputs


def test_their_numbers_agree(runs):
    folder, _ = runs
    one, two = (small_runs.lines(folder / name / "metrics.jsonl") for name in ("one", "two"))
    assert [line["step"] for line in two] == list(range(STEPS + 1))
    assert len({line["curriculum/threshold"] for line in two[1:]}) > 1
    for got, want in zip(two, one, strict=True):
        assert got.keys() == want.keys()
        for name, value in want.items():
            # The sum over two devices may be rounded otherwise, and Adam makes it more.
            assert got[name] == pytest.approx(value, rel=1e-3, abs=1e-5), (want["step"], name)


def test_their_rollouts_are_the_same_line_by_line(runs):
    """The prompts and answers of both processes, in the order of the batch."""
    folder, _ = runs
    one, two = (small_runs.lines(folder / name / "rollouts.jsonl") for name in ("one", "two"))
    assert [line["step"] for line in two] == list(range(1, STEPS + 1))
    assert all(len(line["ids"]) == 8 for line in two)
    assert two == one


def test_no_example_is_lost_or_seen_twice(runs):
    folder, _ = runs
    lines = small_runs.lines(folder / "two" / "rollouts.jsonl")
    seen = sum((line["ids"] for line in lines), [])
    epoch = len({*seen})
    assert epoch < len(seen)
    assert all(len({*seen[i : i + epoch]}) == epoch for i in range(0, len(seen) - epoch, epoch))


def test_the_first_process_alone_writes_and_talks(runs):
    folder, outputs = runs
    said = [line for line in outputs["two"].splitlines() if "Gloo" not in line]
    assert any(f"step {STEPS}/{STEPS}" in line for line in said)
    assert all(line.startswith("[0]") for line in said), said
    assert {path.name for path in (folder / "two").iterdir()} == {
        path.name for path in (folder / "one").iterdir()
    }


def test_their_checkpoint_continues_on_one_process(runs, tmp_path):
    folder, _ = runs
    argv = small_runs.arguments("train", folder / "two", folder / "preset", **SETTINGS)
    argv = [argument.replace(f"num_steps={STEPS}", f"num_steps={STEPS + 1}") for argument in argv]
    code, out, error = small_runs.finish(small_runs.start(argv, num_devices=2))
    assert code == 0, out + error
    assert f"from step {STEPS}" in out
    lines = small_runs.lines(folder / "two" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(STEPS + 2))
    assert np.isfinite(lines[-1]["grpo/loss"])
