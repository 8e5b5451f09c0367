# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The least time a step can take: the physical limits of its phases, added up.

A phase takes at least as long as its arithmetic, as its traffic with device memory, and as its
traffic with other devices, each at the rate that `devices` says can be had; within a phase they may
overlap perfectly (the largest counts), phases follow each other (they are summed). Everything is
divided evenly over the devices. Real programs are slower; what they reach of this is the measure.

What is counted (bytes of one device; W: weights in the compute dtype, divided over `tensor`):
    vision      W once; 12 activations of the tower's width per block and patch
    prefill     W once; 14 activations of the model's width per layer and token
    decode      for each token: W, the group's keys and values, the logits in float32 twice
    reference   one forward pass: W once, activations as above
    update      4 forward-equivalents with recomputation, 3 without, per micro-batch W each time;
                activations three times; accumulated gradients 8 bytes a parameter
    optimizer   30 bytes a trainable parameter: weight, moments, gradient; read and written
Between devices: over `fsdp` a pass gathers W (n - 1) / n (the update twice, once without
recomputation) and scatters as much gradient; sampling gathers once a rollout, or for every token
without `rl.gather_weights`; over `tensor` two all-reduces of activations a layer, again in the
backward pass and in the recomputation; over `data` one all-reduce of gradients.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from medloc_jax import devices
from medloc_jax.model import flops
from medloc_jax.model.config import ModelConfig, num_parameters

# Activations read and written per layer, in units of its width.
_VISION_TRAFFIC, _TEXT_TRAFFIC = 12, 14
_OPTIMIZER_BYTES, _OPTIMIZER_FLOPS = 30, 15  # per trainable parameter


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step does, over all devices.

    Attributes:
        method: "grpo" or "sft".
        rows: prompts and completions of a step.
        micro_batches: backward passes they are cut into.
        compute_bytes: of an activation or a weight as it is computed with: 2 or 4.
        freeze_vision: the tower is left as it is.
        reference: whether there is one.
        num_updates: passes over a rollout.
        remat: whether whole layers are recomputed in the backward pass.
        gather_weights: for sampling, once a rollout.
    """

    method: str
    rows: flops.Rows
    micro_batches: int
    compute_bytes: int
    freeze_vision: bool
    reference: bool
    num_updates: int = 1
    remat: bool = True
    gather_weights: bool = True


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase on one device.

    Attributes:
        name: vision, prefill, decode, reference, update, optimizer.
        flops: arithmetic.
        memory_bytes: to and from device memory.
        link_bytes: from the neighbours on the same host or slice.
        network_bytes: from other hosts.
    """

    name: str
    flops: float
    memory_bytes: float
    link_bytes: float = 0.0
    network_bytes: float = 0.0

    def limits(self, device: devices.Device) -> dict[str, float]:
        """Seconds by what limits: compute, memory, links, network."""
        limits = {
            "compute": self.flops / device.usable_flops,
            "memory": self.memory_bytes / device.usable_memory_rate,
            "links": self.link_bytes / (device.link_rate * devices.LINK_SHARE),
        }
        if device.network_rate:
            rate = device.network_rate * devices.LINK_SHARE
            limits["network"] = self.network_bytes / rate
        return limits

    def seconds(self, device: devices.Device) -> float:
        """The largest of the limits."""
        return max(self.limits(device).values())

    def bound(self, device: devices.Device) -> str:
        """What the largest limit is."""
        limits = self.limits(device)
        return max(limits, key=lambda name: limits[name])


def seconds(phases: tuple[Phase, ...], device: devices.Device) -> float:
    """The floor of a step."""
    return sum(phase.seconds(device) for phase in phases)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How devices are arranged.

    Attributes:
        mesh: devices along `data`, `fsdp` and `tensor`, the last being neighbours.
        host_size: devices that share a host's links; 0 = all.
    """

    mesh: Mapping[str, int]
    host_size: int = 0

    @property
    def size(self) -> int:
        """All devices."""
        return self.mesh["data"] * self.mesh["fsdp"] * self.mesh["tensor"]

    def gather(self, axis: str, whole: float) -> tuple[float, float]:
        """What a device receives when every group along an axis gathers `whole` bytes.

        A scatter of sums moves as much, an all-reduce twice as much.

        Returns:
            Bytes over links: (n - 1) / n of the whole. Bytes over the network: each host fetches
            what the other h - 1 of the group's h hosts have, once, for all its members.
        """
        n = self.mesh[axis]
        stride = {"tensor": 1, "fsdp": self.mesh["tensor"]}.get(
            axis, self.mesh["tensor"] * self.mesh["fsdp"]
        )
        hosts = min(n, max(1, n * stride // self.host_size)) if self.host_size else 1
        return whole * (n - 1) / n, whole * (hosts - 1) / n


def phases(config: ModelConfig, work: Work, layout: Layout) -> tuple[Phase, ...]:
    """The phases of a step on one device.

    Args:
        config: sizes of the model.
        work: what the step does.
        layout: the devices it is spread over.
    """
    sizes = _Sizes.of(config)
    if work.method == "sft":
        counted = flops.sft_step(config, work.rows, freeze_vision=work.freeze_vision)
        made = [_vision(config, sizes, work, layout, counted["vision"])]
        made += [_update(config, sizes, work, layout, counted["update"])]
        return *made, _optimizer(sizes, work, layout)
    counted = flops.grpo_step(
        config,
        work.rows,
        freeze_vision=work.freeze_vision,
        reference=work.reference,
        num_updates=work.num_updates,
    )
    made = [
        _vision(config, sizes, work, layout, counted["vision"]),
        _prefill(config, sizes, work, layout, counted["prefill"]),
        _decode(config, sizes, work, layout, counted["decode"]),
    ]
    if counted["reference"]:
        made.append(_reference(config, sizes, work, layout, counted["reference"]))
    made.append(_update(config, sizes, work, layout, counted["update"]))
    return *made, _optimizer(sizes, work, layout)


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Parameters by what reads them."""

    vision: int
    text: int  # the layers and one vocabulary projection: what a text pass reads
    total: int

    @classmethod
    def of(cls, config: ModelConfig) -> "_Sizes":
        total = num_parameters(config)
        table = config.text.vocab_size * config.text.hidden_size
        # The matrix products' weights; biases and norms are a thousandth of it.
        layers = int(flops.prompt(config.text, 1, causal_share=0.0)) // 2
        tables = table if config.text.tie_word_embeddings else 2 * table
        return cls(vision=total - layers - tables, text=layers + table, total=total)


class _Traffic:
    """Adds up what one device receives in a phase."""

    def __init__(self, layout: Layout):
        self._layout = layout
        self.link = self.network = 0.0

    def gather(self, axis: str, whole: float) -> "_Traffic":
        link, network = self._layout.gather(axis, whole)
        self.link += link
        self.network += network
        return self

    def phase(self, name: str, flop: float, memory: float) -> Phase:
        return Phase(name, flop, memory, self.link, self.network)


def _held(parameters: int, work: Work, layout: Layout) -> float:
    """Bytes of gathered weights on a device."""
    return parameters * work.compute_bytes / layout.mesh["tensor"]


def _vision_traffic(config: ModelConfig, work: Work, layout: Layout) -> float:
    width = config.vision.hidden_size * config.vision.depth
    patches = float(work.rows.patches.sum())
    return patches * width * work.compute_bytes * _VISION_TRAFFIC / layout.size


def _text_traffic(config: ModelConfig, tokens: float, work: Work, layout: Layout) -> float:
    width = config.text.hidden_size * config.text.num_hidden_layers
    return tokens * width * work.compute_bytes * _TEXT_TRAFFIC / layout.size


def _reductions(width: int, layers: int, tokens: float, work: Work, layout: Layout) -> float:
    """Bytes of activations that `tensor` sums in a forward pass, as if gathered."""
    groups = layout.mesh["data"] * layout.mesh["fsdp"]
    return 2 * 2 * layers * width * work.compute_bytes * tokens / groups


def _text_reductions(config: ModelConfig, tokens: float, work: Work, layout: Layout) -> float:
    text = config.text
    return _reductions(text.hidden_size, text.num_hidden_layers, tokens, work, layout)


def _vision_reductions(config: ModelConfig, work: Work, layout: Layout) -> float:
    vision, patches = config.vision, float(work.rows.patches.sum())
    return _reductions(vision.hidden_size, vision.depth, patches, work, layout)


def _prompt_tokens(work: Work) -> float:
    return float(work.rows.prompt_tokens.sum())


def _completion_tokens(work: Work) -> float:
    return float(work.rows.completion_tokens.sum())


def _vision(config: ModelConfig, sizes: _Sizes, work: Work, layout: Layout, flop: float) -> Phase:
    weights = _held(sizes.vision, work, layout)
    times = 3 if work.method == "sft" and not work.freeze_vision else 1
    traffic = _Traffic(layout)
    traffic.gather("fsdp", times * weights)
    traffic.gather("tensor", times * _vision_reductions(config, work, layout))
    memory = times * (weights + _vision_traffic(config, work, layout))
    return traffic.phase("vision", flop / layout.size, memory)


def _prefill(config: ModelConfig, sizes: _Sizes, work: Work, layout: Layout, flop: float) -> Phase:
    weights, tokens = _held(sizes.text, work, layout), _prompt_tokens(work)
    # The weights gathered here serve decoding too, where `rl.gather_weights` keeps them.
    traffic = _Traffic(layout).gather("fsdp", weights)
    traffic.gather("tensor", _text_reductions(config, tokens, work, layout))
    memory = weights + _text_traffic(config, tokens, work, layout)
    return traffic.phase("prefill", flop / layout.size, memory)


def _decode(config: ModelConfig, sizes: _Sizes, work: Work, layout: Layout, flop: float) -> Phase:
    text, rows = config.text, work.rows
    steps, own = float(rows.completion_tokens.max()), _completion_tokens(work)
    weights = _held(sizes.text, work, layout)
    kv_token = text.num_hidden_layers * 2 * text.num_key_value_heads * text.head_dim
    # Half of its own tokens are there on average; the prompt's are read once for the group.
    kv = (_prompt_tokens(work) + own / 2) * kv_token * work.compute_bytes
    logits = rows.completion_tokens.size * text.vocab_size * 4 * 2
    traffic = _Traffic(layout)
    if not work.gather_weights:
        traffic.gather("fsdp", steps * weights)
    traffic.gather("tensor", _text_reductions(config, own, work, layout))
    memory = steps * (weights + (kv + logits) / layout.size)
    return traffic.phase("decode", flop / layout.size, memory)


def _reference(
    config: ModelConfig, sizes: _Sizes, work: Work, layout: Layout, flop: float
) -> Phase:
    """The reference's pass, and the old policy's where a rollout is used more than once."""
    passes = work.reference + (work.num_updates > 1)
    tokens = _prompt_tokens(work) + _completion_tokens(work)
    weights = passes * _held(sizes.text, work, layout)
    memory = weights + passes * _text_traffic(config, tokens, work, layout)
    traffic = _Traffic(layout).gather("fsdp", weights)
    traffic.gather("tensor", passes * _text_reductions(config, tokens, work, layout))
    if work.reference and not work.freeze_vision:
        tower = _held(sizes.vision, work, layout)
        memory += tower + _vision_traffic(config, work, layout)
        traffic.gather("fsdp", tower)
        traffic.gather("tensor", _vision_reductions(config, work, layout))
    return traffic.phase("reference", flop / layout.size, memory)


def _update(config: ModelConfig, sizes: _Sizes, work: Work, layout: Layout, flop: float) -> Phase:
    """Forward and backward of all updates; `flop` holds no recomputation."""
    with_tower = work.method == "grpo" and not work.freeze_vision
    read = sizes.text + (sizes.vision if with_tower else 0)
    weights, parts = _held(read, work, layout), work.micro_batches
    tokens = _prompt_tokens(work) + _completion_tokens(work)
    passes = 4 if work.remat else 3
    activations = _text_traffic(config, tokens, work, layout)
    reductions = _text_reductions(config, tokens, work, layout)
    if with_tower:
        activations += _vision_traffic(config, work, layout)
        reductions += _vision_reductions(config, work, layout)
    trained = _trained(sizes, work) / (layout.mesh["fsdp"] * layout.mesh["tensor"])
    memory = passes * parts * weights + 3 * activations + (parts - 1) * trained * 8
    gathers = (2 if work.remat else 1) + 1  # and the gradients' scatter
    traffic = _Traffic(layout).gather("fsdp", gathers * parts * weights)
    # Forward, backward and recomputation each sum as often.
    traffic.gather("tensor", (passes - 1) * reductions)
    traffic.gather("data", 2 * trained * work.compute_bytes)
    summed = Phase("update", flop / layout.size * passes / 3, memory * work.num_updates)
    return dataclasses.replace(
        summed,
        link_bytes=traffic.link * work.num_updates,
        network_bytes=traffic.network * work.num_updates,
    )


def _optimizer(sizes: _Sizes, work: Work, layout: Layout) -> Phase:
    held = _trained(sizes, work) / (layout.mesh["fsdp"] * layout.mesh["tensor"])
    held *= work.num_updates
    return Phase("optimizer", held * _OPTIMIZER_FLOPS, held * _OPTIMIZER_BYTES)


def _trained(sizes: _Sizes, work: Work) -> int:
    return sizes.total - (sizes.vision if work.freeze_vision else 0)


def work_of(config: Any, rows: flops.Rows) -> Work:
    """What the run's configuration makes of the rows of a step."""
    grpo = config.method == "grpo"
    prompts = config.rl.prompts_per_step if grpo else config.sft.batch_size
    micro = config.rl.micro_batch_prompts if grpo else config.sft.micro_batch
    return Work(
        method=config.method,
        rows=rows,
        micro_batches=prompts // micro if micro else 1,
        compute_bytes=2 if config.model.compute_dtype == "bfloat16" else 4,
        freeze_vision=config.model.freeze_vision,
        reference=grpo and config.rl.kl_weight > 0,
        num_updates=config.rl.num_updates if grpo else 1,
        remat=config.model.remat == "layer",
        gather_weights=config.rl.gather_weights,
    )
