# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from medloc_jax.convert import model_card
from medloc_jax.model import config as model_config

RUN = {
    "method": "grpo",
    "model": {"init_from": "runs/sft"},
    "data": {"manifest": "ham/m.jsonl", "template": "box", "min_pixels": 3136, "max_pixels": 9999},
}


def card(tmp_path, size="tiny", step=300):
    config = model_config.PRESETS[size]
    return model_card.render(
        model_card.Card("my model", config, RUN, step, tmp_path, "Find it.", "bfloat16")
    )


def test_a_lost_configuration_is_said_and_nothing_made_up(tmp_path):
    config = model_config.PRESETS["3b"]
    text = model_card.render(model_card.Card("my model", config, None, 7, None, "", "bfloat16"))
    assert "configuration of the run that wrote it is missing" in text.replace("\n", " ")
    for words in ("Trained by", "## Results", "## Data", "user text", "```"):
        assert words not in text
    assert "Qwen Research License" in text and "not a medical device" in text


def test_a_template_is_called_one(tmp_path):
    config = model_config.PRESETS["tiny"]
    made = model_card.Card("m", config, RUN, 7, tmp_path, "Find {query}.", "bfloat16")
    assert "with {query} for what is sought" in model_card.render(made)
    text = card(tmp_path)
    assert "A user text of training" in text and "{query}" not in text
    assert "was not tried there" in text


def write_metrics(tmp_path, name, metrics):
    folder = tmp_path / "eval" / name
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))


def test_it_says_what_the_run_says(tmp_path):
    metrics = {"a50": 0.91, "a50_ci": [0.88, 0.93], "map": 0.4, "num_examples": 1405}
    write_metrics(tmp_path, "test-300", metrics)
    write_metrics(tmp_path, "test-200", {"a50": 0.111})
    text = card(tmp_path)
    assert "| split | A@0.5 | mAP | examples |" in text
    assert "| test | 0.910 (0.880 to 0.930) | 0.400 | 1,405 |" in text
    assert "0.111" not in text and "step 300" in text and "    Find it." in text
    assert "`ham/m.jsonl`, template `box`" in text and "`runs/sft`" in text
    config = text.split("```json\n")[1].split("```")[0]
    assert json.loads(config) == RUN


def test_a_step_that_was_not_evaluated_is_called_so(tmp_path):
    write_metrics(tmp_path, "test-300", {"a50": 0.91})
    text = card(tmp_path, step=250)
    assert "This step (250) was not evaluated." in text and "0.91" not in text


@pytest.mark.parametrize(
    ("size", "front", "words"),
    [
        ("3b", "license: other\nlicense_name: qwen-research\nbase_model: Qwen/Qwen2.5-VL-3B-Inst",
         "Qwen Research License"),
        ("7b", "license: apache-2.0\nbase_model: Qwen/Qwen2.5-VL-7B", "Apache License 2.0"),
        ("32b", "license: apache-2.0\nbase_model: Qwen/Qwen2.5-VL-32B", "Apache License 2.0"),
        ("72b", "license: other\nlicense_name: qwen\n", "Qwen License"),
        ("tiny", "license: other\ntags:", "whatever weights it was started from"),
    ],
)  # fmt: skip
def test_the_licence_is_that_of_the_base(tmp_path, size, front, words):
    text = card(tmp_path, size)
    assert text.startswith("---\n") and front in text.split("---")[1]
    assert words in text.split("## Licence")[1]
