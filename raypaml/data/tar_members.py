"""Reads tars whose headers may say anything: no size in a header is believed before the bytes are there.

A member has at most `MAX_BYTES`, and what is read of it is held as it comes, so that a header that claims 2^60 bytes
costs nothing. Headers that describe the next one (long names, pax) have at most `HEADER_BYTES`. Sparse members, whose
size is not that of their bytes, are refused.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO, Any, Literal, Self

from raypaml.data.image_files import MAX_BYTES

HEADER_BYTES = 1 << 14
"""The most bytes of a long name or of a pax header, which have two paths of at most 4,096 bytes and some numbers."""
END_BYTES = 512
"""The fewest zeros at the end of a tar, after the first block of zeros, which its reader consumes."""
MOST_END_BYTES = 1 << 24
"""The most zeros at the end of a tar; tar itself fills its last record, usually to 10,240 bytes."""
_PIECE = 1 << 20
_DESCRIBING = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)


class SparseError(tarfile.ReadError):
    """A member that is not all there: what it is read as may have any length."""

    def __init__(self, name: str) -> None:
        super().__init__(f"member {name[:80]!r} is not a file but a sparse one; pack it as a plain file")


class _Header(tarfile.TarInfo):
    """A header whose sizes are within the limits; tarfile reads what a header claims at once."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        _check_size(header, HEADER_BYTES if header.type in _DESCRIBING else MAX_BYTES)
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise SparseError(header.name)
        return header

    def _proc_gnusparse_10(self, following: tarfile.TarInfo, *_: object) -> None:
        raise SparseError(following.name)  # its map would be read to any length


def open_tar(mode: Literal["r:", "r|", "r|gz"], file: IO[bytes] | Any) -> tarfile.TarFile:
    """Open a tar whose members `members_of` gives."""
    return tarfile.open(fileobj=file, mode=mode, tarinfo=_Header)


def members_of(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of a tar that `open_tar` opened; TarError where a header is damaged or beyond the limits."""
    while True:
        try:
            member = tar.next()
        except (ValueError, OverflowError, RecursionError, IndexError) as error:
            raise tarfile.ReadError(f"no readable header ({type(error).__name__}: {error})") from None
        if member is None:
            return
        _check_size(member, MAX_BYTES)  # a pax header may have changed it
        if member.issparse():
            raise SparseError(member.name)
        tar.members.clear()  # type: ignore[attr-defined]  # else each header of a stream stays in memory
        yield member


def content_of(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a member that is a file; TarError where the tar ends before them."""
    file = tar.extractfile(member)
    assert file is not None, "asked for files only"
    return b"".join(iter(lambda: file.read(_PIECE), b""))


def check_end(stream: IO[bytes] | Any, offset: int) -> None:
    """Raise ReadError unless zeros follow, at least `END_BYTES`, to the end of a stream.

    Tarfile mistakes a damaged header, or a missing end, for the end of the archive (cpython #120740).

    Args:
        stream: the tar, read up to the end that tarfile found.
        offset: the byte of that end, for the message.
    """
    length, zeros = 0, True
    while zeros and length <= MOST_END_BYTES and (block := stream.read(_PIECE)):
        length, zeros = length + len(block), not any(block)
    if length > MOST_END_BYTES and zeros:
        raise tarfile.ReadError(f"more than {MOST_END_BYTES:,} bytes follow its end at byte {offset}")
    if length < END_BYTES or not zeros:
        raise tarfile.ReadError(f"no proper end at byte {offset}")


def _check_size(member: tarfile.TarInfo, most: int) -> None:
    if not 0 <= member.size <= most:
        raise tarfile.ReadError(f"the header of {member.name[:80]!r} claims {member.size:,} bytes, at most {most:,}")
