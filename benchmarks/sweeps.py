# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How the step's cost moves with one size at a time: time, tokens/s, compile time, memory, traffic.

    python benchmarks/sweeps.py --sweep group --clock cpu --out group.json

Everything is the peers' tiny preset in float32 with the tower trained, through the programs that
training runs; 4 prompts of 98 tokens (one 224-px image), 8 completions of 64 tokens each, but for
the size that is swept. `depth` compiles only, at small widths. `devices` compiles for pretended CPU
devices and counts the bytes of every collective in the partitioned programs. Both use training's
own settings (tower frozen, each layer recomputed in the backward pass), and nothing is run.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

# For each sweep: what a look visits, and the rest.
POINTS: dict[str, tuple[tuple, tuple]] = {
    "group": ((1, 8), (2, 4, 16, 32)),
    "prompt": ((64, 512), (128, 256, 1024, 2048)),
    "image": ((224, 448), (336, 560, 784, 1120)),
    "batch": ((1, 4), (2, 8, 16)),
    "depth": ((2, 8), (4, 16, 32, 64)),
    "devices": (
        ("none x1", "fsdp x2", "data x2"),
        ("fsdp x4", "fsdp x8", "data x4", "data x8", "tensor x2", "tensor x4", "tensor x8"),
    ),
}
UNITS = {
    "group": "completions per prompt",
    "prompt": "prompt tokens",
    "image": "px",
    "batch": "prompts per step",
    "depth": "text layers",
    "devices": "mesh",
}
SMALL_IMAGE_PX = 56  # four tokens: the prompt sweep is about its text


def flags_of(sweep: str, point: Any) -> list[str]:
    """The sizes of one point, as flags of `peer_items`."""
    if sweep == "group":
        return ["--group", str(point)]
    if sweep == "prompt":
        image_tokens = (SMALL_IMAGE_PX // 28) ** 2
        text = point - image_tokens - 2
        return ["--image-size", str(SMALL_IMAGE_PX), "--text-tokens", str(text), "--prompts", "2"]
    if sweep == "image":
        return ["--image-size", str(point), "--prompts", "1"]
    if sweep == "batch":
        return ["--prompts", str(point)]
    if sweep == "depth":
        narrow = {"hidden": 64, "heads": 4, "inter": 128, "vocab": 512, "vhidden": 32}
        narrow |= {"vinter": 64, "layers": point, "prompts": 2, "group": 4, "new-tokens": 16}
        return [word for name, value in narrow.items() for word in (f"--{name}", str(value))]
    # As many key heads as devices, so that `tensor` can split them all.
    return ["--heads", "8", "--kv-heads", "8", "--prompts", "8"]


def timed(given: argparse.Namespace) -> dict[str, Any]:
    """Compiles and times the step of one setting."""
    import jax
    import one_step
    import peer_items

    side = peer_items.Side(given, given.prompts, given.group)
    step = one_step.OneStep(side)
    programs = step.compile()
    inputs = side.inputs()

    def generate() -> Any:
        return jax.block_until_ready(side.sample(inputs, side.encode(side.params, inputs)))

    return {
        "programs": programs,
        "generate_s": peer_items.measure(generate, given)["samples_s"],
        "new_tokens": given.prompts * given.group * given.new_tokens,
        "step": step.measure(given),
    }


def compiled(given: argparse.Namespace, axis: str = "", ways: int = 1) -> dict[str, Any]:
    """Compiles the step as a plan does, with training's own settings; nothing is allocated.

    Args:
        given: sizes.
        axis: the mesh axis along which all devices lie; "" = one device.
        ways: how many they are.

    Returns:
        By program: CPU seconds to compile, planned bytes on a device, and the bytes of every
        collective of a step by kind.
    """
    import jax
    import one_step
    import peer_items

    from medloc_jax import config as configs
    from medloc_jax.model import config as model_config
    from medloc_jax.planning import abstract, hlo

    config: Any = configs.default_config()
    config.mesh.fsdp = 1
    if axis:
        config.mesh[axis] = ways
    config.rl.prompts_per_step = given.prompts
    config.rl.group_size = given.group
    config.rl.max_completion_tokens = given.new_tokens
    sizes = peer_items.sizes_of(given)
    tokens = (given.image_size // 28) ** 2 + given.text_tokens + 2
    with tempfile.TemporaryDirectory() as folder:
        written = json.dumps(model_config.to_hf(sizes))
        (Path(folder) / "config.json").write_text(written, encoding="utf-8")
        config.model.preset = folder
        mesh = abstract.make_mesh(config, jax.devices()[:ways])
        picture = (given.image_size, given.image_size)
        planned = abstract.make(config, mesh, image_size=picture, prompt_tokens=tokens)
    found = {}
    for name, (program, args) in planned.tasks.items():
        begun = time.process_time()
        executable = program.compile(*args)
        seconds = time.process_time() - begun
        traffic: dict[str, int] = {}
        if ways > 1:
            listing = hlo.Listing(executable.as_text())
            for one in hlo.collectives(listing, mesh, given.new_tokens):
                traffic[one.kind] = traffic.get(one.kind, 0) + one.total_bytes
        found[name] = {
            "compile_s": round(seconds, 2),
            **one_step.memory_of(executable),
            "collective_bytes": traffic,
        }
    return {"programs": found}


def run(sweep: str, point: Any, clock: str, reps: int) -> dict[str, Any]:
    """Measures one point."""
    import peer_items

    more = ["--clock", clock, "--reps", str(reps), "--max-seconds", "12"]
    given = peer_items.parse([*flags_of(sweep, point), *more])
    if sweep == "depth":
        return compiled(given)
    if sweep == "devices":
        axis, ways = point.split(" x")
        return compiled(given, axis.replace("none", ""), int(ways))
    return timed(given)


def main() -> None:
    """Runs one sweep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", required=True, choices=sorted(POINTS))
    parser.add_argument("--clock", default="cpu", choices=("cpu", "wall"))
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a few points, two samples each")
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    if given.sweep == "devices":
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()
    few, more = POINTS[given.sweep]
    points = few if given.quick else sorted(few + more, key=_order)
    found = []
    for point in points:
        begun = time.perf_counter()
        result = run(given.sweep, point, given.clock, 2 if given.quick else given.reps)
        found.append({"at": point, **result})
        print(f"# {given.sweep} {point}: {time.perf_counter() - begun:.0f} s", flush=True)
    Path(given.out).write_text(json.dumps({"points": found}) + "\n", encoding="utf-8")


def _order(point: Any) -> tuple:
    if isinstance(point, int):
        return ("", point)
    axis, ways = point.split(" x")
    return (("none", "data", "fsdp", "tensor").index(axis), int(ways))


if __name__ == "__main__":
    main()
