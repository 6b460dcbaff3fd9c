"""Wire protocols and file formats without sockets: bytes in, rows or events out."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["Problem", "Unpacked", "inflated", "is_packed"]

_PACKED = 1 << 18  # bytes of an archive read at a time
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_SKIPPABLE = tuple(bytes((0x50 + n, 0x2A, 0x4D, 0x18)) for n in range(16))  # frames that pzstd puts in front


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


def is_packed(head: bytes) -> bool:
    """Return whether a file that begins with `head` (4 bytes are enough) is gzip or Zstandard.

    Examples
    --------
    >>> is_packed(b"\\x1f\\x8b\\x08\\x00"), is_packed(b"HFTL")
    (True, False)
    """
    return head.startswith((_GZIP, _ZSTD, *_SKIPPABLE))


def inflated(file: BinaryIO, size: int, tell: Callable[[Problem], None]) -> Iterator[bytes]:
    """Yield what a gzip or Zstandard file holds, in pieces of at most `size` bytes, to the last that can be made out.

    Unlike ``gzip`` and Arrow, which raise on a cut or damaged archive and keep what they had inflated to themselves.

    Parameters
    ----------
    file : binary file
        At the start of an archive; archives may follow one another. It can seek.
    size : int
        Most bytes of a piece.
    tell : callable(Problem)
        Told when the archive is cut or damaged: the offset is that in what it holds, as of every other problem, and the
        reason names the byte of the archive. The pieces end there.

    Examples
    --------
    >>> import gzip, io
    >>> told = []
    >>> b"".join(inflated(io.BytesIO(gzip.compress(b"hello")[:-4]), 3, told.append)), told[0].reason
    (b'hello', 'the gzip archive is cut at its byte 21; all before that is kept')
    """
    head = file.read(4)
    file.seek(-len(head), io.SEEK_CUR)
    told: list[Problem] = []
    done = 0
    for piece in (_gunzipped if head.startswith(_GZIP) else _unzstd)(file, size, told.append):
        done += len(piece)
        yield piece
    for problem in told:
        tell(Problem(done, problem.reason))


def _ended(packing: str, how: str, at: int) -> Problem:
    return Problem(at, f"the {packing} archive is {how} at its byte {at}; all before that is kept")


def _gunzipped(file: BinaryIO, size: int, tell: Callable[[Problem], None]) -> Iterator[bytes]:
    inflater = zlib.decompressobj(wbits=31)
    packed, piece = file.read(_PACKED), b""
    while packed or len(piece) == size:  # a full piece: more may wait inside the inflater
        before = inflater.copy()
        try:
            piece = inflater.decompress(packed, size)
        except zlib.error as error:
            yield _sound_part(before, packed, size)
            tell(_ended("gzip", f"broken ({error})", file.tell()))
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
        tell(_ended("gzip", "cut", file.tell()))


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


class _Fed(io.RawIOBase):
    """What Arrow reads an archive from: in pieces of 64 bytes from `careful` bytes on."""

    def __init__(self, file: BinaryIO, careful: int | None = None) -> None:
        self._file = file
        self._careful = careful
        self.fed = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._careful is not None and self.fed + size > self._careful:
            size = max(64, self._careful - self.fed)
        piece = self._file.read(size)
        self.fed += len(piece)
        return piece


def _unzstd(file: BinaryIO, size: int, tell: Callable[[Problem], None]) -> Iterator[bytes]:
    """Yield what a Zstandard file holds.

    Arrow drops what it had of the read that fails. So a damaged archive is read twice: again up to the failure, and
    from there on byte by byte, fed in small pieces.
    """
    from pyarrow import CompressedInputStream, PythonFile

    start, given = file.tell(), 0
    fed = _Fed(file)
    stream = CompressedInputStream(PythonFile(fed, "r"), "zstd")
    try:
        while piece := stream.read(size):
            given += len(piece)
            yield piece
        return
    except OSError as error:
        is_cut, reason = "Truncated" in str(error), str(error).splitlines()[0]
    file.seek(start)
    again = _Fed(file, max(0, fed.fed - _PACKED))
    stream = CompressedInputStream(PythonFile(again, "r"), "zstd")
    rest = bytearray()
    try:
        while given:
            given -= len(stream.read(min(given, size)))
        while one := stream.read(1):
            rest += one
    except OSError:
        pass  # where it failed before, told below
    for at in range(0, len(rest), size):
        yield bytes(rest[at : at + size])
    tell(_ended("Zstandard", "cut" if is_cut else f"broken ({reason})", start + again.fed))


class Unpacked(io.RawIOBase):
    """A binary file to read from, unpacked if it is gzip or Zstandard; wrap it in an ``io.BufferedReader``.

    It never raises for what the archive is: where it is cut or damaged it ends, and says so.

    Parameters
    ----------
    file : binary file
        At its start; it can seek. Closed with this one.
    tell : callable(Problem)
        As `inflated`.

    Examples
    --------
    >>> import gzip, io
    >>> told = []
    >>> io.BufferedReader(Unpacked(io.BytesIO(gzip.compress(b"one\\ntwo")[:-4]), told.append)).readlines(), len(told)
    ([b'one\\n', b'two'], 1)
    """

    def __init__(self, file: BinaryIO, tell: Callable[[Problem], None]) -> None:
        self._file = file
        head = file.read(4)
        file.seek(0)
        self._pieces = inflated(file, _PACKED, tell) if is_packed(head) else None
        self._held = memoryview(b"")

    def readable(self) -> bool:
        """Return that it is."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill `buffer` with what comes next, in part; return how much, 0 at the end."""
        room = memoryview(buffer).cast("B")
        if self._pieces is None:
            piece = self._file.read(len(room))
            room[: len(piece)] = piece
            return len(piece)
        while not len(self._held):
            more = next(self._pieces, None)
            if more is None:
                return 0
            self._held = memoryview(more)
        n = min(len(room), len(self._held))
        room[:n], self._held = self._held[:n], self._held[n:]
        return n

    def close(self) -> None:
        """Close it and the file beneath."""
        if not self.closed:
            self._file.close()
        super().close()
