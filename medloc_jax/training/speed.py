# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How fast a step was: its phases, tokens a second, model FLOP utilisation, memory, a profile.

The phases are the devices': a program begins when it is sent and the one before it has ended. What
the host does meanwhile takes no time; what the devices wait for it is a phase of its own.

Utilisation is the FLOPs that the model needs (`model.flops`: a prompt once for its group, real
tokens alone, no recomputation) over what all devices could do at their datasheet's bfloat16 peak.
Without a known peak there is none.
"""

import contextlib
import queue
import resource
import sys
import threading
import time
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import jax
import numpy as np

from medloc_jax import devices, storage
from medloc_jax.data import batching
from medloc_jax.model import flops, geometry
from medloc_jax.model.config import ModelConfig

FOLDER = "profile"  # in a run's folder

_GIGABYTE = 1e9


class Meter:
    """Makes a run's `speed/` metrics.

    Attributes:
        peak_flops: of all devices of all processes, FLOP/s; None where it is not known.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        freeze_vision: bool,
        reference: bool = False,
        num_updates: int = 1,
    ):
        """Takes what does not change while a run goes on; see `flops.grpo_step`."""
        device = devices.of(jax.local_devices()[0].device_kind)
        self.peak_flops = device and device.peak_flops * jax.device_count()
        self._config = config
        self._freeze_vision = freeze_vision
        self._work = {"reference": reference, "num_updates": num_updates}

    def grpo(
        self, inputs: geometry.ModelInputs, lengths: np.ndarray, seconds: Mapping[str, float]
    ) -> dict[str, float]:
        """Metrics of a GRPO step.

        Args:
            inputs: this process's prompts (numpy).
            lengths: tokens of all completions of all processes, [B, G].
            seconds: of the phases, by metric name; together the step. (The last save is apart.)
        """
        rows = _rows(inputs, lengths)
        done = flops.grpo_step(self._config, rows, freeze_vision=self._freeze_vision, **self._work)
        return self._metrics(rows, done, lengths.shape[0], float(lengths.sum()), seconds)

    def sft(
        self, batch: batching.Batch, batch_size: int, seconds: Mapping[str, float]
    ) -> dict[str, float]:
        """Metrics of an SFT step; its tokens are those that are learned.

        Args:
            batch: this process's rows.
            batch_size: rows of all processes.
            seconds: as for `grpo`.
        """
        assert batch.completion_mask is not None
        lengths = batch.completion_mask.sum(axis=2)
        rows = _rows(batch.inputs, lengths)
        done = flops.sft_step(self._config, rows, freeze_vision=self._freeze_vision)
        tokens = float(lengths.mean()) * batch_size
        return self._metrics(rows, done, batch_size, tokens, seconds)

    def _metrics(
        self,
        rows: flops.Rows,
        done: Mapping[str, float],
        num_prompts: int,
        tokens: float,
        seconds: Mapping[str, float],
    ) -> dict[str, float]:
        took = sum(value for name, value in seconds.items() if name.endswith("_seconds"))
        metrics = {**seconds, "speed/tokens_per_second": tokens / took}
        if self.peak_flops:
            # The prompts of this process stand for those of all.
            share = num_prompts / rows.prompt_tokens.size
            metrics["speed/mfu"] = share * sum(done.values()) / (took * self.peak_flops)
            update = seconds["speed/update_seconds"] * self.peak_flops
            metrics["speed/update_mfu"] = share * done["update"] / update
        return metrics | memory_peak()


def _rows(inputs: geometry.ModelInputs, lengths: np.ndarray) -> flops.Rows:
    """This process's prompts, each with completions of the mean length over all processes."""
    segments = np.asarray(inputs.segment_ids)
    images = max(1, int(segments.max(initial=0)))
    patches = np.stack([(segments == image).sum(axis=1) for image in range(1, images + 1)])
    return flops.Rows(
        patches=patches[patches > 0].astype(np.float64),
        prompt_tokens=np.asarray(inputs.prompt_lengths, np.float64),
        completion_tokens=np.full((1, 1), lengths.mean(dtype=np.float64)),
        group_size=lengths.shape[1],
    )


def memory_peak() -> dict[str, float]:
    """The most memory ever in use, GB (1e9).

    Returns:
        `speed/memory_peak_gb` of the fullest device of this process; where the backend does not
        say (CPU), `speed/host_memory_peak_gb`, the process's largest resident set.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    if peaks:
        return {"speed/memory_peak_gb": max(peaks) / _GIGABYTE}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"speed/host_memory_peak_gb": peak / _GIGABYTE}


class DeviceClock:
    """When the devices of this process were busy, and with what.

    A thread waits for one result after the other and notes the time. It needs Python's lock to do
    so: where the main thread computes in Python, an end is noted up to `sys.getswitchinterval`
    (5 ms) late, so that much less may be seen of a wait.
    """

    def __init__(self) -> None:
        """Starts; what lies before the first program is nobody's."""
        self._seconds: dict[str, float] = {}
        self._idle = 0.0
        self._free_since: float | None = None
        self._sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._watch, name="device clock", daemon=True)
        self._thread.start()

    def sent(self, phase: str, result: Any) -> None:
        """Notes that a program is dispatched.

        Args:
            phase: `speed/<phase>_seconds` is to have its time. Waiting before "sample" counts as
                "data", any other as "score".
            result: array of the program, or of the last of several; must not be donated.
        """
        self._sent.put((time.perf_counter(), phase, result))

    def restart(self) -> None:
        """Says that the devices did something else until now."""
        self._sent.put((time.perf_counter(), None, None))

    def lap(self) -> "futures.Future[dict[str, float]]":
        """Ends a step with what was sent last.

        Returns:
            When that has ended: the phases since the last lap, which together are the time between
            the two, and `speed/device_idle_share`, the share of it that was spent waiting.
        """
        future: futures.Future[dict[str, float]] = futures.Future()
        self._sent.put((0.0, None, future))
        return future

    def close(self) -> None:
        """Ends the thread."""
        self._sent.put(None)
        self._thread.join()

    def _watch(self) -> None:
        while (item := self._sent.get()) is not None:
            start, phase, result = item
            if isinstance(result, futures.Future):
                result.set_result(self._take())
            elif phase is None:
                self._free_since = start
            else:
                with contextlib.suppress(Exception):  # whoever reads the result is told
                    result.block_until_ready()
                self._add(phase, start, time.perf_counter())

    def _take(self) -> dict[str, float]:
        seconds, idle = self._seconds, self._idle
        self._seconds, self._idle = {}, 0.0
        total = sum(seconds.values())
        return {**seconds, "speed/device_idle_share": idle / total if total else 0.0}

    def _add(self, phase: str, start: float, end: float) -> None:
        free_since = start if self._free_since is None else self._free_since
        waited = max(0.0, start - free_since)
        waits = f"speed/{'data' if phase == 'sample' else 'score'}_seconds"
        name = f"speed/{phase}_seconds"
        self._idle += waited
        self._seconds[waits] = self._seconds.get(waits, 0.0) + waited
        busy = max(0.0, end - max(start, free_since))
        self._seconds[name] = self._seconds.get(name, 0.0) + busy
        self._free_since = max(end, free_since)


class Profile:
    """A trace of a few steps by XLA's profiler, for TensorBoard, XProf or Perfetto.

    `WORKDIR/profile` is opened by `pip install xprof` and `xprof --logdir=WORKDIR/profile`, or by
    TensorBoard with its profile plugin; the `*.trace.json.gz` in it by https://ui.perfetto.dev.
    """

    def __init__(self, workdir: Any, steps: tuple[int, int], *, enabled: bool):
        """Nothing is traced yet.

        Args:
            workdir: the run's folder.
            steps: first and last step of the trace; (0, 0) = none.
            enabled: whether this process traces; one of several is enough.
        """
        # The profiler knows no object store.
        self._mirror = storage.Mirror(workdir / FOLDER)
        self._first, self._last = steps if enabled else (0, 0)
        self._running = False
        self._step: Any = None

    def begin(self, step: int) -> None:
        """Starts or ends the trace where a step begins."""
        self._end_step()
        if self._running and step > self._last:
            self.close()
        if not self._running and 0 < self._first <= step <= self._last:
            jax.profiler.start_trace(str(self._mirror.folder))
            self._running = True
        if self._running:
            self._step = jax.profiler.StepTraceAnnotation("step", step_num=step)
            self._step.__enter__()

    def close(self) -> None:
        """Writes the trace, should it still be running."""
        self._end_step()
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            self._mirror.copy()

    def _end_step(self) -> None:
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None
