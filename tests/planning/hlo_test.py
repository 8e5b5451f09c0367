# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from medloc_jax import sharding
from medloc_jax.planning import hlo

# As the TPU compiler writes: no trip counts, loops unrolled, groups by name, tilings in shapes.
TPU = """HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias), \
{1}: (2, {}, must-alias) }, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%scan_body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[4,8]{1,0} get-tuple-element(%p), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %all-gather.1 = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=1, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}, \
metadata={op_name="jit(step)/while/body/dot"}, backend_config={"estimated_cycles":"10"}
  ROOT %t = (s32[], bf16[4,8]) tuple(%next, %x)
}

%scan_condition (p: (s32[], bf16[4,8])) -> pred[] {
  %p = (s32[], bf16[4,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %bound = s32[] constant(37)
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

%decode_body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[], bf16[4,8]) parameter(0)
  %inner = (s32[], bf16[4,8]) while(%p), condition=%scan_condition, body=%scan_body
  ROOT %t = (s32[], bf16[4,8]) tuple(%p)
}

%decode_condition (p: (s32[], bf16[4,8])) -> pred[] {
  %p = (s32[], bf16[4,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %bound = s32[] constant(256)
  %lt = pred[] compare(%i, %bound), direction=LT
  %all = pred[] parameter(1)
  ROOT %and = pred[] and(%lt, %all)
}

ENTRY %main (a: f32[8], b: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0), metadata={op_name="state.trainable[\\'w\\']"}
  %b = f32[8]{0} parameter(1), metadata={op_name="inputs"}
  %loop = (s32[], bf16[4,8]) while(%a), condition=%decode_condition, body=%decode_body
  %start = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%a), \
channel_id=2, source_target_pairs={{0,4},{4,0}}
  %done = f32[8]{0} collective-permute-done(%start)
  %call = f32[8] custom-call(%done), custom_call_target="kernel"
  ROOT %sum = f32[8]{0} add(%done, %call), backend_config={"estimated_cycles":"7"}
}
"""


def _mesh(data=2, fsdp=4, tensor=1):
    return sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor)


def _loops(listing):
    """Trip count of every loop by its body's name; None: depends on data."""
    lines = [visit.instruction for visit in listing.visits()]
    return {
        re.search(r"body=%?([\w.\-]+)", line.rest)[1]: listing.trips(line)
        for line in lines
        if line.opcode == "while"
    }


def test_loops_are_counted_by_their_conditions():
    listing = hlo.Listing(TPU)
    # 37 by 2; the decoding loop ends on data.
    assert _loops(listing) == {"decode_body": None, "scan_body": 19}
    assert hlo.cycles(listing, unknown_trips=5) == 5 * 19 * 10 + 7


# As the GPU compiler writes a condition once it has moved work between iterations.
FUSED = """
%fused_compare (p0: s32[]) -> pred[] {
  %p0 = s32[] parameter(0)
  %bound = s32[] constant(37)
  ROOT %lt = pred[] compare(%p0, %bound), direction=LT
}

%fused_bound (p0: s32[], p1: s32[]) -> pred[] {
  %p0 = s32[] parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %lt = pred[] compare(%p1, %p0), direction=LT
}

%fused_and (p0: s32[], p1: pred[]) -> pred[] {
  %p0 = s32[] parameter(0)
  %p1 = pred[] parameter(1)
  %bound = s32[] constant(37)
  %lt = pred[] compare(%p0, %bound), direction=LT
  ROOT %and = pred[] and(%lt, %p1)
}
"""
PLAIN = "  ROOT %lt = pred[] compare(%i, %bound), direction=LT\n}\n\n%decode_body"


@pytest.mark.parametrize(
    ("called", "trips"),
    [("%i), kind=kLoop, calls=%fused_compare", 19), ("%bound, %i), calls=%fused_bound", 19)]
    + [("%i, %i), calls=%fused_and", None)],
)
def test_loops_are_counted_by_fused_conditions(called, trips):
    fused = f"  ROOT %lt = pred[] fusion({called}\n}}\n{FUSED}\n%decode_body"
    assert TPU.count(PLAIN) == 1
    assert _loops(hlo.Listing(TPU.replace(PLAIN, fused)))["scan_body"] == trips


def test_collectives_have_bytes_counts_and_axes():
    gathered, permuted = hlo.collectives(hlo.Listing(TPU), _mesh(), unknown_trips=100)
    assert (gathered.kind, gathered.axes, gathered.shape) == ("all-gather", "fsdp", "bf16[16,8]")
    assert gathered.bytes == 256 and gathered.count == 1900 and gathered.in_decode_loop
    assert gathered.total_bytes == 256 * 1900 and gathered.source == "jit(step)/while/body/dot"
    assert (permuted.kind, permuted.axes, permuted.bytes) == ("collective-permute", "data", 32)
    assert permuted.overlapped and not permuted.in_loop and not gathered.overlapped


def test_donation_and_calls_are_read():
    listing = hlo.Listing(TPU)
    assert listing.aliased_parameters() == {0, 2}
    assert listing.parameters()[0].source == "state.trainable['w']"
    assert hlo.custom_calls(listing) == {"kernel": 1}


@pytest.mark.parametrize(
    ("written", "axes"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", "fsdp"),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", "data"),
        ("replica_groups={}", "data+fsdp"),
        ("replica_groups=[2,4]<=[8]", "fsdp"),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", "data"),
        ("replica_groups=[1,8]<=[8]", "data+fsdp"),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", "data+fsdp"),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", "data"),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([8]) {'a'}", "data"),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", "data"),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", "fsdp"),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=(0,1,2) {'a'}", "?"),
        ("replica_groups={{0},{1}}", "none"),
        ("source_target_pairs={{0,1},{1,2}}", "fsdp"),
        ("dimensions={0}", "?"),
    ],
)
def test_groups_are_mapped_to_mesh_axes(written, axes):
    assert hlo.axes_of(f"), channel_id=3, {written}, dimensions={{0}}", _mesh()) == axes


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[]", 4),
        ("pred[3]{0}", 3),
        ("s4[8]", 4),
        ("(bf16[2,3]{1,0:T(8,128)(2,1)}, /*index=1*/u8[5])", 17),
        ("f8e4m3fn[10]", 10),
        ("token[]", 0),
    ],
)
def test_bytes_of_shapes(shape, size):
    assert sum(each for _, each in hlo.arrays(shape)) == size


def test_a_program_of_xla_is_read_as_it_is():
    """Of this machine's own compiler: a scan of 6 that gathers a weight and sums a gradient."""
    mesh = _mesh(data=1, fsdp=8)
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    whole = NamedSharding(mesh, PartitionSpec())

    def step(weights, x):
        def layer(x, weight):
            weight = jax.lax.with_sharding_constraint(weight, whole)
            return jnp.tanh(x @ weight), None

        return jax.lax.scan(layer, x, weights)[0]

    weights = jax.ShapeDtypeStruct(
        (6, 64, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    )
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=split)
    text = jax.jit(step, out_shardings=split).lower(weights, x).compile().as_text()
    found = hlo.collectives(hlo.Listing(text), mesh)
    of_weights = [one for one in found if one.kind == "all-gather" and one.count == 6]
    assert of_weights and all(one.axes == "fsdp" and one.in_loop for one in of_weights)
    assert of_weights[0].bytes == 64 * 64 * 4
    assert not any(one.in_decode_loop for one in found)


def test_a_listing_without_entry_is_refused():
    with pytest.raises(ValueError, match="no entry"):
        hlo.Listing("HloModule nothing\n")
    assert np.isscalar(hlo.cycles(hlo.Listing(TPU)))
