"""Signals to a process that has a private Ray: what ends it, and what is not broken off."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from raypaml.cluster.signals import ending_on_sigterm, sigterm_kept, uninterrupted
from raypaml.errors import StoppedAtOnce


def test_sigterm_unwinds_where_it_would_kill() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(StoppedAtOnce) as ended, ending_on_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_of_somebody_else_stays() -> None:
    taken = list[int]()
    before = signal.signal(signal.SIGTERM, lambda number, _: taken.append(number))
    try:
        with ending_on_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
        assert taken == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_sigterm_is_whose_it_was() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_kept():
        signal.signal(signal.SIGTERM, lambda *_: None)
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_end_is_not_broken_off() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_another_thread_changes_no_handler() -> None:
    failed = list[BaseException]()

    def within() -> None:
        try:
            with ending_on_sigterm(), uninterrupted():
                pass
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=within)
    thread.start()
    thread.join()
    assert not failed
