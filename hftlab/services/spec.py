"""The specification of a session: everything a trader process needs to start, in one file without secrets.

``session.json`` is written once, by whoever starts the session, and read by supervisor, trader, dashboard and notebook.
Quantities and prices are decimal text in the units people read; the trader turns them into ticks and lots when it knows
the venue's instruments. Keys are named, never held.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hftlab.core.errors import ConfigError
from hftlab.services.markets import MARKETS
from hftlab.services.paths import SPEC_FILE, session_folder

__all__ = ["CAREFUL_LIMITS", "ENDPOINTS", "SCHEMA", "SessionSpec", "read_spec", "write_spec"]

SCHEMA = 1

CAREFUL_LIMITS: dict[str, dict[str, Any]] = {
    "BTCUSDT": {
        "max_order": "0.01", "max_position": "0.05", "max_notional": "2000", "collar": "200",
        "orders_per_s": 50, "max_open_orders": 20,
    },
    "ETHUSDT": {
        "max_order": "0.2", "max_position": "1", "max_notional": "2000", "collar": "20",
        "orders_per_s": 50, "max_open_orders": 20,
    },
}  # fmt: skip
"""Limits of a session that names none: small orders, a small position, prices near the mid. Base and quote units."""

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
_MODES = ("sim", "paper")
ENDPOINTS = ("rest", "stream", "ws_api")
"""The addresses of a venue, by the names that a session gives them."""
_WAITS = ("warm", "poll", "sleep")
_FEEDS = ("inline", "process")
_POLICIES = {"on_start": ("cancel", "adopt"), "on_stop": ("cancel",)}


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What a session is.

    Parameters
    ----------
    name, mode : str
        ``sim`` trades on a simulated exchange that the supervisor starts; ``paper`` fills at a simulated exchange
        against a real feed.
    symbols : sequence of str
        Instruments in the venue's spelling; their index is the instrument's id.
    strategy : dict
        ``name`` (the class), ``source``, ``params``, ``compiled``, ``version``.
    limits : dict of symbol to dict
        Decimal text, as `hftlab.core.definitions.Limits.from_decimals` reads it.
    venue : str
        Where the market comes from, one of `markets.MARKETS`; mode sim trades on binance's protocol only.
    endpoints : dict or None
        ``rest``, ``stream`` and ``ws_api`` addresses. None in mode sim: the supervisor starts a simulated venue for
        the session. None in mode paper: the venue's public production addresses.
    seed : int
        Of ``ctx.random()``.
    policy : dict
        ``on_start``: what happens to orders found open at the start, cancel or adopt; ``on_stop``: cancel.
    key : dict or str
        Names of the environment variables that hold the key, or ``"sim"``.
    wait : str
        How the trader waits for the next event. ``warm``: asleep, but once in a millisecond without any it runs its
        path on made-up data, so that the next event finds it in the caches (some 5 % of a core). ``poll``: never
        asleep, for a core of its own. ``sleep``: nothing of that.
    core : int or None
        The core that the trader's event loop keeps to, where a process woken in haste finds nobody else; its helper
        threads go where there is room. None: the system chooses.
    feeds : str
        Where the venue's messages are decoded. ``inline``: in the trader, one hop less. ``process``: in a process of
        its own, on another core; for markets that need more than the engine's core leaves.
    feed_processes : int
        With ``feeds = "process"``: over how many processes the symbols are divided, in turn; 1 to their number.
    venue_args : dict
        Options of the simulated venue, such as ``{"seed": 1, "rate": 500}``.

    Raises
    ------
    ConfigError
        If a value cannot be; the message says what is expected.
    """

    name: str
    mode: str
    symbols: tuple[str, ...]
    strategy: dict[str, Any]
    limits: dict[str, dict[str, Any]]
    venue: str = "binance"
    endpoints: dict[str, str] | None = None
    seed: int = 1
    policy: dict[str, str] = field(default_factory=lambda: {"on_start": "cancel", "on_stop": "cancel"})
    key: dict[str, str] | str = "sim"
    wait: str = "warm"
    core: int | None = None
    feeds: str = "inline"
    feed_processes: int = 1
    venue_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "symbols", tuple(self.symbols))
        if self.mode not in _MODES:
            raise ConfigError(f"mode: {self.mode!r}; expected one of {', '.join(_MODES)}")
        if self.venue not in MARKETS:
            raise ConfigError(f"venue: {self.venue!r}; expected one of {', '.join(MARKETS)}")
        if self.mode == "sim" and self.venue != "binance":
            raise ConfigError(f"venue: {self.venue} in mode sim; expected binance, or mode paper")
        if not self.symbols or len(set(self.symbols)) != len(self.symbols):
            raise ConfigError(f"symbols: {list(self.symbols)}; expected at least one, each once")
        for symbol in self.symbols:
            if symbol not in self.limits:
                raise ConfigError(
                    f"limits: none for {symbol}; give max_order, max_position, max_notional and collar as decimal text"
                )
        for symbol in self.limits:
            if symbol not in self.symbols:
                raise ConfigError(
                    f"limits: {symbol!r} is not a symbol of the session; there are {', '.join(self.symbols)}"
                )
        if self.wait not in _WAITS:
            raise ConfigError(f"wait: {self.wait!r}; expected one of {', '.join(_WAITS)}")
        if self.core is not None and (type(self.core) is not int or self.core < 0):
            raise ConfigError(f"core: {self.core!r}; expected the number of a core, 0 or more, or None")
        if self.feeds not in _FEEDS:
            raise ConfigError(f"feeds: {self.feeds!r}; expected {' or '.join(_FEEDS)}")
        most = len(self.symbols) if self.feeds == "process" else 1
        if type(self.feed_processes) is not int or not 1 <= self.feed_processes <= most:
            raise ConfigError(
                f"feed_processes: {self.feed_processes!r}; expected 1 to {most}: at most one a symbol, "
                'and more than one only with feeds = "process"'
            )
        if self.endpoints is not None and set(self.endpoints) != set(ENDPOINTS):
            raise ConfigError(f"endpoints: {sorted(self.endpoints)}; expected {', '.join(ENDPOINTS)}")
        for what, variable in self.key.items() if isinstance(self.key, dict) else ():
            if _VARIABLE.fullmatch(variable) is None:  # not repeated here: it may be the key itself
                raise ConfigError(
                    f"key: {what} is not the name of an environment variable; expected capitals, digits and _, such as "
                    "EXCHANGE_SECRET: a specification holds no key, it says where one is found"
                )
        for when, allowed in _POLICIES.items():
            if self.policy.get(when) not in allowed:
                raise ConfigError(f"policy: {when} is {self.policy.get(when)!r}; expected {' or '.join(allowed)}")

    @property
    def folder(self) -> Path:
        """The session's folder."""
        return session_folder(self.mode, self.name)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, as ``session.json`` holds them."""
        return {"schema": SCHEMA, **asdict(self), "symbols": list(self.symbols)}


def write_spec(spec: SessionSpec) -> Path:
    """Write ``session.json`` and ``strategy.py`` of a session, readable by the user alone, and return its folder."""
    folder = spec.folder
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write_private(folder / "strategy.py", spec.strategy["source"])
    _write_private(folder / SPEC_FILE, json.dumps(spec.to_dict(), indent=1) + "\n")
    return folder


def _write_private(path: Path, text: str) -> None:
    """Replace `path` as a whole: a reader sees the old file or the new one."""
    beside = path.with_suffix(".tmp")
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    beside.replace(path)


def read_spec(folder: Path) -> SessionSpec:
    """Return the specification in `folder`.

    Raises
    ------
    ConfigError
        If there is none, it is not JSON, of another schema, or holds an unknown or missing key.
    """
    path = folder / SPEC_FILE
    try:
        plain = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"there is no {path}; expected the specification of a session") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(plain, dict) or plain.pop("schema", None) != SCHEMA:
        raise ConfigError(f"{path} is of another schema than {SCHEMA}; this version of hftlab cannot read it")
    try:
        return SessionSpec(**plain)
    except TypeError as error:
        raise ConfigError(f"{path}: {error}") from error
