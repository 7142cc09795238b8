"""Serves the page of an audit on this machine alone, and writes every answer into a file as it is given.

Whoever asks must know the token in the address, and must have asked for this machine by its own name: a page of another
site, whose name was made to lead here (DNS rebinding), says its own name in the header Host.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypedDict
from urllib.parse import urlsplit

from raypaml.auditing.given_answers import Entry, read_given, write_given
from raypaml.cli import say
from raypaml.errors import told_refusal
from raypaml.json_types import check
from raypaml.stored_json import parse_json

HOST = "127.0.0.1"
_OWN_NAMES = {HOST, "localhost"}
"""Names by which this machine is asked for; any port, since it may be another one at the end of a tunnel."""
_MOST_BYTES = 1 << 22
"""The most bytes of a request: the answers to 100,000 entries at once take half of it."""
_IDLE_SECONDS = 60.0
_LETTERS = {"": ".", "yes": "y", "no": "n", "unsure": "u"}
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class SentAnswers(TypedDict):
    """What the page sends: the digest of its list, and the number, from 0, and the answer of some entries."""

    digest: str
    answers: list[tuple[int, str]]


@dataclass
class AnswerBook:
    """The answers to a list, and the file that holds them."""

    path: Path
    """The file, `answers.csv`."""
    digest: str
    """The digest of the list."""
    entries: Sequence[Entry]
    """The list."""
    given: dict[Entry, str] = field(default_factory=dict)
    """The answers so far, those to entries of other lists too."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    _stamp: tuple[int, int] = (0, 0)

    def refresh(self) -> None:
        """Read the file, if somebody has changed it since it was read or written here."""
        stamp = self._state()
        if stamp not in ((0, 0), self._stamp):  # a file that was removed is written again
            self.given, self._stamp = read_given(self.path), stamp

    def add(self, given: SentAnswers) -> None:
        """Take answers over, and write all into the file, whole or not at all.

        Raises:
            ValueError: they are not answers to this list, or the file was changed into something else.
            OSError: the file cannot be written; nothing is taken over then.
        """
        check(given, SentAnswers)
        if given["digest"] != self.digest:
            raise ValueError("these are answers to another list; reload the page")
        for number, answer in given["answers"]:
            if number >= len(self.entries) or answer not in _LETTERS:
                raise ValueError(f"no such entry or answer: {number}, {answer[:20]!r}")
        with self.lock:
            self.refresh()
            new = self.given | {self.entries[number]: answer for number, answer in given["answers"]}
            kept = {entry: answer for entry, answer in new.items() if answer}
            write_given(self.path, self.entries, kept)
            self.given, self._stamp = kept, self._state()

    def told(self) -> dict[str, str]:
        """What the page asks for: the digest of the list, the file, and a letter for the answer of each entry."""
        with self.lock:
            self.refresh()
            letters = "".join(_LETTERS[self.given.get(entry, "")] for entry in self.entries)
        return {"digest": self.digest, "file": str(self.path), "answers": letters}

    def _state(self) -> tuple[int, int]:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return (0, 0)
        return status.st_mtime_ns, status.st_size


class AnswerServer(ThreadingHTTPServer):
    """An HTTP server on the loopback interface, for one page, its pictures, and the answers to it.

    Args:
        page: the page, as it is sent.
        pictures: the folder of the pictures.
        names: the pictures that are sent; nothing else in the folder is.
        book: where the answers go.
        port: the port; 0 for one that is free.
        say: prints a line, where answers could not be written, and where they then are.

    Raises:
        OSError: the port is taken, or not allowed.
    """

    daemon_threads = True  # a browser keeps connections open, and the end must not wait for them

    def __init__(
        self,
        page: bytes,
        pictures: Path,
        names: frozenset[str],
        book: AnswerBook,
        port: int = 0,
        say: Callable[[str], None] = say,
    ):
        self.say, self._refused = say, ""
        self.page, self.pictures, self.names, self.book = page, pictures, names, book
        self.token = secrets.token_urlsafe(24)
        super().__init__((HOST, port), _Handler)

    @property
    def address(self) -> str:
        """The address of the page, with the token."""
        return f"http://{HOST}:{self.server_address[1]}/{self.token}/"

    def take(self, given: SentAnswers) -> None:
        """Write answers, as `AnswerBook.add`, and say where that fails: once, since the page asks again and again."""
        try:
            self.book.add(given)
        except OSError as error:
            refused = told_refusal(error)
            if refused != self._refused:
                self.say(f"answers are not saved, and the page sends them again: {refused}")
            self._refused = refused
            raise
        if self._refused:
            self.say(f"answers are saved again in {self.book.path}")
        self._refused = ""

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a browser that closes a connection is no error, and anything else was answered."""


class _RefusalError(Exception):
    """A request that is not carried out."""

    def __init__(self, status: HTTPStatus, said: str):
        super().__init__(said)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: AnswerServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "raypaml", ""
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        """Send the page, a picture, or the answers."""
        self._handle(self._got)

    def do_POST(self) -> None:
        """Take answers over."""
        self._handle(self._posted)

    def log_message(self, *_: object) -> None:
        """Print nothing; the token would be in it."""

    def _handle(self, act: Callable[[str], tuple[str, bytes]]) -> None:
        status = HTTPStatus.OK
        try:
            kind, content = act(self._path())
        except (_RefusalError, OSError, ValueError) as error:
            self.close_connection = True  # what was sent may not have been read
            own = HTTPStatus.INTERNAL_SERVER_ERROR if isinstance(error, OSError) else HTTPStatus.BAD_REQUEST
            status = error.status if isinstance(error, _RefusalError) else own
            said = told_refusal(error) if isinstance(error, OSError) else str(error)
            kind, content = "text/plain", said.encode()
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def _path(self) -> str:
        """What is asked for below the token; refuses whoever does not know it, or asks for another machine."""
        host = self.headers.get("Host", "")
        if urlsplit(f"//{host}").hostname not in _OWN_NAMES:
            raise _RefusalError(HTTPStatus.MISDIRECTED_REQUEST, f"this is {HOST}, and nothing else")
        if self.path == "/favicon.ico":  # browsers ask for it by themselves, and call a refusal an error of the page
            raise _RefusalError(HTTPStatus.NO_CONTENT, "")
        _, token, path = [*self.path.split("/", 2), "", ""][:3]
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise _RefusalError(HTTPStatus.FORBIDDEN, "open the address that raypaml audit has printed")
        origin = self.headers.get("Origin")
        if origin not in (None, f"http://{host}"):
            raise _RefusalError(HTTPStatus.FORBIDDEN, "asked by a page of another site")
        if self.path == f"/{token}":  # what the page asks for is named from its folder
            raise _RefusalError(HTTPStatus.NOT_FOUND, f"give the address with its last sign: {self.server.address}")
        return path

    def _got(self, path: str) -> tuple[str, bytes]:
        if not path:
            return "text/html", self.server.page
        if path == "answers":
            return "application/json", json.dumps(self.server.book.told()).encode()
        name = path.removeprefix("data/")
        if name == path or name not in self.server.names:
            raise _RefusalError(HTTPStatus.NOT_FOUND, "no such page")
        return "image/jpeg", (self.server.pictures / name).read_bytes()

    def _posted(self, path: str) -> tuple[str, bytes]:
        content = self._body()
        if path != "answers":
            raise _RefusalError(HTTPStatus.NOT_FOUND, "no such page")
        self.server.take(parse_json(content))
        return "application/json", json.dumps({"file": str(self.server.book.path)}).encode()

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or "Transfer-Encoding" in self.headers:
            raise _RefusalError(HTTPStatus.LENGTH_REQUIRED, "the length of a request must be said")
        if len(length) > len(str(_MOST_BYTES)) or int(length) > _MOST_BYTES:
            raise _RefusalError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {_MOST_BYTES:,} bytes")
        if self.headers.get_content_type() != "application/json":
            raise _RefusalError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "give application/json")
        return self.rfile.read(int(length))
