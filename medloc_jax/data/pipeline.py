# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The order of examples, and their loading ahead of time by threads or processes (grain's door).

Training rows form one endless stream: position p = step * batch_size + row holds the example that
a global shuffle, drawn anew in every epoch, puts there. Batches straddle epochs; nothing is
dropped. A process holds a contiguous slice of the rows of every global batch, so neither their
order nor their augmentation depends on the number of processes, and the place in the stream is one
integer, the step: it is reached without reading what lies before it.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from medloc_jax.data import batching, examples
from medloc_jax.model import geometry, processor

# Batches that are ready or under way, for each thread or worker.
PREFETCH = 2
# Where so many images in a row cannot be read, it is the disk and not the images.
_MOST_TRIES = 100

_log = logging.getLogger(__name__)


def row_shapes(
    rows: Sequence[examples.Example], loader: batching.RowLoader
) -> list[geometry.RowShape]:
    """The size of every example's row, from the manifest alone (augmentation does not change it).

    Raises:
        ValueError: an image or query is refused; names the image.
    """
    known: dict[tuple[int, int, str, str], geometry.RowShape] = {}
    shapes = []
    for example in rows:
        key = (example.height, example.width, example.query, example.source)
        if key not in known:
            known[key] = loader.row_shape(example)
        shapes.append(known[key])
    return shapes


def epoch_order(num_examples: int, seed: int) -> grain.MapDataset[int]:
    """The endless stream of example indices: `order[position]`, in O(1).

    Every example comes once in each run of `num_examples` positions, each such epoch in another
    order.
    """
    # Grain shuffles epoch e by seed + e; hashed, so that no epoch of one seed is one of the next.
    shuffle_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return grain.MapDataset.range(num_examples).shuffle(seed=shuffle_seed).repeat()


def train_batches(
    rows: Sequence[examples.Example],
    loader: batching.RowLoader,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    process_index: int,
    process_count: int,
    buckets: Sequence[geometry.Bucket],
    num_workers: int = 0,
    num_threads: int = 2,
    skip_unreadable: bool = False,
) -> Iterator[batching.Batch]:
    """This process's rows of the global batches start_step .. num_steps - 1, loaded ahead.

    Args:
        rows: the training examples, alike on every process.
        loader: from example and position to row.
        batch_size: rows of a global batch.
        seed: of the order, >= 0.
        start_step: global batches consumed before.
        num_steps: global batches of the whole run.
        process_index: of this process.
        process_count: of the run.
        buckets: static shapes to choose from (`geometry.plan_buckets` over `row_shapes`). The
            choice depends on the whole global batch, so it is the same on every process.
        num_workers: loading processes; 0 = threads. They are spawned, so a script that asks for
            some must start under `if __name__ == "__main__":`, or it waits for them for ever.
        num_threads: loading threads where num_workers is 0; 0 = load when asked.
        skip_unreadable: where an image is gone or damaged, the next example of the manifest that
            fits the batch's shape takes its place, whatever the number of processes; it is told in
            a warning and counted in the batch. Otherwise that is an error.

    Raises:
        ValueError: no examples, a batch that does not divide, or, while iterating, a row that
            cannot be loaded; one line that names the image.
    """
    local = _local_rows(batch_size, process_index, process_count, "train")
    if not rows:
        raise ValueError("there are no training examples: choose a manifest with a train split")
    load = _StepLoader(
        tuple(rows),
        loader,
        tuple(row_shapes(rows, loader)),
        tuple(buckets),
        local,
        skip_unreadable,
    )
    order = epoch_order(len(rows), seed)
    steps = order.batch(batch_size, batch_fn=_as_list).slice(slice(start_step, num_steps))
    steps = steps.map_with_index(_Numbered(load, start_step, batch_size))
    return _iterate(steps, num_workers, num_threads)


def eval_batches(
    rows: Sequence[examples.Example],
    loader: batching.RowLoader,
    *,
    batch_size: int,
    process_index: int,
    process_count: int,
    buckets: Sequence[geometry.Bucket],
    num_workers: int = 0,
    num_threads: int = 2,
) -> Iterator[batching.Batch]:
    """Every example once over all processes, in the order given, without augmentation.

    All processes get the same number of batches of the same shapes: the last global batch is
    filled up with repeats of the last example, whose row_valid is False. Arguments and errors are
    those of `train_batches`.
    """
    local = _local_rows(batch_size, process_index, process_count, "evaluation")
    if not rows:
        raise ValueError("there are no examples to evaluate: choose a split that has some")
    load = _StepLoader(tuple(rows), loader, tuple(row_shapes(rows, loader)), tuple(buckets), local)
    steps = grain.MapDataset.range(-(-len(rows) // batch_size))
    return _iterate(steps.map(_Unshuffled(load, len(rows), batch_size)), num_workers, num_threads)


def _local_rows(batch_size: int, process_index: int, process_count: int, kind: str) -> slice:
    """Which rows of every global batch this process holds."""
    if not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} of {process_count}: it must be below the count")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"a {kind} batch of {batch_size} rows does not divide over {process_count} processes: "
            f"make it a positive multiple of {process_count}"
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


@dataclasses.dataclass(frozen=True)
class _Failure:
    """An error on its way from a thread or another process to the main thread."""

    message: str


@dataclasses.dataclass(frozen=True)
class _StepLoader:
    """Loads this process's rows of one global batch; can be pickled."""

    rows: tuple[examples.Example, ...]
    loader: batching.RowLoader
    shapes: tuple[geometry.RowShape, ...]
    buckets: tuple[geometry.Bucket, ...]
    local: slice
    skip_unreadable: bool = False

    def __call__(
        self,
        indices: Sequence[int],
        positions: Sequence[int | None],
        row_valid: Sequence[bool],
    ) -> batching.Batch | _Failure:
        """The three describe all rows of the global batch."""
        try:
            bucket = geometry.choose_bucket(self.buckets, [self.shapes[i] for i in indices])
            loaded, num_skipped = [], 0
            for index, position in zip(indices[self.local], positions[self.local], strict=True):
                row = self._load(index, position, bucket)
                num_skipped += row.example.id != self.rows[index].id
                loaded.append(row)
            valid = row_valid[self.local]
            return batching.make_batch(loaded, valid, bucket, self.loader, num_skipped)
        except ValueError as error:
            return _Failure(str(error))

    def _load(
        self, index: int, position: int | None, bucket: geometry.Bucket
    ) -> batching.LoadedRow:
        """The row of an example, or of the next one that can be read and fits."""
        failed = []
        for offset in range(min(len(self.rows), _MOST_TRIES)):
            other = (index + offset) % len(self.rows)
            # The bucket belongs to the global batch: all processes choose the same.
            if not bucket.covers(self.shapes[other]):
                continue
            try:
                row = self.loader(self.rows[other], position)
            except processor.UnreadableImageError as error:
                if not self.skip_unreadable:
                    raise
                failed.append(str(error))
                continue
            if failed:
                _log.warning("%s: example %r takes its place", failed[0], row.example.id)
            return row
        raise ValueError(f"{failed[0]}, and {len(failed) - 1} more that could take its place")


@dataclasses.dataclass(frozen=True)
class _Numbered:
    """Loads a training step; grain counts steps from the first one of this run."""

    load: _StepLoader
    start_step: int
    batch_size: int

    def __call__(self, step: int, indices: list[int]) -> batching.Batch | _Failure:
        first = (self.start_step + step) * self.batch_size
        positions = range(first, first + self.batch_size)
        return self.load(indices, positions, [True] * self.batch_size)


@dataclasses.dataclass(frozen=True)
class _Unshuffled:
    """Loads an evaluation step."""

    load: _StepLoader
    num_examples: int
    batch_size: int

    def __call__(self, step: int) -> batching.Batch | _Failure:
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        indices = [min(place, self.num_examples - 1) for place in places]
        row_valid = [place < self.num_examples for place in places]
        return self.load(indices, [None] * self.batch_size, row_valid)


def _as_list(indices: Sequence[int | np.integer]) -> list[int]:
    return [int(index) for index in indices]


def _iterate(
    steps: grain.MapDataset[Any], num_workers: int, num_threads: int
) -> Iterator[batching.Batch]:
    """Runs the steps ahead of their use, in order."""
    threads = 1 if num_workers else num_threads
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=PREFETCH * threads)
    stream = steps.to_iter_dataset(options)
    if num_workers:
        # Grain reads its profiling flags, which absl refuses before someone has parsed flags;
        # this program has flags of its own for each verb, and those of a library user may be none.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=PREFETCH)
        )
    iterator = iter(stream)
    try:
        for batch in iterator:
            if isinstance(batch, _Failure):
                raise ValueError(batch.message)
            yield batch
    finally:
        iterator.close()
