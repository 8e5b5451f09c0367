# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Every knob of a run: default, unit, comment. Experiments are short differences.

The defaults are those of the MedLoc-R1 paper (arXiv 2603.28120) where it states them and agrees
with itself; the model defaults to the tiny preset, so that a bare run is one a laptop can do.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from medloc_jax import methods, storage

FILE = "config.json"  # in a run's folder: its resolved configuration


def default_config() -> ConfigDict:
    """Returns a fresh, locked ConfigDict: a misspelt name on the command line is an error."""
    config = ConfigDict()

    config.method = "grpo"  # "sft" or "grpo"
    # What reports call the run: the method's name in methods.py, or an arm of a sweep; "" = derived
    config.label = ""
    config.seed = 42  # data order, initial weights, sampling noise
    config.num_steps = 1000  # optimizer steps (SFT) or rollouts (GRPO); 0 = only evaluate

    config.model = model = ConfigDict()
    model.preset = (
        "tiny"  # tiny, bench_tiny, 3b, 7b, 32b, 72b; or a folder with Hugging Face's config.json
    )
    model.init_from = (
        ""  # folder with weights: Hugging Face's, a run's, or converted; "" = random weights
    )
    model.tokenizer = (
        ""  # folder with tokenizer files; "" = that of the weights, or the tiny model's own
    )
    model.compute_dtype = "float32"  # activations: "float32" or "bfloat16"
    model.frozen_dtype = (
        "float32"  # storage of frozen and reference weights: "float32" or "bfloat16"
    )
    model.freeze_vision = (
        True  # the tower is left as it is, and its features are computed once a step
    )
    # "layer": recompute each layer in the backward pass; "dots": keep what its matrix products with
    # weights gave, recompute the rest; "none": keep activations
    model.remat = "layer"
    # "xla": plain operations, the reference; "cudnn": NVIDIA's kernels, bfloat16; "splash": the
    # TPU's; "auto": what the device has, plain on a CPU and in float32 on a GPU
    model.attention = "auto"
    # Write the layers out instead of looping over them: a tenth faster on a CPU, but compile time
    # grows with the depth. (Decoding is always written out.)
    model.unroll = False
    model.vocab_chunk = 1024  # completion tokens whose logits exist at one time on a device

    config.data = data = ConfigDict()
    data.manifest = "synthetic"  # path of a manifest.jsonl, or "synthetic": drawn into WORKDIR/data
    # The prompt and answer format: vlm_r1, medloc, boxmed, chain_of_box, box
    data.template = "vlm_r1"
    data.min_pixels = 3136  # smallest area of a resized image, px^2
    data.max_pixels = 401408  # largest area of a resized image, px^2
    data.max_buckets = 4  # at most this many static shapes are compiled
    data.val_fraction = (
        0.1  # share of the train groups cut off as val, where the manifest has no val
    )
    data.augment = ()  # train-time transforms, any of "hflip", "vflip", "rescale"
    # A train image that cannot be read: "stop", or "skip": another example takes its place, counted
    # in data/skipped_examples. An evaluation always stops.
    data.missing_files = "stop"
    # Folder for the image features of a frozen tower, so that each image is encoded once and not
    # once an epoch (GRPO); "" = none. And the most that may lie in it, GB (1e9)
    data.feature_cache = ""
    data.feature_cache_gb = 20.0
    data.num_workers = 0  # decoding processes; 0 = threads of this process
    data.num_threads = 2  # decoding threads, where num_workers is 0
    data.synthetic = synthetic = ConfigDict()
    synthetic.variant = "lesions"  # an entry of data/synthetic.py VARIANTS
    synthetic.num_train = 3000  # images
    synthetic.num_test = 400  # images
    synthetic.seed = 0  # of the pictures, not of the run

    config.rl = rl = ConfigDict()
    rl.group_size = 8  # completions per prompt (G)
    rl.prompts_per_step = 8  # prompts per optimizer step over all devices (B)
    rl.micro_batch_prompts = 0  # prompts per backward pass over all devices; 0 = all at once
    rl.max_completion_tokens = 256  # longest completion, end token included (C)
    rl.temperature = 0.9  # of sampling, and of the log-probabilities in the loss
    rl.kl_weight = 0.04  # beta; the paper prints 0.4, the code base it builds on has 0.04
    rl.num_updates = 1  # optimizer passes over one rollout (mu)
    # Draw a step's completions before the update of the step before it, so that devices do not wait
    # for the host; then the largest importance weight policy / sampler of a token (0 = no weights)
    rl.sample_ahead = False
    rl.importance_cap = 2.0
    rl.clip_low = 0.2  # ratio is clipped to [1 - clip_low, 1 + clip_high]
    rl.clip_high = 0.2
    rl.advantage_std = (
        "sample"  # sample (unbiased, + 1e-4), population_inside (Eq. 1), none (centred only)
    )
    rl.ratio_level = "token"  # token, or sequence (Eq. 2 as printed)
    rl.loss_aggregation = "seq_mean"  # seq_mean, token_mean, dr_grpo
    rl.gather_weights = True  # for sampling, over mesh.fsdp, once a step; False: less memory, slow
    rl.skip_no_signal = True  # an update in which no group has signal changes nothing

    config.rewards = rewards = ConfigDict()
    rewards.weights = ConfigDict(
        {"localization": 1.0, "format": 0.0, "semantic": 0.0}
    )  # one per term; 0 = only logged
    # What tells how well the part of the image inside a box fits the query, for the term
    # "semantic": "module:function" (see medloc_jax/rewards/semantic.py), or "" for none
    rewards.semantic_scorer = ""

    config.sft = sft = ConfigDict()
    sft.batch_size = 32  # examples per optimizer step over all devices
    sft.micro_batch = 0  # examples per backward pass over all devices; 0 = all at once
    sft.box_scale = (
        1.0  # target boxes are drawn this many times too wide and too high (a sloppy teacher)
    )

    sft.box_jitter = 0.0  # std of a random shift of each side of them, as a share of the box's size

    config.curriculum = curriculum = ConfigDict()
    curriculum.schedule = "medloc"  # medloc, fixed, raw_iou, v_triune, rivals
    curriculum.threshold_start = 0.3  # IoU
    curriculum.threshold_target = 0.8  # IoU
    curriculum.threshold_fixed = 0.5  # IoU, for schedule = fixed
    curriculum.step_size = "piecewise"  # piecewise, linear, cosine, constant
    curriculum.step_sizes = (
        0.15,
        0.10,
        0.05,
    )  # piecewise: IoU added below each boundary, and above the last
    curriculum.boundaries = (0.55, 0.75)  # piecewise: thresholds at which the step size changes
    curriculum.step_size_start = 0.2  # linear, cosine, constant: the first (or every) step
    curriculum.snap_eps = (
        0.0  # linear, cosine: jump to the target when the gap is below this; 0 = never
    )
    curriculum.window = 30  # entries (N)
    curriculum.window_unit = "step"  # step: one entry an optimizer step; prompt: one entry a prompt
    curriculum.window_rewards = "recompute"  # recompute under the present threshold, or as_rewarded
    curriculum.min_fill = 0  # entries needed before the criterion is tested; 0 = the whole window
    curriculum.refresh_fraction = 0.5  # share of the window dropped after an update (the oldest)
    curriculum.margin = 0.10  # mean IoU must exceed the threshold by this much (Delta)
    curriculum.criteria = ("reward", "margin", "stability")  # the conditions that must hold
    # (thresholds below this, least hit rate P, largest std S of it); the last row reaches past 1.
    curriculum.regimes = ((0.60, 0.80, 0.20), (0.75, 0.75, 0.35), (1.01, 0.55, 0.40))
    curriculum.stages = ((0.10, 0.3), (0.25, 0.5), (1.0, 0.7))  # v_triune: (share of steps, IoU)
    # rivals: siblings that a completion must beat, > 0, at the first step and after the last
    curriculum.rivals_start = 1.0
    curriculum.rivals_end = 6.0

    config.optim = optim = ConfigDict()
    optim.learning_rate = 1e-6
    optim.warmup_steps = 0
    optim.schedule = "linear"  # linear (to 0 at total_steps) or constant, after the warm-up
    optim.total_steps = 0  # length of the linear decay; 0 = num_steps
    optim.beta1 = 0.9
    optim.beta2 = 0.999
    optim.eps = 1e-8
    optim.weight_decay = 0.0
    optim.clip_norm = 1.0  # global norm of the gradient; 0 = no clipping
    optim.max_nonfinite = 20  # steps in a row whose gradient is not finite before the run ends; 0 =
    # never. Each of them changes nothing and is counted

    config.eval = evaluation = ConfigDict()
    evaluation.every = 100  # steps; 0 = only at the end
    evaluation.at_start = True  # also before the first step
    evaluation.split = "val"  # looked at while training
    evaluation.num_examples = 0  # of that split, while training; 0 = all
    evaluation.final_split = "test"  # scored once, at the last step; "" = none
    evaluation.batch_size = 32  # prompts per decoding batch over all devices

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every = 100  # steps
    checkpoint.keep_last = 2
    checkpoint.keep_best = 1  # by eval/<split>/map
    checkpoint.asynchronous = False  # train on while a checkpoint is written; takes host memory of
    # its size. For gs:// and s3://, and for models whose save takes longer than a step

    config.mesh = mesh = ConfigDict()  # devices along each axis; -1 = all that are left
    mesh.data = 1
    mesh.fsdp = -1
    mesh.tensor = 1

    config.watchdog = watchdog = ConfigDict()  # see medloc_jax/watchdog.py
    watchdog.lost_seconds = 120.0  # without a sign of life before a process is lost; 0 = never
    watchdog.hung_seconds = 1800.0  # without progress before the run ends; 0 = never. More than the
    # longest compilation, loading of weights or save takes

    config.log = log = ConfigDict()
    log.rollouts_every = 50  # steps between lines of rollouts.jsonl; 0 = never
    log.profile_steps = (0, 0)  # first and last step of a trace in WORKDIR/profile; (0, 0) = none
    log.tensorboard = True
    log.wandb = False  # also to Weights & Biases, where installed
    log.wandb_project = "medloc_jax"

    return config.lock()


def paper_config(method: str, variant: str = "medloc") -> ConfigDict:
    """What the paper's runs share, for a pretrained Qwen2.5-VL on accelerators.

    An experiment adds the model's size, the data set and the length of the decay.

    Args:
        method: "grpo" or "sft" (the baseline: answers only, on the same batches).
        variant: for GRPO, a name in methods.METHODS: "medloc" is the paper where it agrees with
            itself and the code base that it builds on where it does not say, "medloc_as_written"
            the paper taken literally.

    Returns:
        A locked ConfigDict.

    Raises:
        ValueError: there is no such variant.

    Reference: MedLoc-R1 (arXiv 2603.28120), section 4.1, Eq. 1 and 2, and Appendix B.
    """
    if method != "grpo" and variant != methods.DEFAULT:
        raise ValueError(
            f"variant {variant!r} of a {method} experiment: it has none; the methods are variants "
            "of the files in configs/grpo"
        )
    config: Any = default_config()
    config.method = method
    config.num_steps = 1000  # "evaluation conducted at step 1000"
    config.model.compute_dtype = "bfloat16"
    config.model.frozen_dtype = "bfloat16"
    config.rewards.weights.format = 1.0  # the template has tags; the curriculum sees IoU alone
    config.rl.micro_batch_prompts = 0
    config.sft.batch_size = 8  # the prompts of a GRPO step, so that both see the same batches
    config.data.max_buckets = 4
    config.log.rollouts_every = 10
    return config if method != "grpo" else apply_method(config, variant)


def apply_method(config: Any, name: str) -> Any:
    """Makes an experiment that of another method; its data, sizes and length stay.

    Args:
        config: the experiment, changed in place.
        name: an entry of methods.METHODS.

    Returns:
        The same config.

    Raises:
        ValueError: there is no such method.
    """
    for field, value in methods.fields_of(name).items():
        if isinstance(value, methods.Like):
            value = get_field(config, value.field)
        set_field(config, field, value)
    config.label = "" if name == methods.DEFAULT else name  # then "medloc" is derived
    return config


class Arm(NamedTuple):
    """What a sweep runs once a seed.

    Attributes:
        name: of its folder, and how reports call it.
        method: an entry of methods.METHODS, the experiment's variant.
        changes: ((dotted field, value), ...) on top of that.
        base: another experiment file than the sweep's.
        seeds: others than the sweep's: a method without randomness needs one.
        tune: (dotted field, values) to choose from on val, in place of the sweep's; () = as the
            sweep says.
    """

    name: str
    method: str = methods.DEFAULT
    changes: tuple[tuple[str, Any], ...] = ()
    base: str = ""
    seeds: tuple[int, ...] = ()
    tune: tuple[Any, ...] = ()


def arm(name: str, method: str = "", changes: Any = (), **rest: Any) -> Arm:
    """An arm; its method is the one of its name, where there is one, unless another is given."""
    method = method or (name if name in methods.METHODS else methods.DEFAULT)
    return Arm(name, method, tuple(dict(changes).items()), **rest)


def default_sweep(arms: Sequence[Arm] = (), base: str = "configs/grpo/ham10000_3b.py") -> Any:
    """Returns a list of runs for `medloc sweep`, locked."""
    sweep = ConfigDict()
    sweep.base = base  # the experiment file that is varied
    sweep.arms = tuple(arms)  # in the order of the tables
    sweep.seeds = (42, 43, 44)  # each arm once a seed
    sweep.note = ""  # what of it is our reading, for readers of the report
    sweep.allow = ()  # "budget", "split": in what its arms differ on purpose; the report lets them
    sweep.reference = ""  # the arm that its report takes the others from; "" = medloc
    sweep.changes = ()  # ((dotted field, value), ...) of every arm, before the arm's own
    # The experiment file of the run whose weights all arms start from; "" = what the base says
    sweep.warm_start = ""
    sweep.warm_start_changes = ()  # ((dotted field, value), ...) of it
    sweep.tune_field = "optim.learning_rate"  # chosen for each arm by itself
    sweep.tune_values = ()  # to choose from, as many tries for every arm; () = nothing is tuned
    sweep.tune_seed = 41  # of the tries; none of `seeds`
    sweep.tune_measure = "map"  # the best of eval/<watched split>/<this> at the last step wins
    return sweep.lock()


def get_field(config: Any, field: str) -> Any:
    """The value of a dotted field.

    Raises:
        ValueError: there is no such field.
    """
    for part in field.split("."):
        if not hasattr(config, "items") or part not in config:
            raise ValueError(f"config.{field}: no such field")
        config = config[part]
    return config


def set_field(config: Any, field: str, value: Any) -> None:
    """Sets a dotted field.

    Raises:
        ValueError: there is no such field, or the value is of another type.
    """
    get_field(config, field)
    section, _, name = field.rpartition(".")
    try:
        setattr(get_field(config, section) if section else config, name, value)
    except TypeError as error:
        raise ValueError(f"config.{field}={value!r}: {' '.join(str(error).split())}") from error


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config's settings by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def read(workdir: str | os.PathLike[str]) -> Any:
    """The configuration that a run was started with, from its folder.

    Raises:
        ValueError: if the folder is not a run's.
    """
    path = storage.path(workdir) / FILE
    if not path.is_file():
        raise ValueError(f"{workdir} has no {FILE}: it is not the folder of a run")
    resolved = default_config()
    try:
        resolved.update(_tuples(json.loads(path.read_text(encoding="utf-8"))))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} is not a configuration of this version ({reason}): mend or remove it"
        ) from error
    return resolved


def find_home(source: str | os.PathLike[str]) -> Any:
    """The folder whose config.json tells about a checkpoint; None where there is none.

    Args:
        source: the folder itself, its checkpoints folder, or one step.

    Returns:
        The folder, as `storage.path` gives it.
    """
    given = storage.absolute(source)
    homes = [given]
    # Only from what a run or a conversion has named: another folder inside a run's is not of it.
    if given.name == "checkpoints":
        homes.append(given.parent)
    elif given.name.isdigit():
        homes += [
            given.parent,
            *([given.parents[1]] if given.parent.name == "checkpoints" else []),
        ]
    return next((home for home in homes if (home / FILE).is_file()), None)


def find_run(source: str | os.PathLike[str]) -> Any:
    """The folder of the run that a checkpoint lies in; None where it belongs to no run.

    Args:
        source: a run's folder, its checkpoints folder, or one step.
    """
    home = find_home(source)
    if home is None:
        return None
    try:
        # Hugging Face's folders have a config.json, too: that of a model.
        content = json.loads((home / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return home if isinstance(content, dict) and "method" in content else None


def _tuples(value: Any) -> Any:
    """JSON lists back to the tuples that they were."""
    if isinstance(value, dict):
        return {name: _tuples(one) for name, one in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(one) for one in value)
    return value
