# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The verb around a plan: its flags, its three ways to print, its exit code."""

import json
import re
from pathlib import Path

import made_plans
import pytest

from medloc_jax.cli import main, plan
from medloc_jax.planning import advice, report

CONFIG = "--config=configs/grpo/ham10000_3b.py"


@pytest.fixture
def asked(monkeypatch):
    """Runs the verb where planning is a plan made by hand; returns what planning was asked."""
    seen = {}

    def planned(config, device_kind, num_devices, **options):
        seen.update(options, config=config, device_kind=device_kind, num_devices=num_devices)
        return seen["plan"]

    monkeypatch.setattr(report, "report", planned)
    monkeypatch.setattr(advice, "advise", lambda plan, config: ())
    seen["plan"] = made_plans.make([made_plans.program("grpo_step", temp=30e9)])
    return seen


def test_flags_reach_the_planner(asked, capsys):
    flags = ["--device_kind=h800", "--devices=4", "--image_size=640x480", "--prompt_tokens=500"]
    assert plan.main([CONFIG, *flags, "--processes=2", "--config.rl.group_size=4"]) == 0
    assert capsys.readouterr().out.startswith("3b, grpo, 4 x h800\n")
    assert (asked["device_kind"], asked["num_devices"], asked["processes"]) == ("h800", 4, 2)
    assert asked["image_size"] == (640, 480) and asked["prompt_tokens"] == 500
    assert asked["config"].rl.group_size == 4 and asked["config"].model.preset == "3b"
    plan.main([CONFIG, "--device_kind=v5p:4x4x4"])
    assert (asked["device_kind"], asked["num_devices"]) == ("v5p:4x4x4", 0)
    assert (asked["processes"], asked["image_size"]) == (0, (600, 450))


def test_json_and_markdown_hold_the_command(asked, capsys):
    argv = [CONFIG, "--device_kind=h800", "--devices=4"]
    assert plan.main([*argv, "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["command"] == f"medloc plan {' '.join(argv)}" and out["floor_seconds"] > 0
    assert plan.main([*argv, "--markdown"]) == 0
    assert f"\n    medloc plan {' '.join(argv)}\n" in capsys.readouterr().out


def test_what_does_not_fit_is_told_by_the_exit_code(asked, capsys):
    asked["plan"] = made_plans.make([made_plans.program("grpo_step", temp=90e9)])
    assert main.main(["plan", CONFIG, "--device_kind=h800"]) == plan.DOES_NOT_FIT
    assert "DOES NOT FIT by 4.10 GB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([CONFIG], "device_kind"),
        (["--device_kind=h800"], "config"),
        ([CONFIG, "--device_kind=h800", "--image_size=600"], "write WIDTHxHEIGHT"),
        ([CONFIG, "--device_kind=h800", "--config.rl.group_size=1"], "rl.group_size=1"),
        ([CONFIG, "--device_kind=h900"], "choose one of"),
        ([CONFIG, "--device_kind=v5p:4x4"], "write the slice as"),
    ],
)
def test_a_wrong_command_is_one_line(flags, message, capsys):
    assert main.main(["plan", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_help_names_every_flag(capsys):
    assert main.main(["plan", "--help"]) == 0
    out = capsys.readouterr().out
    for name in ("device_kind", "devices", "processes", "image_size", "prompt_tokens", "json"):
        assert f"--{name}" in out


def test_the_document_is_what_its_script_makes():
    root = Path(__file__).resolve().parents[2]
    script = (root / "launch/plan.sh").read_text()
    made = re.findall(r'^plan \S+ "\$(?:gpu|tpu)" (.*)$', script, re.MULTILINE)
    told = re.findall(
        r"^    medloc plan (.*)$", (root / "launch/PLAN.md").read_text(), re.MULTILINE
    )
    assert told and set(told) <= set(made) and len(made) == 6
    for flags in made:
        assert (root / re.search(r"--config=(\S+)", flags)[1]).is_file()
