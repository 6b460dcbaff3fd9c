"""The dashboard: one factory, for a notebook cell and for a served page.

**Model.** A page is a view of a `SessionFeed`, which reads the session's journal; the trader does not know that anybody
looks. `make_dashboard` returns a layout and an `update` to be called ten times a second. Each panel remembers what it
has drawn: charts are streamed what is new, tables are sent when their text changed, all in one message a tick. The
ladder is redrawn at most 10, charts 5, tables 2 times a second: some 40 kB/s. A hidden page is sent nothing.

**Honesty.** Data older than its limit is greyed, hatched and called stale with its age; a silence of the journal is a
gap in the lines; what is unknown is a dash. Floats exist only as coordinates of what is drawn.

**Control.** One button: halt. It asks the session's control socket, never the journal, and prints the answer beneath.
A served page binds to loopback only, because whoever reaches it may press the button; its websocket takes connections
from its own address alone.

**Worst case accepted.** A process serves its pages from one thread: a journal being read from its start makes every
page of that process wait 40 ms in each tick.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import ipaddress
import math
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import panel
from bokeh.core.properties import value
from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, CustomJS, FixedTicker, NumeralTickFormatter, Range1d
from bokeh.models.annotations import BoxAnnotation, Legend, LegendItem, Span
from bokeh.models.widgets import Div, Toggle
from bokeh.plotting import figure
from tornado.ioloop import PeriodicCallback
from tornado.websocket import WebSocketClosedError

from hftlab.core.errors import ConfigError, HftlabError
from hftlab.core.instruments import MONEY_SCALE, Instrument
from hftlab.core.rows import NO_PX, Side
from hftlab.dash import words
from hftlab.dash.feed import SessionFeed, Track

__all__ = ["TICK_MS", "make_dashboard", "serve"]

pn: Any = panel  # its constructors are half annotated: called untyped rather than ignored line by line

TICK_MS = 100
"""How often `update` is to be called, ms."""

_CHARTS, _TABLES = 2, 5  # in ticks
_LEVELS = 20
_WINDOWS = {"30 s": 30, "2 min": 120, "10 min": 600}
_LEFT, _RIGHT = 340, 290
_REDRAWS = (1, 10, 30, 100)  # ticks since a notebook listens
_MARKS, _CROWD = (9, 5), 200  # size of fill marks, px: few in sight, more than so many
_LADDER_HEIGHT, _PRICE_HEIGHT, _LINE_HEIGHT, _LATENCY_HEIGHT, _FAULTS_HEIGHT = 545, 316, 116, 142, 84
_HOPS_HEIGHT = 180
_BUTTON_CSS = f"""
:host(.solid) .bk-btn.bk-btn-danger {{ background: {words.HALT}; color: #FFF; font: bold 13px sans-serif; padding: 0; }}
:host(.solid) .bk-btn.bk-btn-danger:hover {{ background: #6A1A4D; }}
"""
_SELECT_CSS = "select.bk-input { font-size: 12px; padding: 0 20px 0 6px; height: 26px; min-height: 26px; }"
_LATENCY_EDGES = 10.0 ** np.arange(3.0, 9.01, 0.125)  # 1 µs to 1 s, eight bins a decade, ns


def make_dashboard(folder: Path | SessionFeed, *, controls: bool = True) -> tuple[panel.Column, Callable[[], None]]:
    """Return the dashboard of a session and the function that brings it up to date.

    Parameters
    ----------
    folder : Path or SessionFeed
        The session's folder, or a feed of it that several pages share. The journal need not exist yet.
    controls : bool
        Whether there is a halt button.

    Returns
    -------
    layout : panel.Column
        1264 x 700 px; the middle column takes what width is left.
    update : callable
        Call it every `TICK_MS` ms, as ``pn.state.add_periodic_callback(update, TICK_MS)`` does; it never raises for a
        session that is absent, stopped or broken, but shows it.
    """
    board = _Board(folder if isinstance(folder, SessionFeed) else SessionFeed(folder), controls)
    board.update()
    return board.layout, board.update


# --- panels ----------------------------------------------------------------------------------------------------------


class _Text:
    """A div whose text is sent only when it changed."""

    def __init__(self, **options: Any) -> None:
        self.model = Div(stylesheets=[words.CSS], margin=0, **options)

    def show(self, text: str) -> None:
        if self.model.text != text:
            self.model.text = text


def _chart(height: int, **options: Any) -> Any:
    """Return a figure in the house style, with a hatch over it that `_set_stale` turns on."""
    fig: Any = figure(
        height=height, toolbar_location=None, tools="", min_border_left=58, min_border_right=8,
        outline_line_color="#D5D9DF", **options,
    )  # fmt: skip
    fig.title.text_font_size = "11px"
    fig.title.text_color = words.INK
    fig.title.text_font = "DejaVu Sans, Verdana, sans-serif"
    for axis in fig.axis:
        axis.major_label_text_font_size = axis.axis_label_text_font_size = "10px"
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_standoff = 3
        axis.axis_line_color = axis.minor_tick_line_color = None
        axis.major_label_text_color = axis.axis_label_text_color = words.GREY
    fig.grid.grid_line_color = "#ECEEF1"
    fig.add_layout(BoxAnnotation(
        name="stale", visible=False, level="overlay", fill_color="#FFFFFF", fill_alpha=0.55, line_color=None,
        hatch_pattern="right_diagonal_line", hatch_color=words.GREY, hatch_alpha=0.25, hatch_scale=20,
    ))  # fmt: skip
    return fig


def _set_stale(fig: Any, stale: bool) -> None:
    box = fig.select_one({"name": "stale"})
    if box.visible != stale:
        box.visible = stale


def _set_title(fig: Any, text: str) -> None:
    if fig.title.text != text:
        fig.title.text = text


class _Ladder:
    """Twenty levels a side: bids on the left, asks on the right, own lots marked, bars by quantity."""

    def __init__(self) -> None:
        self.fig = _chart(
            _LADDER_HEIGHT, width=_LEFT, min_border_top=4,
            x_range=Range1d(start=-1, end=1), y_range=Range1d(start=_LEVELS + 0.15, end=-1.1),
        )  # fmt: skip
        self.fig.min_border_left = self.fig.min_border_right = 2
        self.fig.axis.visible = self.fig.grid.visible = False
        self._last = ""
        self._source = ColumnDataSource(data=self._empty())
        self._head = ColumnDataSource({"x": [], "text": [], "align": []})
        font = {"text_font": value("DejaVu Sans Mono, Menlo, Consolas, monospace"), "text_font_size": "11px"}
        middle = {"y": "y", "source": self._source, "text_baseline": "middle", **font}
        for side, sign, colour in (("bid", -1, words.BID), ("ask", 1, words.ASK)):
            align = "right" if sign < 0 else "left"
            self.fig.hbar(y="y", left=0, right=f"{side}_bar", height=0.86, source=self._source,
                          fill_color=colour, fill_alpha=0.18, line_color=None)  # fmt: skip
            self.fig.hbar(y="y", left=0, right=f"{side}_box", height=0.9, source=self._source,
                          fill_color=None, line_color=words.INK, line_width=1.5)  # fmt: skip
            self.fig.text(x=sign * 0.02, text=f"{side}_px", text_align=align, text_color=colour, **middle)
            self.fig.text(x=sign * 0.37, text=f"{side}_qty", text_align=align, text_color=words.INK, **middle)
            outer = "left" if sign < 0 else "right"
            self.fig.text(x=sign * 0.985, text=f"{side}_own", text_align=outer, text_color=words.INK,
                          text_font_style="bold", **middle)  # fmt: skip
        self.fig.text(x="x", y=-0.5, text="text", text_align="align", text_baseline="middle", source=self._head,
                      text_color=words.GREY, text_font_size="10px")  # fmt: skip

    @staticmethod
    def _empty() -> dict[str, list[Any]]:
        data: dict[str, list[Any]] = {"y": [k + 0.5 for k in range(_LEVELS)]}
        for side in ("bid", "ask"):
            data |= {f"{side}_bar": [0.0] * _LEVELS, f"{side}_box": [math.nan] * _LEVELS}
            data |= {f"{side}_{name}": [""] * _LEVELS for name in ("px", "qty", "own")}
        return data

    def head(self, inst: Instrument) -> None:
        base, quote = inst.base or "lots", inst.quote or "ticks"
        self._head.data = {
            "x": [-0.985, -0.37, -0.02, 0.02, 0.37, 0.985],
            "text": ["own", f"bid {base}", quote, quote, f"ask {base}", "own"],
            "align": ["left", "right", "right", "left", "left", "right"],
        }

    def draw(self, feed: SessionFeed, inst: Instrument) -> int:
        """Draw the book; return how many own prices lie off the ladder."""
        assert feed.replica is not None
        bids, asks = feed.replica.levels(inst.id, _LEVELS)
        most = max(1, int(bids[:, 1].max(initial=0)), int(asks[:, 1].max(initial=0)))
        own = feed.own_lots(inst.id)
        lots, ticks = words.decimals(inst.lot_size), words.decimals(inst.tick_size)
        data = self._empty()
        for side, levels, sign, key in (("bid", bids, -1, Side.BUY), ("ask", asks, 1, Side.SELL)):
            for k, (px, qty) in enumerate(levels.tolist()):
                mine = own.pop((key, px), 0)
                data[f"{side}_bar"][k] = round(sign * qty / most, 3)
                data[f"{side}_px"][k] = f"{inst.px(px):.{ticks}f}"
                data[f"{side}_qty"][k] = f"{inst.qty(qty):.{lots}f}"
                if mine:
                    data[f"{side}_own"][k] = f"{inst.qty(mine):.{lots}f}"
                    data[f"{side}_box"][k] = sign * 1.0
        if repr(data) != self._last:  # by repr: a NaN does not equal itself
            self._last = repr(data)
            self._source.data = cast("Any", data)
        return len(own)


class _Lines:
    """A chart of lines over time: new samples are streamed, all are sent again after `reset`."""

    def __init__(self, fig: Any, columns: Sequence[str], rollover: int) -> None:
        self.fig = fig
        self.columns = ("t", *columns)
        self.source = ColumnDataSource(data={name: np.zeros(0) for name in self.columns})
        self.rollover = rollover
        self.sent = 0
        self._low_high = (0.0, 0.0)

    def reset(self) -> None:
        self.sent = 0
        self.source.data = {name: np.zeros(0) for name in self.columns}

    def stream(self, track: Track, convert: Callable[[dict[str, npt.NDArray[np.int64]]], dict[str, Any]]) -> None:
        if track.n == self.sent:
            return
        new = convert(track.since(self.sent))
        if self.sent == 0 or track.n - self.sent >= track.capacity:
            self.source.data = new
        else:
            self.source.stream(new, rollover=self.rollover)
        self.sent = track.n

    def fit(self, since_ms: float, columns: Sequence[str], least: float, *, zero: bool = False) -> None:
        """Fit the y range to what is visible, and leave it alone while it fits: axes that jump cannot be read."""
        t = np.asarray(self.source.data["t"])
        seen = [np.asarray(self.source.data[name])[t >= since_ms] for name in columns]
        values = np.concatenate(seen) if seen else np.zeros(0)
        values = values[np.isfinite(values)]
        if len(values) == 0:
            return
        low, high = float(values.min()), float(values.max())
        if zero:
            low, high = min(low, 0.0), max(high, 0.0)
        now_low, now_high = self._low_high
        size = max(high - low, least)
        if now_low <= low and high <= now_high and now_high - now_low <= 2.5 * size:
            return
        pad = 0.15 * size if high > low else 0.5 * size
        self._low_high = low - pad, high + pad
        self.fig.y_range.update(start=low - pad, end=high + pad)


class _Latency:
    """Histogram of tick-to-order times of the last orders."""

    def __init__(self) -> None:
        low, high = float(_LATENCY_EDGES[0]), float(_LATENCY_EDGES[-1])
        self.fig = _chart(
            _LATENCY_HEIGHT, width=_RIGHT, x_axis_type="log",
            x_axis_label="solid: p50, dashed: p99", y_axis_label="orders",
            x_range=Range1d(start=low, end=high), y_range=Range1d(start=0, end=4),
        )  # fmt: skip
        self.fig.min_border_left = 46
        marks = [10.0**k for k in range(3, 10)]
        names = ["1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s"]
        self.fig.xaxis.ticker = FixedTicker(ticks=marks)
        self.fig.xaxis.major_label_overrides = dict(zip(marks, names, strict=True))
        self.fig.yaxis.formatter = NumeralTickFormatter(format="0,0")
        self.fig.yaxis.ticker.desired_num_ticks = 4
        count = np.zeros(len(_LATENCY_EDGES) - 1)
        self._source = ColumnDataSource({"left": _LATENCY_EDGES[:-1], "right": _LATENCY_EDGES[1:], "n": count})
        self.fig.quad(left="left", right="right", top="n", bottom=0, source=self._source,
                      fill_color="#56799B", line_color="#FFFFFF")  # fmt: skip
        self._spans = [
            Span(dimension="height", location=low, line_color=words.INK, line_dash=dash, line_width=1.5, visible=False)
            for dash in ("solid", "dashed")
        ]
        for span in self._spans:
            self.fig.add_layout(span)
        self._drawn: npt.NDArray[np.int64] | None = None

    def draw(self, feed: SessionFeed) -> None:
        taken = feed.latencies_ns
        if taken is self._drawn:
            return
        self._drawn = taken
        for span in self._spans:
            span.visible = len(taken) > 0
        if len(taken) == 0:
            _set_title(self.fig, "Tick to order · no order sent yet")
            return
        n = np.histogram(np.clip(taken, _LATENCY_EDGES[0], _LATENCY_EDGES[-1]), _LATENCY_EDGES)[0]
        p50, p99 = (float(p) for p in np.percentile(taken, [50, 99]))
        self._source.patch({"n": [(slice(len(n)), n.astype(float).tolist())]})
        self.fig.y_range.end = float(max(n.max() * 1.15, 4.0))
        for span, at in zip(self._spans, (p50, p99), strict=True):
            span.location = max(at, float(_LATENCY_EDGES[0]))
        _set_title(
            self.fig,
            f"Tick to order · p50 {words.span_words(p50)} · p99 {words.span_words(p99)}",
        )
        self.fig.yaxis.axis_label = f"orders (last {len(taken):,})"


def _price_chart(time_range: Range1d) -> tuple[_Lines, list[Any]]:
    """Return the price chart and the renderers of buys and sells."""
    fig = _chart(_PRICE_HEIGHT, x_range=time_range, y_range=Range1d(start=0, end=1), x_axis_type="datetime",
                 sizing_mode="stretch_width")  # fmt: skip
    lines = _Lines(fig, ["bid", "ask", "mid", "own_bid", "own_ask"], 0)
    shared = {"x": "t", "source": lines.source, "mode": "after"}
    buys, sells = (ColumnDataSource({"t": [], "px": []}) for _ in range(2))
    look = {"x": "t", "y": "px", "size": _MARKS[0], "line_color": words.INK, "line_width": 0.5}
    up = fig.scatter(source=buys, marker="triangle", fill_color=words.BID, **look)
    down = fig.scatter(source=sells, marker="inverted_triangle", fill_color=words.ASK, **look)
    mid = fig.step(y="mid", line_color=words.GREY, line_width=1, line_alpha=0.5, **shared)
    bid = fig.step(y="bid", line_color=words.BID, line_width=1, line_alpha=0.6, **shared)
    ask = fig.step(y="ask", line_color=words.ASK, line_width=1, line_alpha=0.6, **shared)
    own_bid = fig.step(y="own_bid", line_color=words.BID, line_width=2, line_dash="dashed", **shared)
    own_ask = fig.step(y="own_ask", line_color=words.ASK, line_width=2, line_dash="dashed", **shared)
    names = {"bid": bid, "ask": ask, "mid": mid, "own bid": own_bid, "own ask": own_ask, "bought": up, "sold": down}
    legend: Any = Legend(
        items=[LegendItem(label=name, renderers=[glyph]) for name, glyph in names.items()],
        orientation="horizontal", label_text_font_size="10px", margin=0, spacing=4, border_line_color=None,
        glyph_height=12, glyph_width=16, label_height=12, location="top_left", background_fill_alpha=0,
    )  # fmt: skip
    legend.padding = 0
    fig.add_layout(legend, "above")
    return lines, [up, down]


def _line_chart(time_range: Range1d, columns: Sequence[str], colour: str) -> _Lines:
    fig = _chart(_LINE_HEIGHT, x_range=time_range, y_range=Range1d(start=-1, end=1), x_axis_type="datetime",
                 sizing_mode="stretch_width")  # fmt: skip
    fig.xaxis.visible = False
    fig.yaxis.ticker.desired_num_ticks = 4
    lines = _Lines(fig, columns, 0)
    fig.add_layout(Span(dimension="width", location=0, line_color=words.GREY, line_dash="dotted", line_width=1))
    for name in columns:
        fig.step(x="t", y=name, source=lines.source, mode="after", line_color=colour, line_width=1.5)
    return lines


# --- the page --------------------------------------------------------------------------------------------------------


class _Board:
    """All panels of one page, and what they have drawn."""

    def __init__(self, feed: SessionFeed, controls: bool) -> None:
        self.feed = feed
        self.instrument = 0
        self.window_s = _WINDOWS["30 s"]
        self.visible = True
        self._ticks = 0
        self._generation = -1
        self._heard = 0
        self._said = ""
        self._make_panels()
        self.layout = self._lay_out(controls)

    def _make_panels(self) -> None:
        self.time_range = Range1d(start=0, end=1)
        self.header = _Text(height=28, sizing_mode="stretch_width")
        self.line = _Text(height=17, sizing_mode="stretch_width")
        self.ladder = _Ladder()
        self.price, self.marks = _price_chart(self.time_range)
        self.position = _line_chart(self.time_range, ["position"], words.INK)
        self.pnl = _line_chart(self.time_range, ["net"], words.INK)
        self.latency = _Latency()
        self.limits, self.counters = _Text(width=_RIGHT, height=202), _Text(width=_RIGHT, height=134)
        self.hops = _Text(width=_RIGHT, height=_HOPS_HEIGHT)
        self.feeds = _Text(width=_LEFT, height=110)
        self.faults = _Text(height=_FAULTS_HEIGHT + 26, sizing_mode="stretch_width")
        self.fills_sent = 0

    def _lay_out(self, controls: bool) -> panel.Column:
        self.shown = Toggle(active=False, visible=False)  # a served page's own visibility, set by the browser
        self.shown.on_change("active", self._on_shown)
        charts = [self.price.fig, self.position.fig, self.pnl.fig, self.faults.model]
        columns = [
            column([self.ladder.fig, self.feeds.model], margin=(0, 8, 0, 0)),
            column(charts, sizing_mode="stretch_width", margin=(0, 8, 0, 0)),
            column([self.limits.model, self.latency.fig, self.hops.model, self.counters.model, self.shown]),
        ]
        board = row(columns, sizing_mode="stretch_width")
        self.pick = pn.widgets.Select(
            label="", options={"-": 0}, width=110, height=26, margin=(1, 6), visible=False, stylesheets=[_SELECT_CSS]
        )
        self.pick.param.watch(lambda event: self._choose(event.new), "value")
        small = {"height": 26, "margin": (1, 6), "stylesheets": [_SELECT_CSS]}
        window = pn.widgets.Select(label="", options=_WINDOWS, value=self.window_s, width=84, **small)
        window.param.watch(lambda event: setattr(self, "window_s", event.new), "value")
        top: list[Any] = [pn.pane.Bokeh(self.header.model, sizing_mode="stretch_width", margin=0), self.pick, window]
        if controls:
            self.button = pn.widgets.Button(
                label="HALT", color="danger", width=96, height=28, margin=(0, 0, 0, 6),
                stylesheets=[_BUTTON_CSS],
            )  # fmt: skip
            self.button.on_click(self._halt)
            top.append(self.button)
        layout: panel.Column = pn.Column(
            pn.Row(*top, sizing_mode="stretch_width", margin=0),
            pn.pane.Bokeh(self.line.model, sizing_mode="stretch_width", margin=0),
            pn.pane.Bokeh(board, sizing_mode="stretch_width", margin=0),
            sizing_mode="stretch_width", min_width=1000, margin=(6, 8, 0, 8), styles={"background": "#FFFFFF"},
        )  # fmt: skip
        return layout

    # --- what a reader does ------------------------------------------------------------------------------------------

    def _choose(self, instrument: int) -> None:
        self.instrument = instrument
        self._generation = -1

    def _on_shown(self, attr: str, old: bool, new: bool) -> None:
        """Take the browser's word; a page that appears is drawn anew: what was sent while it loaded may be lost."""
        self.visible = new
        self._generation = -1

    async def _halt(self, event: Any) -> None:
        """Ask the trader to halt. The answer is drawn by the next `update`, which holds the document's lock."""
        self._said = words.State("octagon", "halting ...", words.HALT).html()
        try:
            reply = await asyncio.to_thread(_request, self.feed.folder, "halt", reason="dashboard")
        except (HftlabError, OSError) as error:
            self._said = words.State("triangle", f"not halted by this page: {error}", words.WARN).html()
            return
        n, left = len(reply.get("canceled", ())), reply.get("open", 0)
        text = f"halted until resumed: {n} {'order' if n == 1 else 'orders'} canceled, {left} still open"
        self._said = words.State("octagon", text, words.HALT).html()

    # --- drawing -----------------------------------------------------------------------------------------------------

    def update(self) -> None:
        """Take in what is new and draw what changed."""
        self.feed.advance()
        self._ticks += 1
        if self._is_seen():
            with _one_message(self.layout):
                self._draw(time.time_ns())

    def _is_seen(self) -> bool:
        """Return whether a browser takes what is drawn: a served page by its own word, a notebook's by its open comm.

        What is sent before that is lost, or waits for ever, so the page is drawn anew once it listens. A notebook's
        comm is open before its figures exist, and the messages of that moment may be applied late and out of order:
        it is drawn anew a few times more.
        """
        comms = [pn.state._views[ref][3] for ref in self.layout._models if ref in pn.state._views]
        if any(comm is not None for comm in comms):
            self.visible = any(comm is not None and comm._comm for comm in comms)
            self._heard = self._heard + 1 if self.visible else 0
            if self._heard in _REDRAWS:
                self._generation = -1
        return self.visible

    def _draw(self, now_ns: int) -> None:
        feed = self.feed
        state = words.session_state(feed, now_ns)
        fresh = feed.generation != self._generation
        if fresh:
            self._start_over()
        if fresh or self._ticks % _CHARTS == 0:
            self.header.show(words.header_html(feed, now_ns))
            said = self._said or f'<div class="hint">{state.hint or feed.note or "&nbsp;"}</div>'
            self.line.show(said)
        if feed.definitions is not None:
            inst = feed.definitions.instruments[self.instrument]
            self._draw_market(inst, state, now_ns, fresh)
        if fresh or self._ticks % _TABLES == 0:
            self._draw_tables(now_ns)

    def _start_over(self) -> None:
        """Forget what was drawn: the feed attached anew, or another instrument was picked."""
        self._generation = self.feed.generation
        definitions = self.feed.definitions
        for chart in (self.price, self.position, self.pnl):
            chart.reset()
        self.fills_sent = 0
        for marks in self.marks:
            marks.data_source.data = {"t": [], "px": []}
        if definitions is None:
            for fig, name in ((self.ladder.fig, "Book"), (self.price.fig, "Price"), (self.position.fig, "Position"),
                              (self.pnl.fig, "P&L")):  # fmt: skip
                _set_title(fig, f"{name} · waiting for the session's journal")
            return
        instruments = definitions.instruments
        self.instrument = min(self.instrument, len(instruments) - 1)
        if len(instruments) > 1 and len(self.pick.options) != len(instruments):
            self.pick.param.update(options={i.symbol: i.id for i in instruments}, value=self.instrument, visible=True)
        inst = instruments[self.instrument]
        self.ladder.head(inst)
        self.price.rollover = self.position.rollover = self.pnl.rollover = self.feed.samples[self.instrument].capacity
        places = words.decimals(inst.tick_size)
        self.price.fig.yaxis.formatter = NumeralTickFormatter(format="0." + "0" * places if places else "0")
        places = min(words.decimals(inst.lot_size), 5)
        self.position.fig.yaxis.formatter = NumeralTickFormatter(format="0." + "0" * places if places else "0")
        self.pnl.fig.yaxis.formatter = NumeralTickFormatter(format="0,0.00[00]")

    def _draw_market(self, inst: Instrument, session: words.State, now_ns: int, fresh: bool) -> None:
        feed = self.feed
        book = words.book_condition(feed, inst.id, now_ns)
        stale = book.stale or session.stale
        off = self.ladder.draw(feed, inst)
        if not fresh and self._ticks % _CHARTS:
            return
        at = int(feed.market_ts[inst.id])
        age = words.age_words(now_ns - at) if at else ""
        elsewhere = f" · {off} own off ladder" if off else ""
        _set_title(self.ladder.fig, f"Book {inst.symbol} · {book.word} {age}{elsewhere}")
        for fig in (self.ladder.fig, self.price.fig):
            _set_stale(fig, stale)
        for fig in (self.position.fig, self.pnl.fig):
            _set_stale(fig, session.stale)
        self._draw_charts(inst, now_ns)

    def _draw_charts(self, inst: Instrument, now_ns: int) -> None:
        feed = self.feed
        assert feed.replica is not None and feed.definitions is not None
        # While rows come, time moves with the clock, so that a silence shows as one; an ended session stands still.
        end = now_ns if now_ns - feed.last_ts < 60_000_000_000 else feed.last_ts
        start_ms, end_ms = (end - self.window_s * 1_000_000_000) / 1e6, end / 1e6
        self.time_range.update(start=start_ms, end=end_ms)
        track = feed.samples[inst.id]
        convert = partial(_as_drawn, inst)
        self.price.stream(track, lambda s: _only(convert(s), self.price))
        self.position.stream(track, lambda s: _only(convert(s), self.position))
        self.pnl.stream(track, lambda s: _only(convert(s), self.pnl))
        self._draw_fills(inst, feed.fills[inst.id], start_ms)
        tick, lot = float(inst.tick_size), float(inst.lot_size)
        self.price.fit(start_ms, ["bid", "ask", "own_bid", "own_ask"], 4 * tick)
        self.position.fit(start_ms, ["position"], 4 * lot, zero=True)
        self.pnl.fit(start_ms, ["net"], 0.0004, zero=True)
        self._draw_titles(inst)

    def _draw_titles(self, inst: Instrument) -> None:
        replica, definitions = self.feed.replica, self.feed.definitions
        assert replica is not None and definitions is not None
        bid, _, ask, _ = replica.touch(inst.id)
        quote = inst.quote or "quote"
        if bid != NO_PX and ask != NO_PX:
            places = words.decimals(inst.tick_size)
            mid, spread = inst.px(bid + ask) / 2, inst.px(ask - bid)
            _set_title(self.price.fig, f"Price {quote} · mid {mid:,.{places + 1}f} · spread {spread:,.{places}f}")
        else:
            _set_title(self.price.fig, f"Price {quote} · no two-sided book")
        pnl = replica.pnl(inst.id)
        lots, most = pnl["position"], definitions.limits[inst.id].max_position
        held = words.signed(inst.qty(lots), words.decimals(inst.lot_size))
        _set_title(self.position.fig, f"Position · {held} {inst.base} · {100 * abs(lots) / most:.0f} % of limit")
        mid_x2 = bid + ask if bid != NO_PX and ask != NO_PX else 0
        net, fees = words.net_pnl(inst, pnl, mid_x2)
        _set_title(
            self.pnl.fig,
            f"P&L net of fees, marked at mid · {words.signed(net, 4)} {quote} · fees {words.signed(fees, 4)} {quote}",
        )

    def _draw_fills(self, inst: Instrument, track: Track, since_ms: float) -> None:
        if track.n > self.fills_sent:
            new = track.since(self.fills_sent)
            self.fills_sent = track.n
            for marks, side in zip(self.marks, (Side.BUY, Side.SELL), strict=True):
                mine = new["side"] == side
                points = {"t": new["ts"][mine] / 1e6, "px": new["px"][mine] * float(inst.tick_size)}
                if mine.any():
                    marks.data_source.stream(points, rollover=track.capacity)
        crowd = sum(int((np.asarray(marks.data_source.data["t"]) >= since_ms).sum()) for marks in self.marks)
        size = _MARKS[1] if crowd > _CROWD else _MARKS[0]
        for marks in self.marks:
            if marks.glyph.size != size:
                marks.glyph.size = size

    def _draw_tables(self, now_ns: int) -> None:
        feed = self.feed
        self.limits.show(words.limits_html(feed, self.instrument))
        self.latency.draw(feed)
        self.hops.show(words.hops_html(feed.hops()))
        self.counters.show(words.counters_html(feed))
        self.feeds.show(words.feeds_html(feed, now_ns))
        self.faults.show(words.faults_html(feed, _FAULTS_HEIGHT))


def _as_drawn(inst: Instrument, samples: dict[str, npt.NDArray[np.int64]]) -> dict[str, npt.NDArray[np.float64]]:
    """Return samples as coordinates: ms, quote and base asset; NaN where there is none."""

    def scaled(name: str, unit: Decimal) -> npt.NDArray[np.float64]:
        counts = samples[name]
        return np.where(counts == NO_PX, np.nan, counts * float(unit))

    out = {name: scaled(name, inst.tick_size) for name in ("bid", "ask", "own_bid", "own_ask")}
    out["mid"] = (out["bid"] + out["ask"]) / 2
    fee = float(MONEY_SCALE)
    gross = scaled("pnl_x2", inst.tick_size * inst.lot_size / 2)
    base_fee = np.where(samples["fee_base"] == 0, 0.0, samples["fee_base"] * fee * out["mid"])
    out["net"] = gross - samples["fee_quote"] * fee - base_fee
    out["position"] = scaled("position", inst.lot_size)
    out["t"] = samples["ts"] / 1e6
    return out


def _only(columns: dict[str, Any], chart: _Lines) -> dict[str, Any]:
    return {name: columns[name] for name in chart.columns}


@contextlib.contextmanager
def _one_message(layout: panel.Column) -> Iterator[None]:
    """Send all changes of a tick in one message: over the websocket, or over the notebook's comm."""
    if pn.state.curdoc is not None:
        with pn.io.hold(pn.state.curdoc):
            yield
    else:
        yield
        pn.io.push_notebook(layout)


def _request(folder: Path, do: str, **fields: Any) -> dict[str, Any]:
    """Ask a session's trader by its control socket.

    By name, because the client is a service's, a layer up; it is loaded when a button is first pressed.
    """
    control = importlib.import_module("hftlab.services.control")
    return cast("dict[str, Any]", control.request(folder, do, **fields))


# --- serving ---------------------------------------------------------------------------------------------------------

_FOLLOW_VISIBILITY = """
const tell = () => { toggle.active = document.visibilityState !== 'hidden' }
document.addEventListener('visibilitychange', tell); tell()
"""


def _page(feed: SessionFeed) -> Callable[[], panel.Column]:
    """Return the function that makes a page of its own for each visitor."""

    def page() -> panel.Column:
        board = _Board(feed, controls=True)
        board.update()
        board.visible = False  # until the browser says otherwise
        pn.state.add_periodic_callback(board.update, TICK_MS)
        pn.state.curdoc.js_on_event("document_ready", CustomJS(args={"toggle": board.shown}, code=_FOLLOW_VISIBILITY))
        return board.layout

    return page


def serve(
    folders: Sequence[Path],
    port: int = 0,
    address: str = "127.0.0.1",
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the dashboards of sessions until SIGTERM or SIGINT; to be called in a process's main thread.

    Parameters
    ----------
    folders : sequence of Path
        Session folders. One is served at ``/``; several at ``/<mode>-<name>``, with a list of them at ``/``.
    port : int
        0 takes a free one.
    address : str
        A loopback address.
    on_ready : callable, optional
        Called with the address of the first page when it can be opened.

    Raises
    ------
    ConfigError
        If `folders` is empty, the address is not loopback, or the port is in use.
    """
    if not folders:
        raise ConfigError("folders is empty; expected at least one session folder")
    if not _is_loopback(address):
        raise ConfigError(
            f"address={address!r}; expected a loopback address such as 127.0.0.1: whoever reaches the page can halt "
            "the session, so open it to others by a tunnel that knows who they are"
        )
    port = _usable_port(address, port)
    pn.extension(reconnect=True)
    feeds = {f"{Path(f).parent.name}-{Path(f).name}": SessionFeed(Path(f)) for f in folders}
    pages = {name: _page(feed) for name, feed in feeds.items()}
    first = next(iter(pages))
    apps: Any = pages if len(pages) > 1 else pages[first]
    server = pn.io.server.get_server(
        apps, port=port, address=address, start=False, show=False, websocket_origin=[f"{address}:{port}"],
        title={name: f"{name} · hftlab" for name in pages} if len(pages) > 1 else f"{first} · hftlab",
        unused_session_lifetime_milliseconds=5000, check_unused_sessions_milliseconds=2000,
    )  # fmt: skip
    _run(server, list(feeds.values()), lambda: on_ready and on_ready(f"http://{address}:{server.port}/"))


def _run(server: Any, feeds: Sequence[SessionFeed], ready: Callable[[], Any]) -> None:
    """Run the server's loop until a signal; feeds advance without visitors too, so that a page opens at once."""
    loop = server.io_loop

    def stop(*_: Any) -> None:
        loop.add_callback_from_signal(loop.stop)

    loop.asyncio_loop.set_exception_handler(_report_trouble)
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    timers = [PeriodicCallback(feed.advance, 500) for feed in feeds]
    for timer in timers:
        timer.start()
    server.start()
    loop.add_callback(ready)
    try:
        loop.start()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in timers:
            timer.stop()
        server.stop(wait=False)


def _report_trouble(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report what failed in the background, but not that a page was closed while something was on its way to it."""
    if not isinstance(context.get("exception"), WebSocketClosedError):
        loop.default_exception_handler(context)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _usable_port(address: str, port: int) -> int:
    """Return `port`, or a free one for 0. The server must know its port before it binds, to name its own origin."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"port {port} on {address} cannot be used ({error}); pass another, or 0 for a free one"
            ) from error
        return int(probe.getsockname()[1])
