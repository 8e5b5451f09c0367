# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders with random weights, written by the safetensors library and not by ours."""

import dataclasses
import json

import numpy as np
import safetensors.numpy

from medloc_jax.convert import mapping
from medloc_jax.model import config as model_config

TINY = model_config.PRESETS["tiny"]
UNTIED = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, tie_word_embeddings=False))
# Two layers each, so that a test that touches every tensor is quick.
SMALL = dataclasses.replace(
    UNTIED,
    text=dataclasses.replace(UNTIED.text, num_hidden_layers=2),
    vision=dataclasses.replace(UNTIED.vision, depth=2, fullatt_block_indexes=(1,)),
)


def tensors(config, dtype=np.float32):
    """Random tensors under published names, no two of them equal."""
    rng = np.random.default_rng(0)
    shapes = mapping.hf_shapes(config)
    return {
        name: (rng.standard_normal(shape, np.float32) * 0.3).astype(dtype)
        for name, shape in shapes.items()
    }


def in_memory_name(name):
    """The name that newer versions of transformers save."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1)


def write(folder, config, weights=None, *, shards=1, content=None):
    """Writes a folder; returns its weights."""
    weights = tensors(config) if weights is None else weights
    folder.mkdir(parents=True, exist_ok=True)
    settings = model_config.to_hf(config) if content is None else content
    (folder / "config.json").write_text(json.dumps(settings))
    names = list(weights)
    if shards == 1:
        safetensors.numpy.save_file(weights, str(folder / "model.safetensors"))
        return weights
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: weights[name] for name in names[i::shards]}
        safetensors.numpy.save_file(part, str(folder / file))
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return weights


def read(folder):
    """All tensors of a folder, by the safetensors library."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= safetensors.numpy.load_file(str(file))
    return found
