# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the cache of image features saves a GRPO step: the tower against looking its results up.

    taskset -c 0 python benchmarks/feature_cache.py [--preset=bench_tiny] [--side=224] [--prompts=8]

Processor seconds of one thread (`process_time`), the median of the rounds. Hashing is done by the
loader's threads, looking up in the loop.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np

from medloc_jax.data import feature_cache
from medloc_jax.model import config, geometry, qwen2_5_vl


def main() -> None:
    """Prints one row of a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="bench_tiny")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    sizes = config.preset(given.preset)
    cells = given.side // sizes.vision.patch_size
    grid, rng = (1, cells, cells), np.random.default_rng(0)
    count = geometry.merged_tokens(grid, sizes.vision)
    ids = [sizes.vision_start_token_id, *[sizes.image_token_id] * count, sizes.vision_end_token_id]
    rows = []
    for _ in range(given.prompts):
        pixels = rng.normal(size=(cells * cells, sizes.vision.patch_dim)).astype(np.float32)
        rows.append(geometry.pack_row(ids, [(pixels, grid)], sizes))
    (bucket,) = geometry.plan_buckets([row.shape for row in rows], 1)
    inputs = jax.tree.map(jax.numpy.asarray, geometry.collate(rows, bucket, sizes))
    model = qwen2_5_vl.Model(sizes, remat="none")
    params = model.init(jax.random.key(0))
    encode = jax.jit(model.encode_images)
    features = np.asarray(encode(params, inputs))
    with tempfile.TemporaryDirectory() as folder:
        cache = feature_cache.FeatureCache(folder, ("tower",), 10.0)
        keys = [feature_cache.row_key(feature_cache.image_key(row), bucket) for row in rows]
        for key, row in zip(keys, features, strict=True):
            cache.put(key, row)

        def look_up() -> None:
            found = [cache.get(key, features.shape[1:], features.dtype) for key in keys]
            stacked = np.stack([one for one in found if one is not None])
            assert np.array_equal(stacked, features)
            jax.block_until_ready(jax.device_put(stacked))

        times = {
            "tower": lambda: jax.block_until_ready(encode(params, inputs)),
            "look-up": look_up,
            "hashing": lambda: [feature_cache.image_key(row) for row in rows],
        }
        taken = {name: _seconds(run, given.rounds) for name, run in times.items()}
    told = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in taken.items())
    size = features[0].nbytes / 1e3
    print(
        f"{given.preset}, {given.prompts} images of {given.side} px: {told}; {size:.0f} kB an image"
    )


def _seconds(run: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds + 1):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return statistics.median(taken[1:])


if __name__ == "__main__":
    main()
