"""Pictures of a session: what it earned, how it traded, what the market was like. Bokeh models, drawn from its rows.

**Model.** `Pictures` reads a journal once for all its figures. Figures over time share one time range and one
crosshair: zoom one and the others follow. Beside the price stands a ladder: hover a fill, and it shows the book as the
journal knew it just before that fill was told, own lots framed; tap a fill to keep it. All times are when *we* received
a row, so that what is drawn stands in the order of the journal, and nothing is drawn before it could be known.

**Bounds.** A figure must open at once, whatever the run. Lines are thinned to `COLUMNS` columns of time, each drawn
from its lowest to its highest value, so no excursion is lost, only its exact moment; at most `FILLS` fills are drawn,
taken evenly, each with `LEVELS` levels a side of its book; a depth map has `MAP_SHAPE` cells. Titles say what was left
out. So an overview stays below 5 MB for a run of any length, and an HTML file of it stands alone: no font, script or
style comes from elsewhere.

**Colours** are those of the dashboard: a pair that stays apart for colour-blind readers, on white at 4.5:1 or better; a
buy points up and a sell points down, a maker's mark is full and a taker's hollow, so nothing is told by colour alone.

**Worst case accepted.** Reading applies every row to a replica, some millions a second, and stops for each drawn fill
and each column of the depth map, some 50 us each. Quantities beyond 2**31 lots are drawn as floats.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import cycle
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import polars as pl
from bokeh.core.properties import value
from bokeh.layouts import column, gridplot, row
from bokeh.models import (
    BasicTicker,
    ColumnDataSource,
    CrosshairTool,
    CustomJS,
    CustomJSTickFormatter,
    DataRange1d,
    FactorRange,
    FixedTicker,
    HoverTool,
    LayoutDOM,
    LinearColorMapper,
    NumeralTickFormatter,
    Range1d,
    TapTool,
)
from bokeh.models.annotations import ColorBar, Span
from bokeh.palettes import Cividis256
from bokeh.plotting import figure
from scipy.stats import CensoredData, ecdf

from hftlab.analysis.frames import OrderLog
from hftlab.analysis.market import Touches, touches
from hftlab.analysis.style import ASK, BID, GREY, INK, decimals, span_words
from hftlab.core.definitions import Definitions
from hftlab.core.instruments import MONEY_SCALE, Instrument
from hftlab.core.rows import CONT, NO_PX, ExecType, Flag, Kind, RowArray
from hftlab.engine import Replica

__all__ = [
    "COLUMNS",
    "FILLS",
    "HORIZONS_NS",
    "LEVELS",
    "MAP_SHAPE",
    "Pictures",
    "chart",
    "clock_text",
    "overview",
    "sweep_map",
]

COLUMNS = 1500
"""Columns of time that a line is thinned to: about one a pixel."""

FILLS = 2000
"""Fills drawn at most, with their books."""

LEVELS = 10
"""Levels a side of the book beside the price."""

MAP_SHAPE = (300, 120)
"""Columns of time and rows of price of a depth map, at most."""

LIGHT, BAR = "#ECEEF1", "#56799B"

HORIZONS_NS = [10**6, 10**7, 10**8, 10**9, 10**10, 6 * 10**10]
"""Horizons of the markouts that are drawn, ns."""

_FONT = "DejaVu Sans, Verdana, sans-serif"
_MONO = "DejaVu Sans Mono, Menlo, Consolas, monospace"
_LEFT_BORDER = 74
_DASHES = ("solid", "dashed", "dotted")
_LADDER_WIDTH = 440

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class _Books(NamedTuple):
    """Books before each of n fills: ticks, lots and own lots, shape (n, 2, LEVELS); lots are 0 where no level is."""

    px: Int64s
    qty: Int64s
    own: Int64s


# --- reading ---------------------------------------------------------------------------------------------------------


def _columns(ts: Int64s, values: Floats, span: tuple[int, int], n: int = COLUMNS) -> tuple[Floats, Floats]:
    """Return at most 2 n points of a step line in order, each column of time by its lowest and highest value.

    Parameters
    ----------
    ts : int64 array
        When the line took its values, ascending, ns.
    values : float64 array
        NaN where there is none.
    span : (int, int)
        First and last time, ns.

    Returns
    -------
    (float64 array, float64 array)
        ms since 1970 and values. A line of up to n values is returned as steps, with their exact times.
    """
    if len(ts) <= n:
        t = np.repeat(np.append(ts, span[1]), 2)[1:-1] / 1e6
        return t, np.repeat(values, 2)
    edges = _edges(span, n)
    first = np.searchsorted(ts, edges[:-1])
    low, high = np.full(n, np.nan), np.full(n, np.nan)
    held = np.where(first > 0, values[np.maximum(first - 1, 0)], np.nan)  # what the column begins with
    for out, ufunc in ((low, np.fmin), (high, np.fmax)):
        inside = np.flatnonzero(np.append(first[1:], len(ts)) > first)
        out[inside] = ufunc.reduceat(values, first[inside])
        out[:] = ufunc(out, held)
    last = values[np.maximum(np.append(first[1:], len(ts)) - 1, 0)]
    ends_low = last - low < high - last  # what is drawn last joins the next column: steps stay steps
    drawn = np.where(ends_low[:, None], np.column_stack([high, low]), np.column_stack([low, high]))
    return np.repeat((edges[:-1] + edges[1:]) / 2e6, 2), drawn.ravel()


def _edges(span: tuple[int, int], n: int) -> Int64s:
    """Return where n equal columns of time begin, and where the last ends, 1 ns after `span`."""
    k, (whole, rest) = np.arange(n + 1), divmod(span[1] + 1 - span[0], n)
    edges: Int64s = span[0] + k * whole + k * rest // n
    return edges


def _compact(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return whole numbers as the browser takes them: int32 where they fit, else float64."""
    fits = not len(array) or (array.min() >= -(2**31) and array.max() < 2**31)
    return array.astype(np.int32 if fits else np.float64)


def _evenly(n: int, most: int) -> Int64s:
    """Return `most` indices below n at even distances, the first and the last among them; all if they are no more."""
    return np.unique(np.linspace(0, n - 1, most).round().astype(np.int64)) if n > most else np.arange(n)


def _own_lots(working: npt.NDArray[Any], side: int, px: Int64s) -> Int64s:
    """Return the open lots of an instrument's `working` orders of a side at each price."""
    mine = working[working["side"] == side]
    lots: Int64s = ((mine["px"] == px[:, None]) * (mine["order_qty"] - mine["cum_qty"])).sum(axis=1)
    return lots


def _states(rows: RowArray, definitions: Definitions, cuts: Sequence[int]) -> Iterator[Replica]:
    """Yield the state just before each of the rows `cuts`, which ascend and are input rows."""
    replica, done = Replica(definitions), 0
    for cut in cuts:
        replica.apply(rows[done:cut])
        done = cut
        yield replica


def _pnl(replica: Replica, one: Instrument) -> tuple[float, float]:
    """Return P&L before fees, and fees, of an instrument in its quote asset."""
    told = replica.pnl(one.id)
    bid, _, ask, _ = replica.touch(one.id)
    mid = float(one.px(bid + ask)) / 2 if bid != NO_PX and ask != NO_PX else 0.0
    return float(one.money(told["total_x2"])) / 2, (told["fee_quote"] + told["fee_base"] * mid) * float(MONEY_SCALE)


def clock_text(ns: int, digits: int = 6) -> str:
    """Return a time of day, UTC.

    Examples
    --------
    >>> clock_text(1_700_000_000_123_456_789)
    '22:13:20.123456'
    """
    seconds, below = divmod(ns, 1_000_000_000)
    hours, rest = divmod(seconds % 86_400, 3600)
    return f"{hours:02d}:{rest // 60:02d}:{rest % 60:02d}.{below:09d}"[: 9 + digits]


# --- the house style -------------------------------------------------------------------------------------------------


def chart(height: int, title: str = "", **options: Any) -> Any:
    """Return an empty figure in the house style.

    Parameters
    ----------
    height : int
        px.
    title : str
    **options
        Of `bokeh.plotting.figure`.
    """
    options = {"tools": "", "toolbar_location": None, "sizing_mode": "stretch_width", **options}
    fig: Any = figure(
        height=height, title=title, min_border_left=_LEFT_BORDER, min_border_right=12, outline_line_color="#D5D9DF",
        **options,
    )  # fmt: skip
    fig.toolbar.logo = None
    fig.title.text_font_size = "12px"
    fig.title.text_color = INK
    fig.title.text_font = _FONT
    for axis in fig.axis:
        axis.major_label_text_font_size = axis.axis_label_text_font_size = "11px"
        axis.major_label_text_font = axis.axis_label_text_font = _FONT
        axis.axis_label_text_font_style = "normal"
        axis.axis_line_color = axis.minor_tick_line_color = None
        axis.major_label_text_color = axis.axis_label_text_color = GREY
    fig.grid.grid_line_color = LIGHT
    return fig


def _legend(fig: Any) -> None:
    """Lay the figure's legend, if it has one, between title and frame: over the lines it would hide some."""
    if not fig.legend:
        return
    legend = fig.legend[0]
    fig.center = [one for one in fig.center if one is not legend]
    fig.add_layout(legend, "above")
    legend.location, legend.orientation = "left", "horizontal"
    legend.label_text_font_size, legend.label_text_color, legend.label_text_font = "11px", INK, _FONT
    legend.border_line_color, legend.padding, legend.margin, legend.spacing = None, 0, 2, 14
    legend.label_height = legend.glyph_height = 14
    legend.click_policy = "hide"


def _price_axis(fig: Any, one: Instrument) -> None:
    places = decimals(one.tick_size)
    fig.yaxis.formatter = NumeralTickFormatter(format="0,0." + "0" * places if places else "0,0")
    fig.yaxis.ticker.min_interval = float(one.tick_size)


def _add_bar(fig: Any, mapper: LinearColorMapper, **options: Any) -> None:
    bar = ColorBar(color_mapper=mapper, width=10, padding=4, **options)
    bar.major_label_text_font_size, bar.major_label_text_color = "10px", GREY
    fig.add_layout(bar, "right")


def _say_nothing(fig: Any, sentence: str) -> Any:
    """Put a sentence where a picture would be."""
    fig.axis.visible = fig.grid.visible = False
    fig.x_range, fig.y_range = Range1d(start=0, end=1), Range1d(start=0, end=1)
    fig.text(x=[0.5], y=[0.5], text=[sentence], text_align="center", text_baseline="middle", text_color=GREY,
             text_font_size="12px", text_font=value(_FONT))  # fmt: skip
    return fig


_FIT = "queueMicrotask(() => { y.have_updated_interactively = false })"
"""A tool used along x alone leaves y marked as set by hand, and it would not follow any more what is visible."""


class _Time:
    """What figures over time share: a range, a crosshair, tools."""

    def __init__(self, span: tuple[int, int]) -> None:
        start, end = span[0] / 1e6, span[1] / 1e6
        self.range = Range1d(start=start, end=max(end, start + 1), bounds=None)
        self.line = Span(dimension="height", line_color=GREY, line_dash="dotted", line_width=1)

    def chart(self, height: int, title: str, **options: Any) -> Any:
        y = DataRange1d(only_visible=True)
        fig = chart(
            height, title, x_range=self.range, x_axis_type="datetime", y_range=y, window_axis="x",
            tools="xpan,xwheel_zoom,xbox_zoom,reset,save", active_drag="xbox_zoom", active_scroll=None, **options,
        )  # fmt: skip
        fit = CustomJS(args={"y": y}, code=_FIT)
        for edge in ("start", "end"):
            self.range.js_on_change(edge, fit)
        fig.add_tools(CrosshairTool(overlay=self.line, dimensions="height"))
        fig.yaxis.formatter = NumeralTickFormatter(format="0,0.[00000000]")
        fig.yaxis.ticker.desired_num_ticks = max(2, height // 45)
        return fig


# --- pictures --------------------------------------------------------------------------------------------------------


class Pictures:
    """The figures of a session.

    Parameters
    ----------
    rows : array of ROW
        A whole journal from its first row: of a backtest or a sim, paper or live session.
    definitions : Definitions

    Examples
    --------
    >>> from decimal import Decimal
    >>> from hftlab.core.definitions import Limits, StrategyRef
    >>> from hftlab.core.rows import new_rows
    >>> btc = Instrument(0, "sim", "BTCUSDT", Decimal("0.01"), Decimal("0.00001"), "BTC", "USDT")
    >>> limits = Limits(max_order_qty=1, max_notional=1, max_position=1, collar_ticks=1)
    >>> nothing = Pictures(new_rows(0), Definitions("s", "sim", (btc,), (limits,), StrategyRef("Maker", "")))
    >>> nothing.price().children[0].title.text
    'Price BTCUSDT, USDT · no book'
    """

    def __init__(self, rows: RowArray, definitions: Definitions) -> None:
        self.rows = rows
        self.definitions = definitions
        self._found: dict[int, Touches] = {}

    # --- what several figures need -----------------------------------------------------------------------------------

    @cached_property
    def replica(self) -> Replica:
        """State at the end of the journal."""
        replica = Replica(self.definitions)
        replica.apply(self.rows)
        return replica

    @cached_property
    def log(self) -> OrderLog:
        """The session's orders and reports."""
        return OrderLog(self.rows)

    @cached_property
    def fills(self) -> pl.DataFrame:
        """All own fills (`hftlab.analysis.frames.OrderLog.fills`), with ``instrument`` and ``told``, when we heard.

        Two venues may have an instrument of the same symbol: its number tells them apart.
        """
        fills = self.log.fills(self.definitions)
        rows = self.rows[fills["seq"].to_numpy()]
        return fills.with_columns(
            instrument=pl.Series(rows["instrument"], dtype=pl.Int64), told=pl.Series(rows["ts_recv"], dtype=pl.Int64)
        )

    def name(self, instrument: int) -> str:
        """Return an instrument's symbol, and its venue where two have the same."""
        one = self.definitions.instruments[instrument]
        alike = sum(other.symbol == one.symbol for other in self.definitions.instruments)
        return one.symbol if alike == 1 else f"{one.symbol} ({one.venue})"

    @cached_property
    def _heads(self) -> tuple[Int64s, Int64s]:
        """Where input rows stand, and their receive times, made ascending."""
        rows = self.rows
        at = np.flatnonzero((rows["kind"] != CONT) & (rows["flags"] & int(Flag.OUTPUT) == 0) & (rows["ts_recv"] > 0))
        return at, np.maximum.accumulate(rows["ts_recv"][at]) if len(at) else np.zeros(0, np.int64)

    @property
    def span(self) -> tuple[int, int]:
        """First and last receive time, ns; (0, 0) of nothing."""
        times = self._heads[1]
        return (int(times[0]), int(times[-1])) if len(times) else (0, 0)

    def time(self) -> _Time:
        """Return a time range, crosshair and tools for figures that are to be linked."""
        return _Time(self.span)

    @property
    def busiest(self) -> list[int]:
        """Instruments by their number of fills, most first; those without a fill last."""
        counts = np.bincount(self.fills["instrument"], minlength=len(self.definitions.instruments))
        return [int(k) for k in np.argsort(-counts, kind="stable")]

    def _touches(self, instrument: int) -> Touches:
        """Return the touch after each message that changed a best price; a book in doubt has none."""
        if instrument not in self._found:
            found = touches(self.rows, instrument)
            moved = (np.diff(found.bid_px, prepend=0) != 0) | (np.diff(found.ask_px, prepend=0) != 0)
            self._found[instrument] = Touches(*(part[moved] for part in found))
        return self._found[instrument]

    def _books(self, instrument: int, seqs: Int64s) -> _Books:
        shape = (len(seqs), 2, LEVELS)
        books = _Books(*(np.zeros(shape, np.int64) for _ in range(3)))
        for k, replica in enumerate(_states(self.rows, self.definitions, seqs.tolist())):
            working = replica.open_orders()
            working = working[working["instrument"] == instrument]
            for s, levels in enumerate(replica.levels(instrument, LEVELS)):
                n = len(levels)
                books.px[k, s, :n], books.qty[k, s, :n] = levels[:, 0], levels[:, 1]
                books.own[k, s, :n] = _own_lots(working, s + 1, levels[:, 0])
        return books

    # --- what was earned ---------------------------------------------------------------------------------------------

    def overview(self, instrument: int | None = None, time: _Time | None = None) -> LayoutDOM:
        """Return price, position, equity and drawdown, linked, as `overview` says."""
        chosen, time = self.busiest[0] if instrument is None else instrument, time or self.time()
        return self._page(chosen, time, [self.equity(time), self.drawdown(time)], [self._histogram("fill", 230)])

    def trading(self, instrument: int = 0, time: _Time | None = None) -> LayoutDOM:
        """Return price with fills and position of an instrument, linked; beside them its book and its markouts."""
        return self._page(instrument, time or self.time(), [], [])

    def _page(self, instrument: int, time: _Time, below: list[Any], beside: list[Any]) -> LayoutDOM:
        price, ladder = self._price_and_ladder(instrument, time, 340)
        charts: list[Any] = [price, self.position(instrument, time, 130 if below else 260), *below]
        for chart_above in charts[:-1]:
            chart_above.xaxis.visible = False
        grid = gridplot([[one] for one in charts], sizing_mode="stretch_width", toolbar_location="left",
                        toolbar_options={"logo": None})  # fmt: skip
        for fig in (narrow := [self.markouts(instrument, 230), *beside]):
            fig.update(sizing_mode="fixed", width=_LADDER_WIDTH, min_border_left=50)
        return row([grid, column([ladder, *narrow])], sizing_mode="stretch_width")

    @cached_property
    def _curves(self) -> tuple[Int64s, dict[str, tuple[Floats, Floats]]]:
        """Return times, and by quote asset the P&L before and after fees of all instruments quoted in it.

        Marked at the mid; fees in the base asset are valued at it, fees in a third asset are not in it.
        """
        at, times = self._heads
        n = min(COLUMNS, len(at))
        edges = _edges(self.span, max(n, 1))
        cuts = np.append(at, len(self.rows))[np.searchsorted(times, edges[1:])][:n]
        curves = {one.quote: (np.zeros(n), np.zeros(n)) for one in self.definitions.instruments}
        for k, replica in enumerate(_states(self.rows, self.definitions, cuts.tolist())):
            for one in self.definitions.instruments:
                gross, fees = _pnl(replica, one)
                for curve, amount in zip(curves[one.quote], (gross, gross - fees), strict=True):
                    curve[k] += amount
        return edges[1:][:n], curves

    def equity(self, time: _Time | None = None, height: int = 200) -> LayoutDOM:
        """Return P&L before and after fees over time, by quote asset: amounts of two assets are not added."""
        ts, curves = self._curves
        fig = (time or self.time()).chart(height, "P&L marked at mid · nothing to mark")
        if len(ts):
            ends = [f"{net[-1]:+,.4g} {quote}" for quote, (_, net) in curves.items()]
            fig.title.text = f"P&L marked at mid · net {', '.join(ends)}"
        for (quote, pair), dash in zip(curves.items(), cycle(_DASHES), strict=False):
            for name, line, colour in zip(("gross", "net"), pair, (GREY, INK), strict=True):
                legend = name if len(curves) == 1 else f"{name} {quote}"
                fig.line(*_columns(ts, line, self.span), color=colour, line_width=1.2, line_dash=dash,
                         legend_label=legend)  # fmt: skip
        _legend(fig)
        return cast("LayoutDOM", fig)

    def drawdown(self, time: _Time | None = None, height: int = 130) -> LayoutDOM:
        """Return how far P&L after fees stood below its highest so far, by quote asset."""
        ts, curves = self._curves
        fig = (time or self.time()).chart(height, "Drawdown")
        worst = []
        for (quote, (_, net)), dash in zip(curves.items(), cycle(_DASHES), strict=False):
            down = net - np.maximum.accumulate(np.append(0.0, net))[1:]
            t, line = _columns(ts, down, self.span)
            fig.varea(x=t, y1=np.zeros(len(t)), y2=line, fill_color=ASK, fill_alpha=0.25)
            fig.line(t, line, color=ASK, line_width=1, line_dash=dash)
            worst.append(f"{down.min(initial=0.0):,.4g} {quote}")
        fig.title.text = f"Drawdown, net · {', '.join(worst)} at worst"
        return cast("LayoutDOM", fig)

    # --- price and fills ---------------------------------------------------------------------------------------------

    def price(self, instrument: int = 0, time: _Time | None = None, height: int = 320) -> LayoutDOM:
        """Return best prices with the own fills, and the book at the fill that the pointer is on.

        Parameters
        ----------
        instrument : int
        time : _Time, optional
            Of `time`, to link it with others.
        height : int
            px.
        """
        fig, ladder = self._price_and_ladder(instrument, time or self.time(), height)
        return row([fig, ladder], sizing_mode="stretch_width")

    def _price_and_ladder(self, instrument: int, time: _Time, height: int) -> tuple[Any, Any]:
        one = self.definitions.instruments[instrument]
        found = self._touches(instrument)
        title = f"Price {self.name(instrument)}, {one.quote or 'quote'}"
        fig = time.chart(height, title)
        if not len(found.ts):
            fig.title.text = f"{title} · no book"
        for name, ticks, colour in (("best bid", found.bid_px, BID), ("best ask", found.ask_px, ASK)):
            px = np.where(ticks == NO_PX, np.nan, ticks * float(one.tick_size))
            t, line = _columns(found.ts, px, self.span)
            fig.line(t, line, color=colour, line_width=1, alpha=0.75, legend_label=name)
        _price_axis(fig, one)
        fills = self.fills.filter(instrument=instrument)
        ladder = _ladder(one, height)
        if len(fills):
            drawn = fills[_evenly(len(fills), FILLS)]
            fig.title.text = f"{title} · {_of(len(drawn), len(fills), 'fill')} · hover one"
            self._draw_fills(fig, ladder, one, drawn)
        elif len(found.ts):
            fig.title.text = f"{title} · no fill"
            books = self._books(instrument, np.array([len(self.rows)]))
            ladder.select_one({"name": "ladder"}).data_source.data = _ladder_data(one, *(array[0] for array in books))
            ladder.title.text = "Book at the end"
        _legend(fig)
        return fig, ladder

    def _draw_fills(self, fig: Any, ladder: Any, one: Instrument, fills: pl.DataFrame) -> None:
        seqs, told = fills["seq"].to_numpy(), fills["told"].to_numpy()
        buy, maker = (fills["side"] == "buy").to_numpy(), fills["maker"].to_numpy()
        colours = np.where(buy, BID, ASK)
        lots, ticks = decimals(one.lot_size), decimals(one.tick_size)
        marks = ColumnDataSource(
            {
                "t": told / 1e6,
                "px": fills["px"].to_numpy(),
                "shape": np.where(buy, "triangle", "inverted_triangle").tolist(),
                "line": colours.tolist(),
                "fill": np.where(maker, colours, "#FFFFFF").tolist(),
                "told": [clock_text(int(ns), 9) for ns in told],
                "what": [
                    f"{'maker' if m else 'taker'} {side} {qty:,.{lots}f} at {px:,.{ticks}f}"
                    for m, side, qty, px in zip(maker, fills["side"], fills["qty"], fills["px"], strict=True)
                ],
                "fee": [f"{fee:,.8g} {of or ''}" for fee, of in zip(fills["fee"], fills["fee_asset"], strict=True)],
                "order": _compact(fills["cl_ord_id"].to_numpy()),
                "seq": _compact(seqs),
            },
            name="fills",
        )
        size = 9 if len(fills) <= 300 else 6
        drawn = fig.scatter(
            "t", "px", source=marks, marker="shape", size=size, line_color="line", fill_color="fill", line_width=1.2,
            fill_alpha=0.85, nonselection_alpha=0.5, legend_label="▲ buy ▼ sell, hollow: taker",
        )  # fmt: skip
        show = self._show_book(ladder, one, marks, self._books(one.id, seqs))
        tips = [("", "@what"), ("told", "@told UTC"), ("fee", "@fee"), ("order", "@order"), ("row", "@seq")]
        fig.add_tools(HoverTool(renderers=[drawn], tooltips=tips, callback=show), TapTool(renderers=[drawn]))
        marks.selected.js_on_change("indices", show)

    def _show_book(self, ladder: Any, one: Instrument, marks: ColumnDataSource, books: _Books) -> CustomJS:
        """Return what shows the book of a hovered fill, else of the selected one, else of the last."""
        flat: dict[str, Any] = {name: _compact(array.reshape(-1)) for name, array in books._asdict().items()}
        source = ladder.select_one({"name": "ladder"}).data_source
        args = {
            "books": ColumnDataSource(flat, name="books"), "marks": marks, "ladder": source, "title": ladder.title,
            "levels": LEVELS, "tick": float(one.tick_size), "lot": float(one.lot_size),
            "places": [decimals(one.tick_size), decimals(one.lot_size)],
        }  # fmt: skip
        last = len(books.px) - 1
        data = _ladder_data(one, *(array[last] for array in books))
        source.data = data
        ladder.title.text = f"Book before the fill told at {marks.data['told'][last][:15]}"
        return CustomJS(args=args, code=_SHOW_BOOK)

    # --- position ----------------------------------------------------------------------------------------------------

    def position(self, instrument: int = 0, time: _Time | None = None, height: int = 130) -> LayoutDOM:
        """Return the position over time, as the fills told made it, and the limit it had to keep."""
        one, limit = self.definitions.instruments[instrument], self.definitions.limits[instrument]
        fills = self.fills.filter(instrument=instrument)
        signed = np.where(fills["side"] == "buy", 1, -1) * fills["qty_lots"].to_numpy()
        held = np.append(0, np.cumsum(signed))
        ts = np.append(self.span[0], np.maximum.accumulate(fills["told"].to_numpy()))
        most, used = float(one.qty(limit.max_position)), 100 * int(np.abs(held).max()) / limit.max_position
        share = f"{used:.0f} % of the limit {most:,g} at most"
        fig = (time or self.time()).chart(height, f"Position {self.name(instrument)}, {one.base or 'lots'} · {share}")
        t, drawn = _columns(ts, held * float(one.lot_size), self.span)
        fig.varea(x=t, y1=np.zeros(len(t)), y2=drawn, fill_color=BAR, fill_alpha=0.25)
        fig.line(t, drawn, color=INK, line_width=1)
        return cast("LayoutDOM", fig)

    # --- depth -------------------------------------------------------------------------------------------------------

    def depth_map(self, instrument: int = 0, time: _Time | None = None, height: int = 260) -> LayoutDOM:
        """Return the quantity that rested at each price over time, the darker the less, with the best prices.

        Each column is the book at its end; each row sums the levels of its prices.
        """
        one = self.definitions.instruments[instrument]
        title = f"Resting quantity {self.name(instrument)}, {one.base or 'lots'}"
        found = self._touches(instrument)
        known = found.bid_px[(found.bid_px != NO_PX) & (found.ask_px != NO_PX)]
        if not len(known):
            return cast("LayoutDOM", _say_nothing(chart(height, title), "no two-sided book in this journal"))
        low, high, step = _map_prices(found)
        edges, image = self._map_columns(instrument, low, step, (high - low) // step)
        time = time or self.time()
        fig = time.chart(height, f"{title} · book at the end of each column")
        tick = float(one.tick_size)
        mapper = LinearColorMapper(palette=Cividis256, nan_color=Cividis256[0])
        logs = np.log10(image, where=image > 0, out=np.full(image.shape, np.nan)) + np.log10(float(one.lot_size))
        mapper.low, mapper.high = (float(np.nanpercentile(logs, q)) for q in (2, 99.8))
        if not mapper.low < mapper.high:
            mapper.low, mapper.high = mapper.high - 1, mapper.high
        bottom = (low - 0.5) * tick
        drawn = fig.image(
            image=[logs.T.astype(np.float32)], x=edges[0] / 1e6, dw=max((edges[-1] - edges[0]) / 1e6, 1e-3),
            y=bottom, dh=image.shape[1] * step * tick, color_mapper=mapper, level="image",
        )  # fmt: skip
        for ticks in (found.bid_px, found.ask_px):
            px = np.where(ticks == NO_PX, np.nan, ticks * tick)
            points = _columns(found.ts, px, self.span, 2 * MAP_SHAPE[0])
            for colour, width in ((INK, 3.5), ("#FFFFFF", 1.2)):  # seen on dark ground and on light
                fig.line(*points, color=colour, line_width=width)
        fig.y_range = Range1d(start=bottom, end=bottom + image.shape[1] * step * tick)
        _price_axis(fig, one)
        fig.grid.visible = False
        powers = CustomJSTickFormatter(code="return (10 ** tick).toPrecision(1) * 1")
        _add_bar(fig, mapper, formatter=powers, ticker=BasicTicker(desired_num_ticks=4))
        fig.add_tools(HoverTool(renderers=[drawn], tooltips=[("price", "$y{0,0.00}"), ("log10 quantity", "@image")]))
        return cast("LayoutDOM", fig)

    def _map_columns(self, instrument: int, low: int, step: int, n_rows: int) -> tuple[Int64s, Floats]:
        at, times = self._heads
        n = min(MAP_SHAPE[0], max(1, len(at)))
        edges = _edges(self.span, n)
        cuts = np.append(at, len(self.rows))[np.searchsorted(times, edges[1:])]
        image = np.zeros((n, n_rows))
        for k, replica in enumerate(_states(self.rows, self.definitions, cuts.tolist())):
            for levels in replica.levels(instrument, 2000):
                rows = (levels[:, 0] - low) // step
                inside = (rows >= 0) & (rows < n_rows)
                np.add.at(image[k], rows[inside], levels[inside, 1])
        return edges, image


    # --- what followed a fill ----------------------------------------------------------------------------------------

    def markouts(self, instrument: int = 0, height: int = 230) -> LayoutDOM:
        """Return the mean markout of the fills by horizon, ticks, above 0 good for us, with its 95 % interval."""
        title = f"Markout {self.name(instrument)}, ticks a fill, above 0 is good"
        lines = self._markouts(instrument)
        if not len(lines["all"][0]):
            return cast("LayoutDOM", _say_nothing(chart(height, title), "fewer than two fills with a mid after them"))
        fig = chart(height, title, x_axis_type="log", x_range=Range1d(start=7e5, end=9e10))
        ns, mean, half = lines["all"]
        fig.varea(x=ns, y1=mean - half, y2=mean + half, fill_color=BAR, fill_alpha=0.25, legend_label="all, 95 %")
        for name, colour in (("buy", BID), ("sell", ASK), ("all", INK)):
            ns, mean, _ = lines[name]
            fig.line(ns, mean, color=colour, line_width=1.5, legend_label=name if name != "all" else "all, 95 %")
            fig.scatter(ns, mean, color=colour, size=4)
        fig.add_layout(Span(dimension="width", location=0, line_color=GREY, line_width=1, level="underlay"))
        fig.xaxis.formatter = CustomJSTickFormatter(code=_TIME_TICKS)
        fig.xaxis.ticker = FixedTicker(ticks=[10**k for k in range(6, 11)])
        _legend(fig)
        return cast("LayoutDOM", fig)

    def _markouts(self, instrument: int) -> dict[str, tuple[Floats, Floats, Floats]]:
        """Return (horizons ns, mean ticks, half of the 95 % interval) of all fills, of buys and of sells."""
        found, fills = self._touches(instrument), self.fills.filter(instrument=instrument)
        told, px = fills["told"].to_numpy(), fills["px_ticks"].to_numpy()
        sign = np.where(fills["side"] == "buy", 1, -1)
        points: dict[str, list[tuple[float, float, float]]] = {"all": [], "buy": [], "sell": []}
        for horizon in HORIZONS_NS:
            mid = found.mid_at(told + horizon)
            gain = np.where(told + horizon <= self.span[1], sign * (mid - px), np.nan)
            for name, some in (("all", sign != 0), ("buy", sign > 0), ("sell", sign < 0)):
                values = gain[some & np.isfinite(gain)]
                if len(values) > 1:
                    half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
                    points[name].append((horizon, float(values.mean()), half))
        columns = {name: np.array(found, np.float64).reshape(-1, 3).T for name, found in points.items()}
        return {name: (found[0], found[1], found[2]) for name, found in columns.items()}

    # --- time to an answer -------------------------------------------------------------------------------------------

    def latencies(self, height: int = 220) -> LayoutDOM:
        """Return how long orders waited for their first answer and fill, and how many of them wait how long."""
        charts = [*(self._histogram(what, height) for what in ("answer", "fill")), self.survival(height)]
        return row(charts, sizing_mode="stretch_width")

    def survival(self, height: int = 220) -> LayoutDOM:
        """Return the share of orders that still wait for their first fill after a time, with its 95 % interval.

        Kaplan and Meier's estimate: an order that was canceled or replaced before it was filled counts as long as it
        waited, and says nothing about what would have come after. That is wrong where a strategy cancels just the
        orders that were about to be filled, as a good one does: then orders fill faster than the line says.
        """
        title = "Share of orders still without a fill"
        took, filled = self._lives()
        if not filled.any():
            return cast("LayoutDOM", _say_nothing(chart(height, title), "no order was filled"))
        curve = ecdf(CensoredData.right_censored(np.maximum(took, 1), ~filled)).sf
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # where nobody waits any more there is no interval: NaN
            band = curve.confidence_interval()
        low, high = _decades(took[filled].min(), took.max())
        fig = chart(height, title, x_axis_type="log", x_range=Range1d(start=low, end=high),
                    y_range=Range1d(start=0, end=1.02))  # fmt: skip
        at = _evenly(len(curve.quantiles), COLUMNS)
        ns = np.append(low, curve.quantiles[at])
        share, least, most = (np.append(1.0, one.probabilities[at]) for one in (curve, band.low, band.high))
        fig.varea_step(x=ns, y1=least, y2=most, step_mode="after", fill_color=BAR, fill_alpha=0.25)
        fig.step(ns, share, mode="after", color=INK, line_width=1.2)
        fig.xaxis.formatter = CustomJSTickFormatter(code=_TIME_TICKS)
        fig.yaxis.axis_label = f"{_of(len(took), len(took), 'order')}, {int(filled.sum()):,} filled"
        return cast("LayoutDOM", fig)

    def _lives(self) -> tuple[Int64s, npt.NDArray[np.bool_]]:
        """Return for each order that was accepted, ns until its first fill or its end, and whether that was a fill."""
        rows = self.rows
        sent = rows[np.isin(rows["kind"], _ORDER_KINDS)]
        told = rows[rows["kind"] == Kind.REPORT]
        orders = pl.DataFrame({
            "id": sent["a"].astype(np.int64), "orig": sent["b"].astype(np.int64), "from": sent["ts_recv"],
        })  # fmt: skip
        reports = pl.DataFrame({
            "id": told["a"].astype(np.int64), "to": told["ts_recv"], "what": (told["code"] & 255).astype(np.int64),
        }).filter(pl.col("what").is_in(_ENDS))  # fmt: skip
        rejected = reports.filter(pl.col("what") == ExecType.REJECT)
        replaced = pl.col("what") == ExecType.REPLACED
        ends = (
            reports.join(orders.select("id", "orig"), "id", "left", maintain_order="left")
            .with_columns(pl.when(replaced).then("orig").otherwise("id").alias("id"))
            .group_by("id", maintain_order=True)
            .agg(pl.col("to").first(), (pl.col("what").first() == ExecType.FILL).alias("fill"))
        )
        lives = orders.join(rejected, "id", "anti").join(ends, "id", "left")
        took = lives.select(pl.col("to").fill_null(self.span[1]) - pl.col("from")).to_series().to_numpy()
        return took, lives["fill"].fill_null(False).to_numpy()

    def _histogram(self, what: str, height: int) -> Any:
        return _time_histogram(f"To first {what}", self._waits()[what == "fill"], "order", height)

    def _waits(self) -> tuple[Int64s, Int64s]:
        """Return for each order, ns from its decision to its first report, and to its first fill."""
        rows = self.rows
        sent = np.flatnonzero(np.isin(rows["kind"], _ORDER_KINDS))
        told = np.flatnonzero(rows["kind"] == Kind.REPORT)
        decided = pl.DataFrame({"id": rows["a"][sent].astype(np.int64), "from": rows["ts_recv"][sent]})
        reports = pl.DataFrame({
            "id": rows["a"][told].astype(np.int64), "to": rows["ts_recv"][told],
            "fill": rows["code"][told] & 255 == ExecType.FILL,
        })  # fmt: skip
        waits = []
        for some in (reports, reports.filter("fill")):
            first = some.group_by("id", maintain_order=True).agg(pl.col("to").first())
            waits.append(decided.join(first, "id").select(pl.col("to") - pl.col("from")).to_series().to_numpy())
        return waits[0], waits[1]


_ENDS = [int(one) for one in (ExecType.FILL, ExecType.REJECT, ExecType.REPLACED, ExecType.CANCELED, ExecType.EXPIRED)]
_ORDER_KINDS = np.array([Kind.SUBMIT, Kind.REPLACE_ORDER], np.uint8)


def overview(rows: RowArray, definitions: Definitions, instrument: int | None = None) -> LayoutDOM:
    """Return price with fills, position, equity and drawdown of a session, linked; beside them the book at the fill
    pointed at, the markouts, and how long orders waited for their first fill.

    Parameters
    ----------
    rows : array of ROW
        A whole journal from its first row.
    definitions : Definitions
    instrument : int, optional
        Whose price and position; the one with most fills if absent. Equity is that of all.
    """
    return Pictures(rows, definitions).overview(instrument)


def _time_histogram(title: str, ns: Int64s, what: str, height: int) -> Any:
    """Return a histogram of times on a logarithmic axis, twelve bins a decade, with median and 99th percentile."""
    if not len(ns):
        return _say_nothing(chart(height, title), "none in this journal")
    low, high = _decades(ns.min(), ns.max())
    edges = np.logspace(np.log10(low), np.log10(high), round(12 * np.log10(high / low)) + 1)
    counts = np.histogram(np.clip(ns, low, high), edges)[0]
    p50, p99 = (float(q) for q in np.percentile(ns, [50, 99]))
    fig = chart(
        height, f"{title} · median {span_words(p50)} · 99 % {span_words(p99)}",
        x_axis_type="log", x_range=Range1d(start=low, end=high), y_range=Range1d(start=0, end=1.1 * counts.max()),
    )  # fmt: skip
    fig.quad(left=edges[:-1], right=edges[1:], bottom=0, top=counts, fill_color=BAR, line_color="#FFFFFF")
    for at, dash in ((p50, "solid"), (p99, "dashed")):
        fig.add_layout(Span(dimension="height", location=max(at, low), line_color=INK, line_dash=dash, line_width=1.5))
    fig.xaxis.formatter = CustomJSTickFormatter(code=_TIME_TICKS)
    fig.yaxis.formatter = NumeralTickFormatter(format="0,0")
    fig.yaxis.ticker = BasicTicker(min_interval=1, desired_num_ticks=4)
    fig.yaxis.axis_label = _of(len(ns), len(ns), what)
    return fig


def _decades(low: float, high: float) -> tuple[float, float]:
    """Return the whole decades round what is to be drawn from `low` to `high` on a logarithmic axis."""
    least, most = (np.log10(max(1.0, float(end))) for end in (low, high))
    return float(10 ** np.floor(least - 0.5)), float(10 ** np.ceil(most + 0.5))


_TIME_TICKS = """
for (const [unit, size] of [["s", 1e9], ["ms", 1e6], ["µs", 1e3]])
  if (tick >= size) return `${+(tick / size).toPrecision(3)} ${unit}`
return `${+tick.toPrecision(3)} ns`
"""


def sweep_map(frame: pl.DataFrame, x: str, y: str, z: str, height: int = 320) -> LayoutDOM:
    """Return a heat map of a sweep: one cell for each pair of parameter values.

    Parameters
    ----------
    frame : polars.DataFrame
        One line a trial.
    x, y : str
        Columns of parameters.
    z : str
        Column of the result; NaN and null are left blank. Where several trials share a cell, the median is drawn: the
        best of many would flatter noise.
    height : int
        px.
    """
    cells = frame.filter(pl.col(z).is_finite()).group_by(x, y).agg(pl.col(z).median(), pl.len().alias("trials"))
    title = f"{z} by {x} and {y}"
    if not len(cells):
        return cast("LayoutDOM", _say_nothing(chart(height, title), "no trial with a result"))
    names = {name: _category(cells[name]) for name in (x, y)}
    order = {name: _category(cells[name].unique().sort()) for name in (x, y)}
    values = cells[z].to_numpy().astype(np.float64)
    low, high = float(values.min()), float(values.max())
    signed = low < 0 < high
    if signed:
        low, high = -max(-low, high), max(-low, high)
    elif low == high:
        high = low + 1
    mapper = LinearColorMapper(palette=_diverging() if signed else Cividis256, low=low, high=high)
    shade = (values - low) / (high - low)
    dark = np.abs(2 * shade - 1) > 0.75 if signed else shade < 0.5
    source = ColumnDataSource({
        "x": names[x], "y": names[y], "z": values, "trials": cells["trials"].to_numpy().astype(np.int32),
        "text": [f"{v:.3g}" for v in values], "ink": np.where(dark, "#FFFFFF", INK).tolist(),
    })  # fmt: skip
    fig = chart(
        height, f"{title} · {_of(len(frame), len(frame), 'trial')}, median of each cell",
        x_range=FactorRange(factors=order[x]), y_range=FactorRange(factors=order[y]), x_axis_label=x, y_axis_label=y,
    )  # fmt: skip
    shaded = {"field": "z", "transform": mapper}
    drawn = fig.rect("x", "y", 1, 1, source=source, fill_color=shaded, line_color="#FFFFFF")
    if len(order[x]) <= 16 and len(order[y]) <= 16:
        fig.text("x", "y", text="text", source=source, text_color="ink", text_align="center", text_baseline="middle",
                 text_font_size="11px", text_font=value(_FONT))  # fmt: skip
    fig.grid.visible = False
    _add_bar(fig, mapper)
    tips = [(x, "@x"), (y, "@y"), (z, "@z{0.0000}"), ("trials", "@trials")]
    fig.add_tools(HoverTool(renderers=[drawn], tooltips=tips))
    return cast("LayoutDOM", fig)


def _category(values: pl.Series) -> list[str]:
    return [f"{one:g}" if isinstance(one, float) else str(one) for one in values]


def _diverging() -> list[str]:
    """Return 255 colours from orange over white to blue: loss, nothing, gain."""
    ends = [np.array([int(c[k : k + 2], 16) for k in (1, 3, 5)]) for c in (ASK, "#FFFFFF", BID)]
    shares = np.linspace(0, 1, 128)[:, None]
    down, up = (ends[k] * (1 - shares) + ends[k + 1] * shares for k in (0, 1))
    return [f"#{r:02X}{g:02X}{b:02X}" for r, g, b in np.concatenate([down, up[1:]]).round().astype(int).tolist()]


def _map_prices(found: Touches) -> tuple[int, int, int]:
    """Return lowest and highest price (ticks) of a depth map and ticks a row: where the touch was, and a third more."""
    bids, asks = found.bid_px[found.bid_px != NO_PX], found.ask_px[found.ask_px != NO_PX]
    low, high = np.percentile(bids, 0.5), np.percentile(asks, 99.5)
    margin = max(0.35 * (high - low), 8 * float(np.median(np.diff(np.stack([bids[:1], asks[:1]]), axis=0))), 12.0)
    low, high = int(low - margin), int(high + margin)
    step = max(1, -(-(high - low + 1) // MAP_SHAPE[1]))
    n_rows = -(-(high - low + 1) // step)
    return low, low + n_rows * step, step


def _of(drawn: int, all_: int, what: str) -> str:
    plural = what if all_ == 1 else f"{what}s"
    return f"{all_:,} {plural}" if drawn == all_ else f"{drawn:,} of {all_:,} {plural}, taken evenly"


# --- the ladder ------------------------------------------------------------------------------------------------------


def _ladder(one: Instrument, height: int) -> Any:
    """Return an empty ladder: bids on the left, asks on the right, own lots framed, bars by quantity."""
    fig = chart(
        height, "Book", width=_LADDER_WIDTH, sizing_mode="fixed",
        x_range=Range1d(start=-1, end=1), y_range=Range1d(start=LEVELS + 0.1, end=-1.1),
    )  # fmt: skip
    fig.min_border_left = fig.min_border_right = 4
    fig.axis.visible = fig.grid.visible = False
    source = ColumnDataSource(_ladder_data(one, *(np.zeros((2, LEVELS), np.int64) for _ in range(3))), name="levels")
    font = {"text_font": value(_MONO), "text_font_size": "11px", "text_baseline": "middle"}
    for side, sign, colour in (("bid", -1, BID), ("ask", 1, ASK)):
        bars = fig.hbar(y="y", left=0, right=f"{side}_bar", height=0.86, source=source, fill_color=colour,
                        fill_alpha=0.18, line_color=None)  # fmt: skip
        bars.name = "ladder" if sign < 0 else None
        fig.hbar(y="y", left=0, right=f"{side}_box", height=0.9, source=source, fill_color=None, line_color=INK,
                 line_width=1.5)  # fmt: skip
        inner, outer = ("right", "left") if sign < 0 else ("left", "right")
        fig.text(x=sign * 0.02, y="y", text=f"{side}_px", source=source, text_align=inner, text_color=colour, **font)
        fig.text(x=sign * 0.37, y="y", text=f"{side}_qty", source=source, text_align=inner, text_color=INK, **font)
        fig.text(x=sign * 0.985, y="y", text=f"{side}_own", source=source, text_align=outer, text_color=INK,
                 text_font_style="bold", **font)  # fmt: skip
    head = ColumnDataSource({
        "x": [-0.985, -0.37, -0.02, 0.02, 0.37, 0.985],
        "text": ["own", base := one.base or "lots", "bid", "ask", base, "own"],
        "align": ["left", "right", "right", "left", "left", "right"],
    })  # fmt: skip
    fig.text(x="x", y=-0.5, text="text", text_align="align", source=head, text_baseline="middle", text_color=GREY,
             text_font_size="10px", text_font=value(_FONT))  # fmt: skip
    return fig


def _ladder_data(one: Instrument, px: Int64s, qty: Int64s, own: Int64s) -> dict[str, Any]:
    """Return what a ladder draws of one book, each (2, LEVELS); `_SHOW_BOOK` says the same in the browser."""
    data: dict[str, Any] = {"y": [k + 0.5 for k in range(LEVELS)]}
    most = max(1, int(qty.max(initial=0)))
    ticks, lots = decimals(one.tick_size), decimals(one.lot_size)
    for s, (side, sign) in enumerate((("bid", -1), ("ask", 1))):
        told = [(int(p), int(q), int(o)) for p, q, o in zip(px[s], qty[s], own[s], strict=True)]
        data[f"{side}_px"] = [f"{one.px(p):.{ticks}f}" if q else "" for p, q, _ in told]
        data[f"{side}_qty"] = [f"{one.qty(q):.{lots}f}" if q else "" for _, q, _ in told]
        data[f"{side}_own"] = [f"{one.qty(o):.{lots}f}" if o else "" for _, _, o in told]
        data[f"{side}_bar"] = [sign * q / most for _, q, _ in told]
        data[f"{side}_box"] = [float(sign) if o else float("nan") for _, _, o in told]
    return data


_SHOW_BOOK = """
const hovered = cb_data.index ? cb_data.index.indices[0] : undefined
const k = hovered ?? marks.selected.indices[0]
if (k === undefined || ladder.tags[0] === k) return
ladder.tags = [k]
const {px, qty, own} = books.data
const data = {y: ladder.data.y}
let most = 1
for (let j = 0; j < 2 * levels; j++) most = Math.max(most, qty[2 * levels * k + j])
for (const [s, side, sign] of [[0, "bid", -1], [1, "ask", 1]]) {
  for (const name of ["px", "qty", "own", "bar", "box"]) data[`${side}_${name}`] = []
  for (let j = 0; j < levels; j++) {
    const at = (2 * k + s) * levels + j
    data[`${side}_px`].push(qty[at] ? (px[at] * tick).toFixed(places[0]) : "")
    data[`${side}_qty`].push(qty[at] ? (qty[at] * lot).toFixed(places[1]) : "")
    data[`${side}_own`].push(own[at] ? (own[at] * lot).toFixed(places[1]) : "")
    data[`${side}_bar`].push(sign * qty[at] / most)
    data[`${side}_box`].push(own[at] ? sign : NaN)
  }
}
ladder.data = data
title.text = `Book before the fill told at ${marks.data.told[k].slice(0, 15)}`
"""
