"""Wire protocols and file formats without sockets: bytes in, rows or events out."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

__all__ = ["Problem", "inflated"]

_PACKED = 1 << 18  # bytes of an archive read at a time


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a stream that had to be skipped.

    Parameters
    ----------
    offset : int
        Where it begins, bytes from the start of the stream.
    reason : str
        What was wrong with it.
    """

    offset: int
    reason: str


def inflated(file: BinaryIO, size: int, tell: Callable[[Problem], None]) -> Iterator[bytes]:
    """Yield what a gzip file holds, in pieces of at most `size` bytes, to the last byte that can be made out.

    Unlike ``gzip``, which raises on a cut or damaged archive and keeps what it had inflated to itself.

    Parameters
    ----------
    file : binary file
        At the start of a gzip archive; archives may follow one another.
    size : int
        Most bytes of a piece.
    tell : callable(Problem)
        Told when the archive is cut or damaged, with the offset in the archive; the pieces end there.

    Examples
    --------
    >>> import gzip, io
    >>> told = []
    >>> b"".join(inflated(io.BytesIO(gzip.compress(b"hello")[:-4]), 3, told.append)), told[0].reason
    (b'hello', 'the gzip data is cut')
    """
    inflater = zlib.decompressobj(wbits=31)
    packed, piece = file.read(_PACKED), b""
    while packed or len(piece) == size:  # a full piece: more may wait inside the inflater
        before = inflater.copy()
        try:
            piece = inflater.decompress(packed, size)
        except zlib.error as error:
            yield _sound_part(before, packed, size)
            tell(Problem(file.tell(), f"the gzip data is broken: {error}"))
            return
        if piece:
            yield piece
        if inflater.eof:
            packed, piece = inflater.unused_data.lstrip(b"\0") or file.read(_PACKED), b""
            if packed:
                inflater = zlib.decompressobj(wbits=31)
        else:
            packed = inflater.unconsumed_tail or file.read(_PACKED)
    if not inflater.eof:
        tell(Problem(file.tell(), "the gzip data is cut"))


def _sound_part(inflater: zlib._Decompress, packed: bytes, size: int) -> bytes:
    """Return what `packed` inflates to up to where it is broken, at most `size` bytes."""
    out = b""
    for at in range(0, len(packed), 64):
        try:
            out += inflater.decompress(packed[at : at + 64], size - len(out))
        except zlib.error:
            break
        if len(out) >= size:
            break
    return out
