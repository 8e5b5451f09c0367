# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What it costs to bring a Hugging Face folder onto a mesh: our reader beside orbax's.

    python benchmarks/convert_memory.py --size=3b --folder=/tmp/convert_memory --keep
    python benchmarks/load_parameters.py --source=/tmp/convert_memory/hf --reader=ours --devices=8

One measurement a process, because peak memory is a process's. Orbax's `SafetensorsLayout` gives the
published tensors, each with its sharding; they are then stacked and transposed on the devices, as
our model wants them.
"""

import argparse
import os
import resource
import time
from typing import Any


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="a Hugging Face folder")
    parser.add_argument("--reader", choices=("ours", "orbax"), default="ours")
    parser.add_argument("--devices", type=int, default=8, help="pretended CPU devices, along fsdp")
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args.devices}"
    os.environ["JAX_PLATFORMS"] = "cpu"

    import jax
    import jax.numpy as jnp

    from medloc_jax import sharding
    from medloc_jax.convert import hf_folder, parameters
    from medloc_jax.model import qwen2_5_vl

    config = hf_folder.read_config(args.source)
    model = qwen2_5_vl.Model(config)
    mesh = sharding.make_mesh(data=1, fsdp=args.devices, tensor=1)
    shapes = model.abstract_params()
    layout = sharding.of_params(mesh, shapes, model.logical_axes())
    like = jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, jnp.dtype(args.dtype), sharding=where),
        shapes,
        layout,
    )
    before, start = _peak_gib(), time.monotonic()
    if args.reader == "ours":
        params = parameters.load(args.source, config, like)
    else:
        params = _by_orbax(args.source, config, mesh, like)
    jax.block_until_ready(params)
    seconds = time.monotonic() - start
    own = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 2**30
    print(
        f"{args.reader}, {args.devices} devices, {args.dtype}: {seconds:.1f} s, parameters "
        f"{own:.2f} GiB, {_peak_gib() - before - own:.2f} GiB above them"
    )


def _by_orbax(source: str, config: Any, mesh: Any, like: Any) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    import orbax.checkpoint.experimental.v1 as ocp
    from jax.sharding import NamedSharding, PartitionSpec

    from medloc_jax.convert import hf_folder, mapping

    tensors = hf_folder.open_folder(source, config)
    wanted, published = mapping.flatten(like), {}
    for row in mapping.rows(config):
        stacked = row.num_layers(config) is not None
        axes = tuple(wanted[row.path].sharding.spec)[1 if stacked else 0 :]
        if row.transform is not mapping.KEEP:  # columns and rows change places
            axes = (axes[1], axes[0] if len(row.hf_sizes) == 2 else None)
        where = NamedSharding(mesh, PartitionSpec(*axes))
        for _, name in mapping.places(row, config):
            tensor = tensors[name]
            published[tensor.name] = jax.ShapeDtypeStruct(
                tensor.shape, tensor.dtype, sharding=where
            )
    with ocp.Context(checkpoint_layout=ocp.options.CheckpointLayout.SAFETENSORS):
        loaded = ocp.load(source, published)
    params = {}
    for row in mapping.rows(config):
        parts = [loaded.pop(tensors[name].name) for _, name in mapping.places(row, config)]
        leaf = wanted[row.path]
        keep, stacked = row.transform is mapping.KEEP, row.num_layers(config) is not None

        def join(parts: list[Any], keep=keep, stacked=stacked, dtype=leaf.dtype) -> Any:
            ours = [x if keep else x.reshape(x.shape[0], -1).T for x in parts]
            return (jnp.stack(ours) if stacked else ours[0]).astype(dtype)

        params[row.path] = jax.jit(join, out_shardings=leaf.sharding)(parts)
        del parts
    return params


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


if __name__ == "__main__":
    main()
