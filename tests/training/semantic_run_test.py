# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A run whose reward looks at the images: what its scorer sees, and that its score counts."""

import sys
import types

import numpy as np
import small_runs

from medloc_jax.grounding import boxes
from medloc_jax.rewards import semantic
from medloc_jax.training import grpo
from medloc_jax.training import job as jobs

BOX = "[4,4,20,24]"


def test_the_scorer_sees_the_augmented_images_and_its_score_is_rewarded(tmp_path, monkeypatch):
    seen = []

    def brightness(crops, queries):
        seen.append((crops, queries))
        return [float(crop.mean()) / 255 for crop in crops]

    module = types.ModuleType("a_scorer")
    module.brightness = brightness
    monkeypatch.setitem(sys.modules, "a_scorer", module)
    # Random weights never say a box.
    monkeypatch.setattr(
        jobs.Job, "texts", lambda job, ids: [[BOX if n % 2 else "" for n in range(2)] for _ in ids]
    )
    job = small_runs.open_job(
        tmp_path,
        num_steps=2,
        data__augment="('hflip',)",
        eval__every=0,
        eval__at_start=False,
        rewards__weights__localization=0.0,
        rewards__weights__semantic=1.0,
        rewards__semantic_scorer="a_scorer:brightness",
        model__remat="none",
    )
    batches = job.train_batches(job.loader, 8, 0)
    want = [next(batches) for _ in range(2)]
    assert grpo.train(job) == 0
    assert [len(crops) for crops, _ in seen] == [8, 8]
    for (crops, queries), batch in zip(seen, want, strict=True):
        assert queries == [example.query for example in batch.examples]
        for crop, picture, frame in zip(crops, batch.pictures, batch.frames, strict=True):
            box_px, _ = boxes.to_clipped_px(np.array([4.0, 4, 20, 24]), frame)
            assert (crop == semantic.crop(picture, box_px)).all()
    lines = small_runs.lines(tmp_path / "metrics.jsonl")[-2:]
    for line, (crops, _) in zip(lines, seen, strict=True):
        fit = np.mean([crop.mean() / 255 for crop in crops])
        # Every second completion has a box; those off the target earn half.
        assert fit / 4 - 1e-6 <= line["reward/semantic"] <= fit / 2 + 1e-6
        weight = job.config.rewards.weights.format
        total = line["reward/semantic"] + weight * line["reward/format"]
        np.testing.assert_allclose(line["reward/total"], total, rtol=1e-5)
