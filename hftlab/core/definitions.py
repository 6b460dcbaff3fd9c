"""What a session is made of: instruments, assets, limits, strategy. Laid in every journal segment, so that a journal
can be replayed by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from decimal import Decimal
from fractions import Fraction
from typing import Any

from hftlab.core.errors import ConfigError
from hftlab.core.instruments import INT64_MAX, Instrument

__all__ = ["Definitions", "Limits", "StrategyRef"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Risk limits of one instrument; every field must be given on purpose, none defaults to "no limit".

    Parameters
    ----------
    max_order_qty : int
        Most lots one order may carry.
    max_notional : int
        Most ticks x lots one order may carry.
    max_position : int
        Most lots the position may reach, long or short, if every working order of one side filled.
    collar_ticks : int
        Farthest an order's price may lie from the mid.
    orders_per_s : int
        Orders and replaces a second, over all instruments (the lowest of the session's limits holds). A leaky bucket:
        so many may go at once, and from then on one each 1/orders_per_s of a second.
    max_open_orders : int
        Open orders over all instruments (the lowest holds), at most 4,096.

    Examples
    --------
    >>> Limits(max_order_qty=100, max_notional=10**12, max_position=0, collar_ticks=500)
    Traceback (most recent call last):
        ...
    hftlab.core.errors.ConfigError: limits: max_position is 0; expected an integer above 0
    """

    max_order_qty: int
    max_notional: int
    max_position: int
    collar_ticks: int
    orders_per_s: int = 100
    max_open_orders: int = 200

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= INT64_MAX:
                raise ConfigError(f"limits: {name} is {value!r}; expected an integer above 0")
        if self.collar_ticks > 2**60:
            raise ConfigError(f"limits: collar_ticks is {self.collar_ticks}; expected at most 2**60")
        if self.max_open_orders > 4096:
            raise ConfigError(f"limits: max_open_orders is {self.max_open_orders}; expected at most 4096")
        if self.max_position > 3_000_000_000:
            raise ConfigError(f"limits: max_position is {self.max_position} lots; exact P&L holds up to 3,000,000,000")
        if self.orders_per_s > 1_000_000_000:
            raise ConfigError(f"limits: orders_per_s is {self.orders_per_s}; expected at most 1,000,000,000")

    @classmethod
    def from_decimals(cls, instrument: Instrument, spec: Mapping[str, Any]) -> Limits:
        """Return limits written in the units people read.

        Parameters
        ----------
        instrument : Instrument
        spec : mapping
            ``max_order`` and ``max_position`` in the base asset, ``max_notional`` (one order) and ``collar`` (distance
            from the mid) in the quote asset, as decimal text; optional integers ``orders_per_s``, ``max_open_orders``.

        Raises
        ------
        ConfigError
            If a limit is missing, unknown, or not a decimal. An amount between two units counts as the lower one.
        OffGridError
            If a quantity is not a whole number of lots.

        Examples
        --------
        >>> btc = Instrument(0, "binance", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"))
        >>> spec = {"max_order": "0.01", "max_position": "0.1", "max_notional": "1000", "collar": "50"}
        >>> Limits.from_decimals(btc, spec).max_position
        10000
        """
        required = ("max_order", "max_position", "max_notional", "collar")
        optional = ("orders_per_s", "max_open_orders")
        for name in required:
            if name not in spec:
                raise ConfigError(f"limits: {name} is missing; expected {', '.join(required)} as decimal text")
        for name in spec:
            if name not in required + optional:
                raise ConfigError(f"limits: no limit {name!r}; there are {', '.join(required + optional)}")
        return cls(
            max_order_qty=instrument.qty_lots(_amount("max_order", spec)),
            max_notional=_whole(_amount("max_notional", spec), instrument.tick_size * instrument.lot_size),
            max_position=instrument.qty_lots(_amount("max_position", spec)),
            collar_ticks=_whole(_amount("collar", spec), instrument.tick_size),
            **{name: spec[name] for name in optional if name in spec},
        )


def _amount(name: str, spec: Mapping[str, Any]) -> Decimal:
    value = spec[name]
    try:
        exact = Decimal(value) if isinstance(value, (str, int, Decimal)) and not isinstance(value, bool) else None
    except ArithmeticError:
        exact = None
    if exact is None or not exact.is_finite():
        raise ConfigError(f"limits: {name} is {value!r}; expected an amount as decimal text")
    return exact


def _whole(amount: Decimal, unit: Decimal) -> int:
    """Return how many whole `unit` an amount holds: the stricter side of a limit that lies between two."""
    return int(Fraction(amount) / Fraction(unit))


@dataclass(frozen=True, slots=True)
class StrategyRef:
    """Which strategy a session runs.

    Parameters
    ----------
    name : str
        Class name, or name@hash of a promoted version.
    source : str
        Its Python source, whole: a journal replays without the notebook it came from.
    params : dict
        Values that differ from the class's defaults.
    """

    name: str
    source: str
    params: dict[str, Any] = field(default_factory=dict)
    version: str = ""


@dataclass(frozen=True, slots=True)
class Definitions:
    """The definitions of a session, as its journal carries them.

    Parameters
    ----------
    session, mode : str
        Name and one of backtest, sim, paper, live.
    instruments : sequence of Instrument
        Ids 0, 1, 2, ... in order.
    limits : sequence of Limits
        One an instrument.
    strategy : StrategyRef
    seed : int
        Seed of ``ctx.random()``.
    assets : sequence of str
        Asset codes; reports name fee assets by their index.
    """

    session: str
    mode: str
    instruments: tuple[Instrument, ...]
    limits: tuple[Limits, ...]
    strategy: StrategyRef
    seed: int = 1
    assets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if [i.id for i in self.instruments] != list(range(len(self.instruments))):
            ids = [i.id for i in self.instruments]
            raise ConfigError(f"instruments: ids are {ids}; expected 0, 1, 2, ... in order")
        if len(self.limits) != len(self.instruments):
            raise ConfigError(
                f"limits: {len(self.limits)} given for {len(self.instruments)} instruments; expected one each"
            )
        if not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}; expected an integer of 64 bits")
        if not self.assets:
            object.__setattr__(self, "assets", asset_table(self.instruments))

    def asset(self, code: str) -> int:
        """Return the index of an asset, -1 if the session has none of that code."""
        return self.assets.index(code) if code in self.assets else -1

    def to_dict(self) -> dict[str, Any]:
        """Return plain types (msgpack, JSON); `from_dict` reads them back."""
        return {
            "session": self.session,
            "mode": self.mode,
            "instruments": [i.to_dict() for i in self.instruments],
            "limits": [asdict(limit) for limit in self.limits],
            "strategy": asdict(self.strategy),
            "seed": self.seed,
            "assets": list(self.assets),
        }

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Definitions:
        """Return the definitions that `to_dict` described; keys it does not know are left alone."""
        return cls(
            session=plain["session"],
            mode=plain["mode"],
            instruments=tuple(Instrument.from_dict(i) for i in plain["instruments"]),
            limits=tuple(Limits(**_known(Limits, limit)) for limit in plain["limits"]),
            strategy=StrategyRef(**_known(StrategyRef, plain["strategy"])),
            seed=plain["seed"],
            assets=tuple(plain["assets"]),
        )


def _known(cls: type[Limits] | type[StrategyRef], plain: Mapping[str, Any]) -> dict[str, Any]:
    return {f.name: plain[f.name] for f in fields(cls) if f.name in plain}


def asset_table(instruments: Sequence[Instrument]) -> tuple[str, ...]:
    """Return the asset codes of `instruments`, base then quote, each once, in order of appearance."""
    return tuple(dict.fromkeys(code for i in instruments for code in (i.base, i.quote) if code))
