"""The one rule for names that become folders or files: what a person may call one, and what to call one for a text."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from pathlib import Path

from raypaml.cli import visible

MOST_BYTES = 240
"""Bytes of a name in UTF-8; file systems allow 255, and the names of unfinished files are longer."""
_RESERVED = re.compile(r"(con|prn|aux|nul|com[1-9]|lpt[1-9])(\..*)?", re.I)
_SHOWN = 60
_ALIKE = ("LATIN", "CYRILLIC", "GREEK")
"""Scripts with letters that look the same."""
_NOT_IN_OUTPUT = re.compile(r"[^\w.,=+@~-]+")


def name_fault(name: str) -> str:
    """Why a text cannot be the name of one folder or file, in a clause that ends with the remedy; empty where it can.

    A name is one visible path component that every usual file system, archive and shell takes and tells from others: no
    separators, nothing invisible, not hidden, not a flag, none of Windows' reserved names, and in Unicode's form NFKC,
    without letters of two scripts that look alike in one word.
    """
    size = len(name.encode("utf-8", "surrogatepass"))
    if not name:
        return "must not be empty; give a name"
    if name in (".", "..") or re.search(r"[/\\]", name):
        return "must be the name of one folder or file, not a path; --storage or --out takes the place"
    if unseen := [sign for sign in name if unicodedata.category(sign)[0] == "C" or sign in "\u2028\u2029"]:
        sign = f"U+{ord(unseen[0]):04X} {unicodedata.name(unseen[0], '')}".strip()
        return f"holds a sign that cannot be seen, {sign}; leave it out"
    if size > MOST_BYTES:
        return f"has {size:,} bytes; give at most {MOST_BYTES}"
    if name != name.strip() or name[0] in ".-" or name[-1] == ".":
        return "must not begin with a dot, a hyphen or a space, nor end with a dot or a space"
    if "?" in name:
        return "must not hold a question mark, after which an address has its options"
    if _RESERVED.fullmatch(name):
        return "is a name of a device on Windows; give another"
    if (plain := unicodedata.normalize("NFKC", name)) != name:
        return f"is not in Unicode's form NFKC and would look like another name; give {ascii(plain)[1:-1]}"
    if mixed := [word for word in re.findall(r"[^\W\d_]+", name) if len(_scripts(word)) > 1]:
        return f"mixes {' and '.join(_scripts(mixed[0]))} letters, which look alike, in one word; give letters of one"
    return ""


def check_new_folders(what: str, path: str) -> None:
    """Raise ValueError where a local path is an address or empty, or folders that would be made have unfit names.

    Folders that exist keep their names, and local paths may be hidden and hold question marks.

    Args:
        what: the setting, for the message.
        path: the path of a folder or file that is going to be written.
    """
    if not path.strip():
        raise ValueError(f"{what}={path!r}: must not be empty; give a folder, such as {what}=.")
    if re.match(r"[a-z][a-z0-9+.-]*://", path):
        raise ValueError(f"{what}={shown_name(path)}: an address; this is written on this machine only, give a path")
    if "\0" in path:
        raise ValueError(f"{what}={shown_name(path)}: holds a sign that cannot be seen, U+0000; leave it out")
    for part in (place for place in (Path(path), *Path(path).parents) if place.name and not os.path.lexists(place)):
        if fault := name_fault(part.name.removeprefix(".").replace("?", "_")):
            raise ValueError(f"{what}={shown_name(path)}: {shown_name(part.name)} {fault}")


def output_name(text: str, suffix: str = "") -> str:
    """The name of an output for a text of unknown origin, such as the path of a picture: the text itself where it may
    be a name, else what is readable of it and a digest, so that different texts have different names.
    """
    if not name_fault(text + suffix):
        return text + suffix
    kept, digest = readable(text, MOST_BYTES // 2), text_digest(text)
    return f"{kept}-{digest}{suffix}" if kept else f"{digest}{suffix}"


def readable(text: str, most: int) -> str:
    """What a name may hold of a text of unknown origin: its last `most` bytes, other signs as `_`, and not hidden."""
    plain = _NOT_IN_OUTPUT.sub("_", unicodedata.normalize("NFKC", text)).strip("._- ")
    return plain.encode("utf-8", "ignore")[-most:].decode("utf-8", "ignore").strip("._- ")


def text_digest(text: str) -> str:
    """Twelve hexadecimal digits that tell a text from others."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def markdown_line(text: str) -> str:
    """A text of unknown origin as one line of Markdown that shows it as it is, and what cannot be seen as escapes."""
    return re.sub(r"([\\`*\[\]<&])", r"\\\1", visible(" ".join(text.split())))


def shown_name(name: str) -> str:
    """A name as a message shows it: quoted, signs that cannot be seen escaped, at most so long as a line bears."""
    text = repr(name)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _scripts(word: str) -> list[str]:
    """The scripts among those that look alike of which a word has letters."""
    names = {unicodedata.name(letter, "").split(" ")[0] for letter in word}
    return [script.title() for script in _ALIKE if script in names]
