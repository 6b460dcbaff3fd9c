"""Wire protocols and file formats without sockets: bytes in, rows or events out."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Problem"]


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
