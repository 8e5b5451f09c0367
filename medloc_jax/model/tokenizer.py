# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back, through Qwen's chat template.

The one door to transformers' and tokenizers' tokenizers. `load("")` builds the tiny model's
byte-level tokenizer in code, with Qwen's pre-tokenizer, added tokens and template; a folder loads a
real one. transformers is imported only for a folder: it takes seconds, and loader workers get
their tokenizer pickled.
"""

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2.sandbox
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)
from tokenizers import Tokenizer as Backend

from medloc_jax.model.config import ModelConfig

# Qwen2.5's added tokens in the order of their ids; True = special, so that decoding drops it.
ADDED_TOKENS = {
    "<|endoftext|>": True,
    "<|im_start|>": True,
    "<|im_end|>": True,
    "<|object_ref_start|>": True,
    "<|object_ref_end|>": True,
    "<|box_start|>": True,
    "<|box_end|>": True,
    "<|quad_start|>": True,
    "<|quad_end|>": True,
    "<|vision_start|>": True,
    "<|vision_end|>": True,
    "<|vision_pad|>": True,
    "<|image_pad|>": True,
    "<|video_pad|>": True,
    "<tool_call>": False,
    "</tool_call>": False,
    "<|fim_prefix|>": False,
    "<|fim_middle|>": False,
    "<|fim_suffix|>": False,
    "<|fim_pad|>": False,
    "<|repo_name|>": False,
    "<|file_sep|>": False,
}
END_OF_TURN, END_OF_TEXT = "<|im_end|>", "<|endoftext|>"

# Qwen2.5-VL's template, verbatim (Apache-2.0).
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Qwen2's pre-tokenizer: every digit stands alone.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Words that the tiny tokenizer knows whole: those of the chat template, and those that short
# questions are made of. Their merges number the vocabulary, which config.TINY_FIRST_ADDED_ID knows.
_TINY_WORDS = (
    *("system", "You", " are", " a", " helpful", " assistant", "user", "assistant"),
    *("skin", " lesion", "dark", "bright", " nodule", "brain", " tumor", "breast", " the", " of"),
)


class Tokenizer:
    """Encodes prompts and completions, decodes completions.

    Attributes:
        vocab_size: ids of the model, of which the tokenizer may use fewer.
        image_token_id: the placeholder that a merged image token replaces.
        video_token_id: the placeholder of videos, in no prompt.
        vision_start_token_id: comes before an image's placeholders.
        vision_end_token_id: comes after them.
        pad_id: fills up behind the end.
        stop_ids: end a completion: end of turn, end of text.
        forbidden_ids: a completion may never contain them: Qwen's added tokens and other special
            ones that do not end it, and ids without a token.
    """

    def __init__(self, backend: Backend, chat_template: str, vocab_size: int | None = None):
        """Wraps a tokenizer of the `tokenizers` library.

        Args:
            backend: byte-level BPE with Qwen's added tokens.
            chat_template: in Jinja, called as transformers does.
            vocab_size: the model's; None: the tokenizer's own.

        Raises:
            ValueError: an added token is missing, or the model has fewer ids than the tokenizer.
        """
        self._backend = backend
        self._chat_template = chat_template
        ids = set(backend.get_vocab(with_added_tokens=True).values())
        self.vocab_size = max(ids) + 1 if vocab_size is None else vocab_size
        if max(ids) >= self.vocab_size:
            raise ValueError(
                f"the tokenizer has ids up to {max(ids)}, the model a vocab_size of "
                f"{self.vocab_size}: they do not belong together"
            )
        self.image_token_id = self._id("<|image_pad|>")
        self.video_token_id = self._id("<|video_pad|>")
        self.vision_start_token_id = self._id("<|vision_start|>")
        self.vision_end_token_id = self._id("<|vision_end|>")
        self.pad_id = self._id(END_OF_TEXT)
        self.stop_ids = (self._id(END_OF_TURN), self._id(END_OF_TEXT))
        added = backend.get_added_tokens_decoder()
        self._added = tuple(token.content for token in added.values())
        forbidden = {i for i, t in added.items() if t.special or t.content in ADDED_TOKENS}
        forbidden |= set(range(self.vocab_size)) - ids
        self.forbidden_ids = tuple(sorted(forbidden - set(self.stop_ids)))
        self._prompt = functools.lru_cache(maxsize=4096)(self._encode_prompt)

    def __reduce__(self):
        """Pickles what it was made of; the cache of prompts stays behind."""
        return Tokenizer, (self._backend, self._chat_template, self.vocab_size)

    def _id(self, token: str) -> int:
        found = self._backend.token_to_id(token)
        if found is None:
            raise ValueError(f"the tokenizer has no {token}: it is not one of Qwen2.5-VL")
        return found

    def check_matches(self, config: ModelConfig) -> None:
        """Raises a ValueError where the model's token ids are not this tokenizer's."""
        pairs = {
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
            "eos_token_id": self.stop_ids[0],
            "pad_token_id": self.pad_id,
        }
        for name, own in pairs.items():
            if getattr(config, name) != own:
                raise ValueError(
                    f"the model's {name} is {getattr(config, name)}, the tokenizer's {own}: they "
                    "do not belong together; set model.tokenizer to the model's own folder"
                )

    def encode_prompt(self, user_text: str, image_token_counts: Sequence[int]) -> list[int]:
        """Token ids of a user's message, ready for the model to answer.

        Args:
            user_text: the message; the images come before it.
            image_token_counts: merged tokens of each image; its placeholder is repeated so often.

        Raises:
            ValueError: the text contains an added token, or a count is below 1.
        """
        if any(count < 1 for count in image_token_counts):
            raise ValueError(f"image token counts {list(image_token_counts)} must be at least 1")
        counts = iter(image_token_counts)
        ids: list[int] = []
        for token in self._prompt(user_text, len(image_token_counts)):
            ids += [token] * next(counts) if token == self.image_token_id else [token]
        return ids

    def _encode_prompt(self, user_text: str, num_images: int) -> tuple[int, ...]:
        """Ids with one placeholder an image; cached, since a data set has few different texts."""
        self._refuse_added_tokens(user_text)
        content: list[dict[str, Any]] = [{"type": "image"} for _ in range(num_images)]
        content.append({"type": "text", "text": user_text})
        text = _compiled(self._chat_template).render(
            messages=[{"role": "user", "content": content}], add_generation_prompt=True
        )
        ids = self._backend.encode(text, add_special_tokens=False).ids
        if ids.count(self.image_token_id) != num_images:
            raise ValueError(
                f"the chat template wrote {ids.count(self.image_token_id)} placeholders for "
                f"{num_images} images: it is not one of Qwen2.5-VL"
            )
        return tuple(ids)

    def encode_completion(self, text: str) -> list[int]:
        """Token ids of an answer, the end of turn included.

        Raises:
            ValueError: the text contains an added token.
        """
        self._refuse_added_tokens(text)
        return [*self._backend.encode(text, add_special_tokens=False).ids, self.stop_ids[0]]

    def _refuse_added_tokens(self, text: str) -> None:
        for token in self._added:
            if token in text:
                raise ValueError(f"the text contains the reserved token {token}: take it out")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a completion up to the first stop id, without special tokens."""
        kept = [int(token) for token in ids]
        end = next((i for i, token in enumerate(kept) if token in self.stop_ids), len(kept))
        return self._backend.decode(kept[:end], skip_special_tokens=True)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the files from which transformers, vLLM and `load` read this tokenizer."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / "tokenizer.json"))
        self._backend.model.save(str(folder))  # vocab.json and merges.txt
        added = self._backend.get_added_tokens_decoder()
        settings = {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(i): {
                    "content": token.content,
                    "lstrip": token.lstrip,
                    "normalized": token.normalized,
                    "rstrip": token.rstrip,
                    "single_word": token.single_word,
                    "special": token.special,
                }
                for i, token in sorted(added.items())
            },
            "additional_special_tokens": [
                token.content
                for _, token in sorted(added.items())
                if token.special and token.content != END_OF_TEXT
            ],
            "bos_token": None,
            "eos_token": END_OF_TURN,
            "pad_token": END_OF_TEXT,
            "unk_token": None,
            "chat_template": self._chat_template,
            "clean_up_tokenization_spaces": False,
            "errors": "replace",
            "model_max_length": 131072,
            "split_special_tokens": False,
        }
        _write_json(folder / "tokenizer_config.json", settings)
        _write_json(folder / "chat_template.json", {"chat_template": self._chat_template})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@functools.lru_cache(maxsize=8)
def _compiled(chat_template: str) -> jinja2.Template:
    # The settings are transformers'; sandboxed, because a template comes with someone's weights.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(chat_template)


def load(folder: str | os.PathLike[str] = "", config: ModelConfig | None = None) -> Tokenizer:
    """The tokenizer of a folder; with no folder, the tiny byte-level one.

    Args:
        folder: Hugging Face folder with tokenizer files, or "".
        config: the model that will read the ids; its ids must be this tokenizer's.

    Raises:
        ValueError: unreadable, not one of Qwen2.5-VL, or not this model's.
    """
    vocab_size = None if config is None else config.text.vocab_size
    backend, template = _from_folder(Path(folder)) if str(folder) else (_tiny(), CHAT_TEMPLATE)
    tokenizer = Tokenizer(backend, template, vocab_size)
    if config is not None:
        tokenizer.check_matches(config)
    return tokenizer


def _from_folder(folder: Path) -> tuple[Backend, str]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such tokenizer folder")
    with _without_advice():
        import transformers  # seconds: only where a real tokenizer is asked for

    try:
        loaded = transformers.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever transformers raises, the folder is what is wrong
        raise ValueError(f"{folder}: no tokenizer that can be read: {error}") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"{folder}: the tokenizer is not one of the `tokenizers` library")
    backend.no_truncation()
    backend.no_padding()
    template = loaded.chat_template
    if template is None and (folder / "chat_template.json").is_file():
        content = json.loads((folder / "chat_template.json").read_text(encoding="utf-8"))
        template = content["chat_template"]
    if not isinstance(template, str):
        raise ValueError(f"{folder}: has no chat_template, in tokenizer_config.json or by itself")
    return backend, template


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Without transformers' advice that its models need PyTorch. Its warnings stay."""
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@functools.lru_cache(maxsize=1)
def _tiny_parts() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges: the 256 bytes in GPT-2's spelling, then chains up to each word."""
    vocab = {
        character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    merges: list[tuple[str, str]] = []
    for word in _TINY_WORDS:
        pieces = list(word.replace(" ", "Ġ"))  # GPT-2's spelling of the space
        for left, right in merges:
            for i in range(len(pieces) - 2, -1, -1):
                if pieces[i : i + 2] == [left, right]:
                    pieces[i : i + 2] = [left + right]
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
            vocab[pieces[0]] = len(vocab)
    return vocab, merges


def _tiny() -> Backend:
    vocab, merges = _tiny_parts()
    backend = Backend(models.BPE(vocab=dict(vocab), merges=list(merges)))
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    for token, special in ADDED_TOKENS.items():
        added = AddedToken(token, special=special, normalized=False)
        if special:
            backend.add_special_tokens([added])
        else:
            backend.add_tokens([added])
    return backend
