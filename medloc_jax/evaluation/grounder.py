# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One image and one sentence in, a box out.

    grounder = medloc_jax.Grounder.load("runs/demo/grpo")
    grounding = grounder("image.png", "dark lesion")
    grounding.box_px        # xyxy in pixels of the stored image, or None
    grounding.overlay().save("box.png")

What a group of answers means together is in `grounded.py`.
"""

import contextlib
import dataclasses
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from medloc_jax import config as configuration
from medloc_jax import sharding
from medloc_jax.convert import parameters, side_files
from medloc_jax.data import picture
from medloc_jax.evaluation import grounded
from medloc_jax.grounding import answer, boxes, prompts
from medloc_jax.model import config as model_config
from medloc_jax.model import geometry, processor, qwen2_5_vl, tokenizer
from medloc_jax.sampling import groups

DEFAULT_TEMPLATE = "vlm_r1"
DTYPES = ("float32", "bfloat16")
# Of one call; each is compiled.
MAX_BUCKETS = 4

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray


class _Question(NamedTuple):
    """One image and its prompt, ready to be batched."""

    id: str
    image: Image.Image
    prompt: str
    frame: boxes.Frame
    row: geometry.Row
    place: int  # in the list of images
    checksum: int  # of pixels and prompt


class Grounder:
    """A model with its tokenizer, image processor and prompt template, ready to answer."""

    def __init__(
        self,
        model: qwen2_5_vl.Model,
        params: qwen2_5_vl.Params,
        text_coder: tokenizer.Tokenizer,
        pixels: processor.ImageProcessor,
        template: str,
        *,
        max_new_tokens: int = 256,
    ):
        """Puts the parts together; `load` finds them in a folder.

        Raises:
            ValueError: there is no such template, or `max_new_tokens` is below 1.
        """
        if template not in prompts.TEMPLATES:
            raise ValueError(f"template {template!r}: choose one of {', '.join(prompts.TEMPLATES)}")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens}: it must be at least 1")
        self.template = template
        self._model, self._params = model, params
        self._tokenizer, self._processor = text_coder, pixels
        self._max_new_tokens = max_new_tokens
        self._compiled: dict[tuple, Callable[..., groups.Sampled]] = {}

    @classmethod
    def load(
        cls,
        checkpoint: str | os.PathLike[str],
        *,
        dtype: str = "float32",
        template: str = "",
        max_new_tokens: int = 0,
        tokenizer_folder: str = "",
        min_pixels: int = 0,
        max_pixels: int = 0,
    ) -> "Grounder":
        """Loads a folder of any kind that holds weights.

        Args:
            checkpoint: a Hugging Face folder, a converted one, a run's folder, its checkpoints
                folder, or one step.
            dtype: "float32" or "bfloat16", of weights and activations.
            template: an entry of `grounding.prompts.TEMPLATES`; "": the one the weights were
                trained with, where that is known, else "vlm_r1".
            max_new_tokens: longest completion; 0: that of the training run, else 256.
            tokenizer_folder: "": that of the weights.
            min_pixels: smallest area of a resized image, px^2; 0: as in training.
            max_pixels: largest; 0: as in training.

        Raises:
            ValueError: one line that names the folder or file, and the cure.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
        known = _run_facts(checkpoint) or _folder_facts(checkpoint)
        pixels = known.pixels
        if min_pixels or max_pixels:
            pixels = dataclasses.replace(
                pixels,
                min_pixels=min_pixels or pixels.min_pixels,
                max_pixels=max_pixels or pixels.max_pixels,
            )
        words = tokenizer_folder or known.tokenizer
        if words and not Path(words).is_dir():
            raise ValueError(
                f"{checkpoint}: its tokenizer should be in {words}, which is not there: name the "
                "folder of the base model by --tokenizer (tokenizer_folder)"
            )
        text_coder = tokenizer.load(words, known.sizes)
        # All devices hold parts of every matrix, so that any number of images can be asked about.
        mesh = sharding.make_mesh(data=1, fsdp=1, tensor=-1)
        model = qwen2_5_vl.Model(
            known.sizes, compute_dtype=jnp.dtype(dtype), remat="none", mesh=mesh
        )
        like = sharding.param_structs(
            mesh, model.abstract_params(), model.logical_axes(), jnp.dtype(dtype)
        )
        return cls(
            model,
            parameters.load(Path(checkpoint), known.sizes, like),
            text_coder,
            pixels,
            template or known.template,
            max_new_tokens=max_new_tokens or known.max_new_tokens,
        )

    def __call__(
        self,
        image: ImageLike,
        query: str = "",
        *,
        prompt: str = "",
        source: str = "",
        num_samples: int = 1,
        temperature: float | None = None,
        seed: int = 0,
    ) -> grounded.Grounding:
        """Asks about one image; arguments as for `ground`."""
        asked = self.ground(
            [image],
            query,
            prompt=prompt,
            source=source,
            num_samples=num_samples,
            temperature=temperature,
            seed=seed,
        )
        return next(asked)

    def ground(
        self,
        images: Sequence[ImageLike],
        query: str = "",
        *,
        prompt: str = "",
        source: str = "",
        num_samples: int = 1,
        temperature: float | None = None,
        seed: int = 0,
        batch_size: int = 8,
        refused: Callable[[int, str], object] | None = None,
    ) -> Iterator[grounded.Grounding]:
        """Asks the same about many images; yields in their order.

        Args:
            images: files (JPEG, PNG, TIFF, DICOM, ...), PIL images, or uint8 arrays [h, w, 3].
            query: what to find, such as "thyroid nodule"; the template makes the question of it.
            prompt: the whole user text instead, template aside.
            source: data set that the template may word its question for ("ham10000", ...).
            num_samples: completions an image.
            temperature: of sampling, above 0; None: greedy for one completion, 0.9 for more.
            seed: of the sampling; what is drawn depends on it, the picture and the question alone.
            batch_size: images that are decoded together, where decoding is greedy.
            refused: called with the place in `images` and the reason of one that cannot be read;
                the others are answered. None: the first such image ends it.

        Raises:
            ValueError: an image that cannot be read, a query and a prompt (or neither), or a number
                out of range; one line.
        """
        if bool(query.strip()) == bool(prompt.strip()):
            raise ValueError("give a query or a prompt, one of the two and not both")
        if not images:
            return
        if num_samples < 1 or batch_size < 1:
            raise ValueError(f"num_samples={num_samples}, batch_size={batch_size}: at least 1 each")
        if temperature is not None and not 0 < temperature < float("inf"):
            raise ValueError(
                f"temperature={temperature}: it must be above 0; leave it out for greedy"
            )
        greedy = num_samples == 1 and temperature is None
        if temperature is None:
            temperature = 1.0 if greedy else 0.9
        text = prompt or prompts.TEMPLATES[self.template].user_text(query, source)

        def readable(make: Callable[[int], Any], place: int) -> Any:
            try:
                return make(place)
            except ValueError as error:
                if refused is None:
                    raise
                refused(place, str(error))
                return None

        # All sizes are looked at before the first answer, so that few shapes are compiled.
        sizes = {
            place: shape
            for place in range(len(images))
            if (shape := readable(lambda i: self._shape(images[i], text), place)) is not None
        }
        if not sizes:
            return
        buckets = geometry.plan_buckets(list(sizes.values()), MAX_BUCKETS)
        # A group is a batch by itself, with noise of its own.
        rows = min(batch_size, len(sizes)) if greedy else 1
        waiting: list[_Question] = []
        for number, place in enumerate(sizes, start=1):
            question = readable(lambda i: self._question(images[i], text, i), place)
            if question is not None:
                waiting.append(question)
            if len(waiting) == rows or (waiting and number == len(sizes)):
                bucket = geometry.choose_bucket(buckets, [one.row.shape for one in waiting])
                key = jax.random.fold_in(jax.random.PRNGKey(seed), waiting[0].checksum)
                yield from self._answer(
                    waiting, rows, bucket, key, num_samples, temperature, greedy
                )
                waiting = []

    def _shape(self, image: ImageLike, text: str) -> geometry.RowShape:
        """How large the row of an image will be, by the image's header."""
        with _naming(image):
            if isinstance(image, (str, os.PathLike)):
                width, height = picture.image_size(image)
            else:
                width, height = _opened(image).size
            grid = self._processor.grid_thw(height, width)
            return geometry.row_shape(
                [grid], len(self._prompt_ids(text, grid)), self._model.config.vision
            )

    def _prompt_ids(self, text: str, grid: geometry.Grid) -> list[int]:
        tokens = geometry.merged_tokens(grid, self._model.config.vision)
        return self._tokenizer.encode_prompt(text, [tokens])

    def _question(self, image: ImageLike, text: str, number: int) -> _Question:
        with _naming(image):
            opened = _opened(image)
            pixels, grid = self._processor(opened)
            ids = self._prompt_ids(text, grid)
        resized_height, resized_width = self._processor.resized_size(opened.height, opened.width)
        return _Question(
            id=Path(image).stem if isinstance(image, (str, os.PathLike)) else str(number),
            image=opened,
            prompt=text,
            frame=boxes.Frame(opened.width, opened.height, resized_width, resized_height),
            row=geometry.pack_row(ids, [(pixels, grid)], self._model.config),
            place=number,
            checksum=zlib.crc32(text.encode(), zlib.crc32(opened.tobytes())),
        )

    def _answer(
        self,
        asked: Sequence[_Question],
        rows: int,
        bucket: geometry.Bucket,
        key: jax.Array,
        num_samples: int,
        temperature: float,
        greedy: bool,
    ) -> Iterator[grounded.Grounding]:
        # The last batch is filled up: another number of rows would compile anew.
        filled = [question.row for question in asked] + [asked[-1].row] * (rows - len(asked))
        inputs = geometry.collate(filled, bucket, self._model.config)
        rules = groups.SamplingRules(
            group_size=num_samples,
            max_completion_tokens=self._max_new_tokens,
            stop_ids=self._tokenizer.stop_ids,
            forbidden_ids=self._tokenizer.forbidden_ids,
            pad_id=self._tokenizer.pad_id,
            greedy=greedy,
        )
        args = (self._params, inputs, key, np.float32(temperature))
        run = self._program(rules, (rows, bucket), args)
        start = time.perf_counter()
        try:
            sampled = jax.tree.map(np.asarray, run(*args))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise ValueError(
                f"{rows} images of up to {bucket.num_patches} patches do not fit into memory: "
                "lower batch_size, num_samples, max_pixels or max_new_tokens"
            ) from error
        seconds = (time.perf_counter() - start) / len(asked)
        for row, question in enumerate(asked):
            completions = tuple(
                self._completion(question, *(part[row, column] for part in sampled))
                for column in range(num_samples)
            )
            frame = question.frame
            yield grounded.Grounding(
                id=question.id,
                place=question.place,
                image=question.image,
                prompt=question.prompt,
                width=frame.width,
                height=frame.height,
                resized_width=frame.resized_width,
                resized_height=frame.resized_height,
                completions=completions,
                seconds=seconds,
            )

    def _program(self, rules: groups.SamplingRules, shape: tuple, args: tuple) -> Any:
        """The compiled program of a batch's shape, so that compiling is not timed as answering."""
        if (rules, shape) not in self._compiled:
            model = self._model

            def answer_all(params: Any, inputs: Any, key: Any, temperature: Any) -> groups.Sampled:
                features = model.encode_images(params, inputs)
                return groups.sample_groups(
                    model, params, inputs, features, key, temperature, rules
                )

            # XLA's CPU backend multiplies in float32, and would convert the stacks of all layers
            # outside of the loop over them: 3B in bfloat16 would take 22 GB instead of 9.
            options: dict[str, str | bool] | None = None
            if jax.default_backend() == "cpu" and model.compute_dtype == jnp.bfloat16:
                options = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}
            lowered = jax.jit(answer_all).lower(*args)
            self._compiled[rules, shape] = lowered.compile(compiler_options=options)
        return self._compiled[rules, shape]

    def _completion(
        self, question: _Question, tokens: np.ndarray, mask: np.ndarray, logprobs: np.ndarray
    ) -> grounded.Completion:
        ids = tuple(int(token) for token in tokens[mask])
        text = self._tokenizer.decode(ids)
        said = answer.parse(text)
        box_px, clipped = None, False
        if said.box is not None:
            box_px, outside = boxes.to_clipped_px(said.box, question.frame)
            clipped = bool(outside)
        return grounded.Completion(
            text=text,
            token_ids=ids,
            token_logprobs=tuple(float(value) for value in logprobs[mask]),
            box_px=box_px,
            box_resized_px=said.box,
            clipped=clipped,
            reason=said.reason,
            truncated=not ids or ids[-1] not in self._tokenizer.stop_ids,
        )


class _Facts(NamedTuple):
    """What a folder tells about its weights."""

    sizes: model_config.ModelConfig
    tokenizer: str
    pixels: processor.ImageProcessor
    template: str
    max_new_tokens: int


def _run_facts(source: str | os.PathLike[str]) -> _Facts | None:
    """From the configuration of the run that the checkpoint lies in; None where it lies in none."""
    run = configuration.find_run(source)
    if run is None:
        return None
    config = configuration.read(run)
    sizes = model_config.preset(config.model.preset)
    pixels = processor.ImageProcessor.for_model(
        sizes.vision, min_pixels=config.data.min_pixels, max_pixels=config.data.max_pixels
    )
    return _Facts(
        sizes,
        config.model.tokenizer,
        pixels,
        config.data.template,
        config.rl.max_completion_tokens,
    )


def _folder_facts(source: str | os.PathLike[str]) -> _Facts:
    """From the files of Hugging Face's kind that lie beside the weights."""
    folder = configuration.find_home(source)
    if folder is None:
        there = "there is no such folder" if not Path(source).is_dir() else "it has no config.json"
        raise ValueError(
            f"{source}: {there}: give a Hugging Face folder, a converted one, that of a run, or "
            "one of a run's steps"
        )
    sizes = model_config.preset(str(folder))
    trained: dict[str, Any] = {}
    told = folder / side_files.TRAINING_FILE
    if told.is_file():
        try:
            trained = json.loads(told.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{told}: not JSON ({error}): remove it") from error
    return _Facts(
        sizes,
        str(folder),
        processor.ImageProcessor.from_folder(folder),
        trained.get("template", DEFAULT_TEMPLATE),
        trained.get("max_completion_tokens", 256),
    )


def _opened(image: ImageLike) -> Image.Image:
    """The picture as RGB; uint8 arrays are taken as [h, w, 3] or grey [h, w]."""
    if isinstance(image, (str, os.PathLike)):
        return picture.open_picture(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
            raise ValueError(
                f"an array of {image.dtype} with shape {image.shape}: give uint8, [h, w, 3] or "
                "[h, w]"
            )
        image = Image.fromarray(image)
    return image.convert("RGB")


@contextlib.contextmanager
def _naming(image: ImageLike) -> Iterator[None]:
    """Errors about an image name its file."""
    try:
        yield
    except ValueError as error:
        name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else "image"
        message = " ".join(str(error).split())
        raise ValueError(message if name in message else f"{name}: {message}") from error
