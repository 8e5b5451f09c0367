# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the real compilers make of a 3B step, without the devices: the prediction for a first run.

    python benchmarks/aot.py gpu      (with the `cuda` extra)
    python benchmarks/aot.py tpu      (with the `tpu` extra; the TPU compiler takes minutes a step)
    python benchmarks/aot.py table    (writes AOT.md of what has been compiled so far)

`--only h200` keeps to cases whose name begins so. Each case is compiled once and kept in aot.json.
The step: P = 8 prompts of 324 image and 100 text tokens, G = 8 completions of 256 tokens, Qwen2.5-
VL-3B, bfloat16, frozen tower. Floors count the tokens, programs run padded shapes (see AOT.md).
"""

import argparse
import dataclasses
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from medloc_jax import xla_flags  # noqa: E402

RECORD, TABLE = Path(__file__).with_name("aot.json"), Path(__file__).with_name("AOT.md")
IMAGE, PROMPT_TOKENS = (504, 504), 424
PROGRAMS = ("encode_images", "sample_groups", "reference_logprobs", "grpo_step")

# Program -> its phases of the floor.
PHASES = {
    "encode_images": ("vision",),
    "sample_groups": ("prefill", "decode"),
    "reference_logprobs": ("reference",),
    "grpo_step": ("update", "optimizer"),
}

# The share of a phase's floor that a first run is expected to reach, and whence.
EFFICIENCY = {
    "vision": (0.50, "matrix products of 1280, windows of 64 patches"),
    "prefill": (0.60, "4096 rows"),
    "decode": (0.50, "vLLM on an A100 reaches 0.39 (3B) to 0.58 (7B), hand-made CUDA graphs 0.69"),
    "reference": (0.65, "forward only, 20,000 rows"),
    "update": (0.65, "as llm-foundry's 3B: 46 % MFU, of a ceiling of 60 % with recomputation"),
    "optimizer": (0.80, "one stream over memory"),
}
HOST_SECONDS = 0.05  # decoding, scoring and launching that nothing hides
# Hz: the datasheet's FLOP/s over the matrix units' operations a cycle (4 units of 128 x 128; 8 of
# 128 x 128 in two cores; 4 of 256 x 256).
TPU_CLOCK = {"v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}
KERNEL_SHARE = 0.4  # of peak, that splash is counted with: the compiler has no estimate of it


@dataclasses.dataclass(frozen=True)
class Case:
    """A step on some devices."""

    name: str
    kind: str
    devices: int
    attention: str
    mesh: tuple[int, int, int]  # data, fsdp, tensor
    remat: str = "layer"
    layers: int = 0  # of the text model; 0 = all
    programs: tuple[str, ...] = PROGRAMS


GPU = [
    *(Case(f"h200 {a}", "h200", 1, a, (1, 1, 1)) for a in ("xla", "cudnn")),
    *(Case(f"h800 x{n} {a}", "h800", n, a, (1, n, 1)) for n in (4, 8) for a in ("xla", "cudnn")),
    *(
        Case(f"h200 remat {r}", "h200", 1, "cudnn", (1, 1, 1), r, programs=("grpo_step",))
        for r in ("dots", "none")
    ),
    *(
        Case(
            f"h200 {n} layers",
            *("h200", 1, "cudnn", (1, 1, 1)),
            layers=n,
            programs=("sample_groups", "grpo_step"),
        )
        for n in (9, 18)
    ),
]
TPU = [
    Case(f"{kind} {a}", kind, 0, a, mesh, programs=("encode_images", *PROGRAMS[1:]))
    for kind, mesh in (("v5e:4x4", (1, 8, 2)), ("v5p:2x2x2", (1, 8, 1)), ("v6e:4x4", (1, 8, 2)))
    for a in ("xla", "splash")
]
CASES = {"gpu": GPU, "tpu": TPU}


def config_of(case: Case, folder: str) -> Any:
    """The paper's configuration for 3B, as the case wants it."""
    from medloc_jax import config as configuration
    from medloc_jax.model import config as model_config

    config: Any = configuration.paper_config("grpo")
    config.model.preset = "3b"
    if case.layers:
        sizes = model_config.preset("3b")
        text = dataclasses.replace(sizes.text, num_hidden_layers=case.layers)
        sizes = dataclasses.replace(sizes, text=text)
        (Path(folder) / "config.json").write_text(json.dumps(model_config.to_hf(sizes)))
        config.model.preset = folder
    values = dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), case.mesh, strict=True))
    config.update_from_flattened_dict(
        values | {"model.attention": case.attention, "model.remat": case.remat}
    )
    return config


def compile_case(case: Case) -> dict[str, Any]:
    """Compiles the case's programs, one after another, and says what they are like."""
    from medloc_jax.planning import abstract, compiled, hlo, plan, topology

    with tempfile.TemporaryDirectory() as folder:
        found = topology.find(case.kind, case.devices)
        if found.compiled_by == plan.PRETENDED:
            raise SystemExit(f"{case.name}: {found.note}")
        config = config_of(case, folder)
        mesh = abstract.make_mesh(config, found.devices)
        made = abstract.make(config, mesh, image_size=IMAGE, prompt_tokens=PROMPT_TOKENS)
        programs = {}
        with compiled.without_cache():
            for name in case.programs:
                program, args = made.tasks[name]
                start = time.process_time()
                kept: dict[str, Any] = {}
                seen = compiled.compile_program(
                    name,
                    _Keeping(program, kept),  # type: ignore
                    args,
                    mesh,
                    unknown_trips=config.rl.max_completion_tokens,
                )
                text = kept["executable"].as_text() if kept else ""
                programs[name] = described(seen, hlo.Listing(text) if text else None)
                programs[name]["compile_cpu_seconds"] = time.process_time() - start
                print(f"{case.name} {name}: {programs[name]['compile_seconds']:.1f} s", flush=True)
    floors = floors_of(case.kind.partition(":")[0], dict(mesh.shape))
    return {
        "case": dataclasses.asdict(case),
        "bucket": dataclasses.asdict(made.shape.bucket)
        if dataclasses.is_dataclass(made.shape.bucket)
        else made.shape.bucket._asdict(),
        "programs": programs,
        "floors": floors,
        "jax": importlib.metadata.version("jax"),
        "commit": commit(),
        "flags": xla_flags_given(),
    }


class _Keeping:
    """A program that keeps its executable, of which more is asked than a plan holds."""

    def __init__(self, program: Any, kept: dict[str, Any]):
        self._program, self._kept = program, kept

    def compile(self, *args: Any) -> Any:
        self._kept["executable"] = self._program.compile(*args)
        return self._kept["executable"]


def described(seen: Any, listing: Any) -> dict[str, Any]:
    """What the tables need of one program."""
    crossing: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for one in seen.collectives:
        crossing[one.kind][0] += one.count
        crossing[one.kind][1] += one.total_bytes
    return {
        "compile_seconds": seen.compile_seconds,
        "does_not_fit": seen.does_not_fit,
        "argument_bytes": seen.argument_bytes,
        "temp_bytes": seen.temp_bytes,
        "peak_bytes": seen.peak_bytes,
        "not_donated": list(seen.not_donated),
        "collectives": dict(crossing),
        "overlapped": sum(one.count for one in seen.collectives if one.overlapped),
        "custom_calls": {k: v for k, v in seen.custom_calls.items() if _is_kernel(k)},
        "optimal_seconds": seen.optimal_seconds,
        "cycles": seen.cycles,
        "copied": copied(listing) if listing else {},
        "kernels": kernels_per_token(listing) if listing else 0,
    }


def _is_kernel(name: str) -> bool:
    return name.startswith(("__cudnn", "tpu_custom_call", "__cublas", "cu"))


MOVES = ("copy", "transpose", "dynamic-slice", "bitcast", "reshape", "parameter", "constant")


def copied(listing: Any) -> dict[str, float]:
    """Bytes that one token of the sampler's loop only moves (weights, caches), by the kind."""
    from medloc_jax.planning import hlo

    found: dict[str, float] = defaultdict(float)
    for visit in launched(listing):
        line = visit.instruction
        kind = line.opcode
        if kind == "fusion":
            called = line.rest.partition("calls=%")[2].partition(",")[0].strip()
            codes = {one.opcode for one in listing.computations.get(called, {}).values()}
            if not codes <= set(MOVES):
                continue
            kind = "dynamic-slice" if "dynamic-slice" in codes else "transpose"
        elif kind not in ("copy", "transpose", "dynamic-slice", "copy-start"):
            continue
        size = sum(count for _, count in hlo.arrays(line.shape))
        found[kind] += size * visit.count
    return dict(found)


def kernels_per_token(listing: Any) -> int:
    """Launches of one token: instructions of the sampler's loop that do something."""
    idle = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "call"}
    return sum(one.count for one in launched(listing) if one.instruction.opcode not in idle)


def launched(listing: Any) -> list[Any]:
    """What the sampler's loop runs itself, one turn of it: not the insides of fusions and sums."""
    visits = list(listing.visits(1))
    inside = {
        name
        for one in visits
        for name in re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", one.instruction.rest)
    }
    return [one for one in visits if one.in_decode_loop and one.computation not in inside]


def floors_of(kind: str, mesh: dict[str, int]) -> dict[str, float]:
    """Least seconds of every phase on such devices, of the real tokens."""
    from medloc_jax import config as configuration
    from medloc_jax import devices
    from medloc_jax.model import config as model_config
    from medloc_jax.model import flops
    from medloc_jax.planning import floor

    config: Any = configuration.paper_config("grpo")
    config.model.preset = "3b"
    rows = flops.Rows.uniform(
        prompts=8, group_size=8, patches=1296, prompt_tokens=PROMPT_TOKENS, completion=256
    )
    phases = floor.phases(
        model_config.preset("3b"), floor.work_of(config, rows), floor.Layout(mesh)
    )
    return {phase.name: phase.seconds(devices.DEVICES[kind]) for phase in phases}


def predicted(floors: dict[str, float]) -> dict[str, float]:
    """Seconds that a first run is predicted to take, by phase."""
    return {name: seconds / EFFICIENCY[name][0] for name, seconds in floors.items()}


def splash_seconds(case: dict[str, Any], bucket: dict[str, Any], program: str) -> float:
    """What splash's kernels take at `KERNEL_SHARE` of peak: blocks that are not skipped.

    A block of q by k positions is 4 q k h FLOPs a head forward; backward it is 2.5 times that, and
    with recomputation the forward pass is run again.
    """
    from medloc_jax import devices
    from medloc_jax.model import config as model_config
    from medloc_jax.model import splash_attention as splash

    kind = case["kind"].partition(":")[0]
    sizes = model_config.preset("3b")
    text, vision = sizes.text, sizes.vision
    rows, heads = 8 / (case["mesh"][0] * case["mesh"][1]), 1 / case["mesh"][2]
    if program == "encode_images":
        places = splash._rounded(bucket["num_patches"], splash.BLOCK)
        count, layers, n, width = places**2, len(vision.fullatt_block_indexes), 16, splash.LANES
        times = 1.0
    else:
        length = bucket["prompt_length"]
        layers, n, width = text.num_hidden_layers, text.num_attention_heads, text.head_dim
        if program == "sample_groups":
            blocks = splash._rounded(length, splash.BLOCK) // splash.BLOCK
            count, times = blocks * (blocks + 1) // 2 * splash.BLOCK**2, 1.0
        else:
            total, size = length + 8 * 256, splash.GROUP_BLOCK
            mask = splash._group_mask(splash._rounded(total, size), total, length, 8).array
            parts = mask.reshape(len(mask) // size, size, -1, size).any(axis=(1, 3))
            count = int(parts.sum()) * size**2
            times = 4.5 if program == "grpo_step" else 1.0
    flop = 4 * count * width * n * heads * layers * rows * times
    return flop / (devices.DEVICES[kind].peak_flops * KERNEL_SHARE)


def commit() -> str:
    """The commit that is checked out, with a + where files have changed since."""
    run = ["git", "-C", str(ROOT)]
    try:
        name = subprocess.check_output([*run, "rev-parse", "--short", "HEAD"], text=True).strip()
        changed = subprocess.check_output([*run, "status", "--porcelain", "-uno"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if changed.strip() else "")


def xla_flags_given() -> list[str]:
    """The compiler's options of this process."""
    import os

    return [
        *os.environ.get("XLA_FLAGS", "").split(),
        *os.environ.get("LIBTPU_INIT_ARGS", "").split(),
    ]


def main() -> None:
    """Compiles, or writes the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("gpu", "tpu", "table"))
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--programs", default="", help="these alone, as a,b; others are kept")
    parser.add_argument("--label", default="", help="kept beside the others under this name")
    given = parser.parse_args()
    if given.what == "table":
        import aot_table

        TABLE.write_text(aot_table.document(json.loads(RECORD.read_text())))
        print(f"written to {TABLE}")
        return
    xla_flags.apply()
    for case in CASES[given.what]:
        if not case.name.startswith(given.only):
            continue
        if given.programs:
            case = dataclasses.replace(case, programs=tuple(given.programs.split(",")))
        found = compile_case(case)
        # Read anew each time: another process may compile for the other platform.
        record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        name = f"{case.name} {given.label}".strip()
        before = record.get(name, {}).get("programs", {})
        found["programs"] = before | found["programs"] if given.programs else found["programs"]
        record[name] = found
        RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
