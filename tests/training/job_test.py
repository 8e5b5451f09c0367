# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a job gathers of all processes. Real processes: tests/integration."""

import dataclasses

import numpy as np
import pytest

from medloc_jax import distributed, sharding


@pytest.fixture
def of_four(open_job, monkeypatch):
    """A job on four processes of which each two hold the same rows."""

    def all_hosts(array):
        mine = np.frombuffer(array.tobytes().replace(b"#", b"0"), array.dtype)
        theirs = np.frombuffer(array.tobytes().replace(b"#", b"1"), array.dtype)
        return np.concatenate([x.reshape(array.shape) for x in (mine, mine, theirs, theirs)])

    monkeypatch.setattr(distributed, "all_hosts", all_hosts)
    share = sharding.RowShare(index=0, count=2, copies=2, is_first=True)
    monkeypatch.setattr(sharding, "row_share", lambda mesh: share)
    return open_job()


def test_records_of_processes_that_share_rows_count_once(of_four):
    rows = [{"id": "#a", "boxes": [1.5]}, {"id": "#b", "boxes": []}]
    assert [row["id"] for row in of_four.all_records(rows)] == ["0a", "0b", "1a", "1b"]
    assert of_four.all_records(rows)[2] == {"id": "1a", "boxes": [1.5]}


def test_so_do_their_numbers(of_four):
    rows = np.frombuffer(b"#a#b", np.uint8).reshape(2, 2)
    got = of_four.all_rows(rows)
    assert got.shape == (4, 2) and got.tobytes() == b"0a0b1a1b"


def test_a_scorer_without_pictures_is_refused(open_job):
    """Scores would be missing in silence."""
    job = open_job()
    batch = next(job.train_batches(job.loader, 2, 0))
    assert job.regions(batch) is None
    config = job.config.copy_and_resolve_references()
    config.rewards.semantic_scorer = "dark_centre"
    with pytest.raises(ValueError, match="'dark_centre' looks at images, and the batch holds none"):
        dataclasses.replace(job, config=config).regions(batch)
