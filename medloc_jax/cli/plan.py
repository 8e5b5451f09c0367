# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a run would take, found without its devices: memory, traffic, and the floor of a step.

    medloc plan --config=configs/grpo/ham10000_3b.py --device_kind=h800 --devices=4
    medloc plan --config=configs/grpo/ham10000_32b.py --device_kind=v5p:4x4x4

Compiles the run's own programs (for TPUs by the real compiler where medloc_jax[tpu] is installed,
for GPUs likewise with medloc_jax[cuda], else for pretended CPU devices, and says which), prints
what they hold against the device's memory, which knob to turn where it does not fit, the
collectives, and the least time that a step can take. Reads no data and no weights. The exit code
is 1 where it does not fit.
"""

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

from absl import flags

DOES_NOT_FIT = 1


def main(argv: Sequence[str]) -> int:
    """Runs the verb.

    Args:
        argv: what follows `medloc plan`.

    Returns:
        The exit code: 1 where the run does not fit.

    Raises:
        ValueError: a wrong command line or configuration; one line with the cure.
    """
    from medloc_jax.cli import job as jobs
    from medloc_jax.cli import validate
    from medloc_jax.planning import report as planning
    from medloc_jax.planning import table

    def define(values: flags.FlagValues) -> None:
        _define(values)
        flags.mark_flags_as_required(["config", "device_kind"], flag_values=values)

    given = jobs.parse(argv, "plan", define)
    validate.check(given.config)
    plan = planning.report(
        given.config,
        given.device_kind,
        given.devices,
        processes=given.processes,
        image_size=_size(given.image_size),
        prompt_tokens=given.prompt_tokens,
    )
    found = report_of(plan, given.config)
    if given.json:
        print(json.dumps(table.as_json(found, _command(argv)), indent=1))
    elif given.markdown:
        print(table.markdown(found, _command(argv)))
    else:
        print(table.text(found))
    return DOES_NOT_FIT if plan.does_not_fit is not None else 0


def report_of(plan: Any, config: Any) -> Any:
    """Adds floor and advice to a plan."""
    from medloc_jax import devices
    from medloc_jax.model import config as model_config
    from medloc_jax.model import flops
    from medloc_jax.planning import advice, floor, meshes, table

    shape = plan.shape
    rows = flops.Rows.uniform(
        prompts=shape.prompts,
        group_size=shape.group_size,
        patches=shape.num_patches,
        prompt_tokens=shape.prompt_tokens,
        completion=shape.completion_tokens,
    )
    device = devices.of(plan.device_kind)
    # A slice of TPUs is one interconnect; hosts of GPUs are joined by a network.
    on_hosts = device is not None and device.devices_per_host
    host_size = plan.num_devices // plan.processes if on_hosts else 0
    sizes, work = model_config.preset(plan.preset), floor.work_of(config, rows)
    found = []
    if device is not None:
        found = meshes.by_floor(sizes, work, plan.num_devices, host_size=host_size, device=device)
    return table.Report(
        plan=plan,
        phases=floor.phases(sizes, work, floor.Layout(plan.mesh, host_size)),
        device=device,
        advice=advice.advise(plan, config),
        meshes=tuple(found),
    )


def help_text() -> str:
    """What the verb does, and its flags."""
    from medloc_jax.cli import verb_flags

    values = flags.FlagValues()
    _define(values)
    return f"{(__doc__ or '').strip()}\n\n{verb_flags.help_text(values)}"


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "device_kind",
        None,
        "h100, h800, h200, v5e, v5p, v6e or cpu; a TPU's slice may follow, as v5p:4x4x4",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "devices", 0, "of all hosts; 0: as the slice says, else 1", flag_values=values
    )
    flags.DEFINE_integer(
        "processes", 0, "hosts; 0: as many as the hardware has", flag_values=values
    )
    flags.DEFINE_string(
        "image_size", "600x450", "WIDTHxHEIGHT of a picture, px", flag_values=values
    )
    flags.DEFINE_integer(
        "prompt_tokens",
        0,
        "of a prompt with its image; 0: the template's with a short question",
        flag_values=values,
    )
    flags.DEFINE_boolean("json", False, "print every figure as JSON", flag_values=values)
    flags.DEFINE_boolean("markdown", False, "print a section of a document", flag_values=values)


def _size(value: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", value)
    if match is None:
        raise ValueError(f"--image_size={value}: write WIDTHxHEIGHT in pixels, as 600x450")
    return int(match[1]), int(match[2])


def _command(argv: Sequence[str]) -> str:
    """The command that was given, without what it prints."""
    kept = [flag for flag in argv if flag not in ("--json", "--markdown")]
    return shlex.join(["medloc", "plan", *kept])
