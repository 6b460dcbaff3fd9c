"""What ``hftlab serve`` is given as text: which strategy, which parameters, which limits, which venue.

A strategy is named in one of three ways: ``path.py:Class``, ``module:Class``, or ``name@alias`` for a promoted version.
In each case it is its *source* that goes on, because that is what the trader runs and the journal keeps.
"""

from __future__ import annotations

import importlib.util
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hftlab.core.errors import ConfigError
from hftlab.services.spec import ENDPOINTS
from hftlab.strategy import load_strategy

__all__ = ["Plan", "read_endpoints", "read_limits", "read_params", "read_strategy", "source_file"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A strategy that was found, and what it brings along.

    Parameters
    ----------
    strategy : dict
        As in a session's specification: name, source, params, compiled, version.
    symbols : sequence of str
        Of a promoted version; empty otherwise.
    limits : dict of symbol to dict
        Of a promoted version; empty otherwise.
    """

    strategy: dict[str, Any]
    symbols: tuple[str, ...] = ()
    limits: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_strategy(text: str, params: Mapping[str, Any], *, compiled: bool = True) -> Plan:
    """Return the strategy that `text` names, proved to load with `params`.

    Raises
    ------
    ConfigError
        If `text` names nothing that is there, or a parameter is wrong.
    StrategyError
        If the source does not define the class.
    """
    if "@" in text:
        plan = _promoted(text, params)
    else:
        place, colon, cls = text.rpartition(":")
        if not colon or not place or not cls.isidentifier():
            raise ConfigError(f"strategy: {text!r}; expected path.py:Class, module:Class, or NAME@ALIAS")
        source = source_file(place).read_text()
        plan = Plan({"name": cls, "source": source, "params": dict(params), "compiled": compiled, "version": ""})
    chosen = plan.strategy
    loaded = load_strategy(chosen["source"], chosen["name"], chosen["params"], compiled=chosen["compiled"])
    chosen["compiled"] = loaded.compiled
    return plan


def source_file(place: str) -> Path:
    """Return the file that a path ending in .py, or a module's name, means.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise ConfigError(f"strategy: there is no file {path}; expected path.py:Class")
        return path
    try:
        found = importlib.util.find_spec(place)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"strategy: module {place!r} cannot be found ({error})") from error
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        raise ConfigError(f"strategy: there is no Python module {place!r}; for a file write its path with .py")
    return Path(found.origin)


def _promoted(text: str, params: Mapping[str, Any]) -> Plan:
    """Return a promoted version as it was promoted: what its hash covers is not changed on the way."""
    from hftlab.tracking import resolve

    if params:
        raise ConfigError(
            f"param: {', '.join(params)} given with {text}; a promoted version keeps the parameters it was promoted "
            "with. Promote its notebook again with others"
        )
    name, _, alias = text.partition("@")
    found = resolve(name, alias)
    strategy = {
        "name": found.class_name,
        "source": found.source,
        "params": dict(found.params),
        "compiled": True,
        "version": found.label,
    }
    return Plan(strategy, tuple(found.symbols), {symbol: dict(one) for symbol, one in found.limits.items()})


def read_params(texts: Sequence[str]) -> dict[str, int | float]:
    """Return parameters written as ``name=number``.

    Raises
    ------
    ConfigError
        If one is not of that form.

    Examples
    --------
    >>> read_params(["edge_ticks=2", "decay=0.5"])
    {'edge_ticks': 2, 'decay': 0.5}
    """
    params: dict[str, int | float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            params[name.strip()] = int(value) if value.strip().lstrip("+-").isdigit() else float(value)
        except ValueError:
            equals = ""
        if not equals or not name.strip().isidentifier():
            raise ConfigError(f"param: {text!r}; expected name=number such as edge_ticks=2")
    return params


def read_endpoints(text: str | None) -> dict[str, str] | None:
    """Return a venue's addresses, written as ``rest=...,stream=...,ws_api=...`` or as JSON; None for None.

    The JSON line that ``hftlab venue`` prints when it is ready is one that can be given.

    Raises
    ------
    ConfigError
        If an address is missing, unknown, or none of http, https, ws and wss.

    Examples
    --------
    >>> read_endpoints("rest=http://h:1,stream=ws://h:1,ws_api=ws://h:1/ws-api/v3")["stream"]
    'ws://h:1'
    """
    if text is None:
        return None
    wanted = f"endpoints: {text!r}; expected {','.join(f'{name}=ADDRESS' for name in ENDPOINTS)}, or JSON with these"
    try:
        found = json.loads(text) if text.startswith("{") else dict(one.split("=", 1) for one in text.split(","))
        found.pop("pid", None)  # stands in the line of a venue too
    except ValueError as error:
        raise ConfigError(wanted) from error
    addresses = {name.strip(): str(address).strip() for name, address in found.items()}
    if set(addresses) != set(ENDPOINTS):
        raise ConfigError(wanted)
    for name, address in addresses.items():
        if not address.startswith(("http://", "https://") if name == "rest" else ("ws://", "wss://")):
            raise ConfigError(
                f"endpoints: {name}={address}; expected {'http' if name == 'rest' else 'ws'}:// or its TLS form"
            )
    return addresses


def read_limits(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return limits by symbol, from TOML files or written inline.

    Parameters
    ----------
    texts : sequence of str
        Each the path of a ``.toml`` file with one table a symbol, or ``SYMBOL:name=value,name=value``.

    Raises
    ------
    ConfigError
        If a text is neither; a number with a point in TOML is refused too, because it is no longer exact.

    Examples
    --------
    >>> read_limits(["BTCUSDT:max_order=0.01,orders_per_s=20"])
    {'BTCUSDT': {'max_order': '0.01', 'orders_per_s': 20}}
    """
    limits: dict[str, dict[str, Any]] = {}
    for text in texts:
        for symbol, one in _limits_file(Path(text)) if text.endswith(".toml") else [_inline_limits(text)]:
            limits.setdefault(symbol, {}).update(one)
    return limits


_COUNTS = ("orders_per_s", "max_open_orders")


def _inline_limits(text: str) -> tuple[str, dict[str, Any]]:
    symbol, colon, rest = text.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(",")]
    if not colon or not symbol or any(not equals or not value for _, equals, value in pairs):
        raise ConfigError(f"limits: {text!r}; expected a .toml file, or SYMBOL:max_order=0.01,max_position=0.1,...")
    one: dict[str, Any] = {}
    for name, _, value in pairs:
        if name in _COUNTS and not value.isdigit():
            raise ConfigError(f"limits: {name}={value}; expected an integer")
        one[name] = int(value) if name in _COUNTS else value
    return symbol, one


def _limits_file(path: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"limits: {path} cannot be read ({error.strerror})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"limits: {path} is not TOML: {error}") from error
    for symbol, one in tables.items():
        if not isinstance(one, dict):
            raise ConfigError(f"limits: {path}: {symbol!r} is not a table; expected one table a symbol, as [BTCUSDT]")
        for name, value in one.items():
            if isinstance(value, float):
                raise ConfigError(f'limits: {path}: {symbol}.{name} is a float; write it as text: {name} = "{value}"')
            if not isinstance(value, int | str) or isinstance(value, bool):
                raise ConfigError(f"limits: {path}: {symbol}.{name} is {value!r}; expected decimal text")
            one[name] = value if name in _COUNTS else str(value)
    return list(tables.items())
