"""What a dashboard says, as text: states, ages, amounts, and the HTML of its tables.

Pure functions of a `SessionFeed` and a time. Every state has a shape, a word and a colour, in that order of importance,
because colours alone fail some readers and all printers. Every number has its unit, every age its words, and what is
missing is a dash, never 0.
"""

from __future__ import annotations

import datetime
import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from hftlab.analysis.style import ASK, BID, GREY, HALT, INK, WARN, decimals, span_words
from hftlab.core.instruments import MONEY_SCALE, Instrument
from hftlab.core.rows import NO_PX, BookState, OrdStatus, Reason
from hftlab.dash.feed import SessionFeed
from hftlab.kernels.latency import HOP_TEXTS, Histogram, bucket_middles

__all__ = [
    "ASK",
    "BID",
    "CSS",
    "GREY",
    "HALT",
    "INK",
    "State",
    "WARN",
    "age_words",
    "book_condition",
    "counters_html",
    "decimals",
    "faults_html",
    "feeds_html",
    "header_html",
    "hops_html",
    "limits_html",
    "net_pnl",
    "session_state",
    "signed",
    "span_words",
]

STALE_NS = 2_000_000_000
"""Age from which market data is called stale."""

SILENT_NS = 1_000_000_000
"""Age of the newest row from which the trader is called silent: it writes one at least every 100 ms."""

_SHAPES = {
    "circle": '<circle cx="6" cy="6" r="5"/>',
    "ring": '<circle cx="6" cy="6" r="4" fill="none" stroke="currentColor" stroke-width="2"/>',
    "triangle": '<path d="M6 0.5 L11.7 11 L0.3 11 Z"/>',
    "square": '<rect x="1" y="1" width="10" height="10"/>',
    "octagon": '<path d="M3.6 0 H8.4 L12 3.6 V8.4 L8.4 12 H3.6 L0 8.4 V3.6 Z"/>',
    "bars": '<path d="M1 1h4v10h-4z M7 1h4v10h-4z"/>',
}

CSS = """
:host > div { width: 100%; display: block; }
:host { font: 11px/15px 'DejaVu Sans', Verdana, 'Segoe UI', sans-serif; color: #1B1F24; }
.p { width: 100%; font-variant-numeric: tabular-nums; }
h4 { font-size: 11px; margin: 0 0 3px; font-weight: bold; border-bottom: 1px solid #D5D9DF; padding-bottom: 2px; }
h4 i { font-style: normal; font-weight: normal; color: #595F69; float: right; }
table { border-collapse: collapse; width: 100%; }
td, th { padding: 0 4px 0 0; text-align: right; white-space: nowrap; font-weight: normal; }
td:first-child, th:first-child { text-align: left; }
th { color: #595F69; }
s { color: #8B929C; }
.u { color: #595F69; }
svg { width: 10px; height: 10px; fill: currentColor; vertical-align: -1px; margin-right: 3px; }
.b { display: inline-block; width: 74px; height: 9px; border: 1px solid #8B929C; vertical-align: -1px;
  background-image: linear-gradient(90deg, transparent 70%, #8B929C 70%, #8B929C 71.5%, transparent 71.5%); }
.b b { display: block; height: 100%; background: #56799B; }
.b b.w { background: #8A6D00; }
.b b.h { background: repeating-linear-gradient(45deg, #882255 0 2px, #E9D3DE 2px 4px); }
pre { margin: 2px 0 4px; font: 10px/13px 'DejaVu Sans Mono', Menlo, Consolas, monospace; white-space: pre-wrap; }
.f { overflow-y: auto; }
.head { display: flex; gap: 16px; align-items: baseline; white-space: nowrap; font-size: 12px; line-height: 26px; }
.head strong { font-size: 13px; }
.head .m { border: 1.5px solid currentColor; padding: 0 6px 0 5px; line-height: 19px; font-weight: bold; }
.head .r { margin-left: auto; color: #595F69; }
.hint { color: #595F69; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
"""


@dataclass(frozen=True, slots=True)
class State:
    """A state as it is shown.

    Parameters
    ----------
    shape, word, colour : str
    hint : str
        What it means and what to do, or empty.
    stale : bool
        Whether values that belong to it must not be taken as current.
    """

    shape: str
    word: str
    colour: str
    hint: str = ""
    stale: bool = False

    def html(self, extra: str = "") -> str:
        """Return shape and word, and `extra` after them, in the state's colour."""
        text = html.escape(f"{self.word} {extra}".strip())
        return f'<span style="color:{self.colour}"><svg viewBox="0 0 12 12">{_SHAPES[self.shape]}</svg>{text}</span>'


def age_words(age_ns: int) -> str:
    """Return an age as a person says it; a negative one (a clock stepped) is 0 ms.

    Examples
    --------
    >>> [age_words(int(s * 1e9)) for s in (0.003, 4.13, 75, 3720)]
    ['3 ms', '4.1 s', '1 min 15 s', '1 h 02 min']
    """
    ms = max(0, age_ns) // 1_000_000
    if ms < 1000:
        return f"{ms} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    minutes, seconds = divmod(ms // 1000, 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def signed(value: Decimal, places: int) -> str:
    """Return `value` with its sign and thousands, to `places` decimals; 0 has no sign.

    Examples
    --------
    >>> signed(Decimal("-1234.5"), 2), signed(Decimal("3"), 1), signed(Decimal(0), 2)
    ('-1,234.50', '+3.0', '0.00')
    """
    text = f"{value:+,.{places}f}"
    return text[1:] if Decimal(text.replace(",", "")) == 0 else text


def session_state(feed: SessionFeed, now_ns: int) -> State:
    """Return the session's state as its journal tells it at `now_ns`."""
    replica = feed.replica
    if feed.waiting or replica is None:
        return State("ring", "WAITING", GREY, feed.waiting, stale=True)
    if feed.progress < 1.0:
        share = int(100 * feed.progress)
        return State("ring", f"READING {share} %", GREY, "taking in the journal from its first row", stale=True)
    counters = replica.counters()
    if feed.last_control == "stop":
        return State("square", "STOPPED", GREY, "the session has been stopped; what is shown is its end")
    age = now_ns - feed.last_ts
    if age > SILENT_NS:
        hint = "no new rows: the trader has ended, hangs or restarts; see trader.log in the session's folder"
        word = f"SILENT {age_words(age)}" if feed.last_ts else "SILENT"
        return State("triangle", word, WARN, hint, stale=True)
    if counters["strategy_halted"]:
        return State("octagon", "FAULTED", HALT, "the strategy failed and is halted; its orders are canceled")
    if counters["kill_switch"]:
        return State("octagon", "HALTED", HALT, "no order goes out until the session is resumed")
    if not counters["started"]:
        return State("ring", "STARTING", GREY, "the strategy has not been started yet")
    return State("circle", "TRADING", BID)


def book_condition(feed: SessionFeed, instrument: int, now_ns: int) -> State:
    """Return the state of an instrument's market data at `now_ns`, the age not included."""
    replica = feed.replica
    if replica is None or not feed.market_ts[instrument]:
        return State("ring", "no data", GREY, "no market data has come yet", stale=True)
    if now_ns - int(feed.market_ts[instrument]) > STALE_NS:
        return State("bars", "stale", GREY, stale=True)
    book = int(replica.instruments[instrument]["book_state"])
    if book == BookState.LIVE:
        return State("circle", "live", BID)
    words = {
        BookState.EMPTY: State("ring", "empty", GREY, stale=True),
        BookState.STALE: State("bars", "stale", GREY, stale=True),
        BookState.RESYNCING: State("bars", "resyncing", WARN, stale=True),
        BookState.CROSSED: State("triangle", "crossed", WARN),
    }
    return words[BookState(book)]


def net_pnl(instrument: Instrument, pnl: dict[str, int], mid_x2: int) -> tuple[Decimal, Decimal]:
    """Return (P&L net of fees, fees), both in the quote asset; fees paid in the base asset are valued at the mid.

    Parameters
    ----------
    pnl : dict
        As `Engine.pnl` returns it.
    mid_x2 : int
        Twice the mid, ticks; fees in the base asset count 0 where it is 0 or less.
    """
    fees = Decimal(pnl["fee_quote"]) * MONEY_SCALE
    if pnl["fee_base"] and mid_x2 > 0:
        fees += Decimal(pnl["fee_base"]) * MONEY_SCALE * instrument.px(mid_x2) / 2
    return instrument.money(pnl["total_x2"]) / 2 - fees, fees


_MODES = {"live": ("square", HALT), "paper": ("triangle", WARN), "sim": ("circle", GREY), "backtest": ("ring", GREY)}


def header_html(feed: SessionFeed, now_ns: int) -> str:
    """Return the header: mode, session, strategy, state, age of the newest row, restarts, UTC clock."""
    state = session_state(feed, now_ns)
    clock = datetime.datetime.fromtimestamp(now_ns / 1e9, datetime.UTC).strftime("%H:%M:%S UTC")
    parts = []
    definitions = feed.definitions
    if definitions is not None:
        shape, colour = _MODES.get(definitions.mode, ("ring", GREY))
        mode = State(shape, definitions.mode.upper(), colour)
        strategy = definitions.strategy.version or definitions.strategy.name or "no strategy"
        parts += [
            f'<span class="m" style="color:{colour}">{mode.html()}</span>',
            f"<strong>{html.escape(definitions.session)}</strong>",
            f"<span>{html.escape(strategy)}</span>",
        ]
    else:
        parts.append(f"<strong>{html.escape(feed.folder.name)}</strong>")
    parts.append(f"<strong>{state.html()}</strong>")
    if feed.last_ts:
        parts.append(f'<span class="u">newest row {age_words(now_ns - feed.last_ts)} ago</span>')
    if feed.restarts:
        parts.append(State("triangle", f"restarted {feed.restarts} x", WARN).html())
    parts.append(f'<span class="r">{clock}</span>')
    return f'<div class="p head">{"".join(parts)}</div>'


def _percent(used: int, allowed: int) -> int:
    return -(-100 * used // allowed)


def limits_html(feed: SessionFeed, instrument: int) -> str:
    """Return the table of limits: a bar, the share used, the amounts with units."""
    if feed.definitions is None:
        return _panel("Limits used", "", '<span class="u">shown when the session has a journal</span>')
    inst = feed.definitions.instruments[instrument]
    lots, ticks = decimals(inst.lot_size), decimals(inst.tick_size)
    shown: dict[str, tuple[str, Callable[[int], str], str]] = {
        "position": ("Position, worst case", lambda v: f"{inst.qty(v):,.{lots}f}", inst.base),
        "order_qty": ("Largest order", lambda v: f"{inst.qty(v):,.{lots}f}", inst.base),
        "notional": ("Largest notional", lambda v: f"{inst.money(v):,.2f}", inst.quote),
        "collar": ("Farthest from mid", lambda v: f"{inst.px(v):,.{ticks}f}", inst.quote),
        "open_orders": ("Open orders", lambda v: f"{v:,}", "orders"),
        "order_rate": ("Order rate", lambda v: f"{v:,}", "orders/s"),
    }
    rows = []
    for name, used, allowed in feed.limits_used(instrument):
        label, text, unit = shown[name]
        share = _percent(used, allowed)
        level = "h" if share >= 90 else "w" if share >= 70 else ""
        mark = {"h": State("octagon", f"{share} %", HALT), "w": State("triangle", f"{share} %", WARN)}.get(level)
        percent = mark.html() if mark else f"{share} %"
        rows.append(
            f'<tr><td>{label}<td><span class="b"><b class="{level}" style="width:{min(share, 100)}%"></b></span>'
            f'<td>{percent}<tr class="u"><td>&nbsp; {text(used)} of<td>{text(allowed)}<td>{html.escape(unit)}'
        )
    return _panel("Limits used", inst.symbol, f"<table>{''.join(rows)}</table>")


def counters_html(feed: SessionFeed) -> str:
    """Return the table of counts, with the reasons of refusals."""
    if feed.replica is None:
        return _panel("Counts", "", '<span class="u">-</span>')
    c = feed.replica.counters()
    unknown = int((feed.replica.open_orders()["status"] == OrdStatus.UNKNOWN).sum())
    doubt = unknown or bool(feed.replica.instruments["position_in_doubt"].any())
    left = [
        ("Orders sent", c["submits"]), ("Replaces", c["replaces"]), ("Cancels", c["cancels"]),
        ("Fills", c["fills"]), ("Open orders", c["open_orders"]),
    ]  # fmt: skip
    right = [
        ("Refusals", c["refusals"]), ("Faults", c["faults"]), ("Book gaps", c["book_gaps"]),
        ("Illegal reports", c["illegal_reports"]), ("Unknown orders", unknown),
    ]  # fmt: skip
    cells = "".join(
        f"<tr><td>{a}<td>{m:,}<td>&emsp;<td style='text-align:left'>{b}<td>{n:,}"
        for (a, m), (b, n) in zip(left, right, strict=True)
    )
    top = np.argsort(-feed.refusals, kind="stable")[:3]
    reasons = ", ".join(f"{Reason(int(k)).name.lower()} {int(feed.refusals[k]):,}" for k in top if feed.refusals[k])
    below = f'<div class="hint">refused: {reasons or "none"}</div>'
    if doubt:
        below += State("octagon", "position or orders in doubt: no new order until settled", HALT).html()
    return _panel("Counts", f"{c['rows_applied']:,} rows", f"<table>{cells}</table>{below}")


def feeds_html(feed: SessionFeed, now_ns: int) -> str:
    """Return the table of feeds: by which process, where there are several; state and age in words, last latency."""
    if feed.definitions is None:
        return _panel("Feed", "", '<span class="u">-</span>')
    rows, several = [], bool((feed.market_sources > 1).any())
    for inst in feed.definitions.instruments:
        state = book_condition(feed, inst.id, now_ns)
        process = f" feed {feed.market_sources[inst.id]}" if several and feed.market_sources[inst.id] else ""
        at = int(feed.market_ts[inst.id])
        extra = age_words(now_ns - at) if at else ""
        latency = int(feed.feed_latency_ns[inst.id])
        shown = "-" if latency == NO_PX else span_words(latency)
        if state.stale and latency != NO_PX:
            shown = f"<s>{shown}</s>"
        rows.append(
            f"<tr><td>{html.escape(inst.venue)} {html.escape(inst.symbol)}{process}"
            f"<td style='text-align:left'>{state.html(extra)}<td>{shown}"
        )
    head = "<tr><th>instrument<th style='text-align:left'>state, age of data<th>venue to us"
    return _panel("Feed", "", f"<table>{head}{''.join(rows)}</table>")


def hops_html(hops: Mapping[str, Histogram]) -> str:
    """Return the table of hops: a picture of each histogram on a log scale from 30 ns to 30 ms, and its percentiles.

    Parameters
    ----------
    hops : mapping of str to Histogram
        As `SessionFeed.hops` returns it.
    """
    rows = []
    for hop, histogram in hops.items():
        if not histogram.n:
            continue
        told = "".join(f"<td>{_short_span(histogram.percentile(q))}" for q in (50, 99, 99.9))
        title = html.escape(HOP_TEXTS[hop], quote=True)
        rows.append(f'<tr title="{title}"><td>{hop.replace("_", " ")}<td>{_picture(histogram)}{told}')
    if not rows:
        return _panel("Latency a hop", "", '<span class="u">no tick measured yet</span>')
    head = "<tr><th>hop<th>30 ns - 30 ms<th>p50<th>p99<th>p99.9"
    return _panel("Latency a hop", "since the trader's start", f"<table>{head}{''.join(rows)}</table>")


_PICTURE_EDGES = 10.0 ** np.linspace(1.5, 7.5, 37)
"""ns: six decades, six bars each."""


def _picture(histogram: Histogram) -> str:
    """Return a histogram as 36 bars, each as high as the root of its share: a tail of one in a thousand shows."""
    upto = np.concatenate([[0], np.cumsum(histogram.counts)])
    at = np.searchsorted(bucket_middles(), _PICTURE_EDGES)
    at[0], at[-1] = 0, len(upto) - 1
    n = np.diff(upto[at])
    heights = np.ceil(10 * np.sqrt(n / max(1, n.max()))).astype(int)
    path = "".join(f"M{2 * k} 11v-{h}h2v{h}z" for k, h in enumerate(heights.tolist()) if h)
    return f'<svg style="width:72px;height:11px;color:#56799B" viewBox="0 0 72 11"><path d="{path}"/></svg>'


def _short_span(ns: float) -> str:
    """Return a duration in at most four figures: ``310 ns``, ``4.2 µs``, ``85 µs``, ``1.4 ms``."""
    for unit, size in (("ns", 1.0), ("µs", 1e3), ("ms", 1e6)):
        if ns < 999.5 * size:
            value = ns / size
            return f"{value:.0f} {unit}" if unit == "ns" or value >= 9.95 else f"{value:.1f} {unit}"
    return f"{ns / 1e9:.1f} s"


def faults_html(feed: SessionFeed, height: int) -> str:
    """Return the faults, newest first, with their tracebacks, in a box `height` px high that scrolls."""
    if not feed.faults:
        body = '<span class="u">none</span>'
    else:
        items = []
        for fault in reversed(feed.faults):
            at = datetime.datetime.fromtimestamp(fault.ts / 1e9, datetime.UTC).strftime("%H:%M:%S.%f")[:-3]
            mark = State("octagon", fault.words, HALT) if fault.code else State("triangle", fault.words, WARN)
            text = f"<pre>{html.escape(fault.text)}</pre>" if fault.text else ""
            items.append(f'<div>{mark.html()} <span class="u">{at} UTC, row {fault.seq:,}</span>{text}</div>')
        body = "".join(items)
    return _panel("Faults and notes", "newest first", f'<div class="f" style="height:{height}px">{body}</div>')


def _panel(title: str, right: str, body: str) -> str:
    return f'<div class="p"><h4>{title}<i>{html.escape(right)}</i></h4>{body}</div>'
