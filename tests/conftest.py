# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What every test run shares: eight pretended CPU devices, one compile cache, hypothesis' profile.

All of it is set in the environment before JAX starts, so that the processes that tests start share
it. An option that is already set wins.
"""

import os
import signal
import sys
from pathlib import Path

import hypothesis

sys.path.insert(0, str(Path(__file__).parent))  # for `small_runs`, which many tests share

import cpu_flags  # noqa: E402

for _flag, _value in cpu_flags.flags(8).items():
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}={_value}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("PJRT_NPROC", cpu_flags.threads(8))

# A shell's background job starts with Ctrl-C ignored, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medloc_jax" / "tests"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
# Most programs of the tiny model compile in under JAX's default of one second.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# The first call of a jitted function compiles, which no deadline should count. Derandomized: a
# test that passed yesterday on the same code passes today.
hypothesis.settings.register_profile(
    "medloc_jax", deadline=None, derandomize=True, max_examples=50, database=None
)
hypothesis.settings.load_profile("medloc_jax")
