# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import os
import shutil
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
    (tmp_path / "other.partial" / "file").write_text("x")
    other = staging.folder(tmp_path / "other")
    with pytest.raises(ValueError, match=r"other\.partial is in the way"), other:
        pass
    assert (target / "file").exists()


def test_an_empty_folder_of_an_early_kill_is_not_in_the_way(tmp_path):
    (tmp_path / "target.partial").mkdir()
    with staging.folder(tmp_path / "target") as folder:
        (folder / "file").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_what_cannot_be_deleted_at_once_is_tried_again_with_its_mark(tmp_path, monkeypatch):
    usual, marked = shutil.rmtree, []

    def late(path, *args, **kwargs):
        marked.append((tmp_path / "target.partial" / ".medloc_convert").exists())
        if len(marked) < 3:
            raise OSError(f"{path}: Directory not empty")
        usual(path, *args, **kwargs)

    monkeypatch.setattr(staging, "_PAUSE", 0.0)
    monkeypatch.setattr(shutil, "rmtree", late)
    with pytest.raises(KeyboardInterrupt), staging.folder(tmp_path / "target") as folder:
        (folder / "deep").mkdir()
        raise KeyboardInterrupt
    assert marked == [True] * 3 and list(tmp_path.iterdir()) == []


def test_what_cannot_be_deleted_at_all_is_known_for_ours(tmp_path, monkeypatch, capsys):
    def never(path, *_args, **_kwargs):
        raise OSError(f"{path}: Directory not empty")

    monkeypatch.setattr(staging, "_PAUSE", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", never)
        with pytest.raises(KeyboardInterrupt), staging.folder(tmp_path / "target") as folder:
            (folder / "deep").mkdir()
            raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["target.partial"]
    with staging.folder(tmp_path / "target"):
        pass
    assert "removed, an interrupted conversion had left it" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_while_it_goes_to_the_disk_it_can_be_stopped(tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), staging.folder(tmp_path / "target", stop) as folder:
        (folder / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told_first(tmp_path):
    staging.check_room(tmp_path / "a" / "b", 1000)
    with pytest.raises(ValueError, match=r"needs 1000000000\.0 GB, the disk has .* GB left"):
        staging.check_room(tmp_path / "a" / "b", 10**18)
