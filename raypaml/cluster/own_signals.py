"""Ctrl-C and SIGTERM where the training loop runs in this process.

Python calls signal handlers only between two bytecode instructions of the main thread, which here may compute for long,
or be stuck in a disk or a device. So a thread learns of signals as well, through the file descriptor to which Python
writes their numbers at once (`signal.set_wakeup_fd`).
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
"""Seconds that the main thread has to stop at once, before the process is ended."""


class OwnSignals(Signals):
    """`Signals` that are answered during a long step; the second one ends the process even if it is stuck."""

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
            self._told.close()  # ends the thread
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
