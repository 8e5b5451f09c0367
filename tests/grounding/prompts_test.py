# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import re
import time

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from medloc_jax.grounding import answer, prompts

VLM_R1_FORMAT = re.compile(
    r"<think>.*?</think>\s*<answer>.*?\{.*\[\d+,\s*\d+,\s*\d+,\s*\d+\].*\}.*?</answer>", re.DOTALL
)
GOOD = '<think>dark spot</think>\n<answer>```json\n[{"bbox_2d": [1, 2, 3, 4]}]\n```</answer>'
BOX = np.array([10.4, 20.6, 30.5, 41.5])


def test_vlm_r1_asks_verbatim():
    want = (
        "Please provide the bounding box coordinate of the region this sentence describes: "
        "skin lesion. First output the thinking process in <think> </think> tags and then output "
        "the final answer in <answer> </answer> tags. Output the final answer in JSON format."
    )
    assert prompts.TEMPLATES["vlm_r1"].user_text("skin lesion", "ham10000") == want
    assert prompts.TEMPLATES["vlm_r1"].user_text(" skin lesion.", "busi") == want


def test_medloc_asks_by_data_set():
    template = prompts.TEMPLATES["medloc"]
    ham, heel, tn3k = (template.user_text("ignored", s) for s in ("ham10000", "heel", "tn3k"))
    assert ham.startswith("Identify the image and provide the bounding box for the skin lesion")
    assert ham.endswith(
        "in the format [xmin, ymin, xmax, ymax]. Also, generate your thinking process on how you "
        "determined the bounding box."
    )
    assert "does not include excessive healthy skin. The output should be four numbers" in ham
    assert heel.startswith("Identify the X-ray image and provide the bounding box for the calcane")
    assert (
        "does not include too much unrelated areas. Output the bounding box coordinate in" in heel
    )
    assert tn3k.startswith("Identify the thyroid ultrasound image")
    assert "[xmin, ymin, xmax, ymax]. Generate your thinking process on how you" in tn3k
    other = template.user_text("breast lesion", "busi")
    assert other.count("breast lesion") == 2
    assert other.endswith("how you determined the bounding box.")


def test_boxmed_asks_verbatim_and_nothing_else():
    template = prompts.TEMPLATES["boxmed"]
    want = "Provide the bounding box for skin lesion."
    assert template.user_text("skin lesion", "ham10000") == want
    assert template.user_text(" skin lesion. ", "busi") == want


def test_chain_of_box_wants_a_box_in_the_reasoning():
    template = prompts.TEMPLATES["chain_of_box"]
    asked = template.user_text("skin lesion", "ham10000")
    assert asked.startswith(prompts.VLM_R1_QUESTION.format(query="skin lesion"))
    assert "in <think> </think> tags, in which you write the bounding box of every" in asked
    text = template.completion_text(BOX, "nv")
    assert text.startswith("<think>[10, 21, 30, 42]</think><answer>```json\n")
    assert template.format_score(text) == 1.0
    assert template.format_score(GOOD) == 0.0  # VLM-R1's format alone
    assert template.format_score(GOOD.replace("spot", "spot [1, 2, 3, 4]")) == 1.0
    # One after the reasoning is none in it.
    assert template.format_score(GOOD.replace("\n<", " [1, 2, 3, 4]\n<")) == 0.0
    assert template.format_score(text.replace("</think>", "")) == 0.0
    other = text.replace("<think>[10, 21, 30, 42]", "<think>[1, 1, 9, 9]")
    np.testing.assert_array_equal(answer.parse(other).box, [10, 21, 30, 42])


def test_queries_with_braces_are_taken_as_they_are():
    for template in prompts.TEMPLATES.values():
        assert "{odd} {0}" in template.user_text("{odd} {0}", "synthetic")


@pytest.mark.parametrize("name", prompts.TEMPLATES)
@pytest.mark.parametrize("label", [None, "nv", 'a "quoted" } [1, 2, 3, 4]'])
def test_targets_parse_back_and_have_their_format(name, label):
    template = prompts.TEMPLATES[name]
    text = template.completion_text(BOX, label)
    np.testing.assert_array_equal(answer.parse(text).box, [10, 21, 30, 42])
    assert template.format_score(text) == 1.0
    assert template.format_score("the lesion is in the middle") == 0.0
    assert template.format_score(text[:-2]) == 0.0


def test_targets_are_written_as_the_template_writes_them():
    write = {name: t.completion_text(BOX, "nv") for name, t in prompts.TEMPLATES.items()}
    assert write["box"] == "[10,21,30,42]"
    assert write["medloc"] == write["boxmed"] == "[10, 21, 30, 42]"
    assert write["vlm_r1"] == (
        "<think></think><answer>```json\n"
        '[{"bbox_2d": [10, 21, 30, 42], "label": "nv"}]\n```</answer>'
    )
    np.testing.assert_array_equal(answer.parse_strict_vlm_r1(write["vlm_r1"]).box, [10, 21, 30, 42])


def test_thin_boxes_stay_boxes_and_empty_ones_are_refused():
    assert prompts.rounded(np.array([10.1, 5.0, 10.3, 9.0])) == [10, 5, 11, 9]
    assert prompts.rounded(np.array([0.0, 0.6, 8.0, 1.4])) == [0, 0, 8, 2]
    for bad in ([3.0, 3, 3, 9], [0, 0, np.nan, 1], [5, 5, 1, 1]):
        with pytest.raises(ValueError, match="cannot write the box"):
            prompts.rounded(np.array(bad, dtype=np.float64))


TOKENS = ["<think>", "</think>", "<answer>", "</answer>", "{", "}", "[1, 2,3, 4]", "[1.0, 2, 3, 4]"]


@given(st.lists(st.sampled_from([*TOKENS, " ", "\n", "x"]), max_size=16).map("".join))
@example(GOOD)
@example("<answer>" + GOOD)
@example(GOOD.replace("\n<answer>", " so </think> <answer>"))
def test_vlm_r1_format_is_the_published_pattern(text):
    want = VLM_R1_FORMAT.search(text) is not None
    assert prompts.TEMPLATES["vlm_r1"].format_score(text) == float(want)


def test_vlm_r1_format_is_quick_on_a_completion_that_repeats_until_cut_off():
    start = time.perf_counter()
    text = "<think></think><answer>" + '{"bbox_2d": [1, 2, 3, 4]},' * 400
    assert prompts.TEMPLATES["vlm_r1"].format_score(text) == 0.0
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("text", "want"),
    [("[1,2,3,4]", 1.0), (" [1,2,3,4]\n", 1.0), ("[1, 2, 3, 4]", 0.0), ("x [1,2,3,4]", 0.0)],
)
def test_box_format(text, want):
    assert prompts.TEMPLATES["box"].format_score(text) == want
