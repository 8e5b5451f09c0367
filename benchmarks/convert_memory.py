# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a conversion costs: peak memory and seconds, both ways, on random weights.

    python benchmarks/convert_memory.py --size=3b --folder=/tmp/convert_memory

Draws a Hugging Face checkpoint of that size layer by layer, converts it to orbax and back (each by
the command line, in a process of its own), and compares every tensor by its hash. Needs three times
the checkpoint's size on the disk; the folder is removed at the end unless `--keep`.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from medloc_jax.convert import hf_folder, hf_writer, mapping
from medloc_jax.model import config as model_config

THREE_B = model_config.PRESETS["3b"]
# 200 million parameters in the 3B's proportions.
SIZES = model_config.PRESETS | {
    "200m": dataclasses.replace(
        THREE_B,
        text=dataclasses.replace(
            THREE_B.text,
            vocab_size=151936,
            hidden_size=512,
            intermediate_size=2752,
            num_hidden_layers=16,
            num_attention_heads=8,
            num_key_value_heads=2,
            mrope_section=(8, 12, 12),
        ),
        vision=dataclasses.replace(
            THREE_B.vision,
            depth=8,
            hidden_size=640,
            intermediate_size=1712,
            num_heads=8,
            fullatt_block_indexes=(1, 3, 5, 7),
            out_hidden_size=512,
        ),
    )
}


def generate(folder: Path, config: model_config.ModelConfig, dtype: str, shard_bytes: int) -> None:
    """Draws a checkpoint, a block of rows at a time: as many weights as bytes, no two alike."""
    folder.mkdir(parents=True)
    content = model_config.to_hf(config) | {"torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(content, indent=2))
    kind = hf_folder.DTYPES[dtype]
    specs = {name: (shape, kind) for name, shape in mapping.hf_shapes(config).items()}
    writer = hf_writer.Writer(folder, specs, shard_bytes)
    rng = np.random.default_rng(0)
    for name, tensor in writer.tensors.items():
        scale = 1.0 if len(tensor.shape) == 1 else math.prod(tensor.shape[1:]) ** -0.5
        for start, stop in tensor.blocks():
            part = rng.standard_normal((stop - start, *tensor.shape[1:]), np.float32) * scale
            writer.write(name, start, part.astype(kind))
    writer.finish()


def hashes(folder: Path, config: model_config.ModelConfig) -> dict[str, str]:
    """The hash of every tensor of a folder."""
    found = {}
    for name, tensor in hf_folder.open_folder(folder, config).items():
        digest = hashlib.blake2b(str((tensor.dtype, tensor.shape)).encode())
        for start, stop in tensor.blocks():
            digest.update(tensor.read(start, stop).view(np.uint8).data)
        found[name] = digest.hexdigest()
    return found


def convert(source: Path, target: Path, *more: str) -> None:
    """Runs the command and prints what it cost."""
    command = ["-m", "medloc_jax", "convert", f"--source={source}", f"--target={target}", *more]
    print("$ python", *command, flush=True)
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, *command])
    _, status, used = os.wait4(process.pid, 0)
    seconds, peak = time.monotonic() - start, used.ru_maxrss / 2**20  # Linux counts in KiB
    if status:
        sys.exit(f"the conversion failed with status {status}")
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"  {seconds:.1f} s, peak memory {peak:.2f} GiB, {size / 1e9:.2f} GB written", flush=True)


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="200m")
    parser.add_argument("--dtype", choices=hf_folder.DTYPES, default="BF16")
    parser.add_argument("--folder", type=Path, required=True, help="new")
    parser.add_argument("--shard_size", default="5GB")
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    config = SIZES[args.size]
    original, orbax, back = (args.folder / name for name in ("hf", "orbax", "back"))
    generate(original, config, args.dtype, hf_writer.parse_size(args.shard_size))
    tensors = hf_folder.open_folder(original, config)
    print(
        f"{args.size}: {model_config.num_parameters(config):,} parameters, "
        f"{sum(t.nbytes for t in tensors.values()) / 1e9:.2f} GB, largest tensor "
        f"{max(t.nbytes for t in tensors.values()) / 2**30:.2f} GiB"
    )
    convert(original, orbax)
    convert(orbax, back, f"--max_shard_size={args.shard_size}")
    same = hashes(original, config) == hashes(back, config)
    print(f"every one of {len(tensors)} tensors is bit-identical: {same}")
    if not args.keep:
        shutil.rmtree(args.folder)
    sys.exit(not same)


if __name__ == "__main__":
    main()
