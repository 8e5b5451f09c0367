# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import collections
import dataclasses
import itertools
import re
import shutil

import numpy as np
import pytest

from medloc_jax.data import pipeline
from medloc_jax.model import geometry


def _train(rows, loader, buckets, *, process=(0, 1), start=0, stop=6, **changes):
    options = {"batch_size": 4, "seed": 11, "num_threads": 0, **changes}
    return list(
        pipeline.train_batches(
            rows,
            loader,
            start_step=start,
            num_steps=stop,
            process_index=process[0],
            process_count=process[1],
            buckets=buckets,
            **options,
        )
    )


def _eval(rows, loader, buckets, *, process=(0, 1), **changes):
    options = {"batch_size": 4, "num_threads": 0, **changes}
    return list(
        pipeline.eval_batches(
            rows,
            loader,
            process_index=process[0],
            process_count=process[1],
            buckets=buckets,
            **options,
        )
    )


def _ids(batches):
    return [example.id for batch in batches for example in batch.examples]


def _assert_equal(parts, whole):
    """The parts' rows, one process after another, are the rows of the whole batch."""
    for name, array in whole.inputs._asdict().items():
        joined = np.concatenate([getattr(part.inputs, name) for part in parts])
        np.testing.assert_array_equal(joined, array, err_msg=name)
    joined = np.concatenate([part.target_boxes_px for part in parts])
    np.testing.assert_array_equal(joined, whole.target_boxes_px)
    assert _ids(parts) == _ids([whole])
    assert [frame for part in parts for frame in part.frames] == whole.frames


def test_an_epoch_holds_every_example_once_and_the_next_has_another_order():
    for count in (1, 7, 100):
        order = pipeline.epoch_order(count, seed=3)
        epochs = [[order[e * count + i] for i in range(count)] for e in range(3)]
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
        if count == 100:
            assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
            other = pipeline.epoch_order(count, seed=4)
            assert [other[i] for i in range(count)] not in epochs


def test_batches_follow_the_order_and_straddle_epochs(rows, loader, buckets):
    batches = _train(rows, loader, buckets)
    order = pipeline.epoch_order(len(rows), 11)
    assert _ids(batches) == [rows[order[position]].id for position in range(24)]
    assert collections.Counter(_ids(batches)[:20]) == {row.id: 2 for row in rows}
    assert _ids(batches) == _ids(_train(rows, loader, buckets))
    assert _ids(batches) != _ids(_train(rows, loader, buckets, seed=12))
    assert all(batch.row_valid.all() for batch in batches)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_resuming_anywhere_on_any_number_of_processes_gives_the_same_batches(
    rows, loader, buckets, processes
):
    loader = dataclasses.replace(loader, augment=("hflip", "rescale"), completion_length=24)
    whole = _train(rows, loader, buckets)
    parts = [
        _train(rows, loader, buckets, process=(index, processes), start=3)
        for index in range(processes)
    ]
    assert all(len(part) == 3 for part in parts)
    for step in range(3):
        _assert_equal([part[step] for part in parts], whole[3 + step])


def test_every_process_chooses_the_bucket_of_the_global_batch(rows, loader, buckets):
    assert len(buckets) > 1
    shapes = dict(zip([row.id for row in rows], pipeline.row_shapes(rows, loader), strict=True))
    # One row a batch at a process: its own size alone would often choose a smaller bucket.
    parts = [
        _train(rows, loader, buckets, process=(index, 2), batch_size=2, stop=10)
        for index in range(2)
    ]
    chosen = set()
    for left, right in zip(*parts, strict=True):
        assert left.inputs.pixel_values.shape == right.inputs.pixel_values.shape
        pair = [shapes[left.examples[0].id], shapes[right.examples[0].id]]
        bucket = geometry.choose_bucket(buckets, pair)
        assert left.inputs.pixel_values.shape[1] == bucket.num_patches
        assert left.inputs.window_index.shape[1] == bucket.num_windows
        chosen.add(bucket)
    assert len(chosen) > 1


def test_threads_change_nothing(rows, loader, buckets):
    alone = _train(rows, loader, buckets)
    threaded = _train(rows, loader, buckets, num_threads=3)
    for one, other in zip(alone, threaded, strict=True):
        _assert_equal([one], other)


def test_worker_processes_change_nothing_and_their_errors_arrive(rows, loader, buckets):
    # Two workers take turns at the steps; the broken row comes in the third step.
    alone = _train(rows, loader, buckets, stop=3)
    broken_id = alone[2].examples[0].id
    seen = {example.id for batch in alone[:2] for example in batch.examples}
    assert broken_id not in seen
    broken = [
        dataclasses.replace(row, image="gone.png") if row.id == broken_id else row for row in rows
    ]
    batches = pipeline.train_batches(
        broken,
        loader,
        batch_size=4,
        seed=11,
        start_step=0,
        num_steps=3,
        process_index=0,
        process_count=1,
        buckets=buckets,
        num_workers=2,
    )
    for one, other in zip(alone[:2], itertools.islice(batches, 2), strict=True):
        _assert_equal([one], other)
    with pytest.raises(ValueError, match="gone.png") as error:
        next(batches)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_broken_image_is_named_when_its_turn_comes(rows, loader, buckets, num_threads):
    broken = [dataclasses.replace(rows[0], image="gone.png"), *rows[1:]]
    with pytest.raises(ValueError, match="gone.png"):
        _train(broken, loader, buckets, num_threads=num_threads, stop=3)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_evaluation_sees_every_example_exactly_once(rows, loader, buckets, processes):
    parts = [
        _eval(rows, loader, buckets, process=(index, processes), num_threads=2)
        for index in range(processes)
    ]
    assert [len(part) for part in parts] == [3] * processes
    seen = collections.Counter(
        example.id
        for part in parts
        for batch in part
        for example, valid in zip(batch.examples, batch.row_valid, strict=True)
        if valid
    )
    assert seen == {row.id: 1 for row in rows}
    whole = _eval(rows, loader, buckets)
    assert _ids(whole) == [row.id for row in [*rows, rows[-1], rows[-1]]]
    assert whole[-1].row_valid.tolist() == [True, True, False, False]
    for step in range(3):
        _assert_equal([part[step] for part in parts], whole[step])


def test_evaluation_is_not_augmented(rows, loader, buckets):
    changing = dataclasses.replace(loader, augment=("hflip", "vflip", "rescale"))
    for one, other in zip(
        _eval(rows, loader, buckets), _eval(rows, changing, buckets), strict=True
    ):
        _assert_equal([one], other)


def test_batches_that_do_not_divide_and_empty_splits_are_refused_at_once(rows, loader, buckets):
    options = {"batch_size": 6, "process_index": 0, "process_count": 4, "buckets": buckets}
    steps = {"seed": 0, "start_step": 0, "num_steps": 1}
    message = "batch of 6 rows does not divide over 4 processes: make it a positive multiple of 4"
    with pytest.raises(ValueError, match=f"train {message}"):
        pipeline.train_batches(rows, loader, **options, **steps)
    with pytest.raises(ValueError, match=f"evaluation {message}"):
        pipeline.eval_batches(rows, loader, **options)
    options["batch_size"] = 8
    with pytest.raises(ValueError, match="no training examples"):
        pipeline.train_batches([], loader, **options, **steps)
    with pytest.raises(ValueError, match="no examples to evaluate"):
        pipeline.eval_batches([], loader, **options)
    with pytest.raises(ValueError, match="process 4 of 4"):
        pipeline.eval_batches(rows, loader, **{**options, "process_index": 4})


def test_a_finished_run_gives_no_batches(rows, loader, buckets):
    assert _train(rows, loader, buckets, start=6) == []


def _without(rows, tmp_path, *, gone=(), torn=()):
    """The rows over a copy of their folder in which some images are gone or torn."""
    folder = tmp_path / "copy"
    shutil.copytree(rows[0].folder, folder)
    for index in gone:
        (folder / rows[index].image).unlink()
    for index in torn:
        path = folder / rows[index].image
        path.write_bytes(path.read_bytes()[:-40])
    return [
        dataclasses.replace(row, folder=str(folder), line=f"{folder}/manifest.jsonl:{number}")
        for number, row in enumerate(rows, start=1)
    ]


@pytest.mark.parametrize("how", [{"num_threads": 0}, {"num_threads": 2}])
def test_a_vanished_image_stops_and_is_named_with_its_line(rows, loader, buckets, tmp_path, how):
    damaged = _without(rows, tmp_path, gone=[3])
    line = re.escape(f"{rows[3].image}: no such image file (example {rows[3].id!r}, ")
    with pytest.raises(ValueError, match=rf"{line}\S+manifest.jsonl:4\)"):
        _train(damaged, loader, buckets, **how)
    torn = _without(rows, tmp_path / "torn", torn=[5])
    with pytest.raises(ValueError, match=r"truncated.*manifest.jsonl:6\)"):
        _train(torn, loader, buckets, **how)


@pytest.mark.parametrize("processes", [2, 4])
def test_a_vanished_image_is_replaced_alike_on_any_number_of_processes(
    rows, loader, buckets, tmp_path, processes, caplog
):
    damaged = _without(rows, tmp_path, gone=[3, 4], torn=[9])
    whole = _train(damaged, loader, buckets, skip_unreadable=True)
    parts = [
        _train(damaged, loader, buckets, process=(index, processes), skip_unreadable=True)
        for index in range(processes)
    ]
    intact = _train(rows, loader, buckets)
    order = pipeline.epoch_order(len(rows), 11)
    lost = {3, 4, 9}
    assert sum(batch.num_skipped for batch in whole) == sum(order[p] in lost for p in range(24)) > 0
    for step, batch in enumerate(whole):
        # The rows of the others are as they were, and none of the lost ones is there.
        for row, example in enumerate(batch.examples):
            if order[step * 4 + row] in lost:
                assert example.id not in {rows[index].id for index in lost}
            else:
                assert example.id == intact[step].examples[row].id
        _assert_equal([part[step] for part in parts], batch)
        assert sum(part[step].num_skipped for part in parts) == batch.num_skipped
        assert batch.inputs.pixel_values.shape == intact[step].inputs.pixel_values.shape
    assert "no such image file" in caplog.text and "takes its place" in caplog.text


def test_no_image_at_all_is_an_error_even_when_they_may_be_skipped(rows, loader, buckets, tmp_path):
    damaged = _without(rows, tmp_path, gone=range(len(rows)))
    with pytest.raises(ValueError, match="no such image file.*more that could take its place"):
        _train(damaged, loader, buckets, skip_unreadable=True)
    with pytest.raises(ValueError, match="no such image file"):
        _eval(_without(rows, tmp_path / "eval", gone=[0]), loader, buckets)
