# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import pytest
import small_runs


@pytest.fixture(scope="session")
def open_job(tmp_path_factory):
    """Makes real jobs on one device; `a__b=c` sets config field a.b."""
    folder = tmp_path_factory.mktemp("jobs")

    def make(**options):
        return small_runs.open_job(folder, **options)

    return make
