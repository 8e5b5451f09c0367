# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import pytest
import small_runs


@pytest.fixture(scope="session")
def open_job(tmp_path_factory):
    """Makes jobs that share one folder of pictures; `a__b=c` sets config field a.b."""
    folder = tmp_path_factory.mktemp("jobs")

    def make(workdir=None, **changes):
        return small_runs.open_job(folder if workdir is None else workdir, **changes)

    return make
