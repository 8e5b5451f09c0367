# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The scripts for the first run on a card, run here on a model of seconds; what they write."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cpu_flags
import pytest
import small_runs

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def scripts(monkeypatch):
    """Their folder on the path, as when one of them is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_first_run_on_a_card(tmp_path):
    preset = small_runs.write_preset(tmp_path / "preset")
    command = [sys.executable, str(BENCHMARKS / "gpu_run.py"), f"--preset={preset}"]
    environment = os.environ | {"XLA_FLAGS": cpu_flags.joined(1), "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [*command, f"--out={tmp_path / 'GPU.md'}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1000,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    text = (tmp_path / "GPU.md").read_text()
    for figure in ("cold compile", "compile from the cache", "grpo_step", "step", "peak GB"):
        assert f"| {figure} |" in text
    assert "decode at batch 4, tokens/s" in text and "decode at batch 2, tokens/s" in text
    assert text.count("| yes |") == 2 and "Not reached" not in text


def test_the_table_of_predictions_follows_from_its_record(scripts):
    import aot
    import aot_table

    record = json.loads(aot.RECORD.read_text())
    assert aot.TABLE.read_text() == aot_table.document(record), "python benchmarks/aot.py table"


def test_a_prediction_is_a_floor_over_its_share(scripts):
    import aot

    floors = aot.floors_of("h200", {"data": 1, "fsdp": 1, "tensor": 1})
    assert set(floors) == set(aot.EFFICIENCY) == {n for names in aot.PHASES.values() for n in names}
    for name, seconds in aot.predicted(floors).items():
        assert seconds == pytest.approx(floors[name] / aot.EFFICIENCY[name][0])
    assert 1.2 < sum(floors.values()) < 1.5  # the table of PERFORMANCE says 1.33


LISTING = """HloModule m
%moves (p: bf16[4,8], i: s32[]) -> bf16[1,8] {
  %p = bf16[4,8] parameter(0)
  %i = s32[] parameter(1)
  %s = bf16[1,8] dynamic-slice(%p, %i), dynamic_slice_sizes={1,8}
  ROOT %c = bf16[1,8] copy(%s)
}
%works (p: bf16[1,8]) -> bf16[1,8] {
  %q = bf16[1,8] parameter(0)
  ROOT %t = bf16[1,8] negate(%q)
}
%body (t: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %t = (s32[], bf16[4,8]) parameter(0)
  %n = s32[] get-tuple-element(%t), index=0
  %w = bf16[4,8] get-tuple-element(%t), index=1
  %one = bf16[1,8] fusion(%w, %n), kind=kCustom, calls=%moves
  %two = bf16[1,8] fusion(%one), kind=kLoop, calls=%works
  ROOT %r = (s32[], bf16[4,8]) tuple(%n, %w)
}
%until (t: (s32[], bf16[4,8])) -> pred[] {
  %t = (s32[], bf16[4,8]) parameter(0)
  %n = s32[] get-tuple-element(%t), index=0
  ROOT %x = pred[] custom-call(%n), custom_call_target="x"
}
ENTRY %main (w: bf16[4,8]) -> (s32[], bf16[4,8]) {
  %w = bf16[4,8] parameter(0)
  %z = s32[] constant(0)
  %twice = bf16[4,8] copy(%w)
  %t = (s32[], bf16[4,8]) tuple(%z, %twice)
  ROOT %l = (s32[], bf16[4,8]) while(%t), condition=%until, body=%body
}
"""


def test_what_a_token_only_moves(scripts):
    """The slice that is copied out, 16 bytes; not the copy before the loop, nor arithmetic."""
    import aot

    from medloc_jax.planning import hlo

    assert aot.copied(hlo.Listing(LISTING)) == {"dynamic-slice": 16.0}
    assert aot.kernels_per_token(hlo.Listing(LISTING)) == 3  # with the condition's
