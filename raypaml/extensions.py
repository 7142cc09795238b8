"""User modules that register schemes, backbones, augmentations or metrics: `--import MODULE`.

A module is only imported if the command line or the program names it, never because a file names it. The `imports` that
a run records are used to say which modules have to be named again.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

_Result = TypeVar("_Result")

_named: list[str] = []


def modules_named() -> str:
    """The modules that were named in this process, separated by commas."""
    return ",".join(_named)


def missing(modules: str) -> list[str]:
    """Those of the modules, given as `A,B`, that this process has not imported in any way."""
    return [name for name in filter(None, modules.split(",")) if name not in sys.modules]


def import_modules(modules: str) -> None:
    """Import the modules, given as `A,B`, from Python's search path or else from the working directory.

    Raises:
        ValueError: a module cannot be imported; the message has the module's error and the line that raised it.
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
            is_missing = isinstance(error, ModuleNotFoundError)
            remedy = (
                "; every machine of the run must have it, in the working directory or installed" if is_missing else ""
            )
            raise ValueError(
                f"--import {name}: cannot be imported ({type(error).__name__}: {error}, {where.filename}:"
                f"{where.lineno}){remedy}"
            ) from None
        if name not in _named:
            _named.append(name)


class ImportModule(argparse.Action):
    """The flag `--import MODULE`, which may be repeated; imports the module at once, and keeps the names of all."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        """Import the module."""
        import_modules(str(values))
        before = getattr(namespace, self.dest, "")
        setattr(namespace, self.dest, ",".join(dict.fromkeys(filter(None, (*before.split(","), str(values))))))


def add_import_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag `--import`; its modules are imported while the command line is parsed."""
    about = "module that registers schemes, backbones, augmentations or metrics of your own; may be repeated"
    parser.add_argument("--import", dest="imports", default="", action=ImportModule, metavar="MODULE", help=about)


def import_first(argv: Sequence[str]) -> None:
    """Import the modules of every `--import` among the arguments, before a parser lists the registered names."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_import_flag(parser)
    parser.parse_known_args(argv)


def with_imports(modules: str, function: Callable[..., _Result], arguments: Iterable[object]) -> _Result:
    """Import the modules that another process named, then call a function for it."""
    if modules:
        import_modules(modules)
    return function(*arguments)


@functools.cache
def named_function(path: str) -> Callable[..., Any]:
    """The function that a record names as 'module:function', imported on first use.

    Raises:
        ValueError: the function cannot be imported.
    """
    module, _, name = path.partition(":")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be imported ({error}); name a function as 'module:function'") from None
    return function
