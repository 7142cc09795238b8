"""Modules of one's own that register schemes, backbones, augmentations or metrics: `--import MODULE`.

A module is imported because a command line or a program names it, never because a file does. A run records its modules
as `imports` only to say which of them must be named again.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

_named: list[str] = []


def modules_named() -> str:
    """The modules that were named in this process, with commas between them."""
    return ",".join(_named)


def missing(modules: str) -> list[str]:
    """Lists which of the modules `A,B` this process has not imported."""
    return [name for name in filter(None, modules.split(",")) if name not in sys.modules]


def import_modules(modules: str) -> None:
    """Import the modules `A,B` once, from where Python finds modules, or else from the working directory.

    Raises:
        ValueError: one cannot be imported; the message says what it raised, and where.
    """
    if str(Path.cwd()) not in sys.path:  # as `python -m` does; the console script does not
        sys.path.append(str(Path.cwd()))
    names = [part.strip() for part in modules.split(",")]
    if wrong := [name for name in names if not name or name.endswith(".py")]:
        raise ValueError(
            f"--import {wrong[0] or repr(modules)}: give the name of a module, such as my_parts, not a file"
        )
    for name in names:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            raise ValueError(
                f"--import {name}: cannot be imported ({type(error).__name__}: {error}, {where.filename}:"
                f"{where.lineno}){_where(error)}"
            ) from None
        if name not in _named:
            _named.append(name)


def _where(error: BaseException) -> str:
    lacking = isinstance(error, ModuleNotFoundError)
    return "; every machine of the run must have it, in the working directory or installed" if lacking else ""


class ImportModule(argparse.Action):
    """The flag `--import MODULE`, which may be repeated: imports the module as soon as it is parsed.

    Its value is the list of all modules named so far, with commas between them.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        """Import it."""
        import_modules(values)
        before = getattr(namespace, self.dest, "")
        setattr(namespace, self.dest, ",".join(dict.fromkeys(filter(None, (*before.split(","), values)))))


def add_import_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--import`; what it names is imported while the command line is parsed."""
    about = "module that registers schemes, backbones, augmentations or metrics of your own; may be repeated"
    parser.add_argument("--import", dest="imports", default="", action=ImportModule, metavar="MODULE", help=about)


def import_first(argv: Sequence[str]) -> None:
    """Import what `--import` names anywhere among the arguments, before a parser lists what is registered."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_import_flag(parser)
    parser.parse_known_args(argv)


def with_imports(modules: str, function: Any, arguments: Iterable[Any]) -> Any:
    """Call a function in another process, once the modules that this one named are imported there."""
    if modules:
        import_modules(modules)
    return function(*arguments)


@functools.cache
def named_function(path: str) -> Callable[..., Any]:
    """The function that a record names as 'module:function', imported when it is first used.

    Raises:
        ValueError: it cannot be imported.
    """
    module, _, name = path.partition(":")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be imported ({error}); name a function as 'module:function'") from None
    return function
