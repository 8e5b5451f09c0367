# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys

import pytest

from medloc_jax.convert import staging


@pytest.mark.parametrize("existing", [False, True])
def test_the_target_appears_when_it_is_whole(tmp_path, existing):
    target = tmp_path / "a" / "target"
    if existing:
        target.mkdir(parents=True)
    with staging.folder(target) as folder:
        (folder / "file").write_text("x")
        assert not (target / "file").exists()
    assert [path.name for path in target.iterdir()] == ["file"]
    assert [path.name for path in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interruption_leaves_nothing(tmp_path, error):
    with pytest.raises(error), staging.folder(tmp_path / "target") as folder:
        (folder / "file").write_text("x")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_replaced_with_a_note(tmp_path, capsys):
    program = (
        "import os, sys; from pathlib import Path; from medloc_jax.convert import staging\n"
        "with staging.folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'old').write_text('x' * 1000); os._exit(9)"
    )
    target = tmp_path / "target"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program, str(target)], env=environment)
    assert done.returncode == 9 and not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["target.partial"]
    with staging.folder(target) as folder:
        (folder / "new").write_text("x")
    assert "removed, an interrupted conversion had left it" in capsys.readouterr().out
    assert [path.name for path in target.iterdir()] == ["new"]


def test_what_is_not_ours_is_left_alone(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").write_text("x")
    with pytest.raises(ValueError, match="is not empty: name another folder"):
        staging.check_target(target)
    with pytest.raises(ValueError, match="is a file: name a folder"):
        staging.check_target(target / "file")
    (tmp_path / "other.partial").mkdir()
    other = staging.folder(tmp_path / "other")
    with pytest.raises(ValueError, match=r"other\.partial is in the way"), other:
        pass
    assert (target / "file").exists()


def test_a_disk_without_room_is_told_first(tmp_path):
    staging.check_room(tmp_path / "a" / "b", 1000)
    with pytest.raises(ValueError, match=r"needs 1000000000\.0 GB, the disk has .* GB left"):
        staging.check_room(tmp_path / "a" / "b", 10**18)
