# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Features from the cache are those of the tower, bit for bit, in whichever batch they are made."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
import small_runs

from medloc_jax import sharding
from medloc_jax.training import grpo, programs, vision_features
from medloc_jax.training import state as states


def _batches(job, count):
    batches = job.train_batches(job.loader, 8, 0)
    return [next(batches) for _ in range(count)]


def _frozen(job):
    params = small_runs.params(job.model)
    split = states.split(params, lambda path: path[0] == "visual")[0]
    return jax.tree.map(jax.numpy.asarray, params), split


@pytest.fixture(scope="module")
def job(open_job, tmp_path_factory):
    """8 images of 12 in a batch; 6 batches are 4 epochs."""
    cache = tmp_path_factory.mktemp("cache")
    manifest = small_runs.write_manifest(cache / "pictures", [(32, 32), (48, 32), (40, 40)] * 4)
    return open_job(
        data__manifest=manifest,
        data__feature_cache=str(cache / "features"),
        data__val_fraction=0.0,
        eval__split="train",
        eval__final_split="",
        num_steps=6,
        model__remat="none",
    )


def _program(job):
    return programs.encode_program(job.model, job.mesh)


def test_a_later_epoch_computes_nothing_and_gives_the_same_bits(job, caplog):
    params, frozen = _frozen(job)
    encode = _program(job)
    cached = vision_features.encoder(job, encode, frozen)
    seen, computed = [], []
    for batch in _batches(job, 6):
        inputs = sharding.shard_batch(job.mesh, batch.inputs)
        want = encode(params, inputs)
        got = cached(params, inputs, batch)
        np.testing.assert_array_equal(got, want)  # also where it was made in another batch's row
        assert got.sharding.is_equivalent_to(want.sharding, 3) and got.dtype == want.dtype
        cached._writer.submit(lambda: None).result()  # what was computed is written
        computed.append(cached.computed)
        seen += batch.image_keys
    assert len(set(seen)) == 12 and computed == [1, 2, 2, 2, 2, 2]

    # Another start of the run, and another tower.
    again = vision_features.encoder(job, encode, frozen)
    batch = _batches(job, 1)[0]
    inputs = sharding.shard_batch(job.mesh, batch.inputs)
    again(params, inputs, batch)
    assert again.computed == 0
    moved = jax.tree.map(lambda x: x + np.float32(1e-3), frozen)
    other = vision_features.encoder(job, encode, moved)
    other(params, inputs, batch)
    assert other.computed == 1


def test_a_damaged_entry_is_computed_again(job, caplog):
    params, frozen = _frozen(job)
    encode = _program(job)
    cached = vision_features.encoder(job, encode, frozen)
    batch = _batches(job, 1)[0]
    inputs = sharding.shard_batch(job.mesh, batch.inputs)
    want = np.asarray(cached(params, inputs, batch))
    cached._writer.submit(lambda: None).result()
    before = cached.computed
    path = cached._cache._path(batch.image_keys[3])
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(cached(params, inputs, batch), want)
    assert "is damaged" in caplog.text and cached.computed == before + 1


def test_without_a_folder_there_is_no_cache(open_job):
    job = open_job()
    assert not job.loader.image_keys
    calls = []
    plain = vision_features.encoder(job, lambda *args: calls.append(args), {})
    plain("params", "inputs", "batch")
    assert calls == [("params", "inputs")]


def test_training_with_and_without_it_is_the_same(job, tmp_path, monkeypatch):
    made = []
    encoder = vision_features.encoder

    def watched(*args):
        made.append(encoder(*args))
        return made[-1]

    monkeypatch.setattr(vision_features, "encoder", watched)
    lines = []
    for name, folder in [("with", job.config.data.feature_cache), ("without", "")]:
        config = job.config.copy_and_resolve_references()
        config.data.feature_cache = folder
        loader = dataclasses.replace(job.loader, image_keys=bool(folder))
        (tmp_path / name).mkdir()
        run = dataclasses.replace(job, config=config, workdir=tmp_path / name, loader=loader)
        assert grpo.train(run) == 0
        lines.append(small_runs.lines(tmp_path / name / "metrics.jsonl"))
    assert lines[0] == lines[1] and len(lines[0]) == 7
    assert made[0].computed < 6
