# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The first run on a real card: is it right, and how fast is it, in ten minutes and one table.

    python benchmarks/gpu_run.py                      (3B, one H200 or several GPUs of a host)
    python benchmarks/gpu_run.py --preset tiny        (anywhere, a CPU too: tries the script itself)

Checks first: bfloat16 against float32, and the card's attention kernels against plain XLA's,
log-probabilities and gradients, at small and at true widths. Then measures the programs that
training runs, with random weights, on a step of P = 8 prompts (324 image + 100 text tokens) and
G = 8 completions of 256 tokens. Writes GPU.md beside this file, the prediction of AOT.md beside
each figure. Exit code 1 where a check fails. `MEDLOC_XLA_FLAGS=off` before it leaves the compiler's
options away, `=loops` tries one more (medloc_jax/xla_flags.py); `--minutes` ends it early, and the
table says what is missing.
"""

import argparse
import dataclasses
import functools
import platform
import shlex
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from medloc_jax import xla_flags  # noqa: E402

FLAGS = xla_flags.apply()  # before JAX starts

import aot  # noqa: E402
import gpu_checks  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from medloc_jax import config as configuration  # noqa: E402
from medloc_jax import devices, sharding  # noqa: E402
from medloc_jax.model import attention, flops, geometry  # noqa: E402
from medloc_jax.planning import abstract, floor  # noqa: E402
from medloc_jax.training import state as states  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Size:
    """What is measured: (width, height) px, tokens, prompts, completions, their length, repeats."""

    image: tuple[int, int]
    prompt_tokens: int
    prompts: int
    group: int
    completion: int
    rounds: int


SIZES = {
    "3b": Size(aot.IMAGE, aot.PROMPT_TOKENS, 8, 8, 256, 5),
    "tiny": Size((112, 56), 40, 2, 2, 8, 2),
}


def job_of(preset: str, size: Size, **changes: Any) -> abstract.AbstractJob:
    """Training's own programs for that size, on this machine's devices."""
    config: Any = configuration.paper_config("grpo")
    config.model.preset = preset
    values = {
        "rl.prompts_per_step": size.prompts,
        "rl.group_size": size.group,
        "rl.max_completion_tokens": size.completion,
    }
    config.update_from_flattened_dict(values | changes)
    mesh = abstract.make_mesh(config)
    return abstract.make(config, mesh, image_size=size.image, prompt_tokens=size.prompt_tokens)


def drawn(tree: Any, seed: int = 0) -> Any:
    """Random weights in the places that the structs name."""

    @functools.cache
    def maker(shape: tuple, dtype: Any, where: Any, kind: str) -> Callable:
        def make(key: Any) -> Any:
            if kind == "scale":
                return jnp.ones(shape, dtype)
            std = shape[-2] ** -0.5 if kind == "kernel" else 0.02
            return (jax.random.normal(key, shape, jnp.float32) * std).astype(dtype)

        return jax.jit(make, out_shardings=where)

    def one(path: tuple, leaf: Any) -> Any:
        kind = str(getattr(path[-1], "key", path[-1]))
        key = jax.random.key(seed + zlib.crc32(jax.tree_util.keystr(path).encode()))
        return maker(leaf.shape, leaf.dtype, leaf.sharding, kind)(key)

    return jax.tree_util.tree_map_with_path(one, tree)


def zeros(tree: Any) -> Any:
    """Zeros where the structs say; what is no struct stays."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=leaf.sharding)()

    return jax.tree.map(one, tree)


def real_inputs(made: abstract.AbstractJob, size: Size) -> Any:
    """The step's prompts, on the devices."""
    sizes = made.job.model.config
    rows = gpu_checks.batch(
        sizes, [[made.shape.fed_size]] * made.shape.prompts, made.shape.prompt_tokens
    )
    return sharding.shard_batch(made.job.mesh, geometry.collate(rows, made.shape.bucket, sizes))


def seconds_of(run: Callable[[], Any]) -> tuple[float, Any]:
    """Wall seconds until the results are there."""
    start = time.perf_counter()
    result = jax.block_until_ready(run())
    return time.perf_counter() - start, result


class Card:
    """Measures one preset; keeps weights and figures."""

    def __init__(self, preset: str, size: Size, deadline: float):
        self.preset, self.size, self.deadline = preset, size, deadline
        self.made = job_of(preset, size)
        self.figures: dict[str, float] = {}
        self.missing: list[str] = []

    def enough_time(self, what: str, seconds: float) -> bool:
        """Whether something that takes so long can still be begun; else it is told as missing."""
        if time.perf_counter() + seconds <= self.deadline:
            return True
        self.missing.append(what)
        return False

    def compile(self) -> None:
        """Every program cold, and then, as the next process would, from the persistent cache."""
        for label in ("cold compile", "compile from the cache"):
            jax.clear_caches()
            self.made = job_of(self.preset, self.size)
            start = time.perf_counter()
            for program, args in self.made.tasks.values():
                program.compile(*args)
            self.figures[label] = time.perf_counter() - start

    def load(self) -> None:
        """Weights, moments and the reference."""
        tasks = self.made.tasks
        state, frozen, _, _, self.taken, self.raw, self.hyper = tasks["grpo_step"][1]
        trainable = drawn(state.trainable)
        self.state = states.TrainState(trainable, zeros(state.opt_state))
        self.frozen = drawn(frozen)
        self.reference = jax.tree.map(
            lambda leaf, like: jax.device_put(leaf.astype(like.dtype), like.sharding),
            trainable,
            self.made.reference,
        )
        self.inputs = real_inputs(self.made, self.size)

    def step(self, number: int) -> dict[str, float]:
        """One optimizer step; seconds of every phase."""
        tasks, spent = {name: task[0] for name, task in self.made.tasks.items()}, {}
        params = states.merge(self.state.trainable, self.frozen)
        policy = states.merge(self.reference, self.frozen)
        seed, one = np.uint32(number), np.float32(1)
        spent["encode_images"], features = seconds_of(
            lambda: tasks["encode_images"](params, self.inputs)
        )
        spent["sample_groups"], sampled = seconds_of(
            lambda: tasks["sample_groups"](params, self.inputs, features, seed, seed, one)
        )
        tokens, mask = sampled.completions, sampled.completion_mask
        spent["reference_logprobs"], logprobs = seconds_of(
            lambda: tasks["reference_logprobs"](policy, self.inputs, features, tokens, mask, one)
        )
        taken = zeros(self.taken)._replace(
            completions=tokens, completion_mask=mask, reference_logprobs=logprobs
        )
        rng = np.random.default_rng(number)
        raw = {
            name: jax.device_put(rng.random(leaf.shape, np.float32), leaf.sharding)
            for name, leaf in self.raw.items()
        }
        rest = (self.frozen, self.inputs, features, taken, raw, self.hyper)
        spent["grpo_step"], (self.state, metrics, _) = seconds_of(
            lambda: tasks["grpo_step"](self.state, *rest)
        )
        if not all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(metrics)):
            raise SystemExit("the update's metrics are not finite")
        return spent

    def steps(self) -> None:
        """Medians over the rounds, after one to warm up."""
        self.step(0)
        spent = [self.step(1 + number) for number in range(self.size.rounds)]
        for name in spent[0]:
            self.figures[name] = statistics.median(one[name] for one in spent)
        self.figures["step"] = statistics.median(sum(one.values()) for one in spent)
        memory = jax.local_devices()[0].memory_stats() or {}
        self.figures["peak GB"] = memory.get("peak_bytes_in_use", float("nan")) / 1e9

    def decode(self) -> None:
        """Tokens a second of the decoding loop alone: long completions less short ones."""
        ways = self.made.job.mesh.shape["data"] * self.made.job.mesh.shape["fsdp"]
        params = states.merge(self.state.trainable, self.frozen)
        short = max(1, self.size.completion // 8)
        for prompts in (self.size.prompts, ways):
            rows = prompts * self.size.group
            if not self.enough_time(f"decode at batch {rows}", 60):
                continue
            spent = []
            for length in (self.size.completion, short):
                size = dataclasses.replace(self.size, prompts=prompts, completion=length)
                made = job_of(self.preset, size)
                inputs = real_inputs(made, size)
                encode = made.tasks["encode_images"][0].compile(params, inputs)
                program, (_, _, _, *rest) = made.tasks["sample_groups"]
                given = (params, inputs, encode(params, inputs), *rest)
                run = functools.partial(program.compile(*given), *given)
                seconds_of(run)
                rounds = range(self.size.rounds)
                spent.append(statistics.median(seconds_of(run)[0] for _ in rounds))
            token = (spent[0] - spent[1]) / (self.size.completion - short)
            self.figures[f"decode at batch {rows}, ms a token"] = 1e3 * token
            self.figures[f"decode at batch {rows}, tokens/s"] = rows / token


def expected(card: Card) -> tuple[dict[str, float], dict[str, float], float]:
    """Floors and predictions of the figures, and the device's peak FLOP/s; empty off a GPU."""
    device = devices.of(jax.devices()[0].device_kind)
    made, size = card.made, card.size
    if device is None:
        return {}, {}, float("nan")
    sizes = made.job.model.config
    work = floor.work_of(made.job.config, rows_of(card))
    phases = floor.phases(sizes, work, floor.Layout(dict(made.job.mesh.shape)))
    floors = {phase.name: phase.seconds(device) for phase in phases}
    least = {name: sum(floors[one] for one in parts) for name, parts in aot.PHASES.items()}
    likely = aot.predicted(floors)
    guess = {name: sum(likely[one] for one in parts) for name, parts in aot.PHASES.items()}
    least["step"] = sum(floors.values())
    guess["step"] = sum(likely.values()) + aot.HOST_SECONDS
    for values, found in ((least, floors), (guess, likely)):
        token = found["decode"] / size.completion
        rows = size.prompts * size.group
        values[f"decode at batch {rows}, ms a token"] = 1e3 * token
        values[f"decode at batch {rows}, tokens/s"] = rows / token
    return least, guess, device.peak_flops


def rows_of(card: Card) -> flops.Rows:
    """The rows of a step, real tokens."""
    shape = card.made.shape
    return flops.Rows.uniform(
        prompts=shape.prompts,
        group_size=shape.group_size,
        patches=shape.num_patches,
        prompt_tokens=shape.prompt_tokens,
        completion=shape.completion_tokens,
    )


GOALS = {
    "step": "<= 2.0",
    "decode at batch 64, tokens/s": ">= 29000",
    "policy update MFU": ">= 0.45",
    "peak GB": "< 100",
    "cold compile": "< 60",
    "compile from the cache": "< 15",
}


def document(card: Card, checks: list[dict[str, Any]], command: str) -> str:
    """The table."""
    least, guess, peak = expected(card)
    figures = dict(card.figures)
    work = flops.grpo_step(
        card.made.job.model.config,
        rows_of(card),
        freeze_vision=True,
        reference=True,
        num_updates=1,
    )
    if "grpo_step" in figures:
        done = work["update"] / card.made.job.mesh.size
        figures["policy update MFU"] = done / figures["grpo_step"] / peak
    size, device = card.size, jax.devices()[0].device_kind
    lines = [
        f"# {card.preset} on {jax.device_count()} x {device}",
        "",
        f"`{command}`, commit {aot.commit()}, jax {jax.__version__}, Python "
        f"{platform.python_version()}, attention {card.made.job.model.attention}, options "
        f"`{' '.join(FLAGS) or 'none'}`.",
        "",
        f"Random weights; {size.prompts} prompts of {card.made.shape.prompt_tokens} tokens "
        f"({card.made.shape.num_image_tokens} of the image), {size.group} completions of "
        f"{size.completion}; bucket {dataclasses.astuple(card.made.shape.bucket)}; medians of "
        f"{size.rounds}. "
        "Seconds where nothing else is said. Floor: planning/floor.py; predicted: AOT.md.",
        "",
        "| figure | measured | floor | predicted | goal (3B, one H200) |",
        "|---|---|---|---|---|",
    ]
    for name, value in figures.items():
        cells = (_cell(table.get(name)) for table in (least, guess))
        lines.append(f"| {name} | {_cell(value)} | {' | '.join(cells)} | {GOALS.get(name, '')} |")
    if card.missing:
        lines += ["", f"Not reached in the time given: {', '.join(card.missing)}."]
    lines += [
        "",
        "Errors of bfloat16 against float32 (mean over tokens; of the gradient, relative):",
        "",
        "| widths | attention | log-probability | gradient | passed |",
        "|---|---|---|---|---|",
    ]
    for one in checks:
        errors = f"{one['logprob']:.5f} | {one['gradient']:.5f}"
        passed = "yes" if one["passed"] else "**no**"
        lines.append(f"| {one['widths']} | {one['attention']} | {errors} | {passed} |")
    return "\n".join(lines) + "\n"


def _cell(value: float | None) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def main() -> int:
    """Checks, measures, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="3b", help="3b; another is run at a small size")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", default=str(Path(__file__).with_name("GPU.md")))
    given = parser.parse_args()
    deadline = time.perf_counter() + 60 * given.minutes
    command = shlex.join(["python", "benchmarks/gpu_run.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as cache:  # empty: the first compilation is a cold one
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        chosen = attention.choose("auto", jax.devices()[0], jnp.bfloat16)
        kernel = "cudnn" if chosen == "xla" else chosen  # off a GPU: its stand-in
        size = SIZES["3b" if given.preset == "3b" else "tiny"]
        card = Card(given.preset, size, deadline)
        checks = [
            one
            for preset in (("tiny", "3b") if given.preset == "3b" else (given.preset,))
            if card.enough_time(f"the checks at {preset} widths", 30)
            for one in gpu_checks.check(preset, kernel)
        ]
        card.compile()
        if card.enough_time("the step", 60):
            card.load()
            card.steps()
            card.decode()
        text = document(card, checks, command)
        Path(given.out).write_text(text)
    print(text)
    return 0 if all(one["passed"] for one in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
