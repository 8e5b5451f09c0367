# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Other arrangements of the same devices, by the floor of a step: nothing is compiled for it.

Each device reads its share of the weights for every token that is decoded: `tensor` divides them,
`fsdp` does not. What `tensor` costs is two sums over the links in each layer, whose latency the
floor does not know: an arrangement that is ahead by little may be behind in fact.
"""

import dataclasses
import math
from collections.abc import Iterator

from medloc_jax import devices
from medloc_jax.model.config import ModelConfig
from medloc_jax.planning import floor


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """One mesh.

    Attributes:
        mesh: devices along each axis.
        seconds: floor of a step.
        decode_seconds: of it, decoding.
    """

    mesh: dict[str, int]
    seconds: float
    decode_seconds: float


def by_floor(
    config: ModelConfig,
    work: floor.Work,
    num_devices: int,
    *,
    host_size: int,
    device: devices.Device,
) -> list[Arrangement]:
    """All meshes over which the step divides, the fastest first.

    Args:
        config: sizes of the model.
        work: what the step does.
        num_devices: of all hosts.
        host_size: devices that share a host's links, which `tensor` stays within; 0 = all do.
        device: their rates.
    """
    found = []
    for mesh in _meshes(config, work, num_devices, host_size):
        phases = floor.phases(config, work, floor.Layout(mesh, host_size))
        decode = sum(one.seconds(device) for one in phases if one.name == "decode")
        found.append(Arrangement(mesh, floor.seconds(phases, device), decode))
    return sorted(found, key=lambda one: one.seconds)


def _meshes(
    config: ModelConfig, work: floor.Work, num_devices: int, host_size: int
) -> Iterator[dict[str, int]]:
    prompts = work.rows.prompt_tokens.size
    # A key head, and a batch, is never split.
    widest = math.gcd(config.text.num_key_value_heads, host_size or num_devices)
    for tensor in _divisors(math.gcd(widest, num_devices)):
        ways = num_devices // tensor
        if prompts // work.micro_batches % ways:
            continue
        for fsdp in _divisors(ways):
            yield {"data": ways // fsdp, "fsdp": fsdp, "tensor": tensor}


def _divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]
