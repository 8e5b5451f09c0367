# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from medloc_jax.data import annotated, questions

SMALL, LARGE, OTHER = (1.0, 1.0, 3.0, 3.0), (10.0, 10.0, 30.0, 20.0), (5.0, 2.0, 8.0, 9.0)


def _image(*targets, label=None):
    return annotated.AnnotatedImage(
        "i1", Path("i1.png"), 40, 30, tuple(annotated.Target(*t) for t in targets), label=label
    )


def test_one_box_is_one_question_with_the_images_id():
    (found,), problems = questions.ask(_image((SMALL, "wart")), "the {label} here", "refuse")
    assert found == questions.Question("i1", "the wart here", SMALL, "wart") and not problems
    (found,), _ = questions.ask(_image((SMALL,), label="nv"), "skin lesion", "refuse")
    assert found == questions.Question("i1", "skin lesion", SMALL, "nv")


def test_classes_are_questions_of_their_own_numbered_by_their_first_box():
    image = _image((SMALL, "a"), (LARGE, "b"))
    found, problems = questions.ask(image, "{label}", "refuse")
    assert [(q.id, q.text, q.box_px) for q in found] == [
        ("i1#1", "a", SMALL),
        ("i1#2", "b", LARGE),
    ]
    assert not problems


@pytest.mark.parametrize(
    ("one_box", "expected"),
    [
        ("refuse", []),
        ("largest", [("i1", LARGE, "b")]),
        ("union", [("i1", (1.0, 1.0, 30.0, 20.0), None)]),
        ("split", [("i1#1", SMALL, "a"), ("i1#2", LARGE, "b"), ("i1#3", OTHER, "a")]),
    ],
)
def test_the_one_box_rules(one_box, expected):
    image = _image((SMALL, "a"), (LARGE, "b"), (OTHER, "a"))
    found, problems = questions.ask(image, "lesion", one_box)
    assert [(q.id, q.box_px, q.label) for q in found] == expected
    if one_box == "refuse":
        assert problems == [
            "3 boxes answer 'lesion', and an example has one: "
            "choose --one_box=largest, union or split"
        ]
    else:
        assert not problems


def test_a_rule_acts_on_each_question_by_itself():
    image = _image((SMALL, "a"), (LARGE, "b"), (OTHER, "a"))
    found, problems = questions.ask(image, "{label}", "refuse")
    assert [q.id for q in found] == ["i1#2"] and len(problems) == 1
    found, _ = questions.ask(image, "{label}", "union")
    assert [(q.id, q.box_px, q.label) for q in found] == [
        ("i1#1", (1.0, 1.0, 8.0, 9.0), "a"),
        ("i1#2", LARGE, "b"),
    ]


def test_a_box_without_a_label_cannot_be_asked_for_by_label():
    found, problems = questions.ask(_image((SMALL,)), "{label}", "refuse")
    assert found == [] and "box 1 has no label: give a --query without {label}" in problems[0]


def test_an_unknown_placeholder_is_an_error():
    questions.check_query("the {label} of {label}")
    with pytest.raises(ValueError, match=r"{class} is unknown: {label}"):
        questions.check_query("the {class}")
