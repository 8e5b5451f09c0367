# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Our side of the comparison with PyTorch: the programs that training runs, timed one by one.

    python benchmarks/peer_items.py --preset tiny --items generate,grpo --clock cpu --out ours.json

Sizes, flags and the names of the items are those of the peers' scripts, so that both sides can be
alternated in one run. As there, lengths are forced (nothing stops early), pixels and token ids are
random, all parameters are trained (the vision tower too), and the reward is a cheap function of the
tokens on the host. `--share 0` gives up the group forward: every completion carries its own prompt.

Writes {"results": {item: {"median_s", "samples_s", ...}}} to --out, and prints it.
"""

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medloc_jax import config as configs
from medloc_jax import sharding
from medloc_jax.model import config as model_config
from medloc_jax.model import geometry
from medloc_jax.rewards import scores
from medloc_jax.rl import losses, rollout
from medloc_jax.sampling import groups
from medloc_jax.training import grpo, grpo_programs, micro_batches, optimizer
from medloc_jax.training import job as jobs
from medloc_jax.training import state as states

# As the peers have them; hidden, layers, heads, kv_heads, inter, vocab, tie, then the tower's.
PRESETS = {
    "tiny": (256, 4, 8, 2, 704, 2048, 1, 4, 128, 4, 344, "3"),
    "tiny-bigvocab": (256, 4, 8, 2, 704, 151936, 1, 4, 128, 4, 344, "3"),
    "small": (512, 8, 8, 2, 1408, 8192, 1, 8, 256, 4, 684, "3,7"),
    "3b": (2048, 36, 16, 2, 11008, 151936, 1, 32, 1280, 16, 3420, "7,15,23,31"),
}
_FIELDS = (
    *("hidden", "layers", "heads", "kv_heads", "inter", "vocab", "tie"),
    *("vdepth", "vhidden", "vheads", "vinter", "fullatt"),
)
ITEMS = ("vision", "prefill", "generate", "logprob", "train", "grpo")


def sizes_of(given: argparse.Namespace) -> model_config.ModelConfig:
    """The model of those flags."""
    half = given.hidden // given.heads // 2
    height = (half - half // 4) // 2
    text = model_config.TextConfig(
        vocab_size=given.vocab,
        hidden_size=given.hidden,
        intermediate_size=given.inter,
        num_hidden_layers=given.layers,
        num_attention_heads=given.heads,
        num_key_value_heads=given.kv_heads,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        mrope_section=(half // 4, height, half - half // 4 - height),
        tie_word_embeddings=bool(given.tie),
    )
    vision = model_config.VisionConfig(
        depth=given.vdepth,
        hidden_size=given.vhidden,
        intermediate_size=given.vinter,
        num_heads=given.vheads,
        in_channels=3,
        patch_size=14,
        temporal_patch_size=2,
        spatial_merge_size=2,
        window_size=given.window,
        fullatt_block_indexes=tuple(int(x) for x in given.fullatt.split(",") if x),
        out_hidden_size=given.hidden,
    )
    last = given.vocab
    ids = (
        (151655, 151656, 151652, 151653, 151645, 151643)
        if last == 151936
        else tuple(last - i for i in range(1, 7))
    )
    names = ("image", "video", "vision_start", "vision_end", "eos", "pad")
    return model_config.ModelConfig(
        text=text, vision=vision, **{f"{n}_token_id": i for n, i in zip(names, ids, strict=True)}
    )


class _Tokens(NamedTuple):
    """What the programs know of a tokenizer: here nothing stops a completion early."""

    stop_ids: tuple[int, ...]
    forbidden_ids: tuple[int, ...]
    pad_id: int


def make_batch(
    given: argparse.Namespace, sizes: model_config.ModelConfig, prompts: int, seed: int = 0
) -> geometry.ModelInputs:
    """Prompts of one square image and `text_tokens` random tokens around it, on the host."""
    rng = np.random.default_rng(seed)
    cells = given.image_size // sizes.vision.patch_size
    grid = (1, cells, cells)
    count = geometry.merged_tokens(grid, sizes.vision)
    before = max(1, given.text_tokens // 3)
    rows = []
    for _ in range(prompts):
        pixels = rng.standard_normal((cells * cells, sizes.vision.patch_dim), dtype=np.float32)
        text = rng.integers(10, min(given.vocab, 151643) - 16, given.text_tokens).tolist()
        image = [sizes.vision_start_token_id, *[sizes.image_token_id] * count]
        ids = [*text[:before], *image, sizes.vision_end_token_id, *text[before:]]
        rows.append(geometry.pack_row(ids, [(pixels, grid)], sizes))
    shapes = [row.shape for row in rows]
    (bucket,) = geometry.tighten(geometry.plan_buckets(shapes, 1), shapes)
    return geometry.collate(rows, bucket, sizes)


def unshared_update(job: jobs.Job, chain: Any) -> Callable[..., Any]:
    """`grpo.make_update` for rows that share nothing: a group of one has no advantage.

    Forward, loss, gradient and optimizer are training's; the reward stands in for the advantage.
    """
    model, rl = job.model, job.config.rl
    count = micro_batches.num_parts(rl.prompts_per_step, rl.micro_batch_prompts, "--micro-batch")

    def update(state, frozen, inputs, features, taken, raw, hyper):
        del features  # the tower is trained: it runs inside the gradient
        whole = losses.denominators(taken.completion_mask)

        def loss(trainable: Any, part: Any) -> tuple[Any, Any]:
            inputs, taken, advantage = part
            params = states.merge(trainable, frozen)
            features = model.encode_images(params, inputs)
            drawn = (taken.completions, taken.completion_mask)
            found = model.group_logprobs(params, inputs, features, *drawn, hyper.temperature)
            return losses.grpo_loss(
                found,
                None,
                taken.reference_logprobs,
                advantage,
                taken.completion_mask,
                hyper,
                ratio_level=rl.ratio_level,
                loss_aggregation=rl.loss_aggregation,
                denominators=whole,
                max_completion_tokens=rl.max_completion_tokens,
            )

        batch = (inputs, taken, raw["iou"])
        stats, grads = micro_batches.value_and_grad(loss, state.trainable, batch, count)
        trainable, moments, norm = optimizer.apply(
            chain, grads, state.opt_state, state.trainable, hyper.learning_rate, True
        )
        metrics = {"optimizer/grad_norm": norm, **losses.summarize(stats)}
        return states.TrainState(trainable, moments), metrics, raw["iou"]

    return update


PHASES = ("rollout", "reward", "reference", "update")


def parity_reward(tokens: np.ndarray) -> np.ndarray:
    """As the peers': the share of even tokens. [B, G, C] -> [B, G]."""
    return (tokens % 2 == 0).mean(axis=2)


# What a backward pass keeps of so many tokens stays near enough to the core; the peers, too, may be
# told to take fewer rows at a time (--micro-batch), which is no faster for them (see NOTES.md).
TOKENS_AT_A_TIME = 1344


def _prompts_at_a_time(given: argparse.Namespace, prompts: int, group_size: int) -> int:
    """rl.micro_batch_prompts: of --micro-batch rows, or of about so many tokens."""
    if given.micro_batch:
        return max(1, given.micro_batch // group_size)
    image = (given.image_size // 28) ** 2
    tokens = geometry.round_up(image + given.text_tokens + 2) + group_size * given.new_tokens
    most = max(1, min(prompts, TOKENS_AT_A_TIME // tokens))
    return next(n for n in range(most, 0, -1) if prompts % n == 0)


class Side:
    """The programs of one setting: so many prompts, so many completions of each."""

    def __init__(self, given: argparse.Namespace, prompts: int, group_size: int):
        """Makes the programs and the parameters; compiles nothing."""
        self.given, self.prompts, self.group_size = given, prompts, group_size
        config: Any = configs.default_config()
        config.model.compute_dtype = given.dtype
        config.model.freeze_vision = False
        config.model.remat = "layer" if given.remat else "none"
        config.model.unroll = True
        config.rl.group_size = group_size
        config.rl.prompts_per_step = prompts
        config.rl.micro_batch_prompts = _prompts_at_a_time(given, prompts, group_size)
        config.rl.max_completion_tokens = given.new_tokens
        self.sizes = sizes_of(given)
        self.mesh = sharding.make_mesh(data=1, fsdp=-1, tensor=1)
        ids = (self.sizes.image_token_id, self.sizes.video_token_id)
        self.job = jobs.Job(
            config=config,
            workdir=Path("unused"),
            mesh=self.mesh,
            model=jobs.make_model(config, self.sizes, self.mesh),
            tokenizer=_Tokens((), ids, self.sizes.pad_token_id),  # type: ignore
            loader=None,  # type: ignore
            examples={},
            buckets=(),
            initial=lambda: {},
        )
        chain = jobs.make_optimizer(config)
        placement = jobs.place(self.job, chain)
        params = states.fresh(self.job.model, self.mesh, given.seed)
        self.state, self.frozen = states.start(params, placement, chain)
        update = grpo.make_update(self.job, chain, "raw_iou")
        if group_size == 1:
            update = unshared_update(self.job, chain)
        self.made = grpo_programs.make_programs(self.job, update, placement)
        self.hyper = rollout.hyper(
            threshold=0.5,
            temperature=given.temperature,
            kl_weight=given.beta,
            clip_low=0.2,
            clip_high=0.2,
            learning_rate=given.lr,
        )
        self.steps = 0

    @property
    def params(self) -> Any:
        """The policy."""
        return states.merge(self.state.trainable, self.frozen)

    def inputs(self, seed: int = 0) -> geometry.ModelInputs:
        """A batch on the device; without sharing every completion brings its own prompt."""
        copies = 1 if self.given.share else self.given.group
        batch = make_batch(self.given, self.sizes, max(1, self.prompts // copies), seed)
        batch = jax.tree.map(lambda x: np.repeat(x, self.prompts // x.shape[0], axis=0), batch)
        return sharding.shard_batch(self.mesh, batch)

    def tokens(self) -> tuple[Any, Any]:
        """Completions to teach or to score."""
        shape = (self.prompts, self.group_size, self.given.new_tokens)
        ids = np.random.default_rng(5).integers(10, min(self.given.vocab, 151643) - 16, shape)
        local = (ids.astype(np.int32), np.ones(shape, bool))
        return sharding.shard_batch(self.mesh, local)

    def encode(self, params: Any, inputs: geometry.ModelInputs) -> Any:
        """The vision tower."""
        return self.made.encode(params, inputs)

    def sample(self, inputs: geometry.ModelInputs, features: Any) -> groups.Sampled:
        """Groups of completions."""
        self.steps += 1
        number = np.uint32(self.steps)
        seed = np.uint32(self.given.seed)
        return self.made.sample(self.params, inputs, features, seed, number, self.hyper.temperature)

    def logprobs(self, params: Any, inputs: Any, features: Any, drawn: tuple[Any, Any]) -> Any:
        """Of every completion token."""
        return self.made.logprobs(params, inputs, features, *drawn, self.hyper.temperature)

    def update(self, inputs: Any, features: Any, taken: rollout.Rollout, reward: Any) -> Any:
        """Reward, advantages, loss, gradient, AdamW."""
        raw = dict.fromkeys(scores.SCORES, reward.astype(np.float32))
        raw = sharding.shard_batch(self.mesh, raw)
        args = (self.state, self.frozen, inputs, features, taken, raw, self.hyper)
        self.state, metrics, _ = self.made.update(*args)
        return metrics

    def step(
        self, reference: Any, reward: Callable[[np.ndarray], np.ndarray], now: Callable[[], float]
    ) -> dict[str, float]:
        """One GRPO step in the order in which `training.grpo` takes it.

        Args:
            reference: parameters of the reference.
            reward: of token ids on the host, [B, G, C] -> [B, G].
            now: a clock, in seconds.

        Returns:
            Seconds of each of PHASES.
        """
        marks = [now()]
        inputs = self.inputs(self.steps + 1)
        sampled = self.sample(inputs, self.encode(self.params, inputs))
        drawn = (sampled.completions, sampled.completion_mask)
        tokens = sharding.local_rows(sampled.completions)
        marks.append(now())
        rewards = reward(tokens)
        marks.append(now())
        # The tower is trained, so the reference sees the images with its own.
        features = self.encode(reference, inputs)
        logprobs = jax.block_until_ready(self.logprobs(reference, inputs, features, drawn))
        marks.append(now())
        taken = rollout.Rollout(*drawn, old_logprobs=None, reference_logprobs=logprobs)
        jax.block_until_ready(self.update(inputs, features, taken, rewards))
        marks.append(now())
        gaps = (end - start for start, end in zip(marks[:-1], marks[1:], strict=True))
        return dict(zip(PHASES, gaps, strict=True))


def _vision(given: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    side = Side(given, given.batch, 1)
    inputs = side.inputs()
    return {f"vision_b{given.batch}": lambda: side.encode(side.params, inputs)}


def _prefill(given: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    side = Side(given, given.batch, 1)
    inputs, prefill = side.inputs(), jax.jit(side.job.model.prefill)
    features = lambda: side.encode(side.params, inputs)  # noqa: E731
    return {f"prefill_b{given.batch}": lambda: prefill(side.params, inputs, features())}


def _generate(given: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    runs: dict[str, Callable[[], Any]] = {}
    for rows in given.gen_batches:
        group = min(given.group, rows) if given.share else 1
        side = Side(given, rows // group, group)
        inputs = side.inputs()
        runs[f"generate_b{rows}"] = lambda s=side, i=inputs: s.sample(i, s.encode(s.params, i))
    return runs


def _logprob(given: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    side = Side(given, given.batch, 1)
    inputs, drawn = side.inputs(), side.tokens()

    def run() -> Any:
        return side.logprobs(side.params, inputs, side.encode(side.params, inputs), drawn)

    return {f"logprob_b{given.batch}": run}


def _train(given: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    side = Side(given, given.batch, 1)
    inputs, drawn = side.inputs(), side.tokens()
    features = side.encode(side.params, inputs)
    frozen = side.logprobs(side.params, inputs, features, drawn) - 0.01
    reward = np.random.default_rng(7).random((given.batch, 1))
    taken = rollout.Rollout(*drawn, old_logprobs=None, reference_logprobs=frozen)
    run = lambda: side.update(inputs, features, taken, reward)  # noqa: E731
    return {f"train_step_b{given.batch}": run}


def _grpo(given: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    group = given.group if given.share else 1
    side = Side(given, given.prompts * given.group // group, group)
    reference = jax.tree.map(jnp.copy, side.params)
    laps: dict[str, list[float]] = {name: [] for name in PHASES}

    def run() -> None:
        for name, seconds in side.step(reference, parity_reward, CLOCKS[given.clock]).items():
            laps[name].append(seconds)

    run.laps = laps  # type: ignore
    return {f"grpo_step_g{given.group}p{given.prompts}": run}


MAKERS = dict(zip(ITEMS, (_vision, _prefill, _generate, _logprob, _train, _grpo), strict=True))
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def repeat(take: Callable[[], Any], given: argparse.Namespace) -> list[Any]:
    """What `given.reps` calls give, or fewer, but two, in `given.max_seconds`."""
    found, begun = [], time.perf_counter()
    while len(found) < given.reps and (
        len(found) < 2 or time.perf_counter() - begun < given.max_seconds
    ):
        found.append(take())
    return found


def measure(run: Callable[[], Any], given: argparse.Namespace) -> dict[str, Any]:
    """Samples of one item after its warm-up; what compiles, compiles there."""
    now = CLOCKS[given.clock]
    start = time.perf_counter()
    for _ in range(max(1, given.warmup)):
        jax.block_until_ready(run())
    warm = time.perf_counter() - start

    def timed() -> float:
        begun = now()
        jax.block_until_ready(run())
        return now() - begun

    samples = repeat(timed, given)
    found: dict[str, Any] = {
        "median_s": statistics.median(samples),
        "min_s": min(samples),
        "max_s": max(samples),
        "n": len(samples),
        "samples_s": [round(x, 5) for x in samples],
        "warmup_total_s": round(warm, 3),
    }
    laps = getattr(run, "laps", None)
    if laps:
        found["parts_median_s"] = {
            k: statistics.median(v[-len(samples) :]) for k, v in laps.items()
        }
    return found


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The peers' flags; what has no meaning here is accepted and ignored by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny", choices=sorted(PRESETS))
    for field in _FIELDS[:-1]:
        parser.add_argument("--" + field.replace("_", "-"), type=int)
    parser.add_argument("--fullatt")
    for name, value in (
        ("window", 112),
        ("image-size", 224),
        ("text-tokens", 32),
        ("new-tokens", 64),
        ("group", 8),
        ("prompts", 4),
        ("micro-batch", 0),
        ("remat", 0),
        ("threads", 0),
        ("seed", 0),
        ("warmup", 1),
        ("reps", 5),
        ("batch", 8),
        ("share", 1),
    ):
        parser.add_argument("--" + name, type=int, default=value)
    for name, value in (("temperature", 0.9), ("beta", 0.04), ("lr", 1e-6), ("max-seconds", 25.0)):
        parser.add_argument("--" + name, type=float, default=value)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--clock", default="wall", choices=sorted(CLOCKS))
    parser.add_argument("--items", default=",".join(ITEMS))
    parser.add_argument("--gen-batches", default="8,32")
    parser.add_argument("--out", default="")
    for ignored in ("device", "attn", "foreign", "wait-quiet"):
        parser.add_argument("--" + ignored, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    for field, value in zip(_FIELDS, PRESETS[given.preset], strict=True):
        if getattr(given, field) is None:
            setattr(given, field, value)
    given.gen_batches = [int(x) for x in given.gen_batches.split(",")]
    given.items = given.items.split(",")
    unknown = sorted(set(given.items) - set(ITEMS))
    if unknown:
        parser.error(f"--items {','.join(unknown)}: choose of {', '.join(ITEMS)}")
    if given.image_size % 28:
        parser.error(f"--image-size {given.image_size}: give a multiple of 28")
    return given


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    names = ("medloc-jax", "jax", "jaxlib", "flax", "optax", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Times the items and writes the answer."""
    given = parse(argv)
    # Programs compile at their first call, in the warm-up.
    logging.getLogger("medloc_jax").setLevel(logging.ERROR)
    results: dict[str, Any] = {}
    for item in given.items:
        for name, run in MAKERS[item](given).items():
            results[name] = measure(run, given)
            median, least, most = (1e3 * results[name][k] for k in ("median_s", "min_s", "max_s"))
            print(f"# {name:18s} {median:9.1f} ms [{least:.1f} .. {most:.1f}]", flush=True)
    document = {
        "framework": "medloc_jax",
        "versions": versions(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "device": jax.devices()[0].device_kind,
        "sizes": {k: v for k, v in vars(given).items() if k not in ("out", "items")},
        "results": results,
    }
    if given.out:
        Path(given.out).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
