# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The toy's boxes, what its policy sees of them, and the policy with its gradient, in numpy.

An example is a box and a blurred, noisy view of it. The policy is a network of two hidden layers
that says each of the four coordinates as one of `BINS` tokens. Its warm start has learned boxes
that are too large, as the reward has to make visible: all the policy has to find out is by how
much, from IoUs alone.

Letters: S seeds, all trained at once; B prompts, G completions of a prompt, n examples, d features,
h hidden width, v bins, 4 coordinates.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Num

from medloc_jax.grounding import boxes

WIDTH, HEIGHT = 80, 64  # of the picture that there is not, pixels
BINS = 80  # tokens of a coordinate, one a pixel
TRAIN, TEST, WARM_START = 1600, 400, 2000  # examples
HIDDEN = 96
TEMPERATURE = 0.9  # of sampling; log-probabilities are taken under it, too
WARM_START_STEPS, WARM_START_BATCH, WARM_START_RATE = 500, 32, 2e-3
TOO_LARGE = 1.5  # sides of the warm start's boxes, as a multiple of the true ones
JITTER = 0.1  # noise of the warm start's coordinates, as a share of the sides
EASIER = 0.7  # noise of the warm start's views, as a share of the task's

# Random streams: what is drawn depends on (purpose, seed) and, in training, on the step.
DATA, INITIAL, TRAINING = 0, 1, 2

Parameters = dict[str, np.ndarray]  # each [S, rows, columns]


@dataclasses.dataclass(frozen=True)
class Examples:
    """Boxes, and what the policy sees of them; any leading axes.

    Attributes:
        boxes_px: xyxy.
        features: of the noisy view.
    """

    boxes_px: Float[np.ndarray, "... 4"]
    features: Float[np.ndarray, "... d"]

    def take(self, rows: Int[np.ndarray, "S B"]) -> "Examples":
        """Picks other rows for every seed, from examples [S, n, ...]."""
        taken = (
            np.take_along_axis(array, rows[..., None], axis=1)
            for array in (self.boxes_px, self.features)
        )
        return Examples(*taken)


@dataclasses.dataclass(frozen=True)
class Task:
    """What every shape is tried on: for each seed its own examples and its own warm start."""

    train: Examples
    test: Examples
    start: Parameters
    seeds: tuple[int, ...]


def make_task(noise: float, seeds: Sequence[int]) -> Task:
    """Draws the examples and trains the warm starts.

    Args:
        noise: how unsure the view of a box is, as a multiple of half a pixel to three pixels.
        seeds: of the draws.
    """
    rngs = [np.random.default_rng([DATA, seed]) for seed in seeds]
    train = _draw(rngs, TRAIN, noise)
    test = _draw(rngs, TEST, noise)
    lessons = _draw(rngs, WARM_START, noise * EASIER)
    return Task(train, test, _warm_start(lessons, seeds), tuple(seeds))


def _draw(rngs: Sequence[np.random.Generator], count: int, noise: float) -> Examples:
    """Draws `count` examples a seed: [S, n, ...]."""
    drawn = [_draw_one_seed(rng, count, noise) for rng in rngs]
    return Examples(
        np.stack([one.boxes_px for one in drawn]), np.stack([one.features for one in drawn])
    )


def _draw_one_seed(rng: np.random.Generator, count: int, noise: float) -> Examples:
    width, height = rng.uniform(12, 44, count), rng.uniform(12, 40, count)
    left, top = rng.uniform(1, WIDTH - 1 - width), rng.uniform(1, HEIGHT - 1 - height)
    truth = np.stack([left, top, left + width, top + height], axis=1)  # [n, 4]
    blur = rng.choice([0.5, 1.5, 3.0], count, p=[0.4, 0.4, 0.2]) * noise
    view = truth + 1.5 * blur[:, None] * rng.normal(size=truth.shape)
    # Each coordinate of the view as soft bumps along a ruler, and how far the view can be trusted.
    ruler = np.linspace(0, WIDTH, 21)
    bumps = np.exp(-0.5 * ((view[:, :, None] - ruler) / 6.0) ** 2).reshape(count, -1)
    features = np.concatenate([bumps, blur[:, None] / 3], axis=1)
    return Examples(truth, features.astype(np.float32))


def _warm_start(lessons: Examples, seeds: Sequence[int]) -> Parameters:
    """Teaches the policy boxes that are too large, by their tokens' log-probability."""
    rngs = [np.random.default_rng([INITIAL, seed]) for seed in seeds]
    parameters = _initial(rngs, lessons.features.shape[-1])
    adam = Adam(parameters)
    for _ in range(WARM_START_STEPS):
        rows = np.stack([rng.integers(0, WARM_START, WARM_START_BATCH) for rng in rngs])
        batch = lessons.take(rows)
        targets = boxes.scale_about_centre(batch.boxes_px, TOO_LARGE, WIDTH, HEIGHT)
        sides = np.tile(targets[..., 2:] - targets[..., :2], 2)
        targets += JITTER * sides * np.stack([rng.normal(size=sides.shape[1:]) for rng in rngs])
        tokens = np.clip(np.rint(targets), 0, BINS - 1).astype(int)[..., None]  # [S, B, 4, 1]
        activations = forward(parameters, batch.features)
        slope = np.full(tokens.shape, -1 / tokens[0].size, np.float32)
        gradient = _backward(
            parameters,
            batch.features,
            activations,
            _token_gradient(_log_softmax(activations[-1]), tokens, slope),
        )
        adam.step(parameters, gradient, WARM_START_RATE, np.ones(len(seeds), bool))
    return parameters


def _initial(rngs: Sequence[np.random.Generator], features: int) -> Parameters:
    sizes = {  # name -> (rows, columns, standard deviation)
        "in": (features, HIDDEN, 1.5 / features**0.5),
        "middle": (HIDDEN, HIDDEN, 1 / HIDDEN**0.5),
        "out": (HIDDEN, 4 * BINS, 0.1 / HIDDEN**0.5),
    }
    made: Parameters = {}
    for name, (rows, columns, scale) in sizes.items():
        drawn = np.stack([scale * rng.normal(size=(rows, columns)) for rng in rngs])
        made[name] = drawn.astype(np.float32)
        made[f"{name}_bias"] = np.zeros((len(rngs), 1, columns), np.float32)
    return made


def forward(parameters: Parameters, features: Float[np.ndarray, "S B d"]) -> tuple[np.ndarray, ...]:
    """Runs the network.

    Returns:
        What `_backward` needs, [S, B, h] each: the first layer, the step that the second one adds,
        their sum; and the logits [S, B, 4, v] at temperature 1.
    """
    first = np.tanh(features @ parameters["in"] + parameters["in_bias"])
    added = np.tanh(first @ parameters["middle"] + parameters["middle_bias"])
    last = first + added
    logits = last @ parameters["out"] + parameters["out_bias"]
    return first, added, last, logits.reshape(*features.shape[:2], 4, BINS)


def greedy_boxes(
    parameters: Parameters, features: Float[np.ndarray, "S B d"]
) -> Int[np.ndarray, "S B 4"]:
    """Says the likeliest token of each coordinate."""
    return forward(parameters, features)[-1].argmax(-1)


def sample(
    parameters: Parameters,
    features: Float[np.ndarray, "S B d"],
    uniform: Float[np.ndarray, "S B 4 G"],
) -> Int[np.ndarray, "S B 4 G"]:
    """Turns uniform numbers of [0, 1) into tokens, by the inverse of the distribution function."""
    logprobs = _log_softmax(forward(parameters, features)[-1] / TEMPERATURE)
    reached = np.cumsum(np.exp(logprobs), axis=-1)
    tokens = np.sum(reached[:, :, :, None] < uniform[..., None], axis=-1)
    return np.minimum(tokens, BINS - 1)  # a sum of float32 may end just below 1


def loss_and_gradient(
    parameters: Parameters,
    start: Parameters,
    features: Float[np.ndarray, "S B d"],
    tokens: Int[np.ndarray, "S B 4 G"],
    advantages: Float[np.ndarray, "S B G"],
    kl_weight: float,
) -> tuple[Float[np.ndarray, " S"], Parameters]:
    """The loss of GRPO where the policy that sampled is the one that learns, and its gradient.

    The loss is the mean over tokens of -advantage * logprob + kl_weight * k3, with k3 the estimate
    exp(x) - x - 1 of the divergence from the warm start, x = its logprob - the policy's.

    Returns:
        The loss of each seed, and the gradient of each by its own parameters.
    """
    activations = forward(parameters, features)
    logprobs = _log_softmax(activations[-1] / TEMPERATURE)
    start_logprobs = _log_softmax(forward(start, features)[-1] / TEMPERATURE)
    of_tokens = np.take_along_axis(logprobs, tokens, axis=-1)  # [S, B, 4, G]
    log_ratio = np.take_along_axis(start_logprobs, tokens, axis=-1) - of_tokens
    advantages = advantages[:, :, None, :].astype(of_tokens.dtype)
    loss = -advantages * of_tokens + kl_weight * (np.exp(log_ratio) - log_ratio - 1)
    slope = (-advantages + kl_weight * (1 - np.exp(log_ratio))) / tokens[0].size
    by_logits = _token_gradient(logprobs, tokens, slope) / TEMPERATURE
    return loss.mean(axis=(1, 2, 3)), _backward(parameters, features, activations, by_logits)


def _log_softmax(logits: Float[np.ndarray, "... v"]) -> Float[np.ndarray, "... v"]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _token_gradient(
    logprobs: Float[np.ndarray, "S B 4 v"],
    tokens: Int[np.ndarray, "S B 4 G"],
    slope: Float[np.ndarray, "S B 4 G"],
) -> Float[np.ndarray, "S B 4 v"]:
    """By the logits, where the loss changes by `slope` with each token's logprob."""
    is_token = (tokens[..., None] == np.arange(BINS)).astype(slope.dtype)
    pushed = np.einsum("sbcg,sbcgv->sbcv", slope, is_token)
    return pushed - np.exp(logprobs) * slope.sum(axis=-1, keepdims=True)


def _backward(
    parameters: Parameters,
    features: Float[np.ndarray, "S B d"],
    activations: tuple[np.ndarray, ...],
    by_logits: Float[np.ndarray, "S B 4 v"],
) -> Parameters:
    """From the gradient by the logits, that by the parameters."""
    first, added, last, _ = activations
    by_out = by_logits.reshape(*features.shape[:2], 4 * BINS)
    by_last = by_out @ parameters["out"].mT
    by_middle = by_last * (1 - added**2)
    by_in = (by_last + by_middle @ parameters["middle"].mT) * (1 - first**2)
    gradient: Parameters = {}
    for name, entering, by_leaving in (
        ("in", features, by_in),
        ("middle", first, by_middle),
        ("out", last, by_out),
    ):
        gradient[name] = entering.mT @ by_leaving
        gradient[f"{name}_bias"] = by_leaving.sum(axis=1, keepdims=True)
    return gradient


class Adam:
    """Adam on gradients of a norm of at most 1, for every seed by itself."""

    BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, parameters: Parameters) -> None:
        """Starts without momentum."""
        self.mean = {name: np.zeros_like(array) for name, array in parameters.items()}
        self.square = {name: np.zeros_like(array) for name, array in parameters.items()}
        self.count = np.zeros((len(parameters["in"]), 1, 1), np.float32)

    def step(
        self,
        parameters: Parameters,
        gradient: Parameters,
        rate: float,
        moves: Num[np.ndarray, " S"],
    ) -> None:
        """Moves the parameters in place; seeds where `moves` is false stay as they are."""
        squares = sum(np.square(array).sum(axis=(1, 2)) for array in gradient.values())
        norm = np.sqrt(np.asarray(squares))[:, None, None]
        scale = np.minimum(1, 1 / (norm + 1e-9))
        moves = moves[:, None, None]
        self.count += moves
        count = np.maximum(self.count, 1)
        for name, array in gradient.items():
            clipped = array * scale
            mean = self.BETA_1 * self.mean[name] + (1 - self.BETA_1) * clipped
            square = self.BETA_2 * self.square[name] + (1 - self.BETA_2) * clipped**2
            self.mean[name] = np.where(moves, mean, self.mean[name])
            self.square[name] = np.where(moves, square, self.square[name])
            root = np.sqrt(square / (1 - self.BETA_2**count)) + self.EPSILON
            moved = parameters[name] - rate * mean / (1 - self.BETA_1**count) / root
            parameters[name] = np.where(moves, moved, parameters[name])
