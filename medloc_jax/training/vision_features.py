# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Image features of a step: computed, or taken from the cache where the tower is frozen.

A batch is taken from the cache only if all its rows are there, on all processes: the tower is one
program over the whole batch. What is taken is what that program has given before, bit for bit.
"""

import dataclasses
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from medloc_jax import distributed, sharding
from medloc_jax.data import batching, feature_cache
from medloc_jax.model import geometry
from medloc_jax.training import job as jobs
from medloc_jax.training import programs
from medloc_jax.training import state as states


def encoder(job: jobs.Job, encode: Any, frozen: states.Params) -> Any:
    """(params, inputs, batch) -> features of a step.

    Args:
        job: what is trained.
        encode: the vision tower's program.
        frozen: holds the tower's weights where they are frozen.
    """
    data = job.config.data
    if not data.feature_cache:
        return lambda params, inputs, batch: encode(params, inputs)
    device = job.mesh.devices.flat[0]
    tower = (
        states.fingerprint(frozen["visual"]),
        dataclasses.astuple(job.model.config.vision),
        str(jnp.dtype(job.model.compute_dtype)),
        job.model.attention,
        job.config.rl.prompts_per_step,
        *job.mesh.shape.items(),
        device.device_kind,
        jax.__version__,
    )
    cache = feature_cache.FeatureCache(data.feature_cache, tower, data.feature_cache_gb)
    return _Cached(job, encode, cache)


class _Cached:
    """Looks into the cache first, and fills it in the background."""

    def __init__(self, job: jobs.Job, encode: Any, cache: feature_cache.FeatureCache):
        self._job = job
        self._encode = encode
        self._cache = cache
        self._writer = futures.ThreadPoolExecutor(1, "feature cache")
        self.computed = 0  # batches

    def __call__(
        self, params: states.Params, inputs: geometry.ModelInputs, batch: batching.Batch
    ) -> Array:
        keys, mesh = batch.image_keys or [], self._job.mesh
        like = programs.struct_of(self._job.model.encode_images, mesh, params, inputs)
        rows = [self._cache.get(key, like.shape[1:], like.dtype) for key in keys]
        missing = [index for index, row in enumerate(rows) if row is None]
        if not distributed.all_hosts(np.array([len(missing)])).any():
            return sharding.shard_batch(mesh, np.stack([row for row in rows if row is not None]))
        features = self._encode(params, inputs)
        self.computed += 1
        self._writer.submit(self._store, [(keys[index], index) for index in missing], features)
        return features

    def _store(self, missing: list[tuple[str, int]], features: Array) -> None:
        rows = sharding.local_rows(features)
        for key, index in missing:
            self._cache.put(key, rows[index])
