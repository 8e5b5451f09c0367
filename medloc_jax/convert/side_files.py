# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What lies beside the weights: model config, generation config, tokenizer, processor, licence.

A file that someone published goes through as it is, byte for byte, except for the dtype in
config.json where the weights have another. Only what a training run changes or does not have is
written anew: how large images are, how answers are decoded, and, for the small models, everything.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medloc_jax.model import config as model_config
from medloc_jax.model import processor, tokenizer

_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
)
_PROCESSOR = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
# How an exported model was asked in training: neither transformers nor vLLM looks at it.
TRAINING_FILE = "medloc.json"
_LEGAL = ("LICENSE*", "NOTICE*", "USE_POLICY*")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a training run's config.json says about its model.

    Attributes:
        content: all of it.
        preset: a preset's name, or the folder of the base model.
        init_from: where its weights came from, or "".
        tokenizer: its folder; "" is the small models' own.
        min_pixels: smallest area of a resized image, px^2.
        max_pixels: largest.
        template: the prompt and answer format.
        max_completion_tokens: the longest answer.
    """

    content: dict[str, Any]
    preset: str
    init_from: str
    tokenizer: str
    min_pixels: int
    max_pixels: int
    template: str
    max_completion_tokens: int


def read_run(path: Path) -> Run | None:
    """The run of a config.json; None where that is a model's.

    Raises:
        ValueError: it is neither.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "model_type" in content:
            return None
        model, data = content["model"], content["data"]
        return Run(
            content,
            str(model["preset"]),
            str(model["init_from"]),
            str(model["tokenizer"]),
            int(data["min_pixels"]),
            int(data["max_pixels"]),
            str(data["template"]),
            int(content["rl"]["max_completion_tokens"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is neither a model's config nor that of a run ({error!r}): name the base "
            "model's folder by --base"
        ) from error


def copy_published(source: Path, target: Path, *, with_description: bool = True) -> list[str]:
    """Copies everything that belongs beside the weights, config.json included; their names.

    Args:
        source: the folder that has it.
        target: where to.
        with_description: also what is true of the source's weights alone: README.md and how they
            were trained to be asked.
    """
    names = ("config.json", "generation_config.json", *_TOKENIZER, *_PROCESSOR)
    ours = ("README.md", TRAINING_FILE) if with_description else ()
    return _copy(source, target, (*names, *ours, *_LEGAL))


def missing(folder: Path) -> list[str]:
    """What a written folder should have and has not, and what will not work without it."""

    def has(*names: str) -> bool:
        return any((folder / name).is_file() for name in names)

    found = []
    if not _has_tokenizer(folder):
        found.append(
            "tokenizer.json (nor vocab.json): `medloc predict`, training from it, AutoTokenizer "
            "and vLLM will not work; copy the base model's tokenizer files there"
        )
    elif not has("chat_template.json", "chat_template.jinja") and not _has_template(folder):
        found.append(
            "chat template: `medloc predict`, training from it, apply_chat_template and vLLM's "
            "chat will not work; copy the base model's tokenizer_config.json there"
        )
    if not has("preprocessor_config.json", "processor_config.json"):
        found.append(
            "preprocessor_config.json: AutoImageProcessor, AutoProcessor and vLLM will not work; "
            "copy the base model's there"
        )
    return found


def set_dtype(folder: Path, dtype: np.dtype) -> None:
    """Makes config.json name the dtype of the weights; untouched where it does already."""
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    sections = [content, *(v for v in content.values() if isinstance(v, dict))]
    named = [(s, k) for s in sections for k in ("torch_dtype", "dtype") if k in s]
    if not named:
        named = [(content, "torch_dtype")]
    if all(section.get(key) == dtype.name for section, key in named):
        return
    for section, key in named:
        section[key] = dtype.name
    write_json(path, content)


def write_for_run(
    run: Run, config: model_config.ModelConfig, base: Path | None, target: Path
) -> None:
    """Writes what goes with the weights of a run.

    Args:
        run: the run.
        config: of its model.
        base: of `run_model`.
        target: where to.

    Raises:
        ValueError: a folder that the run names is not there, or the tokenizer is not the model's.
    """
    if base is not None:
        _copy(base, target, ("config.json", *_LEGAL))
    else:
        write_json(target / "config.json", model_config.to_hf(config))
    words = Path(run.tokenizer) if run.tokenizer else None
    if words is not None and not words.is_dir() and base is not None and _has_tokenizer(base):
        words = base
    loaded = tokenizer.load("" if words is None else words, config)
    if words is None:
        loaded.save(target)
    else:
        _copy(words, target, _TOKENIZER)
    pixels = processor.ImageProcessor.for_model(
        config.vision, min_pixels=run.min_pixels, max_pixels=run.max_pixels
    )
    write_json(target / "preprocessor_config.json", pixels.to_hf())
    # Runs are evaluated greedily, and without the published penalty on repetition. Sampling from
    # the best one is what both transformers and vLLM take for greedy.
    decoding = {
        "bos_token_id": loaded.pad_id,
        "pad_token_id": loaded.pad_id,
        "eos_token_id": list(loaded.stop_ids),
        "do_sample": True,
        "top_k": 1,
        "repetition_penalty": 1.0,
    }
    write_json(target / "generation_config.json", decoding)
    asked = {
        "template": run.template,
        "max_completion_tokens": run.max_completion_tokens,
    }
    write_json(target / TRAINING_FILE, asked)


def run_model(run: Run, given: str) -> tuple[model_config.ModelConfig, Path | None]:
    """The model of a run, and the folder that holds its published files, if one is here.

    Args:
        run: the run.
        given: the base model's folder as the user names it; "": found from what the run names.

    Raises:
        ValueError: the run names a folder that is not here, or none was given that fits.
    """
    if given:
        config = model_config.from_hf(given)
        preset = model_config.PRESETS.get(run.preset, config)
        if config != preset:
            raise ValueError(f"--base={given} is not the run's model.preset={run.preset}")
        return config, Path(given)
    if run.preset not in model_config.PRESETS and not Path(run.preset).is_dir():
        raise ValueError(
            f"the run's model.preset={run.preset} is not here: name the base model's folder by "
            "--base"
        )
    config = model_config.preset(run.preset)
    for name in filter(None, (run.preset, run.init_from, run.tokenizer)):
        path = Path(name) / "config.json"
        if path.is_file() and read_run(path) is None and model_config.from_hf(path) == config:
            return config, Path(name)
    return config, None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file as transformers does."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()


def _has_template(folder: Path) -> bool:
    try:
        content = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        return "chat_template" in content
    except (OSError, ValueError, TypeError):
        return False


def _copy(source: Path, target: Path, patterns: tuple[str, ...]) -> list[str]:
    files = sorted({path for pattern in patterns for path in source.glob(pattern)})
    for path in files:
        if path.is_file():
            shutil.copyfile(path, target / path.name)
    return [path.name for path in files]
