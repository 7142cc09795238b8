"""moto's S3 on loopback, a program of its own: files of a folder as objects, and requests that fail as they do there.

python -m tests.s3_store FOLDER SHARE: buckets `images` (all files) and `private` (refused), SHARE of the requests
answered 503 SlowDown. Prints its port. GET /_counts tells what was asked; GET /_down/N: 503 for all but the next N.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import get_canned_acl, s3_backends
from werkzeug.serving import make_server

ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{0}</Code><Message>{1}</Message></Error>'


class Faulty:
    """The application behind requests that fail now and then."""

    def __init__(self, application: Callable[..., Iterable[bytes]], share: float):
        self._application, self._share, self._random = application, share, random.Random(5)
        self._counts, self._left = Counter[str](), sys.maxsize

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith("/_down/"):
            self._left = int(path.rpartition("/")[2])
        if path.startswith("/_"):
            start("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self._counts).encode()]
        self._counts["requests"] += 1
        self._left -= 1
        if path.startswith("/private"):
            return self._answer(start, "403 Forbidden", "AccessDenied", "Access Denied")
        if self._left < 0 or self._random.random() < self._share:
            self._counts["503"] += 1
            return self._answer(start, "503 Slow Down", "SlowDown", "Please reduce your request rate.")
        return self._application(environ, start)

    def _answer(self, start: Callable[..., Any], status: str, code: str, message: str) -> list[bytes]:
        start(status, [("Content-Type", "application/xml")])
        return [ERROR.format(code, message).encode()]


def main() -> None:
    folder, share = Path(sys.argv[1]), float(sys.argv[2])
    backend = s3_backends["123456789012"]["aws"]
    for bucket in ("images", "private"):
        backend.create_bucket(bucket, "us-east-1")
    backend.put_bucket_acl("images", get_canned_acl("public-read"))  # read without credentials, as Open Images is
    for path in folder.rglob("*"):
        if path.is_file():
            found = backend.put_object("images", str(path.relative_to(folder)), path.read_bytes())
            found.set_acl(get_canned_acl("public-read"))
    application = Faulty(DomainDispatcherApplication(create_backend_app), share)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
