"""Serves a folder as an S3 bucket over HTTP, with the latency of a real one; for benchmarks and tests.

    python tools/bench/simulated_store.py DIR --latency 0.05     # prints the address to give to --data

It answers HEAD, GET (with a range) and ListObjectsV2, without asking for credentials.
"""

from __future__ import annotations

import argparse
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"


class Store(ThreadingHTTPServer):
    """A server of one bucket with the files of `folder`; `requests` and `sent` count requests and bytes by file."""

    daemon_threads = True

    def __init__(self, folder: Path, latency: float = 0.0, disturb: Callable[[str, str], int] = lambda *_: 0):
        """Prepares the server; the system chooses its port.

        Args:
            folder: the files to serve.
            latency: seconds before every answer.
            disturb: called with method and file of a request; returns 0, or the HTTP status to fail with.
        """
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.latency, self.disturb = folder, latency, disturb
        self.requests, self.sent = Counter[str](), Counter[str]()
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        """The address to give to `--data`."""
        options = f"endpoint_override=127.0.0.1:{self.server_address[1]}&scheme=http&region=us-east-1"
        return f"s3://anonymous@{BUCKET}?{options}"

    def start(self) -> Store:
        """Serves in a thread of this process."""
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Store

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        name = unquote(url.path).removeprefix(f"/{BUCKET}").strip("/")
        time.sleep(self.server.latency)
        with self.server.lock:
            self.server.requests[name] += 1
        status = self.server.disturb(self.command, name)
        if status:
            self._send(status, b"<Error><Code>InternalError</Code></Error>")
        elif "list-type" in parse_qs(url.query):
            self._send(200, self._listing(parse_qs(url.query).get("prefix", [""])[0]))
        elif name and (self.server.folder / name).is_file():
            self._send_file(self.server.folder / name)
        else:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def _listing(self, prefix: str) -> bytes:
        files = sorted(p for p in self.server.folder.rglob("*") if p.is_file())
        names = [(str(p.relative_to(self.server.folder)), p) for p in files]
        entries = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<Size>{path.stat().st_size}</Size></Contents>"
            for name, path in names
            if name.startswith(prefix)
        )
        head = f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><IsTruncated>false</IsTruncated>"
        return f'<?xml version="1.0"?><ListBucketResult>{head}{entries}</ListBucketResult>'.encode()

    def _send_file(self, path: Path) -> None:
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), min(int(asked[2] or size - 1), size - 1)) if asked else (0, size - 1)
        with path.open("rb") as file:
            file.seek(first)
            content = file.read(last + 1 - first) if self.command == "GET" else b""
        more = {"Content-Range": f"bytes {first}-{last}/{size}"} if asked else {}
        with self.server.lock:
            self.server.sent[path.name] += len(content)
        self._send(206 if asked else 200, content, length=last + 1 - first, headers=more)

    def _send(
        self, status: int, content: bytes, length: int | None = None, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in {"Last-Modified": formatdate(0, usegmt=True), "ETag": '"0"', **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder to serve")
    parser.add_argument(
        "--latency", type=float, default=0.05, metavar="SECONDS", help="seconds before every answer [0.05]"
    )
    asked = parser.parse_args()
    store = Store(asked.folder, asked.latency)
    print(store.address, flush=True)
    store.serve_forever()


if __name__ == "__main__":
    main()
