# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a plan says in words, in Markdown and in JSON."""

import dataclasses
import json

import made_plans
import pytest

from medloc_jax.cli import plan as verb
from medloc_jax.planning import advice, plan, table

GATHER = plan.Collective(
    kind="all-gather",
    axes="fsdp",
    shape="bf16[2048,11008]",
    bytes=45_000_000,
    count=72,
    in_loop=True,
    in_decode_loop=False,
    source="jit(grpo_step)/dot_general",
    overlapped=True,
)


def _report(**changes):
    memory = [
        made_plans.part("weights", 3.1),
        made_plans.part("moments", 6.2),
        made_plans.part("activations", 40.0, "grpo_step"),
    ]
    small = dataclasses.replace(GATHER, bytes=1000, count=1, shape="bf16[500]")
    programs = [
        made_plans.program("sample_groups", temp=5e9),
        made_plans.program("grpo_step", temp=50e9, collectives=(GATHER, small)),
    ]
    made = made_plans.make(programs, memory=memory, **changes)
    return verb.report_of(made, made_plans.paper_config())


def test_what_fits():
    report = _report()
    text = table.text(report)
    assert text.splitlines()[0] == "3b, grpo, 4 x h800"
    for words in (
        "1 host, mesh data 1 x fsdp 4 x tensor 1; compiled by the GPU compiler",
        "image 600x450 fed as 588x448 px, 336 image tokens; prompt 410 tokens",
        "8 prompts x 8 completions of 256 tokens a step",
        "fits: 59.3 GB of 85.9 GB a device, 26.6 GB to spare",
        "3.10 GB  always",
        "40.0 GB  grpo_step",
    ):
        assert words in text, words
    assert "would save" not in text and "WARNING" not in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_collectives_that_are_alike_are_one_row():
    lines = [line.split() for line in table.text(_report()).splitlines() if "all-gather" in line]
    assert lines == [
        *[["grpo_step", "all-gather", "fsdp", "loop", "73", "3.24", "GB", "yes", GATHER.shape]]
    ]


@pytest.mark.parametrize(
    ("kind", "axes", "share"),
    [
        *[("all-gather", "fsdp", 0.75), ("all-reduce", "fsdp", 1.5), ("all-gather", "?", 7 / 8)],
        *[("reduce-scatter", "data+fsdp", 0.75), ("all-reduce", "tensor", 1.0)],
        ("collective-permute", "tensor", 1.0),
    ],
)
def test_what_a_device_receives(kind, axes, share):
    one = dataclasses.replace(GATHER, kind=kind, axes=axes, bytes=80, count=3)
    mesh = {"data": 1, "fsdp": 4, "tensor": 2}
    assert table.received_bytes(one, mesh) == pytest.approx(240 * share)


def test_traffic_is_held_against_the_floor():
    # Three quarters of 72 times 45 MB.
    assert "a device receives 2.43 GB in a step; the floor counts 24." in table.text(_report())


def test_the_floor_is_told_with_its_rates():
    report = _report()
    assert report.floor_seconds == pytest.approx(
        sum(phase.seconds(report.device) for phase in report.phases)
    )
    text = table.text(report)
    assert f"{report.floor_seconds:.3f} s" in text
    assert "790 TFLOP/s, 3.00 TB/s memory, 160 GB/s links, 40 GB/s network" in text
    alone = _report(kind="cpu", mesh=(1, 1, 1))
    assert alone.floor_seconds is None and "no rates are known" in table.text(alone)
    assert "needs 59.3 GB a device" in table.text(alone)


def test_what_does_not_fit_says_so_and_what_helps(monkeypatch):
    helps = advice.Advice("--config.a.b=1", int(3e9), int(88e9), False, "time")
    monkeypatch.setattr(advice, "advise", lambda plan, config: (helps,))
    refused = made_plans.program("grpo_step", does_not_fit=5_600_000_000, refusal="ran out")
    sampler = made_plans.program("sample_groups", temp=5e9)
    report = verb.report_of(made_plans.make([sampler, refused]), made_plans.paper_config())
    text = table.text(report)
    assert "DOES NOT FIT by 5.60 GB of 85.9 GB a device" in text
    assert "grpo_step was refused: ran out" in text
    assert "  --config.a.b=1  -3.00 GB  88.0 GB  no    time" in text.splitlines()


def test_large_copies_are_warned_of():
    whole = plan.Buffer("params.embed", "f32[151936,2048]", 1_244_659_712, "argument")
    brief = plan.Buffer("all-gather", "bf16[36,2048,2048]", 300_000_000, "temporary")
    made = made_plans.make(
        [made_plans.program("grpo_step", replicated=(whole, brief), not_donated=("state.mu",))]
    )
    text = table.text(verb.report_of(made, made_plans.paper_config()))
    assert "holds params.embed f32[151936,2048] whole on every device: 1.24 GB" in text
    assert "copies instead of reusing: state.mu" in text
    # What is gathered on purpose, and let go of, is told without alarm.
    assert text.count("WARNING") == 2
    assert "grpo_step gathers whole, for as long as it needs it: bf16[36,2048,2048]" in text


def test_hosts_of_gpus_are_joined_by_a_network_and_slices_are_not():
    far = _report(mesh=(1, 8, 2), processes=2)
    assert sum(phase.network_bytes for phase in far.phases) > 0
    slice_of_tpus = _report(kind="v5p", mesh=(1, 8, 2), processes=4)
    assert sum(phase.network_bytes for phase in slice_of_tpus.phases) == 0
    assert sum(phase.link_bytes for phase in slice_of_tpus.phases) > 0


def test_markdown_has_the_command_and_well_formed_tables():
    text = table.markdown(_report(), "medloc plan --config=x.py")
    assert text.startswith("## 3b, grpo, 4 x h800\n\n    medloc plan --config=x.py\n")
    tables = [block for block in text.split("\n\n") if block.startswith("| ")]
    assert len(tables) == 5
    for block in tables:
        rows = block.strip().splitlines()
        assert not any(row.endswith(" ") for row in text.splitlines())
        assert len({row.count("|") for row in rows}) == 1 and set(rows[1]) <= set("| -:")


def test_json_holds_every_figure():
    report = _report()
    out = json.loads(json.dumps(table.as_json(report, "medloc plan")))
    assert out["markdown"] == table.markdown(report, "medloc plan")
    assert out["peak_bytes"] == report.plan.peak_bytes and out["does_not_fit"] is None
    assert out["plan"]["programs"][1]["collectives"][0]["bytes"] == 45_000_000
    assert sum(phase["seconds"] for phase in out["floor"]) == pytest.approx(out["floor_seconds"])
    assert {phase["bound"] for phase in out["floor"]} <= {"compute", "memory", "links", "network"}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *[(83.14e9, "83.1 GB"), (5.6e9, "5.60 GB"), (0.31e9, "0.31 GB"), (45e6, "45.0 MB")],
        *[(2.2e6, "2.20 MB"), (1500, "1.50 kB"), (0, "0.00 kB"), (-3e9, "-3.00 GB")],
    ],
)
def test_sizes(count, text):
    assert table.size(count) == text
