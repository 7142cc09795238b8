"""Ctrl-C and SIGTERM where the loop runs in this process.

Python calls a handler only between two steps of its main thread, which here may be long, or stuck in a disk or a
device. So a thread hears of signals too, by the file descriptor that Python writes their numbers to at once.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Self

from raypaml.cluster.signals import STOPPING, Signals

_PATIENCE = 10.0
"""Seconds that the main thread has to stop at once; then the process ends."""


class OwnSignals(Signals):
    """As `Signals`; the first is answered though a step is long, the second ends the process though it is stuck."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say, self._over = say, threading.Event()

    def __enter__(self) -> Self:
        super().__enter__()
        if self._before:
            self._hears, self._told = socket.socketpair()
            self._told.setblocking(False)
            self._wakes = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self._before:
            self._over.set()
            signal.set_wakeup_fd(self._wakes)
            self._told.close()  # which ends the thread
            self._thread.join()
            self._hears.close()

    def _listen(self) -> None:
        heard = 0
        while number := self._hears.recv(1):
            if number[0] not in self._before:
                continue
            heard += 1
            if heard == 1:
                self._say(STOPPING)
            elif not self._over.wait(_PATIENCE):
                os._exit(128 + number[0])
