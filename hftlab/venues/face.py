"""What the simulated exchange's service asks of a venue's face: the one interface behind `hftlab venue`.

Model. A *face* is a venue's protocol laid over an exchange that speaks rows: requests in, answers and messages out, no
socket and no clock. A *peer* is what a face knows of one WebSocket client: its subscriptions. The service owns sockets,
time and faults, and knows no venue:

1. it moves venue time (`Face.tick`) and hands over what the exchange did;
2. it takes the *items* to be published (`Face.take`) and asks every peer what its client gets of each (`Peer.render`);
3. it hands a client's messages to its peer (`Peer.receive`) and HTTP requests to the face (`Face.rest`), after having
   moved time; both may make new items.

An item is whatever the face likes. The service asks three things of it only, for its faults: may it be sent twice
(`Face.is_public`), which book's delta is it (`Face.is_book`), and who gets it.

A venue's module ``hftlab.venues.<venue>.server`` is found by name and offers what `ServerModule` says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, Protocol

from hftlab.core.instruments import Instrument
from hftlab.core.rows import RowArray

__all__ = ["AccountKey", "Answer", "Exchange", "Face", "Peer", "ServerModule", "read_json"]

AccountKey = tuple[str, str, Mapping[str, Decimal]]
"""An account as it starts: key, secret (in the form the venue hands out), balances by asset."""


class Answer(NamedTuple):
    """An HTTP answer: status, body, headers."""

    status: int
    body: bytes
    headers: dict[str, str]


class Exchange(Protocol):
    """What a face asks of an exchange in process."""

    def send(self, rows: RowArray, now_ns: int) -> RowArray:
        """Take order rows; return reports and the public rows they caused."""
        ...

    def snapshot(self, instrument: int, limit: int = ...) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]]]:
        """Return venue sequence, bids and asks, best first, as (px_ticks, qty_lots)."""
        ...


class Peer(Protocol):
    """One WebSocket client of a face."""

    @property
    def scope(self) -> str:
        """Return ``market`` or ``user``: the connection faults that touch this client now."""
        ...

    @property
    def ready(self) -> bool:
        """Return whether the client has subscribed to something: a recording starts to play then."""
        ...

    def receive(self, text: str | bytes, wall_ms: int) -> list[bytes]:
        """Return the answers to one message: acknowledgements, snapshots, order answers, errors."""
        ...

    def render(self, item: object) -> list[bytes]:
        """Return what this client gets of an item that `Face.take` gave; empty if it has not subscribed."""
        ...

    def poll(self, wall_ms: int) -> list[bytes]:
        """Return what is sent as time passes, heartbeats and the like; called about once a second."""
        ...


class Face(Protocol):
    """A venue's protocol over an exchange.

    Attributes
    ----------
    routes : mapping of path to scope
        Paths at which WebSocket clients connect, in aiohttp's pattern syntax, and whom they serve: ``market`` or
        ``user``. An HTTP request without an upgrade at such a path is a REST request.
    counts : dict of str to int
        What has happened so far, for the status page.
    """

    @property
    def routes(self) -> Mapping[str, str]:
        """Return where WebSocket clients connect."""
        ...

    @property
    def counts(self) -> dict[str, int]:
        """Return what has happened so far."""
        ...

    def peer(self, path: str, query: str) -> Peer:
        """Return a new client that connected at `path` with `query`."""
        ...

    def tick(self, venue_ns: int, rows: RowArray) -> None:
        """Move venue time to `venue_ns`; `rows` is what the exchange did until then (levels, trades, reports)."""
        ...

    def take(self) -> Sequence[object]:
        """Return the items to be published since the last call, in order."""
        ...

    def is_book(self, item: object) -> str:
        """Return the name of the book that `item` is a delta of, "" for anything else: gap and reorder faults."""
        ...

    def is_public(self, item: object) -> bool:
        """Return whether `item` is market data and no account's: duplicate faults."""
        ...

    def rest(
        self, method: str, path: str, query: bytes, body: bytes, headers: Mapping[str, str], wall_ms: int
    ) -> Answer:
        """Return the answer to an HTTP request.

        Parameters
        ----------
        method, path : str
            Such as ``"GET"`` and ``"/products"``; the path as it came on the wire.
        query, body : bytes
            As they came on the wire, still percent-encoded: that is what signatures cover.
        headers : mapping
            Case-insensitive, as HTTP's are.
        wall_ms : int
            Wall time, ms since 1970 UTC.
        """
        ...

    def fail_orders(self, code: int, msg: str, n: int = 1, carried_out: bool = False) -> None:
        """Let the next `n` order requests fail with the venue's `code`; if `carried_out`, they take effect as well."""
        ...


class ServerModule(Protocol):
    """What the module ``hftlab.venues.<venue>.server`` offers the service."""

    @property
    def DEFAULT_INSTRUMENTS(self) -> Mapping[str, Instrument]:
        """Return what can be listed, by the venue's symbol; the first is listed unless told otherwise."""
        ...

    @property
    def DEFAULT_ACCOUNT(self) -> AccountKey:
        """Return the account a simulated venue has unless told otherwise."""
        ...

    def make_face(
        self,
        exchange: Exchange,
        instruments: Sequence[Instrument],
        *,
        accounts: Iterable[AccountKey],
        maker_fee_e8: int,
        taker_fee_e8: int,
        orders_per_10s: int,
    ) -> Face:
        """Return a face over `exchange` that lists `instruments`; it owns the exchange's ``cl_ord_id`` numbering.

        Parameters
        ----------
        maker_fee_e8, taker_fee_e8 : int
            The exchange's fees, 1e-8 of notional.
        orders_per_10s : int
            New orders an account may send in ten seconds of wall time.
        """
        ...


def read_json(text: str | bytes, *, parse_float: Callable[[str], Any] | None = None) -> Any:
    """Return what a client's JSON says.

    Raises
    ------
    ValueError
        If it is no JSON, or holds half of a surrogate pair, which no answer that repeats it could be encoded with.
    RecursionError
        If it is nested too deeply.

    Examples
    --------
    >>> read_json(b'{"id": 1.50}', parse_float=str)
    {'id': '1.50'}
    """
    value = json.loads(text, parse_float=parse_float)
    if not text.isascii() or (b"\\u" in text if isinstance(text, bytes) else "\\u" in text):
        json.dumps(value, ensure_ascii=False).encode()
    return value
