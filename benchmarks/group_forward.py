# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What computing a prompt once per group saves: shared against repeated, side by side in one run.

    python benchmarks/group_forward.py [--clock cpu] [--rounds 5] [--side 224] [--text 32]
        [--tokens 64] [--out FILE]

The repeated side runs the same programs with a group size of one on G copies of each prompt. Each
round times both, so that whatever else the machine does falls on both. `make bench` runs it.
"""

import argparse
import functools
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from medloc_jax.model import config, geometry, qwen2_5_vl
from medloc_jax.sampling import groups

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def batch(sizes: config.ModelConfig, prompts: int, side: int, text: int) -> geometry.ModelInputs:
    """Prompts with one square image of `side` px and `text` text tokens each."""
    rng = np.random.default_rng(0)
    cells = side // sizes.vision.patch_size
    grid = (1, cells, cells)
    count = geometry.merged_tokens(grid, sizes.vision)
    rows = []
    for _ in range(prompts):
        pixels = rng.normal(size=(cells * cells, sizes.vision.patch_dim)).astype(np.float32)
        ids = [sizes.vision_start_token_id, *[sizes.image_token_id] * count]
        ids += [sizes.vision_end_token_id, *rng.integers(0, 256, text - 2).tolist()]
        rows.append(geometry.pack_row(ids, [(pixels, grid)], sizes))
    (bucket,) = geometry.plan_buckets([row.shape for row in rows], 1)
    return jax.tree.map(jnp.asarray, geometry.collate(rows, bucket, sizes))


def main() -> None:
    """Times both sides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="bench_tiny")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--text", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", default="wall", choices=sorted(CLOCKS))
    parser.add_argument("--out", type=Path, help="write every time, as JSON")
    given = parser.parse_args()
    now = CLOCKS[given.clock]

    sizes = config.preset(given.preset)
    model = qwen2_5_vl.Model(sizes, remat="none")
    params = model.init(jax.random.key(0))
    shared = batch(sizes, given.prompts, given.side, given.text)
    repeated = jax.tree.map(lambda x: jnp.repeat(x, given.group, axis=0), shared)
    shape = (given.prompts, given.group, given.tokens)
    tokens = jax.random.randint(jax.random.key(1), shape, 0, 256)
    mask = jnp.ones(shape, bool)
    flat = (tokens.reshape(-1, 1, given.tokens), mask.reshape(-1, 1, given.tokens))

    @jax.jit
    def logprobs(params, inputs, tokens, mask):
        features = model.encode_images(params, inputs)
        return model.group_logprobs(params, inputs, features, tokens, mask, 0.9)

    gradient = jax.jit(jax.grad(lambda *args: jnp.sum(logprobs(*args))))

    @functools.partial(jax.jit, static_argnums=2)
    def sample(params, inputs, group_size):
        # No stop token: every completion has its full length on both sides.
        rules = groups.SamplingRules(group_size, given.tokens, (), (), sizes.pad_token_id)
        features = model.encode_images(params, inputs)
        key, one = jax.random.key(2), jnp.float32(0.9)
        return groups.sample_groups(model, params, inputs, features, key, one, rules).completions

    sides = {
        "log-probabilities": (
            lambda: logprobs(params, shared, tokens, mask),
            lambda: logprobs(params, repeated, *flat),
        ),
        "gradient": (
            lambda: gradient(params, shared, tokens, mask),
            lambda: gradient(params, repeated, *flat),
        ),
        "sampling": (
            lambda: sample(params, shared, given.group),
            lambda: sample(params, repeated, 1),
        ),
    }
    found = {}
    for name, runs in sides.items():
        seconds: tuple[list[float], list[float]] = ([], [])
        for run in runs:
            jax.block_until_ready(run())  # compiles
        for _ in range(given.rounds):
            for run, times in zip(runs, seconds, strict=True):
                start = now()
                jax.block_until_ready(run())
                times.append(round(now() - start, 5))
        once, many = (statistics.median(times) for times in seconds)
        print(f"{name}: once {once:.3f} s, repeated {many:.3f} s, ratio {many / once:.2f}")
        found[name] = seconds
    image = geometry.merged_tokens((1, *[given.side // sizes.vision.patch_size] * 2), sizes.vision)
    about = (
        f"{given.prompts} prompts of {image} image and {given.text} text tokens, {given.group} "
        f"completions of {given.tokens} tokens each (preset {given.preset}, float32)."
    )
    if given.out:
        given.out.write_text(json.dumps({"about": about, "programs": found}), encoding="utf-8")


if __name__ == "__main__":
    main()
