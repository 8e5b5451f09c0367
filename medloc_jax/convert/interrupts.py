# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C between two blocks instead of anywhere.

Python raises KeyboardInterrupt in the main thread, wherever that is. While other threads write,
that is the wrong place: they go on writing into a folder that is being deleted. And where JAX is
called back by the garbage collector, the exception is printed and forgotten.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Interrupted(Exception):
    """Ctrl-C was pressed. An Exception, so that other threads' futures hand it on."""


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], None]]:
    """Notes Ctrl-C and goes on, to stop where the caller says.

    Yields:
        A function that raises `Interrupted` if Ctrl-C was pressed; any thread may call it.

    Raises:
        KeyboardInterrupt: on leaving by an exception, whichever that is, after Ctrl-C. What was
            finished before anyone looked stays finished.
    """
    asked = threading.Event()

    def check() -> None:
        if asked.is_set():
            raise Interrupted

    main_thread = threading.current_thread() is threading.main_thread()
    # Only a program that Ctrl-C would stop: under nohup it is ignored, and stays so.
    usual = signal.getsignal(signal.SIGINT)
    replace = main_thread and usual not in (signal.SIG_IGN, None)
    if replace:
        signal.signal(signal.SIGINT, lambda *_: asked.set())
    try:
        yield check
    except BaseException:
        if asked.is_set():
            raise KeyboardInterrupt from None
        raise
    finally:
        if replace:
            signal.signal(signal.SIGINT, usual)
