# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from medloc_jax.evaluation import reasoning
from medloc_jax.grounding import prompts


@pytest.mark.parametrize(
    ("completion", "words", "names_box", "same_box"),
    [
        ("[1,2,3,4]", 0, False, False),
        ("score 0.9", 0, False, False),
        ("an answer that went wrong [12, 3", 0, False, False),
        ("", 0, False, False),
        ("<think></think><answer>[1, 2, 3, 4]</answer>", 0, False, False),
        ("<think>A dark spot.</think><answer>[1, 2, 3, 4]</answer>", 3, False, False),
        ("<think>It is [1,2,3,4].</think> <answer>[1, 2, 3, 4]</answer>", 3, True, True),
        ("<think>It is [1,2,3,9].</think> <answer>[1, 2, 3, 4]</answer>", 3, True, False),
        # What the reasoning comes to is its last box.
        ("<think>[9,9,10,10], no: [1,2,3,4]</think><answer>[1,2,3,4]</answer>", 3, True, True),
        ("<think>cut off in the middle", 5, False, False),
        ("I see it. <answer>[1, 2, 3, 4]</answer>", 3, False, False),
        # The paper's form: prose, then a bare box; corners are no boxes.
        ("Top-left corner: [100, 50]. Therefore [1, 2, 3, 4]", 5, False, False),
        ("Around [1, 2, 3, 4], so the box is [1, 2, 3, 4].", 9, True, True),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "x"}]', 0, False, False),
        ('Yes it is. ```json\n[{"bbox_2d": [1, 2, 3, 4]}]\n```', 3, False, False),
    ],
)
def test_reading_the_reasoning(completion, words, names_box, same_box):
    found = reasoning.read(completion)
    assert (found.words, found.names_box, found.same_box) == (words, names_box, same_box)


@pytest.mark.parametrize("name", sorted(prompts.TEMPLATES))
def test_answers_of_sft_have_none(name):
    import numpy as np

    text = prompts.TEMPLATES[name].completion_text(np.array([1.0, 2.0, 30.0, 40.0]), "lesion")
    assert reasoning.read(text).words == 0


def test_detectors_say_nothing_and_are_left_out(make_experiment):
    ours = make_experiment([0.9])
    theirs = make_experiment([0.9], method="det")
    for final in theirs.finals:
        final.run.config["method"] = "predictions"
    assert [row[1] for row in reasoning.table([ours, theirs]).rows] == ["MedLoc (piecewise)"]


def test_shares_are_of_what_they_are_named_for():
    lines = [
        {"completion": "[1,2,3,4]", "valid": True},
        {"completion": "<think>a spot</think><answer>[1,2,3,4]</answer>", "valid": True},
        {"completion": "<think>so [1,2,3,4]</think><answer>[1,2,3,4]</answer>", "valid": True},
        {"completion": "<think>so [1,2,3,4]</think><answer>none</answer>", "valid": False},
    ]
    found = reasoning.summarize(lines)
    assert found == (4, 0.75, 2, pytest.approx(2 / 3), 1.0)
    assert reasoning.summarize(lines[:1]) == (1, 0.0, None, None, None)
