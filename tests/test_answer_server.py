"""`raypaml audit --serve`: only who knows the token and asks this machine gets anything, and no answer is lost."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raypaml.api import audited
from raypaml.api.audited import Audited
from raypaml.audit import main
from raypaml.auditing import answer_server
from raypaml.auditing.answer_server import AnswerBook, AnswerServer
from raypaml.auditing.audit_folder import AuditRecord
from raypaml.auditing.audit_page import digest_of
from raypaml.auditing.given_answers import ANSWERS, read_given, write_given
from tests.test_audit_page import audit_folder, candidates

LISTED = candidates(20)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AnswerServer]:
    folder = audit_folder(tmp_path / "audit", LISTED)
    book = AnswerBook(folder / ANSWERS, digest_of(LISTED), [one.entry for one in LISTED])
    with AnswerServer(b"<page>", folder / "data", frozenset({"00001.jpg"}), book) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
        yield serving
        serving.shutdown()


def ask(server: AnswerServer, method: str, path: str, body: object = None, **headers: str) -> tuple[int, str]:
    """The status and the text of the reply; a header's name has _ for -."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    kind = {"Content-Type": "application/json"} if method == "POST" else {}
    connection.request(method, path, content, kind | named)
    reply = connection.getresponse()
    text = reply.read().decode("latin-1")
    connection.close()
    return reply.status, text


def post(server: AnswerServer, answers: Any, **more: Any) -> tuple[int, str]:
    body = {"digest": digest_of(LISTED), "answers": answers} | more
    return ask(server, "POST", f"/{server.token}/answers", body)


def test_answers_are_in_the_file_before_the_reply(server: AnswerServer) -> None:
    path = server.book.path
    assert post(server, [[3, "yes"], [0, "no"], [5, "unsure"]]) == (200, json.dumps({"file": str(path)}))
    assert read_given(path) == {LISTED[0].entry: "no", LISTED[3].entry: "yes", LISTED[5].entry: "unsure"}
    assert post(server, [[3, ""], [0, "yes"]])[0] == 200
    assert read_given(path) == {LISTED[0].entry: "yes", LISTED[5].entry: "unsure"}
    status, text = ask(server, "GET", f"/{server.token}/answers")
    assert (status, json.loads(text)["answers"]) == (200, "y....u" + 14 * ".")
    assert len(path.read_text().splitlines()) > 20  # with the entries that are still to be answered


def test_what_others_wrote_into_the_file_stays(server: AnswerServer) -> None:
    other = ("elsewhere", "=9")
    write_given(server.book.path, [one.entry for one in LISTED], {LISTED[2].entry: "no", other: "yes"})
    assert post(server, [[3, "yes"]])[0] == 200
    assert read_given(server.book.path) == {LISTED[2].entry: "no", LISTED[3].entry: "yes", other: "yes"}
    server.book.path.unlink()
    assert post(server, [[4, "no"]])[0] == 200
    assert len(read_given(server.book.path)) == 4
    server.book.path.write_text("key,class,answer\nk,c,perhaps\n")
    status, said = post(server, [[5, "no"]])
    assert (status, "answer 'perhaps'; give yes, no, or nothing" in said) == (400, True)
    assert "perhaps" in server.book.path.read_text()


def test_the_page_and_its_pictures_are_all_there_is(server: AnswerServer) -> None:
    (server.pictures / "secret.jpg").write_bytes(b"x")
    assert ask(server, "GET", f"/{server.token}/") == (200, "<page>")
    assert ask(server, "GET", f"/{server.token}/data/00001.jpg")[0] == 200
    for path in ("data/secret.jpg", "data/../answers.csv", "data/%2e%2e/answers.csv", "audit.json", "data/", "x"):
        assert ask(server, "GET", f"/{server.token}/{path}")[0] == 404, path
    assert (
        f"last sign: {server.address}" in ask(server, "GET", f"/{server.token}")[1]
    )  # its pictures would be elsewhere
    (server.pictures / "00001.jpg").unlink()
    status, said = ask(server, "GET", f"/{server.token}/data/00001.jpg")
    assert (status, "No such file" in said) == (500, True)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "", "127.0.0.1.evil.example", "[::1", "localhost@x"]
)
def test_a_name_that_was_made_to_lead_here_is_refused(server: AnswerServer, host: str) -> None:
    assert ask(server, "GET", f"/{server.token}/", Host=host)[0] in (400, 421)


def test_who_has_no_token_or_comes_from_another_site_is_refused(server: AnswerServer) -> None:
    assert ask(server, "GET", "/favicon.ico") == (204, "")
    for path in ("/", "/answers", f"/{server.token[:-1]}/", f"/{server.token}x/", "/%e9/"):
        assert ask(server, "GET", path)[0] in (403, 404), path
    answers = {"digest": digest_of(LISTED), "answers": [[0, "yes"]]}
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Content_Type": "text/plain"}):
        assert ask(server, "POST", f"/{server.token}/answers", answers, **headers)[0] in (403, 415), headers
    assert not server.book.path.exists()
    port = server.server_address[1]
    for name in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost:9999"):  # the last one at the end of a tunnel
        assert ask(server, "GET", f"/{server.token}/", Host=name, Origin=f"http://{name}")[0] == 200


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([[20, "yes"]], "no such entry or answer: 20"),
        ([[-1, "yes"]], "at least 0"),
        ([[0, "perhaps"]], "no such entry or answer: 0, 'perhaps'"),
        ([[True, "yes"]], "whole number"),
        ([["0", "yes"]], "whole number"),
        ([[0]], "a list of 2 values"),
        ("yes", "a list"),
    ],
)
def test_what_is_no_answer_is_refused(server: AnswerServer, answers: Any, said: str) -> None:
    status, text = post(server, answers)
    assert (status, said in text) == (400, True), text
    assert not server.book.path.exists()


def test_other_requests_are_refused(server: AnswerServer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"/{server.token}/answers"
    assert "answers to another list" in post(server, [], digest="0")[1]
    assert ask(server, "POST", path, b"{")[0] == 400
    assert ask(server, "POST", path, b"[" * 5000)[0] == 400
    assert ask(server, "POST", path, b"", Content_Length="1e3")[0] == 411
    assert ask(server, "POST", path, b"", Content_Length="9" * 5000)[0] == 413
    assert ask(server, "POST", path, b"", Transfer_Encoding="chunked")[0] == 411
    assert ask(server, "PUT", path, b"")[0] == 501
    assert ask(server, "POST", f"/{server.token}/", b"{}")[0] == 404
    monkeypatch.setattr(answer_server, "write_given", full)
    status, said = post(server, [[0, "yes"]])
    assert (status, "No space left on device; make room on the disk" in said) == (500, True)
    monkeypatch.undo()
    assert post(server, [[1, "yes"]])[0] == 200
    assert list(read_given(server.book.path)) == [LISTED[1].entry]  # what could not be written was not taken over


def test_the_terminal_says_once_that_nothing_can_be_written_and_once_that_it_can(
    server: AnswerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(server, "say", said.append)
    monkeypatch.setattr(answer_server, "write_given", full)
    assert [post(server, [[0, "yes"]])[0] for _ in range(3)] == [500, 500, 500]
    (line,) = said
    assert line.startswith("answers are not saved, and the page sends them again: answers.csv: No space left on device")
    monkeypatch.undo()
    monkeypatch.setattr(server, "say", said.append)
    assert [post(server, [[0, "yes"]])[0] for _ in range(2)] == [200, 200]
    assert said[1:] == [f"answers are saved again in {server.book.path}"]


def full(*_: object) -> None:
    raise OSError(28, "No space left on device", "answers.csv")


# --- The command ------------------------------------------------------------------------------------------------------


def test_port_and_serve_are_checked(tmp_path: Path) -> None:
    for flags, said in (
        (["--port", "80"], "port: has no effect without --serve"),
        (["--serve", "--port", "70000"], "port=70000: must be"),
        (["--serve", "--apply", "a.csv", "--out", "new"], "serve: has no effect with --apply"),
    ):
        with pytest.raises(ValueError, match=said):
            main([str(tmp_path), *flags])
    with pytest.raises(ValueError, match="holds no audit that can be served; run raypaml audit again"):
        Audited(tmp_path, None).serve()


def test_a_full_disk_is_said_before_the_page_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: Path) -> None:
        raise OSError(28, "No space left on device", str(folder))

    folder = audit_folder(tmp_path / "audit", LISTED)
    monkeypatch.setattr(audited, "read_audit_record", lambda _: AuditRecord(digest_of(LISTED), {}))
    monkeypatch.setattr(audited, "try_folder", refused)
    with pytest.raises(OSError, match="No space left on device"):
        Audited(folder, None).serve(told=lambda _: pytest.fail("was served"))


@pytest.mark.cluster
def test_the_command_serves_what_is_there_until_it_is_ended(trained: tuple[Path, str], tmp_path: Path) -> None:
    assert main([str(trained[0]), "--top", "5", "--out", str(tmp_path / "audit")]) == 0
    before = (tmp_path / "audit" / "candidates.parquet").stat().st_mtime_ns
    command = [sys.executable, "-m", "raypaml.audit", str(trained[0]), "--out", str(tmp_path / "audit"), "--serve"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout is not None
        page, address = (process.stdout.readline().strip() for _ in range(2))
        assert page.endswith("index.html")
        port, token = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/([\w-]{32})/", address).groups()  # type: ignore
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=10)
        connection.request("GET", f"/{token}/answers")
        digest = json.loads(connection.getresponse().read())["digest"]
        body = json.dumps({"digest": digest, "answers": [[1, "yes"], [2, "no"]]})
        connection.request("POST", f"/{token}/answers", body, {"Content-Type": "application/json"})
        assert connection.getresponse().status == 200
        with pytest.raises(ValueError, match=r"is being written by .*audit --serve, since .*another --out"):
            main([str(trained[0]), "--top", "5", "--out", str(tmp_path / "audit")])
        process.send_signal(signal.SIGTERM)  # while a connection is open
        _, said = process.communicate(timeout=30)
        connection.close()
    assert process.returncode == 0
    assert f"2 answers in {tmp_path / 'audit' / 'answers.csv'}" in said
    assert f"--apply {tmp_path / 'audit' / 'answers.csv'} --out NEW_DATA" in said
    assert list(read_given(tmp_path / "audit" / "answers.csv").values()) == ["yes", "no"]
    assert (tmp_path / "audit" / "candidates.parquet").stat().st_mtime_ns == before  # the list was not made again
