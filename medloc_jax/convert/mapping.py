# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The one table between Hugging Face's Qwen2.5-VL tensor names and our parameter paths.

A row of `ROWS` gives a published name, our path and a transform that knows both directions. In a
name, `{layer}` stands for the layer number; our tensor of that row holds all layers, stacked on
its leading axis. Everything else here walks the table one tensor at a time, so that a converter
that streams from disk needs no other source of names, shapes or transforms.

Published checkpoints say `visual.*`, `model.*` (the language model) and `lm_head.weight`;
transformers says `model.visual.*` and `model.language_model.*` in memory and in what newer
versions save. Both are read; the published names are written.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from medloc_jax.model import config as model_config

Shape = tuple[int, ...]

_STRIPE = 16  # columns of a transposed copy

# In-memory prefix -> published prefix. The first that matches is used, once.
_PREFIXES = (("model.visual.", "visual."), ("model.language_model.", "model."))
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Transform:
    """What happens to one tensor (of one layer) between the two layouts.

    Attributes:
        name: for messages.
        to_ours: Hugging Face's array -> ours. A view where numpy allows one.
        to_hf: the inverse, given the shape that Hugging Face wants.
        rows_axis: the axis of ours along which Hugging Face's rows (axis 0) lie. A block of rows
            transforms like the whole, so that both directions can go block by block.
    """

    name: str
    to_ours: Callable[[np.ndarray], np.ndarray]
    to_hf: Callable[[np.ndarray, Shape], np.ndarray]
    rows_axis: int


KEEP = Transform("keep", lambda x: x, lambda x, shape: x, rows_axis=0)
# torch's Linear stores [out, in]; a kernel is [in, out].
TRANSPOSE = Transform("transpose", lambda x: x.T, lambda x, shape: x.T, rows_axis=1)
# The patch convolution has stride = kernel, so it is a matrix on flattened (channel, time, row,
# column) patches, which is the order of `pixel_values`.
FLATTEN_CONV = Transform(
    "flatten_conv",
    lambda x: x.reshape(x.shape[0], -1).T,
    lambda x, shape: x.T.reshape(shape),
    rows_axis=1,
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        hf_name: published name, `{layer}` for the layer number.
        path: our path, dotted.
        transform: between the two.
        hf_sizes: shape of the published tensor (of one layer), in the symbols of `_sizes`.
    """

    hf_name: str
    path: str
    transform: Transform
    hf_sizes: tuple[str, ...]

    def num_layers(self, config: model_config.ModelConfig) -> int | None:
        """How many layers are stacked in our tensor; None when it is not stacked."""
        if "{layer}" not in self.hf_name:
            return None
        in_vision = self.path.startswith("visual.")
        return config.vision.depth if in_vision else config.text.num_hidden_layers

    def pattern(self) -> re.Pattern[str]:
        """Matches the published names of this row; group `layer` is the layer number."""
        # No leading zeros: `layers.01.` would be a second name of layer 1.
        number = r"(?P<layer>0|[1-9][0-9]*)"
        return re.compile(re.escape(self.hf_name).replace(r"\{layer\}", number))

    def hf_shape(self, config: model_config.ModelConfig) -> Shape:
        """Shape of the published tensor (of one layer)."""
        sizes = _sizes(config)
        return tuple(sizes[symbol] for symbol in self.hf_sizes)

    def our_shape(self, config: model_config.ModelConfig) -> Shape:
        """Shape of our tensor, the stacked axis included."""
        shape = self.hf_shape(config)
        if self.transform is TRANSPOSE:
            shape = shape[::-1]
        elif self.transform is FLATTEN_CONV:
            shape = (math.prod(shape[1:]), shape[0])
        layers = self.num_layers(config)
        return shape if layers is None else (layers, *shape)


def _sizes(config: model_config.ModelConfig) -> dict[str, int]:
    """What the symbols of the table's shapes stand for. A leading `v` is the vision tower's."""
    text, vision = config.text, config.vision
    return {
        "vd": vision.hidden_size,
        "vqkv": 3 * vision.hidden_size,
        "vf": vision.intermediate_size,
        "vm": vision.hidden_size * vision.merge_unit,
        "vout": vision.out_hidden_size,
        "channels": vision.in_channels,
        "time": vision.temporal_patch_size,
        "patch": vision.patch_size,
        "d": text.hidden_size,
        "q": text.num_attention_heads * text.head_dim,
        "kv": text.num_key_value_heads * text.head_dim,
        "f": text.intermediate_size,
        "v": text.vocab_size,
    }


_VB, _OURS_VB = "visual.blocks.{layer}", "visual.blocks"
_LL, _OURS_LL = "model.layers.{layer}", "language_model.layers"

# fmt: off
ROWS: tuple[Row, ...] = (
    Row("visual.patch_embed.proj.weight", "visual.patch_embed.proj.kernel", FLATTEN_CONV,
        ("vd", "channels", "time", "patch", "patch")),
    Row(f"{_VB}.norm1.weight", f"{_OURS_VB}.norm1.scale", KEEP, ("vd",)),
    Row(f"{_VB}.norm2.weight", f"{_OURS_VB}.norm2.scale", KEEP, ("vd",)),
    Row(f"{_VB}.attn.qkv.weight", f"{_OURS_VB}.attn.qkv.kernel", TRANSPOSE, ("vqkv", "vd")),
    Row(f"{_VB}.attn.qkv.bias", f"{_OURS_VB}.attn.qkv.bias", KEEP, ("vqkv",)),
    Row(f"{_VB}.attn.proj.weight", f"{_OURS_VB}.attn.proj.kernel", TRANSPOSE, ("vd", "vd")),
    Row(f"{_VB}.attn.proj.bias", f"{_OURS_VB}.attn.proj.bias", KEEP, ("vd",)),
    Row(f"{_VB}.mlp.gate_proj.weight", f"{_OURS_VB}.mlp.gate_proj.kernel", TRANSPOSE, ("vf", "vd")),
    Row(f"{_VB}.mlp.gate_proj.bias", f"{_OURS_VB}.mlp.gate_proj.bias", KEEP, ("vf",)),
    Row(f"{_VB}.mlp.up_proj.weight", f"{_OURS_VB}.mlp.up_proj.kernel", TRANSPOSE, ("vf", "vd")),
    Row(f"{_VB}.mlp.up_proj.bias", f"{_OURS_VB}.mlp.up_proj.bias", KEEP, ("vf",)),
    Row(f"{_VB}.mlp.down_proj.weight", f"{_OURS_VB}.mlp.down_proj.kernel", TRANSPOSE, ("vd", "vf")),
    Row(f"{_VB}.mlp.down_proj.bias", f"{_OURS_VB}.mlp.down_proj.bias", KEEP, ("vd",)),
    Row("visual.merger.ln_q.weight", "visual.merger.ln_q.scale", KEEP, ("vd",)),
    Row("visual.merger.mlp.0.weight", "visual.merger.mlp_0.kernel", TRANSPOSE, ("vm", "vm")),
    Row("visual.merger.mlp.0.bias", "visual.merger.mlp_0.bias", KEEP, ("vm",)),
    Row("visual.merger.mlp.2.weight", "visual.merger.mlp_2.kernel", TRANSPOSE, ("vout", "vm")),
    Row("visual.merger.mlp.2.bias", "visual.merger.mlp_2.bias", KEEP, ("vout",)),
    Row(EMBEDDING, "language_model.embed_tokens.embedding", KEEP, ("v", "d")),
    Row(f"{_LL}.input_layernorm.weight", f"{_OURS_LL}.input_layernorm.scale", KEEP, ("d",)),
    Row(f"{_LL}.self_attn.q_proj.weight", f"{_OURS_LL}.self_attn.q_proj.kernel", TRANSPOSE,
        ("q", "d")),
    Row(f"{_LL}.self_attn.q_proj.bias", f"{_OURS_LL}.self_attn.q_proj.bias", KEEP, ("q",)),
    Row(f"{_LL}.self_attn.k_proj.weight", f"{_OURS_LL}.self_attn.k_proj.kernel", TRANSPOSE,
        ("kv", "d")),
    Row(f"{_LL}.self_attn.k_proj.bias", f"{_OURS_LL}.self_attn.k_proj.bias", KEEP, ("kv",)),
    Row(f"{_LL}.self_attn.v_proj.weight", f"{_OURS_LL}.self_attn.v_proj.kernel", TRANSPOSE,
        ("kv", "d")),
    Row(f"{_LL}.self_attn.v_proj.bias", f"{_OURS_LL}.self_attn.v_proj.bias", KEEP, ("kv",)),
    Row(f"{_LL}.self_attn.o_proj.weight", f"{_OURS_LL}.self_attn.o_proj.kernel", TRANSPOSE,
        ("d", "q")),
    Row(f"{_LL}.post_attention_layernorm.weight", f"{_OURS_LL}.post_attention_layernorm.scale",
        KEEP, ("d",)),
    Row(f"{_LL}.mlp.gate_proj.weight", f"{_OURS_LL}.mlp.gate_proj.kernel", TRANSPOSE, ("f", "d")),
    Row(f"{_LL}.mlp.up_proj.weight", f"{_OURS_LL}.mlp.up_proj.kernel", TRANSPOSE, ("f", "d")),
    Row(f"{_LL}.mlp.down_proj.weight", f"{_OURS_LL}.mlp.down_proj.kernel", TRANSPOSE, ("d", "f")),
    Row("model.norm.weight", "language_model.norm.scale", KEEP, ("d",)),
    Row(HEAD, "lm_head.kernel", TRANSPOSE, ("v", "d")),
)
# fmt: on

_PATTERNS = tuple((row.pattern(), row) for row in ROWS)
_EMBEDDING_ROW = next(row for row in ROWS if row.hf_name == EMBEDDING)


def rows(config: model_config.ModelConfig) -> tuple[Row, ...]:
    """The rows that hold a tensor of this config: all, without the head when it is tied."""
    tied = config.text.tie_word_embeddings
    return tuple(row for row in ROWS if not (tied and row.hf_name == HEAD))


def expected_shapes(config: model_config.ModelConfig) -> dict[str, Shape]:
    """Our dotted paths and the shapes of their arrays, stacked axes included."""
    return {row.path: row.our_shape(config) for row in rows(config)}


def hf_shapes(config: model_config.ModelConfig) -> dict[str, Shape]:
    """The published names of a config's tensors, in table order, and their shapes."""
    shapes = {}
    for row in rows(config):
        for _, name in places(row, config):
            shapes[name] = row.hf_shape(config)
    return shapes


def places(row: Row, config: model_config.ModelConfig) -> tuple[tuple[int | None, str], ...]:
    """The layers of a row and the published names of their tensors; (None, name) if not stacked."""
    layers = row.num_layers(config)
    numbers = (None,) if layers is None else range(layers)
    return tuple((layer, row.hf_name.format(layer=layer)) for layer in numbers)


def published_name(hf_name: str) -> str:
    """The published form of a published or in-memory name."""
    for prefix, published in _PREFIXES:
        if hf_name.startswith(prefix):
            return published + hf_name.removeprefix(prefix)
    return hf_name


def check_tensors(
    tensors: Mapping[str, Any], config: model_config.ModelConfig, where: str = "the checkpoint"
) -> dict[str, str]:
    """Checks names, shapes and dtypes of a whole checkpoint, without looking at any value.

    Args:
        tensors: name, published or in-memory -> anything with a shape and a dtype.
        config: of the model.
        where: what they come from, for messages.

    Returns:
        Published name -> the name it came by, in table order. The head of a tied model is among
        them where it is given (last): the caller compares it with the embedding.

    Raises:
        ValueError: a key unknown, missing, or given twice (under two names); a wrong shape; layers
            of one stack with unequal dtypes.
    """
    given: dict[str, str] = {}
    dtypes: dict[str, tuple[np.dtype, str]] = {}
    for name, tensor in tensors.items():
        row, layer = _find(name, config)
        published = row.hf_name.format(layer=layer)
        if published in given:
            raise ValueError(
                f"tensor {published} is set twice, by {given[published]!r} and by {name!r}: keep "
                "one"
            )
        given[published] = name
        if tuple(tensor.shape) != row.hf_shape(config):
            raise ValueError(
                f"tensor {name} has shape {tuple(tensor.shape)}, the config asks for "
                f"{row.hf_shape(config)}: use the config that the checkpoint was saved with"
            )
        # A tied head counts as the embedding, with which it will be compared.
        path = target_of(name, config)[0]
        dtype, first = dtypes.setdefault(path, (np.dtype(tensor.dtype), name))
        if tensor.dtype != dtype:
            raise ValueError(
                f"tensor {name} is {tensor.dtype}, but {first} is {dtype}: save them in one dtype"
            )
    wanted = hf_shapes(config)
    missing = [name for name in wanted if name not in given]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"tensor {', '.join(missing[:3])}{more} missing in {where}: complete it, or use the "
            "config that it was saved with"
        )
    order = [*wanted, *(name for name in given if name not in wanted)]
    return {name: given[name] for name in order}


def target_of(hf_name: str, config: model_config.ModelConfig) -> tuple[str, int | None, Transform]:
    """Where a Hugging Face tensor goes.

    A tied `lm_head.weight` is a second name of the embedding: it goes to the embedding's path, and
    the caller compares instead of writing.

    Args:
        hf_name: published or in-memory name.
        config: of the model.

    Returns:
        Our dotted path, the layer in its stacked array (None: not stacked), and the transform.

    Raises:
        ValueError: a name that is not in the table, or a layer that the config does not have.
    """
    row, layer = _find(hf_name, config)
    if row.hf_name == HEAD and config.text.tie_word_embeddings:
        row = _EMBEDDING_ROW
    return row.path, layer, row.transform


def from_hf(
    tensors: Mapping[str, Shaped[np.ndarray, "..."]], config: model_config.ModelConfig
) -> dict[str, Any]:
    """Our nested parameters from Hugging Face's tensors, all in memory; strict.

    Args:
        tensors: name -> array, names published or in-memory. Any dtype (bfloat16 by `ml_dtypes`).
        config: of the model.

    Returns:
        Nested dict of numpy arrays, dtypes kept, layers stacked on a leading axis. Nothing in it
        shares memory with `tensors`.

    Raises:
        ValueError: as `check_tensors`; a tied head that differs from the embedding.
    """
    given = check_tensors(tensors, config)
    flat: dict[str, np.ndarray] = {}
    for row in rows(config):
        for layer, name in places(row, config):
            array = tensors[given[name]]
            if row.path not in flat:
                flat[row.path] = np.empty(row.our_shape(config), array.dtype)
            flat[row.path][... if layer is None else layer] = row.transform.to_ours(array)
    if config.text.tie_word_embeddings and HEAD in given:
        head, embedding = tensors[given[HEAD]], flat[_EMBEDDING_ROW.path]
        if not np.array_equal(head, embedding):
            raise ValueError(tied_head_differs(given[HEAD]))
    return nest(flat)


def tied_head_differs(name: str) -> str:
    """What to tell who gives a head that differs from the embedding it is tied to."""
    return (
        f"tensor {name} differs from the embedding, but the config ties them: set "
        "tie_word_embeddings to false, or remove it"
    )


def iter_hf(
    params: Mapping[str, Any], config: model_config.ModelConfig
) -> Iterator[tuple[str, Shaped[np.ndarray, "..."]]]:
    """Published names and contiguous arrays, one tensor at a time, in table order.

    Args:
        params: nested parameters (numpy or jax arrays), as `from_hf` gives them.
        config: of the model.

    Raises:
        ValueError: a path unknown or missing, or a wrong shape; before the first tensor is given.
    """
    flat = flatten(params)
    shapes = expected_shapes(config)
    for path in flat.keys() - shapes.keys():
        raise ValueError(f"parameter {path} has no Hugging Face name: remove it, or add its row")
    for path, shape in shapes.items():
        if path not in flat:
            raise ValueError(f"parameter {path} missing: the config asks for shape {shape}")
        if tuple(flat[path].shape) != shape:
            raise ValueError(
                f"parameter {path} has shape {tuple(flat[path].shape)}, the config asks for {shape}"
            )
    for row in rows(config):
        for layer, name in places(row, config):
            ours = flat[row.path] if layer is None else flat[row.path][layer]
            array = row.transform.to_hf(np.asarray(ours), row.hf_shape(config))
            yield name, np.ascontiguousarray(array)


def to_hf(
    params: Mapping[str, Any], config: model_config.ModelConfig
) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Published names and arrays: the exact inverse of `from_hf`. A tied head is left out.

    Raises:
        ValueError: as `iter_hf`.
    """
    return dict(iter_hf(params, config))


def copy_into(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source`, three to five times as fast where the source is a transposed view.

    In narrow stripes along the last axis, the cache lines that one row of the source shares with
    the next are still there; dtypes are converted while a stripe is in the order it was read in.
    """
    if source.ndim < 2 or source.strides[-1] == source.itemsize:
        target[...] = source
        return
    for start in range(0, source.shape[-1], _STRIPE):
        stripe = source[..., start : start + _STRIPE]
        target[..., start : start + _STRIPE] = stripe.astype(target.dtype, order="K", copy=False)


def check_range(values: np.ndarray, dtype: np.dtype, name: str) -> None:
    """Refuses to turn numbers into infinities.

    Raises:
        ValueError: float16 is asked for, and the tensor has values beyond it.
    """
    if dtype != np.float16 or values.dtype == np.float16:
        return
    largest = float(np.abs(values).max())
    if np.isfinite(largest) and largest > float(np.finfo(np.float16).max):
        raise ValueError(
            f"tensor {name} has a value of {largest:.3g}, which float16 cannot hold: use bfloat16"
        )


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dict -> {dotted path: leaf}."""
    flat: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{path}": leaf for path, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted path: leaf} -> nested dict."""
    params: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split(".")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return params


def _find(hf_name: str, config: model_config.ModelConfig) -> tuple[Row, int | None]:
    published = published_name(hf_name)
    for pattern, row in _PATTERNS:
        match = pattern.fullmatch(published)
        if match is None:
            continue
        layers = row.num_layers(config)
        if layers is None:
            return row, None
        layer = int(match["layer"])
        if layer >= layers:
            raise ValueError(
                f"tensor {hf_name} is of layer {layer}, but the config has {layers}: "
                "use the config that the checkpoint was saved with"
            )
        return row, layer
    raise ValueError(f"tensor {hf_name} is no Qwen2.5-VL tensor: remove it from the checkpoint")
