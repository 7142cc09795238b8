"""Imitates a distant S3 store on this machine: with latency, 503 errors and a limited bandwidth for all requests.

    python tools/bench/far_store.py FOLDER --rate 25     # prints the port that it listens on

It answers HEAD and GET. Every key stands for one of the first 16 files of the folder, always for the same one.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from contextlib import suppress
from pathlib import Path

from raypaml.cli import Parser, run_command

PROG = "python tools/bench/far_store.py"
FILES = 16
BLOCK = 2**16


class FarStore:
    """Answers each request after the latency, some with 503; all answers together share the bandwidth of one link."""

    def __init__(self, contents: list[bytes], latency: float, errors: float, rate: float):
        self._contents, self._latency, self._errors, self._rate = contents, latency, errors, rate
        self._free, self._random = 0.0, random.Random(2)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the requests of one connection, one after the other."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                method, path, fields = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)
                await asyncio.sleep(self._latency)
                await self._answer(writer, method, fields, self._contents[sum(path) % len(self._contents)])
        writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, method: bytes, fields: bytes, content: bytes) -> None:
        if self._random.random() < self._errors:
            writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n")
            return
        part = re.search(rb"(?i)\r\nrange: bytes=(\d+)-(\d+)", fields)
        first, last = (int(part[1]), min(int(part[2]), len(content) - 1)) if part else (0, len(content) - 1)
        head = f'ETag: "0"\r\nLast-Modified: Mon, 23 Nov 2026 00:00:00 GMT\r\nContent-Length: {last - first + 1}'
        if part:
            head += f"\r\nContent-Range: bytes {first}-{last}/{len(content)}"
        writer.write(f"HTTP/1.1 {206 if part else 200} OK\r\n{head}\r\n\r\n".encode())
        if method == b"GET":
            await self._send(writer, content[first : last + 1])

    async def _send(self, writer: asyncio.StreamWriter, content: bytes) -> None:
        for start in range(0, len(content), BLOCK):
            block = content[start : start + BLOCK]
            self._free = max(self._free, time.monotonic()) + len(block) / self._rate
            await asyncio.sleep(self._free - time.monotonic())
            writer.write(block)
            await writer.drain()


async def serve(store: FarStore) -> None:
    server = await asyncio.start_server(store.connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    flags = Parser(prog=PROG, description=__doc__.split("\n")[0])
    flags.add_argument("folder", type=Path, help="folder of the files that are served")
    flags.add_argument(
        "--latency", type=float, default=50.0, metavar="MS", help="milliseconds before every answer [50]"
    )
    flags.add_argument(
        "--errors",
        type=float,
        default=5.0,
        metavar="PERCENT",
        help="percentage of the requests that are answered 503 [5]",
    )
    flags.add_argument(
        "--rate", type=float, default=25.0, metavar="MB/S", help="megabytes per second that the link carries [25]"
    )
    asked = flags.parse()
    contents = [path.read_bytes() for path in sorted(asked.folder.iterdir())[:FILES]]
    asyncio.run(serve(FarStore(contents, asked.latency / 1e3, asked.errors / 100, asked.rate * 1e6)))


if __name__ == "__main__":
    run_command(main, PROG)
