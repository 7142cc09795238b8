"""Reading JSON files that may be damaged or written by hand: what is wrong is said in one line."""

from __future__ import annotations

import dataclasses
import json
import reprlib
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from raypaml.files import check_readable
from raypaml.json_types import check, check_fields

LARGEST_RECORD = 1 << 28
"""The most bytes of a record; that of a run of 1,000 epochs with 5,000 classes is smaller."""
_Kind = TypeVar("_Kind")


@contextmanager
def refused_as(path: Path, what: str, remedy: str = "") -> Iterator[None]:
    """Turn a ValueError of the block, which has the reason alone, into one that names the file and the remedy.

    Args:
        path: the file.
        what: what it should be, such as "the record of a run".
        remedy: what the user can do; empty where the caller says it.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: not {what} ({error})" + (f"; {remedy}" if remedy else "")) from None


def read_stored(path: Path, kind: type[_Kind], *, version: int | None = None, lacking: Collection[str] = ()) -> _Kind:
    """Read a JSON file whose content is of a type; ValueError, with the reason alone, for other content.

    Args:
        path: the file.
        kind: a dataclass, a TypedDict, or a type such as `dict[str, int]`.
        version: the value that the file must have under `format`, a field that the type does not have.
        lacking: the fields of a dataclass that files of earlier versions lack.
    """
    content: Any = parse_json(read_whole(path, LARGEST_RECORD))
    if version is not None:
        content = _without_format(content, version)
    if dataclasses.is_dataclass(kind):
        check_fields(content, kind, lacking)
        return kind(**content)
    check(content, kind)
    return cast("_Kind", content)


def read_if_there(path: Path, kind: type[_Kind], what: str, remedy: str = "") -> _Kind | None:
    """Read a record as `read_stored` and `refused_as` do together; None where there is no such file."""
    if not path.is_file():
        return None
    with refused_as(path, what, remedy):
        return read_stored(path, kind)


def read_whole(path: Path, most: int) -> bytes:
    """Read a file; ValueError, with the reason alone, where it has more than so many bytes."""
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except PermissionError:
        check_readable(path)  # says whose it is
        raise
    if len(content) > most:
        raise ValueError(f"more than {most:,} bytes")
    return content


def parse_json(content: bytes | str) -> Any:
    """The value of JSON text in UTF-8; ValueError, with the reason alone, for other text, and where a key is twice."""
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_object)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a pair of surrogates is no character
        return value
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair, which is no character") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"no text in UTF-8: byte {error.object[error.start]:#04x} at {error.start:,}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error}" if text.strip() else "empty") from None
    except ValueError as error:
        digits = f"a whole number of more than {sys.get_int_max_str_digits():,} digits"
        raise ValueError(digits if str(error).startswith("Exceeds") else str(error)) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{reprlib.repr(twice)} is there twice")
    return content


def _without_format(content: object, version: int) -> dict[str, Any]:
    check(content, dict[str, object])
    assert isinstance(content, dict)
    if "format" not in content:
        raise ValueError("format is missing")
    stored = content.pop("format")
    if type(stored) is not int or stored != version:
        raise ValueError(f"format {reprlib.repr(stored)}, this version reads {version}")
    return content
