# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A disk that is full while a run saves, played by a limit on the size of files."""

import pytest
import small_runs

pytestmark = pytest.mark.faults

STEPS = 6
LIMITED = (
    "import resource, sys; size = int(sys.argv.pop(1)); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)); "
    "from medloc_jax.cli import main; sys.exit(main.main())"
)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    preset = small_runs.write_preset(folder / "preset")

    def make(**changes):
        settings = {"eval__at_start": False, "eval__every": 0, "optim__total_steps": 9} | changes
        return folder / "run", small_runs.arguments("train", folder / "run", preset, **settings)

    return make


def _run(argv, limit=None):
    python = None if limit is None else ["-c", LIMITED, str(limit)]
    return small_runs.finish(small_runs.start(argv, python=python))


def _saved(workdir):
    return {int(path.name) for path in (workdir / "checkpoints").iterdir()}


def test_a_full_disk_is_a_warning_until_the_final_save(command):
    workdir, argv = command(num_steps=2)
    code, out, error = _run(argv)
    assert code == 0, out + error
    assert _saved(workdir) == {2}

    # The arrays of a checkpoint are larger than this, everything else is smaller.
    workdir, argv = command(num_steps=STEPS)
    code, out, error = _run(argv, limit=20_000)
    assert code == 2, out + error
    warnings = [line for line in error.splitlines() if "the run goes on" in line]
    assert len(warnings) == 1 and "checkpoint of step 4 was not saved" in warnings[0], error
    assert "it needs about" in warnings[0] and "steps still there: 2" in warnings[0]
    # Callbacks of TensorStore may still complain between our lines, after their loop was closed.
    (last,) = [line for line in error.splitlines() if line.startswith("medloc train: error: ")]
    assert f"checkpoint of step {STEPS} was not saved" in last
    # It had gone on to the end, and the last good one is still there.
    steps = [line["step"] for line in small_runs.lines(workdir / "metrics.jsonl")]
    assert steps == list(range(1, STEPS + 1))
    assert _saved(workdir) == {2}

    code, out, error = _run(argv)
    assert code == 0 and f"continuing {workdir} from step 2" in out
    assert max(_saved(workdir)) == STEPS
    steps = [line["step"] for line in small_runs.lines(workdir / "metrics.jsonl")]
    assert steps == list(range(1, STEPS + 1))
