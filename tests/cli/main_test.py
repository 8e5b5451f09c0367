# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Finding the verb, and one clear line for what a user can mend."""

import subprocess
import sys
import types
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from medloc_jax.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def verb(monkeypatch):
    """Replaces the module of `medloc train` by a function."""

    def install(function):
        module = types.ModuleType("made_up_verb", "What the verb does.")
        vars(module)["main"] = function
        monkeypatch.setitem(sys.modules, "made_up_verb", module)
        monkeypatch.setitem(main.VERBS, "train", ("made_up_verb", "made up"))

    return install


def _parse_config(argv):
    values = flags.FlagValues()
    argv = ["medloc train", *argv]
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
    values(argv)
    return values.config


@pytest.fixture
def config_file(tmp_path):
    def write(line=""):
        path = tmp_path / "experiment.py"
        path.write_text(
            "from medloc_jax.config import default_config\n"
            f"def get_config():\n    config = default_config()\n    {line}\n    return config\n"
        )
        return f"--config={path}"

    return write


def _raises(error):
    def run(argv):
        raise error

    return run


def _error(capsys):
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error.strip()


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_without_a_verb_the_verbs_are_listed(capsys, argv):
    assert main.main(argv) == 0
    out = capsys.readouterr().out
    for name, (_, line) in main.VERBS.items():
        assert f"  {name} " in out and line in out


def test_help_does_not_wait_for_jax():
    code = "import sys; from medloc_jax.cli import main; main.main([]); print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_an_unknown_verb_names_the_nearest(capsys):
    assert main.main(["evalaute"]) == 2
    assert "did you mean evaluate?" in _error(capsys)


def test_a_verb_gets_what_follows_it_and_gives_the_exit_code(verb, capsys):
    got = []

    def run(argv):
        got.extend(argv)
        return 5

    verb(run)
    assert main.main(["train", "--a=1", "b"]) == 5
    assert got == ["--a=1", "b"]
    assert main.main(["train", "--help"]) == 0
    assert capsys.readouterr().out == "What the verb does.\n"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("manifest.jsonl:3: box\nis reversed"),
        FileNotFoundError("manifest.jsonl:3: box is reversed"),
        flags.Error("manifest.jsonl:3: box is reversed"),
    ],
)
def test_what_a_user_can_mend_is_one_line(verb, capsys, monkeypatch, error):
    verb(_raises(error))
    assert main.main(["train"]) == 2
    assert _error(capsys) == "medloc train: error: manifest.jsonl:3: box is reversed"
    monkeypatch.setenv("MEDLOC_DEBUG", "1")
    with pytest.raises(type(error)):
        main.main(["train"])


@pytest.mark.parametrize("error", [AttributeError("x"), KeyError("x"), RuntimeError("x")])
def test_an_error_of_ours_keeps_its_traceback(verb, error):
    verb(_raises(error))
    with pytest.raises(type(error)):
        main.main(["train", "--config.rl.grup_size=4"])


def test_ctrl_c_is_130(verb, capsys):
    verb(_raises(KeyboardInterrupt()))
    assert main.main(["train"]) == 130
    assert _error(capsys) == "medloc train: interrupted"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("--config.rl.grup_size=4", ["rl.grup_size", "did you mean rl.group_size?"]),
        ("--config.group_size=4", ["did you mean rl.group_size?"]),
        ("--config.optim.lerning_rate=1", ["did you mean optim.learning_rate?"]),
        ("--config.sead=1", ["did you mean seed?"]),
        ("--config.rl.group_size=four", ["--config.rl.group_size", "four"]),
        ("--confg.seed=1", ["confg.seed"]),
    ],
)
def test_a_config_typo_names_the_nearest_field(verb, capsys, config_file, override, named):
    verb(_parse_config)
    assert main.main(["train", config_file(), override]) == 2
    error = _error(capsys)
    for part in named:
        assert part in error


@pytest.mark.parametrize("overrides", [[], ["--config.seed=1"]])
@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("config.rl.grup_size = 4", ["grup_size", "rl.group_size"]),
        ("config.rl.group_size = config.rl.grup_size", ["grup_size", "rl.group_size"]),
        ("config.rl.group_size = 'four'", ["group_size"]),
    ],
)
def test_a_typo_in_the_file_names_the_file_and_the_nearest_field(
    verb, capsys, config_file, line, named, overrides
):
    # Without an override, ml_collections keeps the error until the config is read.
    verb(lambda argv: _parse_config(argv).seed)
    assert main.main(["train", config_file(line), *overrides]) == 2
    error = _error(capsys)
    for part in ["experiment.py", *named]:
        assert part in error


@pytest.mark.parametrize("argv", [["--config=nowhere.py"], ["--config", "nowhere.py"]])
def test_a_missing_config_file_is_named(verb, capsys, argv):
    verb(_parse_config)
    assert main.main(["train", *argv]) == 2
    assert "--config=nowhere.py: there is no such file" in _error(capsys)


def test_tuples_and_flags_reach_the_config(verb, config_file):
    configs = []

    def run(argv):
        configs.append(_parse_config(argv))
        return 0

    verb(run)
    overrides = ["--config.curriculum.regimes=((1.01,0.6,0.4),)", "--noconfig.rl.skip_no_signal"]
    assert main.main(["train", config_file(), *overrides]) == 0
    assert configs[0].curriculum.regimes == ((1.01, 0.6, 0.4),)
    assert configs[0].rl.skip_no_signal is False
