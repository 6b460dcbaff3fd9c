"""The rules of matching as scripts: requests, and under each what the market must answer, line by line.

A line is a request, a comment (#) or, after ``>``, an answer. Requests::

    rules [pro-rata] [minimum=N] [self-trade=allowed|cancel-newest|cancel-oldest|cancel-both] [ticks=0:1,100:5]
    buy|sell NAME QTY @ PX|market [ioc|fok|day|gtd=TIME] [post-only] [stop=PX] [display=N] [min=N] [account=N]
    cancel NAME          replace NAME QTY @ PX [post-only]         time T           end of session
    auction              uncross [reference=PX] [then=closed]      halt   resume    band LOW HIGH        book

The test writes the script anew with the market's own answers: both texts must be the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hftlab.core.rows import OrdType, Side, Tif
from hftlab.kernels.matching import Outcome, leaves_of
from hftlab.kernels.rules import STOP_BIT, Allocation, Event, Phase, RuledMatcher, Rules, SelfTrade, What

SCRIPTS = sorted((Path(__file__).parent / "matching").glob("*.txt"))
SIDES = {"buy": int(Side.BUY), "sell": int(Side.SELL)}
MARKET_PX = 2**63 - 1


def words(value: Any) -> str:
    return str(value.name).lower().replace("_", " ")


class Floor:
    """A market, and the names of the orders on it."""

    def __init__(self) -> None:
        self.market = RuledMatcher(None, 256, 64, 64)
        self.names: list[str] = ["nobody"]

    def tag(self, name: str) -> int:
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    def answer(self, line: str) -> list[str]:
        """What the market answers to a request."""
        verb, *rest = line.split()
        flags = {word for word in rest if "=" not in word}
        values = dict(word.split("=") for word in rest if "=" in word)
        market = self.market
        match verb:
            case "rules":
                self.market = RuledMatcher(self.rules(flags, values), 256, 64, 64)
                return []
            case "buy" | "sell":
                said: Any = self.order(SIDES[verb], rest, flags, values)
            case "replace":
                name, qty, _, px = rest[:4]
                post_only = "post-only" in flags
                said = market.replace(
                    self.id_of(name), 0 if px == "market" else int(px), int(qty), tag=self.tag(name),
                    post_only=post_only,
                )  # fmt: skip
            case "cancel":
                said = market.cancel(self.id_of(rest[0]))
            case "time":
                said = market.advance(int(rest[0]))
            case "end":
                said = market.end_session()
            case "auction" | "halt" | "resume":
                phase = {"auction": Phase.AUCTION, "halt": Phase.HALTED, "resume": Phase.CONTINUOUS}[verb]
                said = market.enter(phase) or 0
            case "uncross":
                reference = int(values["reference"]) if "reference" in values else None
                said = market.uncross(reference, Phase[values.get("then", "continuous").upper()])
            case "band":
                said = market.set_band(int(rest[0]), int(rest[1]))
            case "book":
                return self.book()
            case _:
                raise ValueError(f"script line {line!r} begins with {verb!r}; expected a request")
        if said < 0:
            return [f"refused: {words(Outcome(said))}"]
        return [self.told(e) for e in market.events if e.what != What.ACCEPTED]

    @staticmethod
    def rules(flags: set[str], values: dict[str, str]) -> Rules:
        ticks = [tuple(map(int, pair.split(":"))) for pair in values.get("ticks", "0:1").split(",")]
        return Rules(
            Allocation.PRO_RATA if "pro-rata" in flags else Allocation.PRICE_TIME,
            int(values.get("minimum", "1")),
            SelfTrade[values.get("self-trade", "cancel-oldest").upper().replace("-", "_")],
            [(at, step) for at, step in ticks],
        )

    def order(self, side: int, rest: list[str], flags: set[str], values: dict[str, str]) -> Outcome:
        name, qty, _, px = rest[:4]
        kinds = {
            (False, False): OrdType.LIMIT, (True, False): OrdType.MARKET, (False, True): OrdType.STOP_LIMIT,
            (True, True): OrdType.STOP,
        }  # fmt: skip
        tifs = [tif for word, tif in (("ioc", Tif.IOC), ("fok", Tif.FOK), ("day", Tif.DAY)) if word in flags]
        return self.market.submit(
            side, 0 if px == "market" else int(px), int(qty), tag=self.tag(name),
            account=int(values.get("account", "0")), ord_type=int(kinds[px == "market", "stop" in values]),
            tif=int(tifs[0] if tifs else Tif.GTD if "gtd" in values else Tif.GTC), post_only="post-only" in flags,
            stop_px=int(values.get("stop", "0")), display_qty=int(values.get("display", "0")),
            min_qty=int(values.get("min", "0")), expire_ns=int(values.get("gtd", "0")),
        )  # fmt: skip

    def id_of(self, name: str) -> int:
        venue = self.market.venue
        for book, bit in ((venue.book, 0), (venue.stops, STOP_BIT)):
            for order in book.orders:
                if order[0] and order[1] == self.tag(name):
                    return int(order[0]) | bit
        return 0

    def told(self, e: Event) -> str:
        name, other = self.names[e.tag], self.names[e.other_tag]
        px = "market" if abs(e.px) == MARKET_PX else str(e.px)
        match e.what:
            case What.TRADE if e.side == SIDES["sell"]:
                return f"{other} sells {e.qty} to {name} @ {px}"
            case What.TRADE if e.side == SIDES["buy"]:
                return f"{other} buys {e.qty} from {name} @ {px}"
            case What.TRADE:
                return f"{name} buys {e.qty} from {other} @ {px}"
            case What.RESTING:
                return f"{name} rests {e.qty} @ {px}" + (f", {e.leaves - e.qty} hidden" if e.leaves > e.qty else "")
            case What.REPLACED:
                return f"{name} is replaced by {e.qty}"
            case What.PARKED:
                return f"{name} waits for {px}"
            case What.TRIGGERED:
                return f"{name} is triggered at {px}"
            case What.CANCELED | What.EXPIRED:
                return f"{name} {'expires' if e.what == What.EXPIRED else 'is canceled'}, {e.qty} open: {words(e.why)}"
            case What.INDICATIVE:
                return f"indicative {px} for {e.qty}, imbalance {e.leaves:+d}" if e.qty else "indicative none"
            case _:
                return {1: f"limit up at {px}", 2: f"limit down at {px}"}.get(e.side, "limit state is over")

    def book(self) -> list[str]:
        """Offers from the highest down, then bids, as a screen shows them; oldest first."""
        book = self.market.venue.book
        lines = []
        for side, word in ((2, "offer"), (1, "bid")):
            levels = range(int(book.head[side - 1]))
            for i in levels if side == 2 else reversed(levels):
                orders, slot = [], int(book.levels[side - 1, i, 3])
                while slot >= 0:
                    order = book.orders[slot]
                    hidden = int(leaves_of(book, slot)) - int(order[4])
                    orders.append(f"{self.names[order[1]]} {order[4]}" + (f" (+{hidden})" if hidden else ""))
                    slot = int(order[6])
                px = int(order[3])
                lines.append(f"{word} {'market' if abs(px) == MARKET_PX else px}: {', '.join(orders)}")
        return lines or ["empty"]


def performed(text: str) -> str:
    """A script with the market's own answers."""
    floor, lines = Floor(), []
    for line in text.splitlines():
        if line.startswith(">"):
            continue
        lines.append(line)
        if line and not line.startswith("#"):
            lines += [f"> {answer}" for answer in floor.answer(line)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_the_market_answers_as_the_script_says(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("# ")
    assert performed(text) == text


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 20


def test_a_wrong_answer_in_a_script_is_noticed() -> None:
    text = "# One order.\nbuy a 5 @ 100\n> a rests 4 @ 100\n"
    assert performed(text) == text.replace("rests 4", "rests 5") != text


def test_a_line_that_is_no_request_is_refused() -> None:
    with pytest.raises(ValueError, match="begins with 'shout'"):
        performed("shout\n")
