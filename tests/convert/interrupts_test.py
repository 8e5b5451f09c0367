# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import signal
import threading

import pytest

from medloc_jax.convert import interrupts


def test_ctrl_c_waits_for_the_check():
    before = signal.getsignal(signal.SIGINT)
    reached = []
    with pytest.raises(KeyboardInterrupt), interrupts.deferred() as check:
        check()
        signal.raise_signal(signal.SIGINT)
        reached.append("after")
        check()
        reached.append("too far")
    assert reached == ["after"] and signal.getsignal(signal.SIGINT) is before


def test_whatever_it_became_on_the_way_it_is_an_interruption():
    with pytest.raises(KeyboardInterrupt), interrupts.deferred():
        signal.raise_signal(signal.SIGINT)
        raise OSError("a future of another thread was cancelled")


def test_without_ctrl_c_errors_are_themselves():
    with pytest.raises(OSError, match="full"), interrupts.deferred() as check:
        check()
        raise OSError("full")


def test_what_was_finished_stays_so():
    with interrupts.deferred():
        signal.raise_signal(signal.SIGINT)


def test_an_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.deferred() as check:
            signal.raise_signal(signal.SIGINT)
            check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_may_use_it():
    found = []

    def work():
        with interrupts.deferred() as check:
            check()
            found.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["done"]
