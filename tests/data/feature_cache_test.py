# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Features on disk: the same bits, the right ones, never half of them, never more than allowed."""

import concurrent.futures
import dataclasses
import logging

import numpy as np
import pytest
import small_runs

from medloc_jax.data import feature_cache
from medloc_jax.model import geometry

TOWER = (12345, "float32")
BUCKET = geometry.Bucket(64, 4, 48)
SHAPE = (6, 8)
FLOAT = np.dtype(np.float32)


@pytest.fixture
def cache(tmp_path):
    def make(tower=TOWER, max_gb=1.0):
        return feature_cache.FeatureCache(tmp_path / "features", tower, max_gb)

    return make


def _features(seed):
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def _key(seed=0):
    return feature_cache.row_key(feature_cache.image_key(_row(seed)), BUCKET)


def _row(seed=0):
    (ids, images), *_ = small_runs.prompts(seed)
    return geometry.pack_row(ids, images, small_runs.SIZES)


def test_a_key_is_the_content_and_the_static_shape():
    row = _row()
    key = feature_cache.image_key(row)
    assert feature_cache.image_key(_row()) == key
    other = row.pixel_values.copy()
    other[3, 5] += 1e-6
    assert feature_cache.image_key(dataclasses.replace(row, pixel_values=other)) != key
    turned = dataclasses.replace(row, patch_hw=row.patch_hw[:, ::-1])
    assert feature_cache.image_key(turned) != key
    text = dataclasses.replace(row, input_ids=row.input_ids + 1)  # another question on the image
    assert feature_cache.image_key(text) == key
    for shape in (geometry.Bucket(96, 4, 48), geometry.Bucket(64, 9, 48)):
        assert feature_cache.row_key(key, shape) != feature_cache.row_key(key, BUCKET)
    assert feature_cache.row_key(key, geometry.Bucket(64, 4, 99)) == feature_cache.row_key(
        key, BUCKET
    )


def test_what_comes_back_is_what_went_in(cache):
    assert cache().get(_key(), SHAPE, FLOAT) is None
    cache().put(_key(), _features(0))
    got = cache().get(_key(), SHAPE, FLOAT)
    assert got is not None and got.dtype == FLOAT
    np.testing.assert_array_equal(got, _features(0))
    assert cache().get(_key(1), SHAPE, FLOAT) is None
    assert cache((54321, "float32")).get(_key(), SHAPE, FLOAT) is None  # another tower


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
        lambda content: b"",
    ],
)
def test_a_damaged_file_is_told_of_removed_and_made_again(cache, tmp_path, caplog, damage):
    cache().put(_key(), _features(0))
    (path,) = [path for path in (tmp_path / "features").rglob("*") if path.is_file()]
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert cache().get(_key(), SHAPE, FLOAT) is None
    assert f"{path} is damaged: removed, and its image is computed again" in caplog.text
    assert not path.exists()
    cache().put(_key(), _features(0))
    np.testing.assert_array_equal(cache().get(_key(), SHAPE, FLOAT), _features(0))


def test_features_of_another_size_are_not_taken(cache):
    cache().put(_key(), _features(0))
    assert cache().get(_key(), (6, 9), FLOAT) is None


def test_a_full_folder_takes_no_more_and_says_so_once(cache, tmp_path, caplog):
    room = 3 * (_features(0).nbytes + 32) / 1e9
    one, other = cache(max_gb=room), cache(("another tower",), max_gb=room)
    with caplog.at_level(logging.WARNING):
        for seed in range(6):
            one.put(_key(seed), _features(seed))
    assert caplog.text.count("takes no more features") == 1
    assert "raise data.feature_cache_gb" in caplog.text
    files = [path for path in (tmp_path / "features").rglob("*") if path.is_file()]
    assert len(files) == 3 and sum(path.stat().st_size for path in files) <= room * 1e9
    # What is there stays; the folder is one, however many towers use it.
    np.testing.assert_array_equal(one.get(_key(2), SHAPE, FLOAT), _features(2))
    again = cache(("another tower",), max_gb=room)
    again.put(_key(9), _features(9))
    assert again.get(_key(9), SHAPE, FLOAT) is None
    assert other.get(_key(0), SHAPE, FLOAT) is None


def test_many_writers_of_one_file_leave_one_whole_file(cache, tmp_path):
    caches = [cache() for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda each: each.put(_key(), _features(0)), caches * 4))
    files = [path for path in (tmp_path / "features").rglob("*") if path.is_file()]
    assert len(files) == 1
    np.testing.assert_array_equal(cache().get(_key(), SHAPE, FLOAT), _features(0))


def test_a_folder_that_cannot_be_written_is_a_warning(cache, tmp_path, caplog, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    one = cache()
    monkeypatch.setattr(feature_cache.os, "replace", full)
    with caplog.at_level(logging.WARNING):
        one.put(_key(), _features(0))
        one.put(_key(1), _features(1))
    assert caplog.text.count("No space left on device") == 1
    assert not [path for path in (tmp_path / "features").rglob("*") if path.is_file()]
