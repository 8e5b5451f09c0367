# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One training job in many layouts: the same numbers, whatever the devices and processes are.

`layout_probe.py` is what runs; here its results are compared with those of one device.
"""

import itertools
import subprocess
import sys

import layout_probe
import numpy as np
import pytest
import small_runs

from medloc_jax import sharding
from medloc_jax.data import pipeline

# On a busy machine four processes take minutes to compile.
pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(900)]

# One start of processes: its layouts, one after the other. The whole matrix takes many minutes.
STARTS = {
    "1x8": ("one", "fsdp4-tensor2", "sabotaged"),
    "2x4": ("2x4",),
    "1x8, whole": tuple(
        name + layout_probe.WHOLE
        for name in ("one", "fsdp8", "fsdp4-tensor2", "data2-fsdp2-tensor2")
    ),
    "2x4, whole": tuple(name + layout_probe.WHOLE for name in ("2x4", "2x4-data2-fsdp2-tensor2")),
    "4x2, whole": tuple(name + layout_probe.WHOLE for name in ("4x2", "4x2-tensor4")),
}


def _parameters(skip):
    return [
        pytest.param(name, marks=[pytest.mark.slow] if "whole" in start else [], id=name)
        for start, names in STARTS.items()
        for name in names
        if name.removesuffix(layout_probe.WHOLE) not in skip
    ]


class _Layouts:
    """What each layout gave; the processes are started when first asked for."""

    def __init__(self, folder):
        self.folder, self._started = folder, set()

    def _start(self, start):
        names = STARTS[start]
        layout = layout_probe.layout_of(names[0])
        environment = small_runs.environment(layout.devices)
        launcher = ["bash", "launch/local.sh", str(layout.processes), sys.executable]
        process = subprocess.Popen(
            [*launcher, "tests/layout_probe.py", str(self.folder), *names],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=small_runs.ROOT,
            env=environment,
        )
        code, out, _ = small_runs.finish(process, timeout=800)
        assert code == 0, out
        self._started.add(start)

    def __getitem__(self, name):
        for needed in (layout_probe.reference_of(name), name):
            (start,) = (start for start, names in STARTS.items() if needed in names)
            if start not in self._started:
                self._start(start)
        return _Result(self.folder, name)


class _Result:
    """Of one layout: `update` is part (a), `free` and `replay` are runs of 20 steps."""

    def __init__(self, folder, name):
        self.name = name
        with np.load(folder / f"{name}.npz") as arrays:
            self.update = dict(arrays)
        self.tokens = self.update.pop("free/tokens")
        self.free, self.replay = (_Run(folder / f"{name}-{kind}") for kind in ("free", "replay"))


class _Run:
    def __init__(self, workdir):
        self.lines = small_runs.lines(workdir / "metrics.jsonl")
        self.rollouts = small_runs.lines(workdir / "rollouts.jsonl")

    def __getitem__(self, metric):
        return np.array([line[metric] for line in self.lines if metric in line])


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    preset = small_runs.write_preset(folder / "preset")
    small_runs.write_manifest(folder / "pictures", layout_probe.PICTURES)
    settings = layout_probe.settings(folder, "one") | layout_probe.WARM_START
    argv = small_runs.arguments("train", folder / "sft", preset, **settings)
    code, out, error = small_runs.finish(small_runs.start(argv))
    assert code == 0, out + error
    return _Layouts(folder)


def _named(result, kind):
    return {name: value for name, value in result.update.items() if f"/{kind}" in name}


def _assert_same_sampler(got, want):
    for kind, tolerance in (("tokens", 0), ("logprobs", 1e-5)):
        for name, value in _named(want, kind).items():
            np.testing.assert_allclose(got.update[name], value, rtol=0, atol=tolerance)


def _assert_same_losses(got, want):
    for name, value in _named(want, "grpo/loss").items():
        np.testing.assert_allclose(got.update[name], value, rtol=0, atol=1e-6, err_msg=name)


def _assert_same_gradients(got, want):
    wants = _named(want, "gradient")
    assert _named(got, "gradient").keys() == wants.keys()
    for name, value in wants.items():
        assert np.linalg.norm(got.update[name] - value) < 1e-5 * np.linalg.norm(value), name


def _assert_same_replay(got, want):
    steps = len(got.replay["grpo/loss"])
    for metric in ("grpo/loss", "grpo/kl"):
        got_values, want_values = got.replay[metric], want.replay[metric][:steps]
        np.testing.assert_allclose(got_values, want_values, rtol=0, atol=1e-4)
    # Answers, boxes, IoUs and rewards of all rows, in the order of the batch.
    assert got.replay.rollouts == want.replay.rollouts[:steps]


def _assert_same_run(got, want):
    np.testing.assert_array_equal(got.tokens[:5], want.tokens[:5])
    assert np.mean(got.tokens[5:] != want.tokens[5:]) < 0.02
    for metric, tolerance in (("curriculum/threshold", 0), ("eval/val/miou", 0.01)):
        np.testing.assert_allclose(got.free[metric], want.free[metric], rtol=0, atol=tolerance)
    ious = (np.mean(run.free["iou/raw_mean"]) for run in (got, want))
    assert abs(next(ious) - next(ious)) < 0.01


@pytest.mark.parametrize(
    ("name", "buckets"), [("one", 1), pytest.param("one+vision", 2, marks=pytest.mark.slow)]
)
def test_there_is_something_to_differ_in(layouts, name, buckets):
    one = layouts[name]
    assert len(_named(one, "tokens")) == buckets
    for name, ious in _named(one, "ious").items():
        assert len(np.unique(ious)) > 5, name
    assert all(abs(loss) > 1e-2 for loss in _named(one, "grpo/loss").values())
    assert all(np.linalg.norm(x) > 0 for x in _named(one, "gradient").values())
    thresholds = one.free["curriculum/threshold"]
    assert thresholds[0] < 0.5 < thresholds[-1] and len(np.unique(thresholds)) > 5
    assert np.max(np.abs(one.free["grpo/loss"])) > 1e-3 and np.max(one.free["grpo/kl"]) > 1e-2
    assert np.mean(one.free["group/zero_advantage_rate"]) < 0.8
    assert 0.2 < one.free["eval/val/miou"][-1] < 1


@pytest.mark.parametrize("name", _parameters(skip=("one", "sabotaged")))
def test_a_layout_does_what_one_device_does(layouts, name):
    got, want = layouts[name], layouts[layout_probe.reference_of(name)]
    assert len(got.tokens) == len(want.tokens) == layout_probe.STEPS
    _assert_same_sampler(got, want)
    _assert_same_losses(got, want)
    _assert_same_gradients(got, want)
    _assert_same_replay(got, want)
    _assert_same_run(got, want)


@pytest.mark.parametrize("name", _parameters(skip=("sabotaged",)))
def test_the_same_mesh_gives_the_same_bits(layouts, name):
    """A replay in the layout that drew the completions is the same run a second time."""
    got, want = layouts[name], layouts[layout_probe.reference_of(name)]
    same = np.all(got.tokens == want.tokens, axis=(1, 2, 3))  # a replay takes those of "one"
    steps = len(same) if same.all() else int(np.argmin(same))
    assert steps >= 5
    assert got.replay.lines[:steps] == got.free.lines[:steps]
    assert got.replay.rollouts[:steps] == got.free.rollouts[:steps]


@pytest.mark.parametrize(
    "comparison",
    [
        _assert_same_sampler,
        _assert_same_losses,
        _assert_same_gradients,
        _assert_same_replay,
        _assert_same_run,
    ],
)
def test_each_comparison_sees_a_mistake(layouts, comparison):
    """Keys by the row of a shard, a shard that is not counted, rows in another order."""
    with pytest.raises(AssertionError):
        comparison(layouts["sabotaged"], layouts["one"])


# ---- which rows a process reads ----


class _Device:
    """A device of another process, as far as a mesh looks at it."""

    platform, device_kind = "cpu", "pretended"

    def __init__(self, index, process):
        self.id, self.process_index = index, process


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    sizes = [(32, 32), (48, 32), (96, 80)] * 4
    manifest = small_runs.write_manifest(folder / "pictures", sizes)
    return small_runs.open_job(folder, data__manifest=manifest, data__max_buckets=2)


def _ids(job, kind, shares):
    """What each process reads in two epochs: a list of ids a batch."""
    given = {"batch_size": 8, "buckets": job.buckets, "num_threads": 0}
    steps = {"seed": 3, "start_step": 0, "num_steps": 2 * len(job.examples["train"])}
    read = []
    for index, count in shares:
        where = given | {"process_index": index, "process_count": count}
        if kind == "train":
            batches = pipeline.train_batches(job.examples["train"], job.loader, **where, **steps)
        else:
            batches = pipeline.eval_batches(job.examples["train"], job.loader, **where)
        some = itertools.islice(batches, len(job.examples["train"]) // 4)
        read.append(
            [[batch.examples[row].id for row in np.flatnonzero(batch.row_valid)] for batch in some]
        )
    return read


def _mesh(processes, local, tensor):
    devices = [_Device(index, index // local) for index in range(processes * local)]
    return sharding.make_mesh(data=1, fsdp=-1, tensor=tensor, devices=devices)


PROCESSES = [(1, 8, 1), (2, 4, 1), (2, 4, 2), (4, 2, 1), (4, 2, 4), (4, 2, 8), (2, 1, 2)]


@pytest.mark.parametrize("kind", ["train", "eval"])
@pytest.mark.parametrize(("processes", "local", "tensor"), PROCESSES)
def test_no_row_is_lost_or_read_twice(data, kind, processes, local, tensor):
    (whole,) = _ids(data, kind, [(0, 1)])
    mesh = _mesh(processes, local, tensor)
    shares = [sharding.row_share(mesh, process) for process in range(processes)]
    read = _ids(data, kind, [(share.index, share.count) for share in shares])
    first = [rows for rows, share in zip(read, shares, strict=True) if share.is_first]
    assert len(first) == shares[0].count
    assert [sum(parts, []) for parts in zip(*first, strict=True)] == whole
    # Those that hold the same part of a batch read the same.
    for rows, share in zip(read, shares, strict=True):
        assert rows == first[share.index]
    ids, count = sum(whole, []), len(data.examples["train"])
    epochs = [ids[i : i + count] for i in range(0, len(ids) - count + 1, count)]
    assert epochs and all(len({*epoch}) == count for epoch in epochs)


def test_the_rows_are_wrong_where_each_process_takes_a_part_of_its_own(data):
    """What a tensor axis over processes makes of the plain rule."""
    shares = [sharding.row_share(_mesh(4, 2, 4), process) for process in range(4)]
    right = _ids(data, "train", [(share.index, share.count) for share in shares])
    assert _ids(data, "train", [(process, 4) for process in range(4)]) != right
