# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from medloc_jax.cli import prepare
from medloc_jax.data import examples


def test_synthetic_is_written_and_summed_up(tmp_path, capsys):
    out = tmp_path / "set"
    argv = ["synthetic", "--out", str(out), "--num_train=3", "--num_test=2", "--variant=easy"]
    assert prepare.main(argv) == 0
    rows = examples.load_manifest(out)
    assert [row.split for row in rows] == ["train"] * 3 + ["test"] * 2
    assert rows[0].id == "easy-0-0"
    assert f"{out / 'manifest.jsonl'}: 3 train, 2 test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no data set is named: .* DATASET of synthetic"),
        (["ham"], "'ham' is no data set"),
        (["synthetic"], "--out is missing"),
        (["synthetic", "--out=x", "--colour=red"], "colour.*--num_train"),
        (["synthetic", "--out=x", "--num_train=many"], "num_train.*many"),
        (["synthetic", "--out=x", "y"], "'y' is not understood"),
    ],
)
def test_a_wrong_command_line_is_one_clear_error(argv, message):
    with pytest.raises(ValueError, match=message) as error:
        prepare.main(argv)
    assert "\n" not in str(error.value)
