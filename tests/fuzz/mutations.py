"""Damages the content of a file: anywhere in its bytes, and where its format says that something matters."""

from __future__ import annotations

import json
import struct
import tarfile
from collections.abc import Callable
from random import Random
from typing import Any

import yaml

Mutation = Callable[[bytes, Random], bytes]
"""Makes other content of the content of a file; it draws from the given source alone."""
_HUGE = [2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**60, 2**63 - 1, 2**64 - 1, 0]
_VALUES: list[object] = [None, True, -1, 0, 10**30, 1e308, float("nan"), float("inf"), "", "x", "3", "\x1b[31m", "../x"]
_VALUES += ["a\nb", "\ud800", "=1+1", [], [[]], {}, [None], {"a": 1}, "x" * 5000, [1] * 5000]
_DEEP = 3000
"""Levels of nesting, beyond what Python's recursion reads."""

# --- Any file ---------------------------------------------------------------------------------------------------------


def _range(content: bytes, rng: Random, most: int = 200) -> slice:
    start = rng.randrange(len(content) + 1)
    return slice(start, start + rng.randint(1, most))


def flip_bit(content: bytes, rng: Random) -> bytes:
    """One bit is another."""
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def change_bytes(content: bytes, rng: Random) -> bytes:
    """A few bytes, anywhere, are others."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def truncate(content: bytes, rng: Random) -> bytes:
    """The end is missing."""
    return content[: rng.randrange(len(content))]


def insert(content: bytes, rng: Random) -> bytes:
    """There are more bytes in the middle."""
    place = rng.randrange(len(content) + 1)
    return content[:place] + rng.randbytes(rng.randint(1, 64)) + content[place:]


def append(content: bytes, rng: Random) -> bytes:
    """There is more at the end."""
    return content + rng.choice([bytes(rng.randint(1, 100_000)), rng.randbytes(100), content])


def delete(content: bytes, rng: Random) -> bytes:
    """A piece is missing."""
    piece = _range(content, rng)
    return content[: piece.start] + content[piece.stop :]


def zero(content: bytes, rng: Random) -> bytes:
    """A piece is zeros, as a disk gives it after a power failure."""
    piece = _range(content, rng, 4096)
    return content[: piece.start] + bytes(len(content[piece])) + content[piece.stop :]


def swap_blocks(content: bytes, rng: Random) -> bytes:
    """Two pieces have changed places."""
    size = rng.choice([16, 64, 512])
    a, b = sorted(rng.randrange(max(len(content) // size, 1)) * size for _ in range(2))
    first, second = content[a : a + size], content[b : b + size]
    return content[:a] + second + content[a + size : b] + first + content[b + size :] if a < b else content


def huge_number(content: bytes, rng: Random) -> bytes:
    """A number of a header is a huge one: four or eight bytes at an aligned place near the beginning or the end."""
    kind = rng.choice(["<I", "<Q", ">I", ">Q"])
    size = struct.calcsize(kind)
    place = rng.randrange(0, max(min(len(content), 1024) - size, 1), 4)
    place = place if rng.random() < 0.5 else max(len(content) - size - place, 0)
    return content[:place] + struct.pack(kind, rng.choice(_HUGE) % 2 ** (8 * size)) + content[place + size :]


def nothing(content: bytes, rng: Random) -> bytes:
    """Something else lies under the name: nothing, zeros, a web page, a pickle."""
    pickled = b"cos\nsystem\n(S'touch /tmp/raypaml-fuzz-ran'\ntR."
    return rng.choice(
        [b"", bytes(len(content)), b"<!DOCTYPE html><html></html>", pickled, b"\xff\xfe\x00\x80", b"null"]
    )


ANY: tuple[Mutation, ...] = (
    *(flip_bit, flip_bit, flip_bit, change_bytes, truncate, insert, append, delete, zero, swap_blocks),
    *(huge_number, nothing),
)
"""Those for any file; a bit that flips is the commonest damage."""

# --- JSON and YAML ----------------------------------------------------------------------------------------------------


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container within a value, with each of its keys."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [(value, key) for key, _ in items] + [place for _, inner in items for place in _places(inner)]


def _change_field(tree: Any, rng: Random) -> None:
    container, key = rng.choice(_places(tree) or [([0], 0)])
    container[key] = rng.choice(_VALUES)


def _change_number(tree: Any, rng: Random) -> None:
    numbers = [(c, k) for c, k in _places(tree) if isinstance(c[k], int | float)]
    if numbers:
        container, key = rng.choice(numbers)
        container[key] = rng.choice([str(container[key]), -container[key], container[key] + 1, 2**70, 0.5, [], False])


def _remove_field(tree: Any, rng: Random) -> None:
    container, key = rng.choice(_places(tree) or [([0], 0)])
    del container[key]


def _add_field(tree: Any, rng: Random) -> None:
    container, _ = rng.choice(_places(tree) or [([], 0)])
    if isinstance(container, dict):
        container[rng.choice(["extra", "", "format", "__class__", "x\n"])] = rng.choice(_VALUES)
    else:
        container.insert(0, rng.choice(_VALUES))


def _change_tree(tree: Any, rng: Random) -> None:
    rng.choice([_change_field, _change_field, _change_number, _remove_field, _add_field])(tree, rng)


def _wrong_text(rng: Random) -> bytes:
    deep = (b"[" * 10 * _DEEP, b'{"a":' * _DEEP, b"[" * _DEEP + b"]" * _DEEP, b"1" * 5000, b"[1, 2]", b'"x"', b"{}")
    return rng.choice(deep)


def json_field(content: bytes, rng: Random) -> bytes:
    """A field has another type or value, is missing, or is one too many; or the nesting is deep."""
    if rng.random() < 0.15:
        return _wrong_text(rng)
    tree = json.loads(content)
    _change_tree(tree, rng)
    return json.dumps(tree, indent=1).encode()


def json_line(content: bytes, rng: Random) -> bytes:
    """The same, of one of the lines of a JSON Lines file."""
    lines = content.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = b" ".join(json_field(lines[place], rng).split(b"\n"))
    return b"\n".join(lines) + b"\n"


def yaml_field(content: bytes, rng: Random) -> bytes:
    """The same of YAML; or its aliases multiply, or a tag asks for a Python object."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True))
    tag = b"- !!python/object/apply:os.system ['touch /tmp/raypaml-fuzz-ran']\n"
    if rng.random() < 0.3:
        return rng.choice([bomb.encode(), tag, b"[" * _DEEP, b"a: " * 500, b"- &a [*a]\n", b"--- 1\n--- 2\n", b"\t"])
    tree = yaml.safe_load(content)
    _change_tree(tree, rng)
    try:
        return yaml.safe_dump(tree).encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can write
        return b'"\\ud800"'


# --- Tables, tars, safetensors ----------------------------------------------------------------------------------------

_CELLS = [
    b"",
    b'"',
    b'"a\nb"',
    b"\0",
    b"=1+1",
    b"a,b",
    b"-1",
    b"1e999",
    b"9" * 400,
    b"x" * 200_000,
    b"\xff",
    b"\x1b[2J",
]


def csv_cell(content: bytes, rng: Random) -> bytes:
    """A cell, a row or the first row is another, there twice, or missing."""
    lines = content.splitlines()
    place = rng.randrange(len(lines))
    cells = lines[place].split(b",")
    match rng.randrange(4):
        case 0:
            lines.insert(place, lines[place])
        case 1:
            del lines[place]
        case 2:
            lines[place] = b",".join([*cells, rng.choice(_CELLS)])
        case _:
            cells[rng.randrange(len(cells))] = rng.choice(_CELLS)
            lines[place] = b",".join(cells)
    return b"\n".join(lines) + b"\n"


_TAR_FIELDS = [(0, 100), (100, 8), (124, 12), (148, 8), (156, 1), (157, 100), (257, 8), (345, 155)]
"""Offset and length of fields of a tar's header: name, mode, size, checksum, type, link, magic, prefix."""
_TAR_VALUES = [
    b"../../escape.jpg",
    b"/etc/x.jpg",
    b"\x80" + (2**60).to_bytes(11, "big"),
    b"77777777777",
    b"-1",
    b"\xff",
]
_TAR_VALUES += [b"1", b"2", b"5", b"6", b"x", b"g", b"L", b"S", b"K", b"\0", b"a.jpg.gz", b"__index__", b"\x1b[2J.jpg"]


def tar_header(content: bytes, rng: Random) -> bytes:
    """A field of a member's header is another, with the checksum made right again."""
    heads = [n for n in range(0, len(content) - 511, 512) if content[n + 257 : n + 262] == b"ustar"]
    start = rng.choice(heads)
    head = bytearray(content[start : start + 512])
    offset, length = rng.choice(_TAR_FIELDS)
    head[offset : offset + length] = rng.choice(_TAR_VALUES)[:length].ljust(length, b"\0")
    if rng.random() < 0.8:
        head[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(head))[0]  # type: ignore[attr-defined]
    return content[:start] + bytes(head) + content[start + 512 :]


def tensors_header(content: bytes, rng: Random) -> bytes:
    """A field of the header of a safetensors file is another: a type, a shape, an offset."""
    size = int.from_bytes(content[:8], "little")
    header = json_field(content[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


BY_SUFFIX: dict[str, Mutation] = {
    ".json": json_field,
    ".jsonl": json_line,
    "": json_field,
    ".yaml": yaml_field,
    ".csv": csv_cell,
    ".tar": tar_header,
    ".safetensors": tensors_header,
}
"""What matters in a format, by the suffix of a file; a checkpoint's marker is JSON and has none."""


def mutated(content: bytes, suffix: str, rng: Random) -> tuple[str, bytes]:
    """Returns the name of a mutation that is drawn, and what it makes of the content."""
    own = BY_SUFFIX.get(suffix)
    mutation = own if own and rng.random() < 0.5 else rng.choice(ANY)
    return mutation.__name__, mutation(content, rng)
