# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the real TPU compiler makes of the real programs: memory, collectives, donation.

No TPU is needed, only the `tpu` extra. Every case is compiled once, two at a time, while the tests
wait for theirs. Memory is compared with benchmarks/tpu_compile.json; `make tpu-compile RECORD=1`
writes that file anew.
"""

import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import re
from concurrent import futures
from pathlib import Path

import jax
import pytest
import small_plans

from medloc_jax.model import config as model_config
from medloc_jax.model import qwen2_5_vl
from medloc_jax.planning import abstract, compiled, report, topology

pytest.importorskip("libtpu", reason="the TPU compiler (libtpu, the `tpu` extra) is not installed")
pytestmark = [pytest.mark.tpu_compile, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "benchmarks" / "tpu_compile.json"
RECORDED = ("argument_bytes", "temp_bytes", "peak_bytes")
TOLERANCE = 1.10  # of the peak

LARGE = 1_000_000  # bytes: the smallest kernel of a 3B layer, gathered in bfloat16


@dataclasses.dataclass(frozen=True)
class Case:
    """A job on a slice."""

    slice: str
    config: str
    mesh: tuple[int, int, int]
    prompts: int = 8

    @property
    def name(self):
        """As "3b grpo on v5e:4x4, data 1 x fsdp 8 x tensor 2"."""
        axes = zip(("data", "fsdp", "tensor"), self.mesh, strict=True)
        parts = " x ".join(f"{name} {size}" for name, size in axes)
        return f"{self.config} on {self.slice}, {parts}"

    def job(self, **changes):
        """The job, without data or weights."""
        config = small_plans.load(ROOT / "configs" / self.config)
        names = ("mesh.data", "mesh.fsdp", "mesh.tensor")
        values = dict(zip(names, self.mesh, strict=True)) | changes
        batch = "sft.batch_size" if config.method == "sft" else "rl.prompts_per_step"
        config.update_from_flattened_dict(values | {batch: self.prompts})
        found = topology.find(self.slice)
        return abstract.make(config, abstract.make_mesh(config, found.devices))


GRPO, SFT = "grpo/ham10000_3b.py", "sft/ham10000_3b.py"
JOBS = {
    "tiny": (Case("v5e:2x2", "demo.py", (1, 4, 1)), Case("v5e:2x2", "demo_sft.py", (1, 4, 1))),
    # Between them every axis of the mesh is used.
    "v5e": tuple(Case("v5e:4x4", config, (1, 8, 2)) for config in (GRPO, SFT)),
    "v5p": tuple(Case("v5p:2x2x2", config, (1, 8, 1)) for config in (GRPO, SFT)),
    "v6e": tuple(Case("v6e:4x4", config, (2, 8, 1), 16) for config in (GRPO, SFT)),
}
PROGRAMS = {
    f"{size} {program}": (job, program)
    for size, (grpo, sft) in JOBS.items()
    for job, program in ((grpo, "grpo_step"), (grpo, "sample_groups"), (sft, "sft_step"))
}


TWIN = "tiny grpo_step"  # whose description the sabotage changes


@pytest.fixture(scope="module")
def compile_all(request):
    """Starts compiling what the chosen tests need; gives a function that waits for one."""
    chosen = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    names = dict.fromkeys([*(each["name"] for each in chosen if "name" in each), TWIN])
    needed = {name: PROGRAMS[name] for name in names if name in PROGRAMS}
    jobs = {case: case.job() for case in dict.fromkeys(case for case, _ in needed.values())}
    # Here, not in each thread: the switch is the process's.
    with compiled.without_cache(), futures.ThreadPoolExecutor(2) as pool:
        running = {
            name: pool.submit(lambda c=case, p=program: report.compile_tasks(jobs[c], [p])[0])
            for name, (case, program) in needed.items()
        }
        yield lambda name: running[name].result()
        for task in running.values():
            task.cancel()


@functools.cache
def weight_sizes(preset, tensor):
    """Elements of every weight, whole or one layer of it, and of its part along `tensor`.

    And of those that decoding joins: q, k and v; gate and up.
    """
    sizes = model_config.preset(preset)
    text, model = sizes.text, qwen2_5_vl.Model(sizes)
    params = model.abstract_params()
    whole = {math.prod(leaf.shape) for leaf in jax.tree.leaves(params)}
    layers = {math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(params) if leaf.ndim > 1}
    heads = text.num_attention_heads + 2 * text.num_key_value_heads
    joined = {text.hidden_size * n for n in (heads * text.head_dim, 2 * text.intermediate_size)}
    return {size // ways for size in whole | layers | joined for ways in (1, tensor)}


def is_weight(collective, sizes):
    """Whether what travels has the size of weights (or of their gradients)."""
    shapes = re.findall(r"\[([\d,]*)\]", collective.shape)
    elements = [math.prod(int(n) for n in shape.split(",") if n) for shape in shapes]
    return all(size in sizes for size in elements)


def strays(program, sizes):
    """Collectives that should not be there.

    Weights are gathered where a layer uses them, their gradients scattered, and sums reduced;
    activations stay where their prompts are. The compiler may scatter by permuting pieces beside
    the matrix product that makes them. The one exception is the embedding's gradient: the vectors
    of its tokens go to the devices that hold those columns.
    """
    found = []
    for one in program.collectives:
        moves = one.kind in ("all-gather", "all-to-all", "collective-permute")
        numbers = not one.shape.startswith(("s32", "u32", "pred"))  # ids may have a bias's size
        if one.axes == "tensor" and one.kind == "all-gather" and numbers and is_weight(one, sizes):
            found.append(one)  # what is split over `tensor` is used so
        if one.bytes < LARGE or not moves or one.axes == "tensor":
            continue
        turned = one.source.endswith(("scatter-add", "sharding_constraint"))
        if one.kind == "all-to-all" and one.axes == "fsdp" and turned:
            continue
        layer_of_weights = one.kind != "all-to-all" and is_weight(one, sizes)
        if one.in_decode_loop or not (layer_of_weights or one.kind == "collective-permute"):
            found.append(one)
    return found


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_fits_and_moves_only_what_it_should(name, compile_all):
    case, _ = PROGRAMS[name]
    seen = compile_all(name)
    assert seen.does_not_fit is None, seen.refusal
    assert seen.not_donated == ()
    assert [one for one in seen.replicated if one.kind != "temporary"] == []
    preset = small_plans.load(ROOT / "configs" / case.config).model.preset
    assert strays(seen, weight_sizes(preset, case.mesh[2])) == []
    assert not [one for one in seen.collectives if one.axes == "?"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_memory_is_as_recorded(name, compile_all):
    seen = compile_all(name)
    before = json.loads(RECORD.read_text())["programs"] if RECORD.exists() else {}
    if os.environ.get("MEDLOC_RECORD"):
        before[name] = {
            "case": PROGRAMS[name][0].name,
            "program": seen.name,
            **{field: getattr(seen, field) for field in RECORDED},
            "collective_bytes": sum(each.total_bytes for each in seen.collectives),
            "optimal_seconds": seen.optimal_seconds,
            "cycles": seen.cycles,
        }
        content = {
            "command": "make tpu-compile RECORD=1",
            "jax": jax.__version__,
            "libtpu": importlib.metadata.version("libtpu"),
            "programs": {key: before[key] for key in PROGRAMS if key in before},
        }
        RECORD.write_text(json.dumps(content, indent=1) + "\n")
    assert name in before, "not recorded yet: make tpu-compile RECORD=1"
    assert seen.peak_bytes <= TOLERANCE * before[name]["peak_bytes"], (
        f"{name} takes {seen.peak_bytes / 1e9:.2f} GB, and {RECORD.name} says "
        f"{before[name]['peak_bytes'] / 1e9:.2f}: if that is meant, make tpu-compile RECORD=1"
    )


def test_what_cannot_fit_is_told_as_a_number():
    """3B with float32 AdamW, all of it trained, on four chips of 16 GB."""
    case = Case("v5e:2x2", GRPO, (1, 4, 1))
    made = case.job(**{"model.freeze_vision": False})
    (seen,) = report.compile_tasks(made, ["grpo_step"])
    assert seen.does_not_fit and 0.1e9 < seen.does_not_fit < 50e9
    assert "RESOURCE_EXHAUSTED" in seen.refusal


def test_an_activation_that_travels_is_seen(compile_all):
    """The twin of the test above, so that it is known to be able to fail."""
    one = compile_all(TWIN).collectives[0]
    stray = dataclasses.replace(
        one, kind="all-gather", axes="fsdp", shape="bf16[16,8,255,2048]", bytes=133_693_440
    )
    weight = dataclasses.replace(stray, shape="bf16[1,2048,11008]", in_decode_loop=False)
    sizes = weight_sizes("3b", 2)

    def seen(collective):
        return strays(dataclasses.replace(compile_all(TWIN), collectives=(collective,)), sizes)

    assert seen(stray) and not seen(weight)
    assert seen(dataclasses.replace(weight, in_decode_loop=True))
    assert not seen(dataclasses.replace(stray, bytes=10))
