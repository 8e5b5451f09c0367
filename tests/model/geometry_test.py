# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from medloc_jax.model import config as model_config
from medloc_jax.model import geometry

REFVALS = Path(__file__).resolve().parents[2] / "../shared/processor/refvals_transformers_5_23.json"
QWEN = model_config.PRESETS["7b"]
TINY = model_config.PRESETS["tiny"]
IMAGE, START, END = QWEN.image_token_id, QWEN.vision_start_token_id, QWEN.vision_end_token_id

# Outputs of transformers 5.23, so that a clone alone can fail too.
RESIZED = {
    (480, 640): (476, 644),
    (561, 278): (560, 280),
    (28, 28): (56, 56),
    (30, 20): (84, 56),
    (14, 14): (56, 56),
    (42, 42): (56, 56),  # 1.5 and 2.5 both round to 2
    (70, 70): (56, 56),
    (98, 98): (112, 112),
    (126, 70): (112, 56),
    (3000, 4000): (2996, 4004),
    (4000, 5000): (3192, 4004),
    (100, 10000): (112, 9996),
    (1, 150): (28, 700),
}
WINDOW_ORDER_10x12 = [
    *(0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 15, 18, 19, 20, 21),
    *(4, 5, 10, 11, 16, 17, 22, 23, 24, 25, 26, 27, 28, 29),
]
ROPE = [  # input ids, grids, positions, delta
    (
        [10, 11, START, *[IMAGE] * 6, END, 12, 13],
        [(1, 4, 6)],
        [
            [0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7, 8],
            [0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7, 8],
            [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8],
        ],
        -3,
    ),
    (
        [10, START, *[IMAGE] * 4, END, 11, START, *[IMAGE] * 2, END, 12],
        [(1, 4, 4), (1, 2, 4)],
        [
            [0, 1, 2, 2, 2, 2, 4, 5, 6, 7, 7, 9, 10],
            [0, 1, 2, 2, 3, 3, 4, 5, 6, 7, 7, 9, 10],
            [0, 1, 2, 3, 2, 3, 4, 5, 6, 7, 8, 9, 10],
        ],
        -2,
    ),
]

sides = st.integers(1, 11).map(lambda n: 2 * n)
grids = st.builds(lambda h, w: (1, h, w), sides, sides)


@pytest.fixture(scope="module")
def refvals():
    if not REFVALS.is_file():
        pytest.skip("the reference values of transformers are not at hand")
    return json.loads(REFVALS.read_text())


def resize(height, width, max_pixels=12_845_056):
    return geometry.smart_resize(height, width, factor=28, min_pixels=3136, max_pixels=max_pixels)


def padded_window_order(grid, vision):
    """Window order the way the original goes: pad the index grid with -1, cut it, drop the -1."""
    merge = vision.spatial_merge_size
    side = vision.window_size // merge // vision.patch_size
    rows, columns = grid[1] // merge, grid[2] // merge
    index = np.full((rows + side - rows % side, columns + side - columns % side), -1)
    index[:rows, :columns] = np.arange(rows * columns).reshape(rows, columns)
    order, lengths = [], []
    for top in range(0, index.shape[0], side):
        for left in range(0, index.shape[1], side):
            window = index[top : top + side, left : left + side]
            members = [int(i) for i in window.reshape(-1) if i >= 0]
            order += members
            lengths += [len(members) * merge**2] if members else []
    return order, lengths


def walked_positions(ids, image_grids, merge):
    """M-RoPE positions token by token."""
    positions, queue, largest = [], list(image_grids), -1
    i = 0
    while i < len(ids):
        if ids[i] != QWEN.image_token_id:
            largest += 1
            positions.append((largest,) * 3)
            i += 1
            continue
        _, h, w = queue.pop(0)
        first = largest + 1
        for row in range(h // merge):
            for column in range(w // merge):
                positions.append((first, first + row, first + column))
                i += 1
        largest = max(max(place) for place in positions)
    return np.array(positions, np.int32).T, largest + 1 - len(ids)


def prompt(image_grids, config, text=(5, 6)):
    ids = [1, 2, 3]
    for grid in image_grids:
        ids.append(config.vision_start_token_id)
        ids += [config.image_token_id] * geometry.merged_tokens(grid, config.vision)
        ids.append(config.vision_end_token_id)
    return [*ids, *text]


def labelled_images(image_grids, config):
    """Images whose every patch holds its number, counted over all images in HF order."""
    images, first = [], 0
    for grid in image_grids:
        count = grid[1] * grid[2]
        pixels = np.zeros((count, config.vision.patch_dim), np.float32)
        pixels[:, 0] = np.arange(first, first + count)
        images.append((pixels, grid))
        first += count
    return images


def packed(image_grids, config=TINY):
    ids = prompt(image_grids, config)
    return geometry.pack_row(ids, labelled_images(image_grids, config), config)


# ---- smart_resize ----


@pytest.mark.parametrize("size", RESIZED)
def test_smart_resize(size):
    assert resize(*size) == RESIZED[size]


def test_smart_resize_equals_transformers(refvals):
    for name, limit in [
        ("smart_resize(h,w)->(h,w) factor28 min3136 max12845056", 12_845_056),
        ("smart_resize default max 1003520", 1_003_520),
    ]:
        for size, expected in refvals[name].items():
            height, width = map(int, size.split("x"))
            assert list(resize(height, width, limit)) == expected, (name, size)


@hypothesis.given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([16, 28]))
def test_resized_sides_are_multiples_within_the_area(height, width, factor):
    hypothesis.assume(max(height, width) <= 200 * min(height, width))
    low, high = 4 * factor**2, 900 * factor**2
    new = geometry.smart_resize(height, width, factor=factor, min_pixels=low, max_pixels=high)
    assert all(side > 0 and side % factor == 0 for side in new)
    assert new[0] * new[1] >= low
    # A strip thinner than `factor` cannot shrink further than one row.
    assert new[0] * new[1] <= high or factor in new


def test_long_image_works_and_a_longer_one_is_refused():
    assert resize(28, 2800) == (28, 2800)
    assert geometry.num_windows((1, 2, 200), QWEN.vision) == 25
    with pytest.raises(ValueError, match="at most 200 times"):
        resize(10, 2001)


@pytest.mark.parametrize(("height", "width", "least"), [(0, 5, 1), (5, 0, 1), (5, 5, 0)])
def test_smart_resize_refuses(height, width, least):
    with pytest.raises(ValueError, match="empty|min_pixels"):
        geometry.smart_resize(height, width, factor=28, min_pixels=least, max_pixels=9999)


# ---- orders ----


def test_window_order_of_transformers():
    order, lengths = geometry.window_order((1, 10, 12), QWEN.vision)
    assert order.tolist() == WINDOW_ORDER_10x12
    assert lengths.tolist() == [64, 32, 16, 8]
    places = geometry.patch_hw((1, 10, 12), 2)
    assert places[:6].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3]]


def test_windows_equal_transformers(refvals):
    cases = {key: case for key, case in refvals.items() if key.startswith("window ")}
    assert len(cases) >= 7
    for key, case in cases.items():
        image_grids = json.loads(key.removeprefix("window "))
        if image_grids[0][0] > 1:
            with pytest.raises(ValueError, match="2 frames"):
                geometry.window_order(image_grids[0], QWEN.vision)
            continue
        orders, lengths, first = [], [], 0
        for grid in image_grids:
            order, windows = geometry.window_order(grid, QWEN.vision)
            orders.append(order + first)
            lengths.append(windows)
            first += len(order)
            assert geometry.num_windows(grid, QWEN.vision) == len(windows)
        index = np.concatenate(orders)
        assert len(index) == case["n"]
        assert hashlib.sha256(index.tobytes()).hexdigest()[:16] == case["sha256_int64"]
        assert [0, *np.cumsum(np.concatenate(lengths))] == case["cu_window_seqlens"]
        places = geometry.patch_hw(image_grids[0], 2)[:8]
        assert places.tolist() == case["vision_pos_hw[:8]"]


@hypothesis.given(grids, st.sampled_from([QWEN.vision, TINY.vision]))
def test_window_order_equals_the_padded_way(grid, vision):
    order, lengths = geometry.window_order(grid, vision)
    expected_order, expected_lengths = padded_window_order(grid, vision)
    assert order.tolist() == expected_order
    assert lengths.tolist() == expected_lengths
    assert geometry.num_windows(grid, vision) == len(expected_lengths)


@pytest.mark.parametrize("grid", [(1, 3, 4), (1, 4, 0), (2, 4, 4)])
def test_unfit_grids_are_refused(grid):
    with pytest.raises(ValueError, match="grid"):
        geometry.window_order(grid, TINY.vision)


# ---- M-RoPE ----


@pytest.mark.parametrize(("ids", "image_grids", "positions", "delta"), ROPE)
def test_mrope_positions(ids, image_grids, positions, delta):
    found, found_delta = geometry.mrope_positions(ids, image_grids, QWEN)
    assert found.tolist() == positions
    assert found_delta == delta


def test_mrope_equals_transformers(refvals):
    cases = {key: case for key, case in refvals.items() if key.startswith("rope ")}
    assert len(cases) >= 4
    for key, case in cases.items():
        if "vg" in case:
            with pytest.raises(ValueError, match="video"):
                geometry.mrope_positions(case["input"][0], [], QWEN)
            continue
        rows = len(case["input"])
        for b, ids in enumerate(case["input"]):
            # The reference pads on the left; here a row has no padding yet.
            skip = case["mask"][b].count(0) if case["mask"] else 0
            of_row = case["ig"] if rows == 1 else [case["ig"][b]]
            found, delta = geometry.mrope_positions(ids[skip:], of_row, QWEN)
            assert found.tolist() == [axis[b][skip:] for axis in case["position_ids"]], key
            largest = max(axis[b][-1] for axis in case["position_ids"])
            assert delta == largest + 1 - len(ids) + skip


@hypothesis.given(st.lists(st.tuples(grids, st.integers(0, 3)), max_size=3), st.integers(0, 4))
def test_mrope_equals_the_walk(parts, tail):
    ids = []
    for grid, text in parts:
        ids += [7] * text + [IMAGE] * geometry.merged_tokens(grid, QWEN.vision)
    ids += [8] * tail
    hypothesis.assume(ids)
    image_grids = [grid for grid, _ in parts]
    found, delta = geometry.mrope_positions(ids, image_grids, QWEN)
    expected, expected_delta = walked_positions(ids, image_grids, 2)
    np.testing.assert_array_equal(found, expected)
    assert delta == expected_delta


def test_text_only_positions_just_count():
    positions, delta = geometry.mrope_positions([5, 6, 7], [], QWEN)
    assert positions.tolist() == [[0, 1, 2]] * 3
    assert delta == 0


# ---- rows and batches ----


@hypothesis.given(st.lists(grids, min_size=1, max_size=3), st.sampled_from([TINY, QWEN]))
def test_every_merged_token_lands_on_its_position(image_grids, config):
    # Only the labels matter here: 1176 values a patch would make the test slow.
    thin = dataclasses.replace(config.vision, in_channels=1, temporal_patch_size=1)
    config = dataclasses.replace(config, vision=thin)
    row = packed(image_grids, config)
    label = row.pixel_values[:, 0].astype(int)
    assert sorted(label) == list(range(len(label)))
    # HF puts merged token r of its raster order on the r-th placeholder.
    places = np.flatnonzero(row.input_ids == config.image_token_id)
    stored = row.image_index[places]
    unit = config.vision.merge_unit
    for inside in range(unit):
        np.testing.assert_array_equal(
            label[stored * unit + inside], np.arange(len(places)) * unit + inside
        )
    text = np.delete(row.image_index, places)
    assert (text == -1).all()


@hypothesis.given(st.lists(grids, max_size=3))
def test_windows_hold_what_lies_together(image_grids):
    row = packed(image_grids)
    bucket = geometry.Bucket(1600, 64 * 3, len(row.input_ids))
    hypothesis.assume(bucket.covers(row.shape))
    inputs = geometry.collate([row], bucket, TINY)
    index, slot = inputs.window_index[0], inputs.window_slot[0]
    count = len(row.pixel_values)
    # Inverse of each other on real patches; all else is empty.
    np.testing.assert_array_equal(index.reshape(-1)[slot[:count]], np.arange(count))
    assert (index >= 0).sum() == count
    assert (slot[count:] == 0).all()
    side = TINY.vision.window_size // TINY.vision.patch_size
    place = inputs.patch_hw[0] // side
    windows = [
        {(int(inputs.segment_ids[0, p]), *map(int, place[p])) for p in window if p >= 0}
        for window in index
    ]
    windows = [members for members in windows if members]
    assert all(len(members) == 1 for members in windows)
    assert len(set().union(*windows)) == len(windows) == row.num_windows


def test_patch_places_and_segments():
    image_grids = [(1, 4, 6), (1, 8, 8)]
    row = packed(image_grids)
    label = row.pixel_values[:, 0].astype(int)
    expected = [(i, *hw) for i, g in enumerate(image_grids, 1) for hw in geometry.patch_hw(g, 2)]
    found = [(int(s), *hw) for s, hw in zip(row.segment_ids, row.patch_hw, strict=True)]
    assert [tuple(map(int, expected[i])) for i in label] == [tuple(map(int, f)) for f in found]


def test_collate_pads_every_field():
    rows = [packed([(1, 8, 8)]), packed([]), packed([(1, 2, 4), (1, 6, 2)])]
    bucket = geometry.Bucket(96, 6, 48)
    inputs = geometry.collate(rows, bucket, TINY)
    assert inputs.prompt_lengths.tolist() == [len(row.input_ids) for row in rows]
    assert inputs.rope_delta.tolist() == [row.rope_delta for row in rows]
    assert inputs.pixel_values.shape == (3, 96, 384)
    assert inputs.window_index.shape == (3, 6, 16)
    assert all(array.dtype == np.int32 for i, array in enumerate(inputs) if i != 5)
    assert inputs.pixel_values.dtype == np.float32
    for b, row in enumerate(rows):
        tokens, patches = len(row.input_ids), len(row.pixel_values)
        np.testing.assert_array_equal(inputs.input_ids[b, :tokens], row.input_ids)
        np.testing.assert_array_equal(inputs.mrope_positions[b, :, :tokens], row.mrope_positions)
        np.testing.assert_array_equal(inputs.pixel_values[b, :patches], row.pixel_values)
        assert (inputs.input_ids[b, tokens:] == TINY.pad_token_id).all()
        assert (inputs.image_index[b, tokens:] == -1).all()
        assert (inputs.segment_ids[b, patches:] == 0).all()
        assert not inputs.pixel_values[b, patches:].any()
    assert (inputs.window_index[1] == -1).all()


def test_rows_of_one_grid_do_not_share_what_they_write():
    one, two = packed([(1, 4, 4)]), packed([(1, 4, 4)])
    one.patch_hw[:] = 99
    one.window_slot[:] = 99
    assert two.patch_hw.max() < 99
    assert packed([(1, 4, 4)]).window_slot.max() < 99


def test_wrong_rows_are_refused():
    pixels = np.zeros((16, TINY.vision.patch_dim), np.float32)
    image = (pixels, (1, 4, 4))
    ids = prompt([(1, 4, 4)], TINY)
    with pytest.raises(ValueError, match="4 image placeholders.*8 image tokens"):
        geometry.pack_row(ids, [image, image], TINY)
    with pytest.raises(ValueError, match="4 image placeholders.*0 image tokens"):
        geometry.pack_row(ids, [], TINY)
    with pytest.raises(ValueError, match="stand together"):
        geometry.pack_row(
            [5, *[TINY.image_token_id] * 2, 5, *[TINY.image_token_id] * 2], [image], TINY
        )
    with pytest.raises(ValueError, match="do not match a grid"):
        geometry.pack_row(ids, [(pixels[:-1], (1, 4, 4))], TINY)
    with pytest.raises(ValueError, match="video"):
        geometry.pack_row([TINY.video_token_id], [], TINY)
    with pytest.raises(ValueError, match="2 frames"):
        geometry.pack_row(ids, [(pixels, (2, 4, 2))], TINY)
    with pytest.raises(ValueError, match="prompt is empty"):
        geometry.pack_row([], [], TINY)


def test_wrong_batches_are_refused():
    row = packed([(1, 4, 4)])
    with pytest.raises(ValueError, match="row 0 of RowShape.*does not fit"):
        geometry.collate([row], geometry.Bucket(8, 4, 48), TINY)
    with pytest.raises(ValueError, match="multiple of the 4 patches"):
        geometry.collate([row], geometry.Bucket(18, 4, 48), TINY)
    with pytest.raises(ValueError, match="at least one row"):
        geometry.collate([], geometry.Bucket(16, 4, 48), TINY)


# ---- shapes ----


@pytest.mark.parametrize(
    ("n", "ladder", "expected"),
    [
        *((n, geometry.RUNGS, r) for n, r in [(1, 16), (16, 16), (17, 24), (49, 64), (257, 384)]),
        *((n, geometry.RUNGS, r) for n, r in [(513, 768), (769, 1024), (65536, 65536)]),
        *((n, geometry.WINDOW_RUNGS, r) for n, r in [(1, 1), (3, 3), (5, 6), (25, 32)]),
    ],
)
def test_rung(n, ladder, expected):
    assert geometry.rung(n, ladder) == expected


def test_rungs_waste_at_most_a_half():
    for ladder in (geometry.RUNGS, geometry.WINDOW_RUNGS):
        steps = list(itertools.pairwise(ladder))
        assert all(low < high for low, high in steps)
        assert all(high <= 1.5 * low for low, high in steps if low > 1)
    assert all(step % 4 == 0 for step in geometry.RUNGS)  # whole merged tokens
    with pytest.raises(ValueError, match="above the ladder"):
        geometry.rung(10**6)


def test_row_shape_needs_no_pixels():
    image_grids = [(1, 8, 8), (1, 2, 6)]
    row = packed(image_grids)
    assert geometry.row_shape(image_grids, len(row.input_ids), TINY.vision) == row.shape
    assert row.shape == geometry.RowShape(76, 6, 3 + 2 * 2 + 19 + 2)


row_shapes = st.builds(
    geometry.RowShape, st.integers(0, 5000), st.integers(0, 90), st.integers(1, 1500)
)


@hypothesis.given(st.lists(row_shapes, min_size=1, max_size=40), st.integers(1, 5))
def test_buckets_are_nested_rungs_that_cover(rows, max_buckets):
    buckets = geometry.plan_buckets(rows, max_buckets)
    assert 1 <= len(buckets) <= max_buckets
    for small, large in itertools.pairwise(buckets):
        assert small != large
        assert large.covers(geometry.RowShape(**dataclasses.asdict(small)))
    for bucket in buckets:
        assert bucket.num_patches in geometry.RUNGS
        assert bucket.num_windows in geometry.WINDOW_RUNGS
        assert bucket.prompt_length in geometry.RUNGS
    for row in rows:
        chosen = geometry.choose_bucket(buckets, [row])
        assert chosen.covers(row)
        assert not any(b.covers(row) for b in buckets[: buckets.index(chosen)])
    assert geometry.choose_bucket(buckets, rows).covers(rows[0])
    assert buckets == geometry.plan_buckets(rows[::-1], max_buckets)


@hypothesis.given(st.lists(row_shapes, min_size=1, max_size=12), st.integers(1, 3))
def test_planned_buckets_pad_least(rows, max_buckets):
    """No other choice of steps from the same chain pads less."""
    chain = geometry.plan_buckets(rows, 10_000)
    top = chain[-1]

    def padded(buckets):
        total = 0.0
        for row in rows:
            b = geometry.choose_bucket(buckets, [row])
            total += b.num_patches / top.num_patches + b.num_windows / top.num_windows
            total += b.prompt_length / top.prompt_length
        return total

    best = min(
        padded((*steps, top))
        for count in range(min(max_buckets, len(chain)))
        for steps in itertools.combinations(chain[:-1], count)
    )
    assert padded(geometry.plan_buckets(rows, max_buckets)) <= best + 1e-9


def test_one_size_needs_one_bucket():
    rows = [geometry.RowShape(64, 4, 39)] * 5
    assert geometry.plan_buckets(rows, 4) == (geometry.Bucket(64, 4, 48),)
    assert geometry.plan_buckets([geometry.RowShape(0, 0, 5)], 4) == (geometry.Bucket(16, 1, 16),)


def test_buckets_refuse():
    with pytest.raises(ValueError, match="no rows"):
        geometry.plan_buckets([], 4)
    with pytest.raises(ValueError, match="max_buckets"):
        geometry.plan_buckets([geometry.RowShape(64, 4, 39)], 0)
    with pytest.raises(ValueError, match="no compiled shape covers RowShape"):
        geometry.choose_bucket([geometry.Bucket(64, 4, 48)], [geometry.RowShape(64, 5, 39)])


# ---- buckets of rows that are all known ----


def test_sizes_are_rounded_up_by_little():
    around = (step + by for step in geometry.RUNGS for by in (-1, 0, 1))
    last = 0
    for n in sorted({*range(3000), *around}):
        size = geometry.round_up(n)
        assert n <= size < n + max(8, n / 16) or (n, size) == (0, 8)
        assert size % 8 == 0 and geometry.round_up(size) == size
        assert size >= last  # or buckets would not stay nested
        last = size
        if n <= geometry.RUNGS[-1]:
            assert size <= geometry.rung(n)
    wanted = {0: 8, 1: 8, 8: 8, 9: 16, 255: 256, 257: 272, 513: 544, 100_000: 102_400}
    assert {n: geometry.round_up(n) for n in wanted} == wanted


def _fits(bucket):
    return geometry.RowShape(**dataclasses.asdict(bucket))


@hypothesis.given(st.lists(row_shapes, min_size=1, max_size=40), st.integers(1, 5))
def test_tightened_buckets_cover_what_they_covered_and_no_more(rows, max_buckets):
    planned = geometry.plan_buckets(rows, max_buckets)
    tight = geometry.tighten(planned, rows)
    assert 1 <= len(tight) <= len(planned) and len(set(tight)) == len(tight)
    for bucket in planned:
        covered = [row for row in rows if bucket.covers(row)]
        inside = [small for small in tight if bucket.covers(_fits(small))]  # never above a rung
        assert any(all(small.covers(row) for row in covered) for small in inside)
    for bucket in tight:
        covered = [row for row in rows if bucket.covers(row)]
        patches, windows, tokens = (
            max(sizes) for sizes in zip(*map(dataclasses.astuple, covered), strict=True)
        )
        assert bucket.num_patches == geometry.round_up(patches)
        assert bucket.num_windows == max(windows, 1)
        assert bucket.prompt_length == geometry.round_up(tokens)
    for small, large in itertools.pairwise(tight):
        assert small != large and large.covers(_fits(small))
    for row in rows:  # the bucket that a row is put into is its old one, tightened
        old, new = (geometry.choose_bucket(buckets, [row]) for buckets in (planned, tight))
        assert old.covers(_fits(new))


@hypothesis.given(st.lists(row_shapes, min_size=1, max_size=30), st.integers(1, 5))
def test_tightening_is_a_function_of_the_set_of_rows_and_is_done_once(rows, max_buckets):
    planned = geometry.plan_buckets(rows, max_buckets)
    tight = geometry.tighten(planned, rows)
    assert tight == geometry.tighten(planned, rows[::-1] + rows[:3])
    assert tight == geometry.tighten(tight, rows)


@pytest.mark.parametrize(
    ("row", "want"),
    [
        ((0, 0, 5), (8, 1, 8)),  # text alone
        ((16, 1, 16), (16, 1, 16)),
        ((17, 2, 17), (24, 2, 24)),
        ((64, 5, 39), (64, 5, 40)),  # from rungs of 64, 6 and 48
        ((520, 25, 513), (544, 25, 544)),  # from 768, 32 and 768
    ],
)
def test_a_tightened_bucket(row, want):
    rows = [geometry.RowShape(*row)]
    assert geometry.tighten(geometry.plan_buckets(rows, 4), rows) == (geometry.Bucket(*want),)


def test_buckets_that_become_equal_are_one():
    rows = [geometry.RowShape(20, 2, 20)]
    wide = [geometry.Bucket(24, 2, 24), geometry.Bucket(32, 3, 32), geometry.Bucket(48, 4, 48)]
    assert geometry.tighten(wide, rows) == (geometry.Bucket(24, 2, 24),)
    more = [*rows, geometry.RowShape(40, 3, 20)]
    assert geometry.tighten(wide, more) == (geometry.Bucket(24, 2, 24), geometry.Bucket(40, 3, 24))


def test_tightening_refuses_a_bucket_without_rows():
    rows = [geometry.RowShape(64, 4, 39)]
    small = geometry.Bucket(48, 4, 48)
    with pytest.raises(ValueError, match=r"Bucket\(num_patches=48.* covers none of the rows"):
        geometry.tighten([small, geometry.Bucket(64, 4, 48)], rows)
    with pytest.raises(ValueError, match="covers none of the rows"):
        geometry.tighten([small], [])


def test_rows_of_a_tightened_bucket_can_be_collated():
    """Whole merged tokens also where no row has an image."""
    rows = [packed([]), packed([(1, 2, 6)])]
    for chosen in (rows[:1], rows):
        shapes = [row.shape for row in chosen]
        (bucket,) = geometry.tighten(geometry.plan_buckets(shapes, 1), shapes)
        assert geometry.collate(chosen, bucket, TINY).pixel_values.shape[1] == bucket.num_patches


def test_host_modules_do_not_import_jax_or_transformers():
    modules = ", ".join(
        f"medloc_jax.model.{name}" for name in ("config", "geometry", "processor", "tokenizer")
    )
    heavy = "{'jax', 'torch', 'transformers'}"
    code = f"import sys, {modules}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
