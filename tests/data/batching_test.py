# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

from medloc_jax.data import batching
from medloc_jax.grounding import answer, boxes
from medloc_jax.model import geometry


def test_the_shape_is_known_without_the_image(rows, loader):
    shapes = set()
    for row in rows:
        gone = dataclasses.replace(row, image="gone.png")
        shapes.add(loader.row_shape(gone))
        assert loader.row_shape(gone) == loader(row).packed.shape
    assert len(shapes) > 1


def test_augmented_rows_keep_their_shape_and_depend_on_the_position(rows, loader):
    changing = dataclasses.replace(loader, augment=("hflip", "vflip", "rescale"))
    first, again, other = (changing(rows[0], position) for position in (5, 5, 6))
    assert first.packed.shape == loader.row_shape(rows[0])
    assert (first.packed.pixel_values == again.packed.pixel_values).all()
    assert (first.target_box_px == again.target_box_px).all()
    assert (first.packed.pixel_values != other.packed.pixel_values).any()
    assert (first.target_box_px != other.target_box_px).any()
    plain = changing(rows[0])
    assert plain.target_box_px.tolist() == list(rows[0].box_px)
    assert (plain.packed.pixel_values == loader(rows[0]).packed.pixel_values).all()


def test_pictures_are_handed_on_as_the_model_sees_them_where_asked_for(rows, loader, buckets):
    showing = dataclasses.replace(loader, augment=("hflip", "vflip"), pictures=True)
    loaded = [showing(row, position) for position, row in enumerate(rows[:4])]
    batch = batching.make_batch(loaded, [True] * 4, buckets[-1], showing)
    for row, picture in zip(rows, batch.pictures, strict=False):
        assert picture.shape == (row.height, row.width, 3) and picture.dtype == np.uint8
    for picture, row in zip(batch.pictures, loaded, strict=True):
        image = showing.processor(Image.fromarray(picture))
        ids = showing._prompt_ids(row.example, image[1])
        packed = geometry.pack_row(ids, [image], showing.config)
        assert (packed.pixel_values == row.packed.pixel_values).all()
    plain = [dataclasses.replace(showing, pictures=False)(row, 0) for row in rows[:1]]
    assert batching.make_batch(plain, [True], buckets[-1], loader).pictures is None


def test_the_frame_maps_between_the_stored_and_the_resized_image(rows, loader):
    for row in rows:
        frame = loader(row).frame
        height, width = loader.processor.resized_size(row.height, row.width)
        assert frame == boxes.Frame(row.width, row.height, width, height)


def test_a_batch_stacks_padded_rows(rows, loader, buckets):
    loaded = [loader(row) for row in rows[:3]]
    batch = batching.make_batch(loaded, [True, True, False], buckets[-1], loader)
    bucket = buckets[-1]
    assert batch.inputs.pixel_values.shape == (
        3,
        bucket.num_patches,
        loader.config.vision.patch_dim,
    )
    assert batch.inputs.input_ids.shape == (3, bucket.prompt_length)
    assert batch.target_boxes_px.tolist() == [list(row.box_px) for row in rows[:3]]
    assert batch.examples == rows[:3]
    assert batch.row_valid.tolist() == [True, True, False]
    assert batch.completions is None and batch.completion_mask is None


@pytest.mark.parametrize("box_scale", [1.0, 1.5])
def test_completions_hold_the_box_in_resized_pixels(rows, loader, buckets, box_scale):
    teacher = dataclasses.replace(loader, completion_length=24, box_scale=box_scale)
    loaded = [teacher(row) for row in rows[:4]]
    batch = batching.make_batch(loaded, [True] * 4, buckets[-1], teacher)
    assert batch.completions.shape == batch.completion_mask.shape == (4, 1, 24)
    for row, frame, ids, mask in zip(
        rows, batch.frames, batch.completions[:, 0], batch.completion_mask[:, 0], strict=False
    ):
        length = int(mask.sum())
        assert mask[:length].all()
        assert ids[length - 1] in teacher.tokenizer.stop_ids
        assert (ids[length:] == teacher.tokenizer.pad_id).all()
        said = answer.parse(teacher.tokenizer.decode(ids[:length].tolist())).box
        wanted = boxes.to_resized_px(np.array(row.box_px), frame)
        wanted = boxes.scale_about_centre(
            wanted, box_scale, frame.resized_width, frame.resized_height
        )
        assert np.abs(said - wanted).max() <= 0.5


def test_a_sloppy_teacher_shifts_boxes_by_position_and_stays_in_the_image(rows, loader):
    exact = dataclasses.replace(loader, completion_length=24)
    sloppy = dataclasses.replace(exact, box_jitter=0.2)

    def said(teacher, position):
        ids = teacher(rows[0], position).completion_ids
        return answer.parse(teacher.tokenizer.decode(list(ids))).box

    drawn = [said(sloppy, position) for position in range(20)]
    assert all(np.array_equal(box, said(sloppy, place)) for place, box in enumerate(drawn))
    assert len({tuple(box) for box in drawn}) > 10
    frame = loader(rows[0]).frame
    for box in drawn:
        assert 0 <= box[0] < box[2] <= frame.resized_width
        assert 0 <= box[1] < box[3] <= frame.resized_height
    # Evaluation rows have no position: nothing is shifted there.
    assert np.array_equal(said(sloppy, None), said(exact, None))


def test_a_target_text_that_does_not_fit_is_refused(rows, loader):
    short = dataclasses.replace(loader, completion_length=5)
    with pytest.raises(ValueError, match=r"train_0.*rl.max_completion_tokens is 5: set it to at l"):
        short(rows[0])


def test_errors_name_the_image_in_one_line(rows, loader, tmp_path):
    gone = dataclasses.replace(rows[0], image="gone.png")
    with pytest.raises(ValueError, match="gone.png"):
        loader(gone)
    grown = dataclasses.replace(rows[0], width=rows[0].width + 1)
    with pytest.raises(ValueError, match=r"train_000000.png \(example .*manifest says"):
        loader(grown)
    with open(rows[0].image_path, "rb") as file:
        (tmp_path / "cut.png").write_bytes(file.read()[:500])
    cut = dataclasses.replace(rows[0], folder=str(tmp_path), image="cut.png")
    with pytest.raises(ValueError, match="cut.png") as error:
        loader(cut)
    assert "\n" not in str(error.value)
    marked = dataclasses.replace(rows[0], query="where <|image_pad|> is")
    with pytest.raises(ValueError, match="train_000000.png"):
        loader.row_shape(marked)
    long = dataclasses.replace(rows[0], width=4000, height=2)
    with pytest.raises(ValueError, match="train_000000.png"):
        loader.row_shape(long)


def test_unknown_names_are_refused_at_once(loader):
    with pytest.raises(ValueError, match="data.template 'bbox' is unknown"):
        dataclasses.replace(loader, template="bbox")
    with pytest.raises(ValueError, match="data.augment names 'rotate'"):
        dataclasses.replace(loader, augment=("rotate",))


def test_a_loader_travels_to_another_process(rows, loader):
    copy = pickle.loads(pickle.dumps(loader))
    assert (copy(rows[0]).packed.pixel_values == loader(rows[0]).packed.pixel_values).all()
    assert (copy(rows[0]).packed.input_ids == loader(rows[0]).packed.input_ids).all()
