# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The rules of the house. Each check takes source text, and is shown able to fail."""

import ast
import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from medloc_jax import config as config_module
from medloc_jax.cli import main as cli_main
from medloc_jax.model import config as model_config

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "medloc_jax"

# Who may import whom, besides itself: the parts of medloc_jax by name, or one module of a part.
GROUND = (
    *("grounding", "config", "sharding", "checkpoint", "distributed", "metric_writer"),
    *("devices", "watchdog", "storage", "checkpoint_write", "xla_flags", "methods"),
)
IDEAS = ("curriculum", "rl", "rewards", "model")
MACHINERY = ("data", "sampling", "convert")
HOST_MODEL = ("model.config", "model.geometry", "model.processor", "model.tokenizer")
MAY_IMPORT = {
    **dict.fromkeys((*GROUND, "curriculum", "rl"), ()),
    # Whoever reads or writes files of a run.
    **dict.fromkeys(("metric_writer", "checkpoint_write", "watchdog"), ("storage",)),
    "config": ("storage", "methods"),
    "checkpoint": ("storage", "checkpoint_write"),
    "rewards": ("grounding",),
    "model": ("sharding", "storage"),
    "data": ("grounding", "storage", *HOST_MODEL),
    "sampling": ("model", "sharding"),
    "convert": ("model", "checkpoint", "storage"),
    "evaluation": (*GROUND, *IDEAS, *MACHINERY),
    "training": tuple(
        name
        for name in (*GROUND, *IDEAS, *MACHINERY, "evaluation")
        if name not in ("convert", "config")
    ),
    "planning": (*GROUND, *IDEAS, *MACHINERY, "evaluation", "training"),
}
MAY_IMPORT |= dict.fromkeys(("cli", "__main__"), (*MAY_IMPORT, "cli"))

# The doors of the heavy dependencies: which of our modules (by prefix) may import them.
DOORS = {
    "torch": ("convert.verify",),
    "torchvision": (),
    "safetensors": ("convert.",),
    "transformers": ("convert.", "model.tokenizer"),
    "tokenizers": ("convert.", "model.tokenizer"),
    "grain": ("data.",),
    "orbax": ("checkpoint",),
    "tensorstore": ("checkpoint",),
    "etils": ("checkpoint", "storage"),
    "fsspec": ("storage",),
    "ml_collections": ("config", "cli."),
    "matplotlib": (
        *("evaluation.report", "evaluation.plot", "evaluation.contact_sheet"),
        "evaluation.figures",
    ),
    "scipy": ("evaluation.significance",),
    "tensorboardX": ("metric_writer",),
    "wandb": ("metric_writer",),
    "pydicom": ("data.dicom",),
    "rich": ("cli.watch",),
}

# What runs on the host, in loader workers too: no JAX, not even through another of our modules.
HOST_ONLY = ("grounding", "curriculum", "data", "storage", *HOST_MODEL)
DEVICE_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax", "chex")

# Sections of the run's config whose names are data: they are read all at once.
TERMS = ("rewards.weights",)

NO_NAMES = {"util", "utils", "common", "misc", "helper", "helpers", "base", "stuff", "tools"}

PROGRAM_FOLDERS = ("medloc_jax", "configs", "launch", "benchmarks", "tests")


def _module_name(path: Path) -> str:
    """`medloc_jax/model/config.py` -> `model.config`; a package is named without `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _package_sources() -> dict[str, str]:
    return {_module_name(path): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def _imports(source: str, module: str = "", *, is_package: bool = False) -> set[str]:
    """Every dotted name that is imported, inside functions and by importlib too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = ["medloc_jax", *filter(None, module.split("."))]
            kept = len(parents) - node.level + (1 if is_package else 0)
            start = [*parents[:kept]] if node.level else []
            start += [node.module] if node.module else []
            found |= {".".join([*start, alias.name]) for alias in node.names}
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def _ours(names: set[str]) -> set[str]:
    return {name.removeprefix("medloc_jax.") for name in names if name.startswith("medloc_jax.")}


def _within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


# Rule: imports point one way.


def layer_breaches(source: str, module: str) -> list[str]:
    """Imports of one of our modules that the table does not allow."""
    part = module.partition(".")[0]
    if part not in MAY_IMPORT:
        return [f"{module}: {part} is not in the table of DESIGN"] if part else []
    return [
        f"{module} may not import {name}"
        for name in sorted(_ours(_imports(source, module)))
        if not _within(name, (part, *MAY_IMPORT[part]))
    ]


def test_imports_point_one_way():
    breaches = []
    for module, source in _package_sources().items():
        breaches += layer_breaches(source, module)
    assert breaches == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rl.losses", "from medloc_jax.model import qwen2_5_vl"),
        ("rl.losses", "def f():\n    from medloc_jax import rewards"),
        ("rl.losses", "import medloc_jax.config"),
        ("rl.losses", "from ..rewards import scores"),
        ("rl.losses", "from .. import rewards"),
        ("data.pipeline", "from medloc_jax.model import qwen2_5_vl"),
        ("data.pipeline", "from medloc_jax import model"),
        ("evaluation.predict", "from medloc_jax.training import grpo"),
        ("training.grpo", "from medloc_jax import config"),
        ("training.grpo", "from medloc_jax.convert import from_hf"),
        ("rewards.scores", "import importlib\nimportlib.import_module('medloc_jax.rl.kl')"),
        ("novelty.thing", ""),
    ],
)
def test_a_forbidden_import_is_seen(module, source):
    assert layer_breaches(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rl.losses", "from medloc_jax.rl import kl\nfrom . import kl\nimport jax"),
        ("data.pipeline", "from medloc_jax.model import config, geometry"),
        ("data.pipeline", "from medloc_jax.model.config import VisionConfig"),
        ("training.grpo", "from medloc_jax.evaluation import predict"),
        ("cli.train", "from medloc_jax import config, training, convert"),
    ],
)
def test_an_allowed_import_is_left_alone(module, source):
    assert layer_breaches(source, module) == []


# Rule: what runs on the host imports no JAX.


def device_imports(sources: Mapping[str, str]) -> list[str]:
    """Host-only modules from which an import of JAX can be reached, with the way to it."""
    breaches = []
    for start in sources:
        if not _within(start, HOST_ONLY):
            continue
        ways = {start: start}
        waiting = [start]
        while waiting:
            module = waiting.pop()
            imports = _imports(sources[module], module)
            libraries = {name.partition(".")[0] for name in imports} & set(DEVICE_LIBRARIES)
            breaches += [f"{ways[module]} -> {library}" for library in sorted(libraries)]
            for name in _ours(imports):
                # A name may be a module, or something in one; its packages are run too.
                pieces = name.split(".")
                for end in range(1, len(pieces) + 1):
                    target = ".".join(pieces[:end])
                    if target in sources and target not in ways:
                        ways[target] = f"{ways[module]} -> {target}"
                        waiting.append(target)
    return breaches


def test_host_code_imports_no_jax():
    assert device_imports(_package_sources()) == []


@pytest.mark.parametrize(
    "sources",
    [
        {"data.masks": "import jax.numpy as jnp"},
        {"data.masks": "from medloc_jax.model import config", "model.config": "import jax"},
        {
            "data.masks": "from medloc_jax.model import config",
            "model": "import flax",
            "model.config": "",
        },
        {"curriculum.window": "def f():\n    import optax"},
    ],
)
def test_jax_on_the_host_is_seen(sources):
    assert device_imports(sources)


# Rule: each heavy dependency has one door.


def door_breaches(source: str, module: str) -> list[str]:
    """Imports of a heavy dependency outside its door."""
    return [
        f"{module} may not import {library}"
        for library in sorted({name.partition(".")[0] for name in _imports(source, module)})
        if library in DOORS and not module.startswith(DOORS[library] or ("nowhere",))
    ]


def test_each_heavy_dependency_has_one_door():
    breaches = []
    for module, source in _package_sources().items():
        breaches += door_breaches(source, module)
    assert breaches == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("model.vision", "import torch"),
        ("model.processor", "def f():\n    from transformers import AutoProcessor"),
        ("training.grpo", "import orbax.checkpoint as ocp"),
        ("training.grpo", "from ml_collections import ConfigDict"),
        ("evaluation.metrics", "import matplotlib.pyplot as plt"),
        ("evaluation.metrics", "from scipy import stats"),
    ],
)
def test_another_door_is_seen(module, source):
    assert door_breaches(source, module)


# Rule: no `utils`.


def vague_names(path: str) -> list[str]:
    """Parts of a path that name no subject."""
    words = [word for part in Path(path).parts for word in re.split(r"[_.\-]", part)]
    return [word for word in words if word in NO_NAMES]


def test_every_file_is_named_for_its_subject():
    paths = [
        str(path.relative_to(ROOT))
        for folder in PROGRAM_FOLDERS
        for path in (ROOT / folder).rglob("*")
        if "__pycache__" not in path.parts
    ]
    assert [path for path in paths if vague_names(path)] == []
    assert vague_names("medloc_jax/model/image_utils.py") and vague_names("medloc_jax/common/x.py")
    assert not vague_names("medloc_jax/curriculum/baselines.py")


# Rule: every knob of a run is read.


def unread_config_fields(fields: list[str], sources: list[str]) -> list[str]:
    """Config fields (dotted) that no source reads.

    A field `a.b` is read by `.b` on something that ends in `.a` or on a variable that stands for
    the section (called `a`, or assigned from it). Where a section is handed on whole (`**config.a`,
    `config.a.to_dict()`), any `.b` or parameter `b` counts: the receiver has its own names.
    """
    read: set[str] = set()
    sections = {part for field in fields for part in field.split(".")[:-1]}
    handed_on: set[str] = set()
    names: set[str] = set()
    for source in sources:
        tree = ast.parse(source)
        aliases = _section_aliases(tree, sections)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
                owner = _last_name(node.value)
                for section in aliases.get(owner, {owner}):
                    read.add(f"{section}.{node.attr}")
                if node.attr == "to_dict" and owner in sections:
                    handed_on.add(owner)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
            elif isinstance(node, ast.keyword) and node.arg is None:
                handed_on |= {_last_name(node.value)} & sections
    unread = []
    for field in fields:
        section, _, name = field.rpartition(".")
        owner = section.rpartition(".")[2] or "config"
        by_hand = owner in handed_on and name in names
        as_section = section in TERMS and section in read
        if f"{owner}.{name}" not in read and not by_hand and not as_section:
            unread.append(field)
    return unread


def _section_aliases(tree: ast.AST, sections: set[str]) -> dict[str, set[str]]:
    """Variables that are assigned from `<anything>.section`, by name."""
    aliases: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            for name, value in pairs:
                section = value.attr if isinstance(value, ast.Attribute) else ""
                if isinstance(name, ast.Name) and section in sections:
                    aliases.setdefault(name.id, set()).add(section)
    return aliases


def _last_name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _leaves(node, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if hasattr(value, "items"):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_config_field_is_read():
    # A field that is only validated does nothing.
    sources = [
        source
        for module, source in _package_sources().items()
        if module not in ("config", "cli.validate")
    ]
    fields = list(_leaves(config_module.default_config()))
    assert unread_config_fields(fields, sources) == []


@pytest.mark.parametrize(
    ("source", "unread"),
    [
        ("f(config.rl.group_size, config.seed)", []),
        ("rl = config.rl\nf(rl.group_size)\nconfig.seed", []),
        ("r, s = config.rl, config.seed\nf(r.group_size)", []),
        ("def f(rl):\n    return rl.group_size, job.config.seed", []),
        ("f(**config.rl)\nlambda options: options.group_size\nconfig.seed", []),
        ("def f(group_size): ...\nf(**config.rl.to_dict())\nconfig.seed", []),
        ("f(**config.rl.to_dict())\nconfig.seed", ["rl.group_size"]),
        ("config.rl.group_size = 3\nconfig.seed", ["rl.group_size"]),
        ("f(config.sft.group_size)\nconfig.seed", ["rl.group_size"]),
        ("'config.rl.group_size'  # config.rl.group_size\nconfig.seed", ["rl.group_size"]),
        ("f(config.rl.group_size, data.seed)", ["seed"]),
    ],
)
def test_a_config_field_that_no_code_reads_is_seen(source, unread):
    assert unread_config_fields(["rl.group_size", "seed"], [source]) == unread


def test_a_made_up_config_field_is_seen():
    sources = list(_package_sources().values())
    assert unread_config_fields(["rl.made_up", "made_up"], sources) == ["rl.made_up", "made_up"]


def test_terms_of_a_section_within_a_section_are_read_together():
    fields = ["rewards.weights.format"]
    assert unread_config_fields(["data.synthetic.seed"], ["f(config.data.synthetic)"])
    assert not unread_config_fields(["data.synthetic.seed"], ["config.data.synthetic.seed"])
    assert unread_config_fields(fields, ["f(config.rewards.weights)"]) == []
    assert unread_config_fields(fields, ["f(config.rewards)"]) == fields


# Rule: every field of the model's config is read.


def unread_model_fields(fields: list[str], source: str, others: list[str]) -> list[str]:
    """Fields that no other module reads, nor a property of the dataclasses themselves."""
    read = set()
    for tree in [ast.parse(other) for other in others]:
        read |= _attributes_read(tree)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and any(
            _last_name(decorator) == "property" for decorator in node.decorator_list
        ):
            read |= _attributes_read(node)
    return [field for field in fields if field not in read]


def _attributes_read(tree: ast.AST) -> set[str]:
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def test_every_model_field_is_read():
    sources = _package_sources()
    source = sources.pop("model.config")
    classes = (model_config.VisionConfig, model_config.TextConfig, model_config.ModelConfig)
    fields = [field.name for each in classes for field in dataclasses.fields(each)]
    # Kept only to be written back to config.json: the sampler stops where the tokenizer says.
    fields.remove("eos_token_id")
    assert unread_model_fields(fields, source, list(sources.values())) == []


def test_a_model_field_that_is_only_declared_and_checked_is_seen():
    source = """
class TextConfig:
    mrope_section: tuple
    hidden_size: int
    heads: int

    def __post_init__(self):
        if not self.mrope_section: raise ValueError

    @property
    def head_dim(self):
        return self.hidden_size // self.heads
"""
    fields = ["mrope_section", "hidden_size", "heads"]
    assert unread_model_fields(fields, source, []) == ["mrope_section"]
    assert unread_model_fields(fields, source, ["f(text.mrope_section)"]) == []


# Rule: an experiment is a short difference from default_config().


def experiment_breaches(source: str) -> list[str]:
    """Imports of an experiment file that are not the default config, stdlib or ml_collections."""
    return sorted(
        name
        for name in _imports(source)
        if not _within(name, ("medloc_jax.config", "ml_collections"))
        and name.partition(".")[0] not in sys.stdlib_module_names
    )


def test_experiments_import_only_the_default_config():
    for path in sorted((ROOT / "configs").rglob("*.py")):
        assert experiment_breaches(path.read_text()) == [], path.name
    assert experiment_breaches("from medloc_jax.config import default_config\nimport math") == []
    assert experiment_breaches("from configs import demo")
    assert experiment_breaches("from medloc_jax.rl import losses")


# Rule: every file says whose it is and under which licence.


def has_spdx_header(source: str) -> bool:
    """Whether the two lines open the file, after a `#!` line."""
    lines = source.removeprefix("#!/usr/bin/env bash\n").splitlines()
    return lines[:2] == [
        "# SPDX-FileCopyrightText: The medloc_jax authors",
        "# SPDX-License-Identifier: Apache-2.0",
    ]


def test_every_program_file_has_the_spdx_header():
    paths = [
        path
        for folder in PROGRAM_FOLDERS
        for pattern in ("*.py", "*.sh")
        for path in (ROOT / folder).rglob(pattern)
    ]
    paths += [ROOT / "Makefile", ROOT / ".ci" / "run"]
    missing = [
        str(path.relative_to(ROOT)) for path in paths if not has_spdx_header(path.read_text())
    ]
    assert missing == []
    assert not has_spdx_header('"""A module."""\n')


# Rule: what the README names exists.

_README_PATH = re.compile(
    r"(?<![\w/.<-])((?:medloc_jax|configs|launch|checkpoints|benchmarks|tests)/[\w./-]*\w"
    r"|Makefile|pyproject\.toml|LICENSE)"
)
_README_MAKE = re.compile(r"\bmake ((?:[a-z]+(?=[\s`]|$)))")
_README_VERB = re.compile(r"\bmedloc ([a-z]+)\b")


def readme_breaches(text: str, targets: set[str]) -> list[str]:
    """Paths, make targets and verbs that the text names and that are not there."""
    code = "\n".join(re.findall(r"```.*?```|`[^`]+`|^    .*$", text, re.DOTALL | re.MULTILINE))
    links = re.findall(r"\]\(([^)#]+)", text)
    paths = set(_README_PATH.findall(code)) | {link for link in links if "://" not in link}
    breaches = [f"no such path: {path}" for path in sorted(paths) if not (ROOT / path).exists()]
    named = set(_README_MAKE.findall(code))
    breaches += [f"no such target: make {name}" for name in sorted(named - targets)]
    verbs = set(_README_VERB.findall(code))
    return breaches + [f"no such verb: {verb}" for verb in sorted(verbs - set(cli_main.VERBS))]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="there is no README.md yet")
def test_what_the_readme_names_exists():
    assert readme_breaches((ROOT / "README.md").read_text(), make_targets()) == []


def test_what_is_not_there_is_seen():
    targets = make_targets()
    assert {"venv", "demo", "test", "parity", "lint", "bench"} <= targets
    assert readme_breaches("run `make test`, open `medloc_jax/config.py`", targets) == []
    for text in ("`make tset`", "`medloc_jax/cofnig.py`", "[x](docs/x.md)", "`medloc tarin --x`"):
        assert len(readme_breaches(text, targets)) == 1


def test_every_verb_has_its_module():
    paths = [ROOT / f"{module.replace('.', '/')}.py" for module, _ in cli_main.VERBS.values()]
    assert [path.name for path in paths if not path.exists()] == []


# Rule: documents speak to a stranger.

_INSIDER = re.compile(r"\bissues? #?\d|\bthis session\b|/work/|\.\./shared\b", re.IGNORECASE)


def insider_words(text: str) -> list[str]:
    """Words that mean something only to those who wrote it."""
    return _INSIDER.findall(text)


def test_documents_speak_to_a_stranger():
    documents = [
        path
        for pattern in ("*.md", "*/*.md", "medloc_jax/**/*.py", "configs/**/*.py")
        for path in ROOT.glob(pattern)
        if not path.relative_to(ROOT).parts[0].startswith((".", "runs"))
    ]
    assert documents
    found = {str(path.relative_to(ROOT)): insider_words(path.read_text()) for path in documents}
    assert {name: words for name, words in found.items() if words} == {}
    assert insider_words("as issue 2 asks") and not insider_words("an issue to think of")
