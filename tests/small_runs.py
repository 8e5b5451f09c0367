# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A model smaller than tiny, prompts for it, and runs that take seconds: what many tests share."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import cpu_flags
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image

from medloc_jax import sharding
from medloc_jax.cli import job as jobs
from medloc_jax.model import config, geometry, qwen2_5_vl

ROOT = Path(__file__).resolve().parents[1]
_TINY = config.preset("tiny")

# Everything the architecture has, once: window and full attention, shared key/value heads, stacks.
SIZES = dataclasses.replace(
    _TINY,
    text=dataclasses.replace(
        _TINY.text,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        mrope_section=(2, 1, 1),
        tie_word_embeddings=False,  # a tied head of random weights repeats the last token
    ),
    vision=dataclasses.replace(
        _TINY.vision,
        depth=2,
        hidden_size=32,
        intermediate_size=64,
        num_heads=2,
        fullatt_block_indexes=(1,),
        out_hidden_size=32,
    ),
)
MODEL = qwen2_5_vl.Model(SIZES)


def params(model=MODEL, seed=0):
    """Weights on the host (drawing them with JAX compiles for seconds); peaked distributions."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        scaled = {
            "kernel": lambda: noise / np.sqrt(leaf.shape[-2]),
            "embedding": lambda: 0.5 * noise,
            "bias": lambda: 0.1 * noise,
            "scale": lambda: 1 + 0.1 * noise,
        }
        gain = 3 if path[0].key == "lm_head" else 1
        return (gain * scaled[path[-1].key]()).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, model.abstract_params())


def prompts(seed=0):
    """(ids, images) of unequal lengths: one image; two images in one row; no image."""
    rng = np.random.default_rng(seed)
    rows = []
    for grids, length in [([(1, 4, 6)], 16), ([(1, 2, 4), (1, 4, 4)], 21), ([], 7)]:
        ids, images = [5], []
        for grid in grids:
            _, height, width = grid
            patches = rng.normal(size=(height * width, SIZES.vision.patch_dim))
            images.append((patches.astype(np.float32), grid))
            ids += [SIZES.vision_start_token_id]
            ids += [SIZES.image_token_id] * geometry.merged_tokens(grid, SIZES.vision)
            ids += [SIZES.vision_end_token_id]
        rows.append((ids + rng.integers(0, 256, length - len(ids)).tolist(), images))
    return rows


def collate(rows, bucket=None):
    """Rows of `prompts` as one batch on the default device."""
    packed = [geometry.pack_row(ids, images, SIZES) for ids, images in rows]
    if bucket is None:
        (bucket,) = geometry.plan_buckets([row.shape for row in packed], 1)
    return jax.tree.map(jnp.asarray, geometry.collate(packed, bucket, SIZES))


def write_preset(folder):
    """Writes SIZES as a folder that `--config.model.preset` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_hf(SIZES)))
    return folder


def write_manifest(folder, sizes, split="train"):
    """Noise pictures of these (width, height); returns the manifest's path."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    records = []
    for index, (width, height) in enumerate(sizes):
        pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        records.append(
            {
                "id": f"noise-{index}",
                "image": f"{index}.png",
                "width": width,
                "height": height,
                "query": "lesion",
                "boxes_px": [[width / 4, height / 4, width / 2, height / 2]],
                "label": None,
                "split": split,
                "group": None,
                "source": "noise",
            }
        )
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# A run of a few seconds. The threshold starts where any answer hits and every second step may
# tighten it, so that the curriculum has a state that moves.
OVERRIDES = {
    "num_steps": 8,
    "data.synthetic.num_train": 20,
    "data.synthetic.num_test": 8,
    "data.val_fraction": 0.4,
    "data.min_pixels": 1024,
    "data.max_pixels": 4096,
    "data.max_buckets": 1,
    "rl.prompts_per_step": 8,
    "rl.group_size": 2,
    "rl.max_completion_tokens": 4,
    "rl.kl_weight": 0.04,
    "rewards.weights.format": 1.0,
    "rl.skip_no_signal": False,
    "sft.batch_size": 8,
    "optim.learning_rate": 1e-3,
    "optim.warmup_steps": 2,
    "curriculum.threshold_start": 0.0,
    "curriculum.regimes": "((1.01,0.0,1.0),)",
    "curriculum.criteria": "('reward',)",
    "curriculum.window": 3,
    "curriculum.min_fill": 2,
    "curriculum.step_sizes": "(0.1,0.1,0.1)",
    "eval.every": 4,
    "eval.num_examples": 4,
    "eval.batch_size": 8,
    "eval.final_split": "",
    "checkpoint.every": 2,
    "checkpoint.keep_last": 3,
    "log.rollouts_every": 1,
    "log.tensorboard": False,
}


# Three steps of SFT instead.
SFT = {
    "method": "sft",
    "num_steps": 3,
    "model__freeze_vision": False,
    "model__remat": "none",  # compiles faster
    "rl__max_completion_tokens": 16,
    "checkpoint__every": 2,
    "optim__total_steps": 6,
}


def arguments(verb, workdir, preset, /, **changes):
    """The command line of a run; `a__b=c` overrides config field a.b."""
    values = OVERRIDES | {name.replace("__", "."): value for name, value in changes.items()}
    return [
        verb,
        "--config=configs/demo.py",
        f"--workdir={workdir}",
        f"--config.model.preset={preset}",
        *(f"--config.{name}={value}" for name, value in values.items()),
    ]


def one_device():
    """A mesh of one device, whatever there are."""
    grid = np.asarray(jax.devices()[:1]).reshape(1, 1, 1)
    return jax.sharding.Mesh(grid, sharding.MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)


def open_job(workdir, /, *, mesh=None, **changes):
    """The job of that command line in this process, on one device, with weights from `params`."""

    def define(values):
        flags.DEFINE_string("workdir", None, "", flag_values=values)

    preset = write_preset(workdir / "preset")
    verb, config_file, *rest = arguments("train", workdir, preset, **changes)
    config_file = config_file.replace("configs", str(ROOT / "configs"))
    given = jobs.parse([config_file, *rest], verb, define)
    opened = jobs.open_job(given.config, workdir)
    mesh = one_device() if mesh is None else mesh
    model = dataclasses.replace(opened.model, mesh=mesh)
    return dataclasses.replace(opened, mesh=mesh, model=model, initial=lambda: params(model))


def environment(num_devices=1):
    """Of a process that shares this one's compile cache and has so many devices."""
    return os.environ | {
        "XLA_FLAGS": cpu_flags.joined(num_devices),
        "PJRT_NPROC": cpu_flags.threads(num_devices),
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
    }


def start(argv, *, num_devices=1, launcher=(), python=None):
    """Starts `medloc` in a process of its own; `python` may say how Python finds it."""
    return subprocess.Popen(
        [*launcher, sys.executable, *(python or ["-m", "medloc_jax"]), *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(num_devices),
    )


def finish(process, timeout=240):
    """Waits; returns (exit code, stdout, stderr)."""
    try:
        out, error = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, error = process.communicate()
        raise AssertionError(f"still running after {timeout} s:\n{out}\n{error}") from None
    return process.returncode, out, error


def lines(path, *, without="speed/"):
    """The objects of a JSONL file, without what differs from run to run."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {name: value for name, value in record.items() if not name.startswith(without)}
        for record in records
    ]
