"""The command line: flags from configuration dataclasses, names of commands, messages, durations, one line an error."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib.metadata
import os
import re
import shlex
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TextIO, TypeVar, get_args, get_origin

from raypaml.errors import StoppedAtOnce, told_refusal
from raypaml.fields import field_docs, field_types
from raypaml.log_lines import ProgressLine, stamped

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

WIDEST_CHOICES = 36
"""Characters of choices that stand at a flag in its help; those of more are in its description, or at the end."""

LONGEST = 2000
"""Characters of a message that refuses something; of a longer one, the beginning and the end are said."""

_METAVARS = {int: "N", float: "X", str: "TEXT"}
_Request = TypeVar("_Request", bound="DataclassInstance")


def check_flag_fields(cls: type) -> None:
    """Raise TypeError, naming the field, where a field of a configuration dataclass cannot become a flag.

    It needs a docstring below it, which is the flag's help, and a type that a flag has.
    """
    docs = field_docs(cls)
    for name, kind in field_types(cls).items():
        if name not in docs:
            raise TypeError(f"{cls.__name__}.{name}: write a docstring below it, which is the help of its flag")
        if kind is not bool and get_origin(kind) is not Literal and kind not in _METAVARS:
            raise TypeError(
                f"{cls.__name__}.{name}: its type is {kind}; a flag's is bool, int, float, str or a Literal. Let a "
                'value that means nothing else, such as 0 or "", stand for None'
            )


class HelpText(argparse.HelpFormatter):
    """The usual help, but no line of the usage is wider than the terminal, and an indented list keeps its lines."""

    def _format_usage(self, *given: Any) -> str:
        usage = super()._format_usage(*given)
        fits = max(map(len, usage.split("\n"))) <= self._width  # argparse indents by the length of the command
        return usage if fits else re.sub(r"\n {8,}", "\n" + 8 * " ", usage)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)  # a flag stays on one line

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.split("\n\n")
        filled = (part if "\n " in part else super(HelpText, self)._fill_text(part, width, indent) for part in parts)
        return "\n\n".join(filled)


class Parser(argparse.ArgumentParser):
    """An argument parser that answers an unknown flag with the nearest one, in one line, exit code 2."""

    def __init__(self, **options: Any):
        super().__init__(**{"formatter_class": HelpText} | options, allow_abbrev=False)
        self.settings: set[str] = set()
        """The flags of settings, for which an empty text is a value."""

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse all arguments."""
        argv = sys.argv[1:] if argv is None else argv
        self._check_texts(argv)
        arguments, unknown = self.parse_known_args(argv)
        if unknown:
            flag = unknown[0].split("=")[0]
            hint = did_you_mean(flag, self._option_string_actions, shown=str)
            self.error(f"{flag}: no such flag{hint or ';'} --help lists them")
        return arguments

    def _check_texts(self, argv: Sequence[str]) -> None:
        """Refuse an empty text, which is a variable of a shell script that is not set, and text that is not UTF-8."""
        for before, text in zip(["", *argv], argv, strict=False):
            flag, equals, value = text.partition("=") if text.startswith("--") else (before, "=", text)
            if equals and not value and flag not in self.settings:
                named = flag if flag.startswith("--") else "argument"
                self.error(f"{named} '': the text is empty; give one, or leave it out")
            if text != (told := text.encode(errors="backslashreplace").decode()):
                self.error(f"{told}: is not UTF-8, as records and pages are; give a path or a name that is")

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line and exit with code 2."""
        if re.match("argument --(scheme|augment): invalid choice", message):
            message += "; one of your own: --import MODULE"
        self.exit(2, visible(f"{self.prog}: {message}\n"))


def add_config_flags(parser: Parser, group: Any) -> None:
    """Add one flag for every field of the dataclass instance `group`; only the given ones appear in the result.

    A field's metadata may hold its flag, where this is not its name, and how argparse takes it.
    """
    cls = type(group)
    check_flag_fields(cls)
    section = parser.add_argument_group((cls.__doc__ or cls.__name__).split("\n")[0].rstrip("."))
    types, docs = field_types(cls), field_docs(cls)
    for field in dataclasses.fields(cls):
        own = dict(field.metadata)
        own.pop("choices", None)
        value = getattr(group, field.name)
        shown = ("on" if value else "off") if isinstance(value, bool) else str(value) or "none"
        flag = own.pop("flag", "--" + field.name.replace("_", "-"))
        parser.settings.add(flag)
        section.add_argument(
            flag,
            dest=field.name,
            help=f"{docs[field.name]} [{shown}]".replace("%", "%%"),
            default=argparse.SUPPRESS,
            **own or _how(types[field.name]),
        )


def _how(kind: Any) -> dict[str, Any]:
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is Literal:
        choices = "|".join(map(str, get_args(kind)))
        return {"choices": get_args(kind), "metavar": choices if len(choices) <= WIDEST_CHOICES else "NAME"}
    return {"type": kind, "metavar": _METAVARS[kind]}


def requested(kind: type[_Request], asked: argparse.Namespace) -> _Request:
    """A request, which is a dataclass; each field has the value of the flag of its name, or its default without one."""
    return kind(**{name: value for name, value in vars(asked).items() if name in kind.__dataclass_fields__})


def add_worker_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of commands that share their work out over processes: --workers, --address, --device."""
    add = parser.add_argument
    about = "processes that share the work; 1: this process alone, without Ray [1]"
    add("--workers", type=int, default=1, metavar="N", help=about)
    about = "address of a Ray cluster to join, or set RAY_ADDRESS [a private Ray for this command]"
    add("--address", default="", help=about)
    about = "where the model computes; auto takes a GPU if there is one [auto]"
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help=about)


def add_alpha_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag of commands that use a trained model: --alpha."""
    about = (
        "BoostLU's factor: a number from 1, training (that of training), or chosen (by evaluate --choose-alpha) "
        "[chosen if there is one, else training]"
    )
    parser.add_argument("--alpha", default="", metavar="A|training|chosen", help=about)


def command(name: str, *arguments: object) -> str:
    """A command of ours as it is called here: `raypaml train` where that was typed, else `python -m raypaml.train`.

    Args:
        name: such as `train`, or `shard table` with a subcommand.
        arguments: what follows it, quoted for a shell where needed.
    """
    called, given = Path(sys.argv[0]), shlex.join(map(str, arguments))
    if called.name == "__main__.py" and called.parent.name == "raypaml":
        words = f"python -m raypaml {name}"
    else:
        words = f"raypaml {name}" if called.stem == "raypaml" else f"python -m raypaml.{name}"
    return f"{words} {given}" if given else words


def extra(name: str) -> str:
    """The command that installs an optional dependency into the Python that runs this."""
    try:
        importlib.metadata.distribution("raypaml")
        what = "raypaml"
    except importlib.metadata.PackageNotFoundError:  # a checkout on the path
        what = str(Path(__file__).parent.parent)
    try:
        importlib.metadata.distribution("pip")
        pip = f"{sys.executable} -m pip install"
    except importlib.metadata.PackageNotFoundError:  # as uv makes environments
        pip = f"uv pip install --python {sys.executable}"
    return f"{pip} '{what}[{name}]'"


def listed(usage: str, about: str, names: Mapping[str, str]) -> str:
    """A help text that lists names, each with its line."""
    return "\n".join(
        [f"usage: {usage}", "", textwrap.fill(about, 79), "", indented_list(names, max(map(len, names)) + 1)]
    )


def indented_list(names: Mapping[str, str], width: int = 10) -> str:
    """Names in a column of `width` characters, with what is said of each beside it, in lines of at most 79."""
    indent = (width + 3) * " "
    return "\n".join(
        textwrap.fill(said, 79, initial_indent=f"  {name:<{width}} ", subsequent_indent=indent, break_on_hyphens=False)
        for name, said in names.items()
    )


def did_you_mean(name: str, known: Iterable[str], *, most: int = 1, shown: Callable[[str], str] = repr) -> str:
    """Returns the part of a message that names the known names nearest to a mistyped one; empty where none is near.

    Args:
        name: the name that was typed and is not known.
        known: the names to choose from.
        most: how many are named.
        shown: how a name is written in the message.
    """
    nearest = difflib.get_close_matches(name, list(known), most)
    return f"; did you mean {', '.join(map(shown, nearest))}?" if nearest else ""


def known_names(name: str, known: Iterable[str]) -> str:
    """Returns the end of a message that refuses a name: the nearest known name, and all known names."""
    known = list(known)
    return f"{did_you_mean(name, known) or '.'} Known: {', '.join(known)}"


_UNSEEN = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Signs that steer a terminal instead of being shown, and those that a terminal cannot be sent."""


def visible(text: str) -> str:
    """A text with every sign that would steer a terminal, such as ESC in the name of a class or a file, as its escape.

    Line ends and tabs stay.
    """
    return _UNSEEN.sub(lambda sign: ascii(sign[0])[1:-1], text)


def one_line(text: str) -> str:
    """A message on one line, without its middle where it quotes more of a file than a person reads."""
    line = " ".join(filter(None, map(str.strip, text.split("\n"))))
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def say(text: str) -> None:
    """Print a line on standard error; a `ProgressLine` with the time, unless people see it on a terminal."""
    line = visible(text)
    in_a_log = isinstance(text, ProgressLine) and not sys.stderr.isatty()
    print(stamped(line) if in_a_log else line, file=sys.stderr, flush=True)


def show(text: object) -> None:
    """Print a result on standard output: on a terminal only what is visible, elsewhere the text as it is."""
    print(text, file=shown_output(), flush=True)


def shown_output() -> TextIO:
    """Standard output, which shows escapes in the place of signs that would steer a terminal, if it is one."""
    return _Terminal(sys.stdout) if sys.stdout.isatty() else sys.stdout  # type: ignore[return-value]


class _Terminal:
    """Writes visible text to a terminal."""

    def __init__(self, file: TextIO):
        self._file, self.flush = file, file.flush

    def write(self, text: str) -> int:
        """Write a text with escapes in the place of signs that are not seen."""
        return self._file.write(visible(text))


def run_command(main: Callable[[], int | None], prog: str) -> NoReturn:
    """Run a command's main: one line and exit code 2 for ValueError and OSError, 128 + N for signal N, no traceback."""
    try:
        code = main() or 0
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has had enough, such as `head`
        _drop_output()
        code = 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:
        say(f"{prog}: {one_line(told_refusal(error) if isinstance(error, OSError) else str(error))}")
        _drop_output()
        code = 2
    except KeyboardInterrupt as stop:
        code = 128 + (stop.signal if isinstance(stop, StoppedAtOnce) else signal.SIGINT)
    sys.exit(code)


def _drop_output() -> None:
    """Drop what is still to be printed where it cannot be, or else Python fails again when it ends, with code 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
