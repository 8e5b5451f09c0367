# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Our side of the comparison with tunix: a GRPO step on text alone, by the programs of training.

    python benchmarks/tunix_item.py --clock cpu --out ours.json

Sizes and numbers are those of the script that tunix runs: 4 layers of width 256, 4 heads of 64, 2
key heads, MLP 704, vocabulary 4096, tied; 4 prompts of 128 tokens, 8 completions of 128 tokens;
float32, temperature 1, beta 0.04, AdamW at 1e-3, one update a rollout. The reward is the number of
different tokens of a completion, counted on the host.

What is not the same, tunix first:
    * its prompts are some 30 tokens, padded on the left to 128, and all 128 are computed; ours are
      128 real tokens;
    * a row of its may end at an end token (of 4096, random weights), but the loop runs until all
      32 have: to the end; ours has no end token, which is the same number of decoding steps;
    * optax.adamw's weight decay of 1e-4, without clipping; ours clips the gradient by its norm and
      decays nothing;
    * its KL term is the difference of the log-probabilities, ours exp(d) - d - 1;
    * neither computes old log-probabilities (one update: they are the policy's own);
    * it reads prompts and completions as text on the host; ours reads the tokens;
    * our model has a vision tower, of one block of width 32 here, which runs on 16 empty patches a
      prompt in every phase, and is trained.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import one_step
import peer_items

from medloc_jax import sharding
from medloc_jax.model import geometry

PROMPTS, GROUP, PROMPT_TOKENS, NEW_TOKENS = 4, 8, 128, 128
SIZES = {
    "hidden": 256,
    "layers": 4,
    "heads": 4,
    "kv-heads": 2,
    "inter": 704,
    "vocab": 4096,
    "vdepth": 1,
    "vhidden": 32,
    "vheads": 2,
    "vinter": 64,
    "fullatt": 0,
    "group": GROUP,
    "prompts": PROMPTS,
    "new-tokens": NEW_TOKENS,
    "lr": 1e-3,
    "beta": 0.04,
    "temperature": 1.0,
}


class TextSide(peer_items.Side):
    """The same programs on prompts without an image."""

    def inputs(self, seed: int = 0) -> geometry.ModelInputs:
        """128 random tokens a prompt."""
        rng = np.random.default_rng(seed)
        ids = rng.integers(10, self.given.vocab - 16, (self.prompts, PROMPT_TOKENS))
        rows = [geometry.pack_row(one.tolist(), [], self.sizes) for one in ids]
        (bucket,) = geometry.plan_buckets([row.shape for row in rows], 1)
        return sharding.shard_batch(self.mesh, geometry.collate(rows, bucket, self.sizes))


def different_tokens(tokens: np.ndarray) -> np.ndarray:
    """The reward of the script: how many different tokens a completion has. [B, G, C] -> [B, G]."""
    return np.array([[len(set(ids)) for ids in group] for group in tokens.tolist()], np.float64)


def main() -> None:
    """Times the step and writes the answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clock", default="cpu", choices=sorted(peer_items.CLOCKS))
    parser.add_argument("--reps", type=int, default=4)
    parser.add_argument("--max-seconds", type=float, default=30.0)
    parser.add_argument("--out", default="")
    own = parser.parse_args()
    words = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
    timing = ["--clock", own.clock, "--reps", str(own.reps), "--max-seconds", str(own.max_seconds)]
    given = peer_items.parse(words + timing)
    step = one_step.OneStep(TextSide(given, PROMPTS, GROUP), different_tokens)
    step.compile()
    result: dict[str, Any] = step.measure(given)
    document = {
        "framework": "medloc_jax",
        "versions": peer_items.versions(),
        "device": jax.devices()[0].device_kind,
        "results": {"tunix_step": result},
    }
    if own.out:
        Path(own.out).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
