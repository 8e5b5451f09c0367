# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The mesh, the table, and one training step on eight devices against the same on one."""

from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
from jax.sharding import NamedSharding, PartitionSpec

from medloc_jax import sharding
from medloc_jax.rl import rollout
from medloc_jax.sampling import groups
from medloc_jax.training import grpo, optimizer, state

B, G, C = 8, 2, 5


@pytest.mark.parametrize(
    ("sizes", "want"),
    [((1, -1, 1), (1, 8, 1)), ((2, 2, 2), (2, 2, 2)), ((-1, 1, 4), (2, 1, 4)), ((8, 1, 1),) * 2],
)
def test_a_mesh_takes_all_devices_in_order(sizes, want):
    data, fsdp, tensor = sizes
    mesh = sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor)
    assert tuple(mesh.shape.values()) == want and tuple(mesh.shape) == sharding.MESH_AXES
    assert [device.id for device in mesh.devices.ravel()] == list(range(8))
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 3, 1), "data=1 x fsdp=3 x tensor=1 needs 3 devices, there are 8: set mesh.data"),
        ((1, -1, 3), "devices, there are 8"),
        ((16, -1, 1), "needs 16 devices, there are 8"),
        ((-1, -1, 1), "-1 at most once"),
        ((1, 0, 1), "give positive sizes"),
        ((1, -2, 1), "give positive sizes"),
    ],
)
def test_a_mesh_that_does_not_multiply_is_refused(sizes, message):
    data, fsdp, tensor = sizes
    with pytest.raises(ValueError, match=message) as error:
        sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor)
    assert "\n" not in str(error.value)


def test_a_batch_that_does_not_divide_is_refused_by_name():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    sharding.check_batch(mesh, 8, "rl.prompts_per_step")  # over 4 ways: tensor does not count
    for rows in (6, 0, -4):
        with pytest.raises(
            ValueError,
            match=f"rl.prompts_per_step={rows} does not divide .* positive multiple of 4",
        ):
            sharding.check_batch(mesh, rows, "rl.prompts_per_step")


def test_the_table_and_what_it_cannot_divide():
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    shapes = {"a": np.zeros((3, 8, 6)), "b": np.zeros((6, 5)), "c": np.zeros(4)}
    axes = {"a": ("layers", "embed", "mlp"), "b": ("embed", "vocab"), "c": (None,)}
    got = {name: leaf.spec for name, leaf in sharding.of_params(mesh, shapes, axes).items()}
    assert got == {
        "a": PartitionSpec(None, "fsdp", "tensor"),
        "b": PartitionSpec(None, None),  # 6 over 4, 5 over 2
        "c": PartitionSpec(None),
    }
    with pytest.raises(KeyError):
        sharding.of_params(mesh, {"a": np.zeros(3)}, {"a": ("no_such_axis",)})


def test_an_optimizer_state_lies_like_its_parameters():
    mesh = sharding.make_mesh(data=1, fsdp=8, tensor=1)
    params = {"x": {"kernel": jnp.zeros((8, 2))}, "y": {"kernel": jnp.zeros((8, 2))}}
    layout = {
        "x": {"kernel": NamedSharding(mesh, PartitionSpec("fsdp"))},
        "y": {"kernel": NamedSharding(mesh, PartitionSpec())},
    }
    chain = optimizer.make_optimizer(
        beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1, clip_norm=1.0
    )
    adam = optimizer.optax.tree_utils.tree_get_all_with_path
    planned = sharding.of_state(mesh, jax.eval_shape(chain.init, params), params, layout)
    for name in ("mu", "nu"):
        ((_, moment),) = adam(planned, name)
        assert moment == layout
    ((_, count),) = adam(planned, "count")
    assert count == sharding.replicated(mesh)


def test_rows_go_to_the_devices_and_come_back():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    rows = {"a": np.arange(24.0).reshape(8, 3), "b": np.arange(8)}
    split = sharding.shard_batch(mesh, rows)
    assert split["a"].sharding.spec == PartitionSpec(("data", "fsdp"))
    assert split["a"].addressable_shards[0].data.shape == (2, 3)
    for name, want in rows.items():
        np.testing.assert_array_equal(sharding.local_rows(split[name]), want)
    scalar = jax.device_put(np.float32(3), sharding.replicated(mesh))
    assert sharding.local_rows(scalar) == 3


# ---- one step on one device and on eight ----

MESHES = {
    "one": small_runs.one_device,
    "fsdp": lambda: sharding.make_mesh(data=1, fsdp=8, tensor=1),
    "tensor": lambda: sharding.make_mesh(data=1, fsdp=4, tensor=2),
}
CHAIN = optimizer.make_optimizer(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=1.0)


def _host_batch():
    rows = [row for seed in range(3) for row in small_runs.prompts(seed)][:B]
    return jax.tree.map(np.asarray, small_runs.collate(rows))


def _one_step(job):
    """A step of encoding, sampling and updating, laid out as training does it, not yet compiled."""
    mesh, model = job.mesh, job.model
    placement = state.place(model, mesh, CHAIN, freeze_vision=True, frozen_dtype="float32")
    run, frozen = state.start(small_runs.params(), placement, CHAIN)
    layout = state.shardings(state.TrainState(placement.trainable, placement.opt_state))
    special = tuple(range(330, 352))
    rules = groups.SamplingRules(G, C, stop_ids=(330,), forbidden_ids=special, pad_id=330)
    update = grpo.make_update(job, CHAIN, "hit")
    over_batch, everywhere = sharding.over_batch(mesh), sharding.replicated(mesh)

    def step(run, frozen, inputs, raw, key, hyper):
        params = state.merge(run.trainable, frozen)
        features = model.encode_images(params, inputs)
        sampled = groups.sample_groups(
            model, params, inputs, features, key, hyper.temperature, rules
        )
        taken = rollout.Rollout(
            sampled.completions,
            sampled.completion_mask,
            old_logprobs=sampled.logprobs + 0.1,
            reference_logprobs=sampled.logprobs - 0.1,
        )
        after, metrics, _ = update(run, frozen, inputs, features, taken, raw, hyper)
        return after, metrics, sampled

    ious = np.random.default_rng(3).uniform(size=(B, G)).astype(np.float32)
    inputs, raw = sharding.shard_batch(
        mesh, (_host_batch(), {"iou": ious, "format": np.ones_like(ious)})
    )
    hyper = rollout.hyper(
        threshold=0.5,
        temperature=0.9,
        kl_weight=0.04,
        clip_low=0.2,
        clip_high=0.2,
        learning_rate=1e-2,
    )
    jitted = jax.jit(step, out_shardings=(layout, everywhere, over_batch))
    args = (run, frozen, inputs, raw, jax.random.PRNGKey(5), hyper)
    return jitted.lower(*args), args, layout


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharding")
    settings = {"rl__prompts_per_step": B, "rl__group_size": G, "rl__max_completion_tokens": C}
    jobs = {
        name: small_runs.open_job(folder, mesh=mesh(), model__remat="none", **settings)
        for name, mesh in MESHES.items()
    }
    lowered = {name: _one_step(job) for name, job in jobs.items()}
    with futures.ThreadPoolExecutor() as pool:  # compiling leaves Python's lock alone
        compiled = pool.map(lambda step: step[0].compile(), lowered.values())
    results = {}
    for (name, (_, args, layout)), step in zip(lowered.items(), compiled, strict=True):
        results[name] = step(*args)
        for got, want in zip(
            jax.tree.leaves(results[name][0]), jax.tree.leaves(layout), strict=True
        ):
            assert got.sharding.is_equivalent_to(want, got.ndim)
    return jax.tree.map(np.asarray, results)


@pytest.mark.parametrize("name", ["fsdp", "tensor"])
def test_eight_devices_do_what_one_does(steps, name):
    (want_state, want_metrics, want_sampled), (got_state, got_metrics, got_sampled) = (
        steps["one"],
        steps[name],
    )
    np.testing.assert_array_equal(got_sampled.completions, want_sampled.completions)
    np.testing.assert_array_equal(got_sampled.completion_mask, want_sampled.completion_mask)
    np.testing.assert_allclose(got_sampled.logprobs, want_sampled.logprobs, atol=1e-5)
    assert got_metrics.keys() == want_metrics.keys()
    assert 0 < want_metrics["group/zero_advantage_rate"] < 1 and want_metrics["grpo/loss"] != 0
    for metric, value in want_metrics.items():
        tolerance = 1e-6 if metric == "grpo/loss" else 1e-5 * max(1, np.max(np.abs(value)))
        np.testing.assert_allclose(
            got_metrics[metric], value, rtol=0, atol=tolerance, err_msg=metric
        )
    # Gradients by the first moments; parameters by where a step of 1e-2 took them.
    wants, gots = (jax.tree.leaves(tree.opt_state) for tree in (want_state, got_state))
    for want, got in zip(wants, gots, strict=True):
        assert np.linalg.norm(got - want) <= 1e-5 * max(np.linalg.norm(want), 1e-4)
    wants, gots = (jax.tree.leaves(tree.trainable) for tree in (want_state, got_state))
    for want, got in zip(wants, gots, strict=True):
        # A weight whose gradient is rounding error may go either way.
        assert np.mean(np.abs(got - want) > 1e-5) < 0.01


def _mesh(data, fsdp, tensor):
    return sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor)


def test_heads_are_never_cut_in_two():
    """Two key heads of 128 would divide over four devices as numbers, not as heads."""
    mesh = _mesh(1, 2, 4)
    assert sharding.spec(mesh, (2048, 256), ("embed", ("kv_heads", 2))) == PartitionSpec(
        "fsdp", None
    )
    assert sharding.spec(mesh, (2048, 2048), ("embed", ("heads", 16))) == PartitionSpec(
        "fsdp", "tensor"
    )
    # The fused projection of the tower, whose thirds would be torn.
    assert sharding.spec(mesh, (64, 192), ("vision_embed", "vision_qkv")) == PartitionSpec(
        "fsdp", None
    )


def test_a_gathered_weight_is_whole_and_its_gradient_is_stored_in_pieces():
    mesh = _mesh(1, 4, 2)
    axes = ("embed", "mlp")
    stored = NamedSharding(mesh, sharding.spec(mesh, (8, 16), axes))
    weight = jax.device_put(np.arange(128, dtype=np.float32).reshape(8, 16), stored)
    rows = jax.device_put(np.ones((8, 8), np.float32), sharding.over_batch(mesh))

    def loss(weight, rows, gather):
        with sharding.on(mesh if gather else None):
            used = sharding.gathered(weight, axes)
            y = sharding.constrain(rows @ used, "batch", "mlp")
        return jnp.sum(y**2)

    for gather in (True, False):  # the twin: left to itself, the gradient comes out whole
        compiled = jax.jit(jax.grad(loss), static_argnums=2).lower(weight, rows, gather).compile()
        grad = compiled(weight, rows)
        np.testing.assert_allclose(grad, 2 * 8 * np.tile(np.sum(weight, 0), (8, 1)), rtol=1e-6)
        assert grad.sharding.is_equivalent_to(stored, 2) == gather
        if gather:  # the weight is what travels, a device's columns of it
            assert "f32[8,8]{1,0} all-gather(" in compiled.as_text()


def test_without_a_mesh_nothing_is_said():
    x = jnp.ones((4, 4))
    assert sharding.constrain(x, "batch", "mlp") is x
    with sharding.on(_mesh(8, 1, 1)):
        assert sharding.gathered(x, ("embed", "mlp")) is x  # not stored in pieces


class _Device:
    """A device of another process, as far as a mesh looks at it."""

    def __init__(self, index, process):
        self.id, self.process_index, self.platform = index, process, "cpu"
        self.device_kind = "pretended"


@pytest.mark.parametrize(
    ("processes", "local", "tensor", "want"),
    [
        (2, 4, 2, [(0, 2, 1, True), (1, 2, 1, True)]),
        (2, 4, 4, [(0, 2, 1, True), (1, 2, 1, True)]),
        (2, 4, 8, [(0, 1, 2, True), (0, 1, 2, False)]),
        (4, 2, 4, [(0, 2, 2, True), (0, 2, 2, False), (1, 2, 2, True), (1, 2, 2, False)]),
        (1, 8, 8, [(0, 1, 1, True)]),
    ],
)
def test_processes_that_a_tensor_axis_spans_hold_the_same_rows(processes, local, tensor, want):
    devices = [_Device(i, i // local) for i in range(processes * local)]
    mesh = sharding.make_mesh(data=1, fsdp=-1, tensor=tensor, devices=devices)
    assert [tuple(sharding.row_share(mesh, i)) for i in range(processes)] == want
    # By what the devices really are asked to hold.
    ways = mesh.shape["fsdp"]
    for process in range(processes):
        held = {
            row for row in range(ways) if process in {d.process_index for d in mesh.devices[0, row]}
        }
        share = sharding.row_share(mesh, process)
        part = ways // share.count
        assert held == set(range(share.index * part, (share.index + 1) * part))


def test_a_tensor_axis_that_cuts_a_process_unevenly_is_refused():
    devices = [_Device(i, i // 4) for i in range(12)]
    with pytest.raises(ValueError, match="mesh.tensor=6 does not fit processes of 4 devices"):
        sharding.make_mesh(data=1, fsdp=2, tensor=6, devices=devices)
