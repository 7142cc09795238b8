"""What is printed: signs that would steer a terminal are shown as their escapes, on standard error and on terminals."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import suppress

import pytest
from rich.console import Console

from raypaml.cli import Parser, run_command, say, show, shown_output, visible
from raypaml.inference.answer_files import writer
from raypaml.reports.progress import Display

HOSTILE = "cat\x1b]0;owned\x07\x1b[31m\x9b2J\r\u202egpj\ud800"
SHOWN = r"cat\x1b]0;owned\x07\x1b[31m\x9b2J\r\u202egpj\ud800"


class Terminal(io.StringIO):
    """A standard output that is a terminal."""

    def isatty(self) -> bool:
        """It is one."""
        return True


def test_what_steers_a_terminal_is_visible_and_the_rest_stays() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible("Größe 中文 👩‍👩‍👧\tx\ny ±–") == "Größe 中文 👩‍👩‍👧\tx\ny ±–"


@pytest.mark.parametrize("to", [say, lambda text: run_command(_raises(text), "raypaml x")])
def test_progress_and_errors_are_visible(to: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(SystemExit):
        to(HOSTILE)
    assert SHOWN in (said := capsys.readouterr().err)
    assert said.replace("\n", "").isprintable()


def _raises(text: str) -> Callable[[], None]:
    def main() -> None:
        raise ValueError(text)

    return main


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no:\n  Invalid data \n\nagain\n", "no: Invalid data again"),
        (f"a{'x' * 10**6}b", f"a{'x' * 999} ... {'x' * 999}b"),
    ],
)
def test_a_refusal_is_one_line_that_a_person_reads(text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command(_raises(text), "raypaml x")
    assert capsys.readouterr().err == f"raypaml x: {said}\n"


def test_an_argument_is_visible_in_the_message_that_refuses_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Parser(prog="x").parse(["--\x1b[31m"])
    assert capsys.readouterr().err.startswith(r"x: --\x1b[31m: no such flag")


def test_the_live_display_is_visible() -> None:
    file = io.StringIO()
    Display(Console(file=file, force_terminal=True, highlight=False)).say(HOSTILE)
    assert file.getvalue().strip() == SHOWN


def test_results_are_visible_on_a_terminal_and_as_they_are_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    for output, expected in ((Terminal(), SHOWN), (io.StringIO(), HOSTILE)):
        monkeypatch.setattr(sys, "stdout", output)
        show(HOSTILE)
        assert output.getvalue() == f"{expected}\n"
        with writer(shown_output()) as answers:
            answers.write("a\x1b.jpg", [])
        assert output.getvalue().split("\n")[2] == ("a\\x1b.jpg,,," if expected == SHOWN else "a\x1b.jpg,,,")
