"""Recorded Kraken frames: read a capture file as (receive time, message bytes).

The recorders' formats are the same for every venue (`venues.binance.capture.read_capture`); this venue's captures hold
no REST book snapshots, since its books begin in the stream. What is particular to it is which protocol a capture holds.
"""

from __future__ import annotations

from hftlab.venues.binance.capture import read_capture

__all__ = ["protocol_version", "read_capture"]


def protocol_version(frame: bytes) -> int:
    """Return which protocol a message belongs to: 1, 2, or 0 when it does not say.

    Examples
    --------
    >>> protocol_version(b'[992,{"b":[]},"book-10","XMR/USD"]'), protocol_version(b'{"channel":"heartbeat"}')
    (1, 2)
    >>> protocol_version(b'{"event":"heartbeat"}'), protocol_version(b"{}")
    (1, 0)
    """
    if frame.startswith(b"[") or b'"event"' in frame:
        return 1
    return 2 if b'"channel"' in frame or b'"method"' in frame else 0
