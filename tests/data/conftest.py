# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from medloc_jax.data import batching, examples, synthetic
from medloc_jax.model import config, geometry, processor, tokenizer


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """Ten synthetic examples of several sizes."""
    folder = tmp_path_factory.mktemp("data") / "synthetic"
    return examples.load_manifest(synthetic.write(folder, num_train=10, num_test=0))


@pytest.fixture(scope="session")
def loader():
    tiny = config.PRESETS["tiny"]
    return batching.RowLoader(
        config=tiny,
        processor=processor.ImageProcessor.for_model(
            tiny.vision, min_pixels=32 * 32, max_pixels=96 * 64
        ),
        tokenizer=tokenizer.load(""),
        template="box",
    )


@pytest.fixture(scope="session")
def buckets(rows, loader):
    return geometry.plan_buckets([loader.row_shape(row) for row in rows], max_buckets=3)
