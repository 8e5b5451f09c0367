# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from medloc_jax.grounding import boxes, prompts
from medloc_jax.rewards import scores, semantic

FRAME = boxes.Frame(width=60, height=40, resized_width=60, resized_height=40)
TARGET = np.array([10.0, 10, 30, 30])


def picture():
    """Light, with a dark disc that fills the target."""
    x, y = np.meshgrid(np.arange(60) + 0.5, np.arange(40) + 0.5)
    disc = (x - 20) ** 2 + (y - 20) ** 2 <= 100
    return np.where(disc[..., None], 40, 200).astype(np.uint8).repeat(3, axis=2)


def constant(crops, queries):
    return [0.8] * len(crops)


def whole_list(crops, queries):
    return np.full((len(crops), 2), 0.5)


def too_much(crops, queries):
    return [1.5] * len(crops)


def said(*found):
    return [["no idea" if box is None else f"[{','.join(map(str, box))}]" for box in found]]


def score(texts, scorer=semantic.dark_centre):
    regions = semantic.Regions(scorer, [picture()], ["dark spot"])
    arguments = (texts, TARGET[None], [FRAME], prompts.TEMPLATES["box"])
    return scores.score_completions(*arguments, regions).scores


def test_positives_earn_the_fit_negatives_half_of_it_and_the_rest_nothing():
    texts = said((10, 10, 30, 30), (10, 10, 20, 30), (40, 10, 59, 30), None)
    made = score(texts, constant)
    np.testing.assert_allclose(made["iou"], [[1, 0.5, 0, 0]])
    np.testing.assert_allclose(made["semantic"], [[0.8, 0.8, 0.4, 0.0]])
    assert made["semantic"].dtype == np.float32


def test_no_negative_overtakes_a_positive():
    """With the hit as the spatial part, whatever the scorer says."""
    fit = np.linspace(0, 1, 11)[None]
    positive = 1 + semantic.spatial_semantic(fit, np.full((1, 11), 0.5, np.float32))
    negative = semantic.spatial_semantic(fit, np.full((1, 11), 0.4999, np.float32))
    assert positive.min() > negative.max()
    assert (np.diff(positive) > 0).all() and (np.diff(negative) > 0).all()


def test_the_scorer_sees_the_region_and_its_query():
    seen = []

    def watch(crops, queries):
        seen.append((crops, queries))
        return [0.0] * len(crops)

    score(said((10, 5, 31, 30), None, (-9, 0, 60, 40)), watch)
    (crops, queries), *others = seen
    assert not others  # all completions of the batch at once
    assert [crop.shape for crop in crops] == [(25, 21, 3), (40, 60, 3)]
    np.testing.assert_array_equal(crops[0], picture()[5:30, 10:31])
    assert queries == ["dark spot", "dark spot"]


def test_a_batch_without_a_box_asks_no_scorer():
    def stop(crops, queries):
        raise AssertionError("nothing to look at")

    assert score(said(None, None), stop)["semantic"].tolist() == [[0, 0]]


def test_a_box_cut_flat_by_the_edge_still_has_a_pixel():
    for box in ([60.0, 40, 60, 40], [0, 0, 0, 0], [12.2, 3.1, 12.4, 3.2]):
        assert semantic.crop(picture(), np.array(box, np.float64)).shape == (1, 1, 3)


def test_dark_centre_prefers_the_tight_box():
    """Over one of twice the size, one beside the spot, and one of a pixel."""
    tight, loose, beside, pixel = score(
        said((10, 10, 30, 30), (0, 0, 40, 40), (32, 2, 50, 20), (19, 19, 20, 20))
    )["semantic"][0]
    assert tight == 1.0 and loose < 0.6 and beside == pixel == 0.0


def test_without_a_scorer_there_is_no_such_score():
    made = scores.score_completions(
        said((10, 10, 30, 30)), TARGET[None], [FRAME], prompts.TEMPLATES["box"]
    )
    assert tuple(made.scores) == scores.names(of_regions=False) == ("iou", "format")
    assert tuple(score(said(None))) == scores.names(of_regions=True)


def test_scorers_are_found_by_name():
    assert semantic.load_scorer("") is None
    assert semantic.load_scorer("dark_centre") is semantic.dark_centre
    found = semantic.load_scorer("medloc_jax.rewards.semantic:dark_centre")
    assert found is semantic.dark_centre
    for name in ("dark_center", "os:", ":path", "no.such.module:f", "os:no_such", "os:sep"):
        with pytest.raises(ValueError, match="rewards.semantic_scorer='.*dark_centre"):
            semantic.load_scorer(name)
    # The installed script does not look in the folder that one is in.
    with pytest.raises(ValueError, match=r"folders of PYTHONPATH \(`PYTHONPATH=\. medloc train"):
        semantic.load_scorer("no_such_module:f")


@pytest.mark.parametrize("scorer", [whole_list, too_much, lambda crops, queries: [np.nan]])
def test_what_no_scorer_may_give_is_refused(scorer):
    with pytest.raises(ValueError, match="one within 0..1 for each"):
        score(said((10, 10, 30, 30)), scorer)
