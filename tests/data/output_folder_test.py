# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medloc_jax.data import output_folder

ROOT = Path(__file__).resolve().parents[2]
# Writes half of a folder and waits to be killed.
WRITER = """
import sys, time
from pathlib import Path
from medloc_jax.data import output_folder
with output_folder.new_folder(Path(sys.argv[1]), overwrite=True, say=print) as folder:
    (folder / "half").write_text("")
    print("writing", flush=True)
    time.sleep(60)
"""


def _new(out, overwrite=False, said=None):
    return output_folder.new_folder(
        out, overwrite=overwrite, say=[].append if said is None else said.append
    )


def _write(out, text="{}", **options):
    with _new(out, **options) as folder:
        (folder / output_folder.STATISTICS_NAME).write_text(text)


OURS = json.dumps({"written_by": output_folder.WRITTEN_BY})


def test_a_folder_is_whole_or_not_there(tmp_path):
    out = tmp_path / "out"
    for path in (out, tmp_path / "new" / "parent" / "out"):
        with pytest.raises(RuntimeError), _new(path) as folder:
            (folder / "half").write_text("")
            raise RuntimeError
        assert os.listdir(tmp_path) == []
    with _new(out) as folder:
        assert not out.exists()
        (folder / "whole").write_text("")
    assert os.listdir(out) == ["whole"] and os.listdir(tmp_path) == ["out"]


def test_only_what_was_written_here_is_replaced(tmp_path):
    source, out = tmp_path / "set", tmp_path / "out"
    output_folder.check_target(out, source, overwrite=False)
    _write(out, OURS)
    (out / "old").write_text("")
    for replace in (lambda: output_folder.check_target(out, source, overwrite=False),
                    lambda: _write(out)):  # fmt: skip
        with pytest.raises(ValueError, match="holds a data set already.*--overwrite"):
            replace()
    output_folder.check_target(out, source, overwrite=True)
    _write(out, "{}", overwrite=True)
    assert os.listdir(out) == [output_folder.STATISTICS_NAME] and os.listdir(tmp_path) == ["out"]
    with pytest.raises(ValueError, match="is not empty and was not written here"):
        output_folder.check_target(out, source, overwrite=True)


def test_an_error_leaves_the_folder_that_was_there(tmp_path):
    out = tmp_path / "out"
    _write(out, OURS)
    with pytest.raises(RuntimeError), _new(out, overwrite=True):
        raise RuntimeError
    assert (out / output_folder.STATISTICS_NAME).read_text() == OURS
    assert os.listdir(tmp_path) == ["out"]


def test_a_live_run_is_left_alone_and_what_a_killed_one_left_is_cleared_away(tmp_path):
    out = tmp_path / "out"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(out)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
        with pytest.raises(ValueError, match=f"process {writer.pid} is writing it now: wait"):
            _write(out, overwrite=True)
        assert (tmp_path / ".out.unfinished" / "half").exists()
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    assert sorted(os.listdir(tmp_path)) == [".out.lock", ".out.unfinished"]
    said = []
    _write(out, said=said)
    assert os.listdir(out) == [output_folder.STATISTICS_NAME] and os.listdir(tmp_path) == ["out"]
    assert said == [f"{tmp_path / '.out.unfinished'}: removed; a run that was stopped had left it"]


def test_a_folder_that_a_killed_run_had_moved_away_is_put_back(tmp_path):
    _write(tmp_path / "out", OURS)
    (tmp_path / "out").rename(tmp_path / ".out.replaced")
    said = []
    with pytest.raises(ValueError, match="holds a data set already"):
        _write(tmp_path / "out", said=said)
    assert "put back" in said[0] and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(("out", "source"), [("a", "a"), ("a/b", "a"), ("a", "a/b")])
def test_the_source_is_never_written_into(tmp_path, out, source):
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(ValueError, match="lie in each other"):
        output_folder.check_target(tmp_path / out, tmp_path / source, overwrite=True)
