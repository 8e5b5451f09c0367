# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A run whose workdir and data lie on a server that speaks s3://: killed, resumed, read."""

import json
import time

import pytest

from medloc_jax import checkpoint_write, storage
from tests import object_stores, small_runs


@pytest.fixture(scope="module")
def bucket():
    with object_stores.s3():
        yield storage.path(f"s3://{object_stores.BUCKET}")


@pytest.mark.resume
@pytest.mark.multiprocess
def test_a_run_in_an_object_store_is_killed_and_goes_on(bucket, tmp_path):
    preset = small_runs.write_preset(tmp_path / "preset")
    small_runs.write_manifest(tmp_path / "data", [(64, 48)] * 20)
    for file in (tmp_path / "data").iterdir():
        (bucket / "data" / file.name).write_bytes(file.read_bytes())
    changes = small_runs.SFT | {
        "num_steps": 6,
        "checkpoint__every": 1,
        "checkpoint__asynchronous": True,
        "eval__at_start": False,
        "eval__every": 0,
        "log__tensorboard": True,
        "data__manifest": bucket / "data" / "manifest.jsonl",
    }
    workdir = bucket / "run"
    command = small_runs.arguments("train", workdir, preset, **changes)

    first = small_runs.start(command)
    saved = workdir / "checkpoints" / "2" / checkpoint_write.COMMITTED
    while first.poll() is None and not saved.exists():
        time.sleep(0.02)
    first.kill()
    _, out, error = small_runs.finish(first)
    assert saved.exists(), out + error

    code, out, error = small_runs.finish(small_runs.start(command))
    assert code == 0, out + error
    assert f"continuing {workdir} from step" in out
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert (workdir / "config.json").exists() and list((workdir / "tensorboard").iterdir())
    assert (workdir / "eval" / "val-6" / "metrics.json").exists()

    # The final evaluation again, by another process that finds everything in the store.
    evaluate = ["evaluate", f"--workdir={workdir}", "--split=val", f"--out={tmp_path / 'again'}"]
    code, out, error = small_runs.finish(small_runs.start(evaluate))
    assert code == 0, out + error
    again = (tmp_path / "again" / "predictions.jsonl").read_text().splitlines()
    first_four = (workdir / "eval" / "val-6" / "predictions.jsonl").read_text().splitlines()
    assert again[: len(first_four)] == first_four  # training looks at eval.num_examples

    # A report needs a folder of this machine to write into, and copies what it reads.
    code, _, error = small_runs.finish(small_runs.start(["report", str(workdir)]))
    assert code == 2 and "give --out=DIR" in error
