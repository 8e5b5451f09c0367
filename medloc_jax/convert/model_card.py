# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""README.md of an exported model: what it is, on what it was trained, how well it did, its licence.

Only what the run's folder says is said.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from medloc_jax.model import config as model_config

# Metrics of a split, as the run's metrics.json names them, and what they are.
_METRICS = {
    "a50": "A@0.5",
    "a80": "A@0.8",
    "map": "mAP",
    "miou": "mean IoU",
    "valid_rate": "answers that parse",
    "num_examples": "examples",
}
# The licence that each size was published under, as far as we know: its Hugging Face identifier,
# and name where that is "other". A copy of the weights may come with another one.
_LICENCES = {
    "3b": ("other", "qwen-research", "Qwen Research License (no commercial use)"),
    "7b": ("apache-2.0", "", "Apache License 2.0"),
    "32b": ("apache-2.0", "", "Apache License 2.0"),
    "72b": ("other", "qwen", "Qwen License"),
}


@dataclasses.dataclass(frozen=True)
class Card:
    """What a card is made of.

    Attributes:
        name: the title.
        config: of the model.
        run: the run's config.json; None: it is lost.
        step: of the checkpoint.
        workdir: of the run; its eval folder is read. None: it is unknown.
        prompt: a user text of training, maybe with {query} for what is sought; "": unknown.
        dtype: of the weights.
    """

    name: str
    config: model_config.ModelConfig
    run: dict[str, Any] | None
    step: int
    workdir: Path | None
    prompt: str
    dtype: str


def render(card: Card) -> str:
    """The content of README.md."""
    size = base_size(card.config)
    kind, name, _ = _LICENCES.get(size, ("other", "", ""))
    front = ["---", "library_name: transformers", "pipeline_tag: image-text-to-text"]
    front += [f"license: {kind}", *([f"license_name: {name}"] if name else [])]
    if size in _LICENCES:
        front.append(f"base_model: Qwen/Qwen2.5-VL-{size.upper()}-Instruct")
    front += ["tags:", "- medical", "- visual-grounding", "---", ""]
    what = (
        f"A Qwen2.5-VL model ({model_config.num_parameters(card.config):,} parameters, "
        f"{card.dtype})"
    )
    lines = [f"# {card.name}", ""]
    if card.run is None:
        lines += [
            f"{what} from a checkpoint of medloc_jax, step {card.step}. The configuration of the "
            "run that wrote it is missing: how it was trained, on which data and how it wants to "
            "be asked is not known here, nor how well it does. The tokenizer and the settings of "
            "the processor are the base model's.",
        ]
    else:
        method = str(card.run.get("method", "")).upper()
        lines += [
            f"{what} that answers a sentence about a medical image with a box. Trained by "
            f"medloc_jax ({method}), step {card.step}.",
        ]
    lines += ["", "For research. It is not a medical device, and no diagnosis may rest on it.", ""]
    lines += ["## Use", "", *_use(card), ""]
    if card.run is not None:
        lines += ["## Results", "", *_results(card), "", "## Data", "", *_data(card.run), ""]
    lines += ["## Licence", "", *_licence(size), ""]
    if card.run is not None:
        content = json.dumps(card.run, indent=2, ensure_ascii=False)
        lines += ["## Configuration of the run", "", "```json", content, "```", ""]
    return "\n".join(front + lines)


def _use(card: Card) -> list[str]:
    lines = [
        "`AutoModelForImageTextToText.from_pretrained` reads this folder as it is. It is written "
        "for vLLM's loader, too; it was not tried there."
    ]
    if not card.prompt:
        return lines
    if "{query}" in card.prompt:
        asked = "The user text, with {query} for what is sought, one image before it:"
    else:
        asked = "A user text of training, one image before it:"
    lines[0] += f" The box is in pixels of the image as the processor resizes it. {asked}"
    return [*lines, "", *(f"    {line}" for line in card.prompt.splitlines())]


def base_size(config: model_config.ModelConfig) -> str:
    """The published size that a config is of, or ""."""
    for size in _LICENCES:
        if model_config.PRESETS[size].text == config.text:
            return size
    return ""


def _results(card: Card) -> list[str]:
    found = {}
    assert card.workdir is not None
    for path in sorted((card.workdir / "eval").glob(f"*-{card.step}/metrics.json")):
        try:
            found[path.parent.name.rpartition("-")[0]] = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}): mend or remove it") from error
    if not found:
        return [f"This step ({card.step}) was not evaluated."]
    names = [name for name in _METRICS if any(name in metrics for metrics in found.values())]
    lines = [
        "| split | " + " | ".join(_METRICS[name] for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for split, metrics in found.items():
        cells = [_cell(metrics, name) for name in names]
        lines.append(f"| {split} | " + " | ".join(cells) + " |")
    return [*lines, "", "In brackets: 95% confidence interval. Greedy decoding."]


def _cell(metrics: dict[str, Any], name: str) -> str:
    value = metrics.get(name)
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    low, high = metrics.get(f"{name}_ci") or (None, None)
    return f"{value:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None else "")


def _data(run: dict[str, Any]) -> list[str]:
    data, start = run.get("data", {}), run.get("model", {}).get("init_from", "")
    return [
        f"- Manifest: `{data.get('manifest', '')}`, template `{data.get('template', '')}`",
        f"- Images resized to between {data.get('min_pixels', 0):,} and "
        f"{data.get('max_pixels', 0):,} pixels",
        f"- Started from: `{start}`" if start else "- Started from random weights",
        "",
        "The data set's own terms of use apply to what is derived from it.",
    ]


def _licence(size: str) -> list[str]:
    if not size:
        return [
            "The licence of whatever weights it was started from applies. The code of medloc_jax "
            "is under the Apache License 2.0."
        ]
    return [
        "These weights are derived from Qwen2.5-VL, and the licence of the base model applies to "
        f"them. To our knowledge that of the {size.upper()} is the {_LICENCES[size][2]}; read the "
        f"one that came with the base model (huggingface.co/Qwen/Qwen2.5-VL-{size.upper()}-Instruct"
        ") before you share or use them. The code of medloc_jax is under the Apache License 2.0."
    ]
