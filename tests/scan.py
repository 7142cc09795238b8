"""Which ports of an address take connections, as somebody sees them who may not log in there; without any package."""

from __future__ import annotations

import errno
import json
import selectors
import socket
import sys
import time
from collections.abc import Iterable

AT_ONCE = 6000


def open_ports(address: str, ports: Iterable[int] = range(1, 2**16), patience: float = 0.3) -> list[int]:
    """The ports that take connections, of all that there are; `patience` is for those that a firewall keeps silent."""
    left, found = list(ports), list[int]()
    while left:
        found += _open(address, left[:AT_ONCE], patience)
        del left[:AT_ONCE]
    return sorted(found)


def _open(address: str, ports: list[int], patience: float) -> list[int]:
    found = list[int]()
    with selectors.DefaultSelector() as waiting:
        for port in ports:
            trying = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            trying.setblocking(False)
            code = trying.connect_ex((address, port))
            if code == errno.EINPROGRESS:
                waiting.register(trying, selectors.EVENT_WRITE, port)
            else:
                found += [] if code else [port]
                trying.close()
        until = time.monotonic() + patience  # from the last try on, which may be late on a busy machine
        while waiting.get_map() and (answers := waiting.select(max(0.0, until - time.monotonic()))):
            for key, _ in answers:
                if not key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # type: ignore[union-attr]
                    found.append(key.data)
                waiting.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
        for key in list(waiting.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
    return found


if __name__ == "__main__":
    print(json.dumps(open_ports(sys.argv[1])))
