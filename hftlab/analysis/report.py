"""One HTML file that says what a session earned, on which assumptions, and what its pictures look like.

**Model.** A report is written for somebody who was not there and may not believe it. So it opens with what was assumed
and when that is wrong, says what the data lacked, then the goals with pass, fail or unknown, and only then shows
numbers and pictures. Numbers are those of `hftlab.analysis.kpi`, `performance` and `frames`, pictures those of `plots`;
nothing is computed here. A missing number is a dash with its reason beneath, never 0.

**One source.** The file and what a notebook shows are the same text: a notebook frames it. It asks nobody for anything:
scripts and styles are inside, tables are plain HTML. It is about 2 MB, most of it Bokeh itself.

**Worst case accepted.** Several instruments: each has its line in every table, `SHOWN` of them, those with most fills,
have pictures.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.embed import components
from bokeh.embed.bundle import bundle_for_objs_and_resources
from bokeh.resources import Resources
from jinja2 import Environment
from markupsafe import Markup

from hftlab.analysis.execution import Execution, execution
from hftlab.analysis.frames import pnl_frame
from hftlab.analysis.kpi import kpi_frame
from hftlab.analysis.performance import Performance, performance
from hftlab.analysis.plots import Pictures, clock_text
from hftlab.analysis.style import ASK, BID, GREY, HALT, INK, WARN, decimals, span_words
from hftlab.core.definitions import Definitions
from hftlab.core.rows import BookState, Kind, Reason, RowArray, payload_bytes
from hftlab.journal import run_hash as hash_of

__all__ = ["Report", "SHOWN", "inline_scripts", "report"]

SHOWN = 3
"""Instruments that have pictures, at most."""

_FRAME_PX = 900
_LAST_FILLS = 50
_MOST_FAULTS = 10
_INTERVAL = "1s"
_SILENCE_NS = 5_000_000_000
_MARKET = np.array([Kind.LEVEL, Kind.QUOTE, Kind.CLEAR, Kind.TRADE], np.uint8)

CAVEATS = {
    "latency": "Constant or sampled latency does not rise when the market moves, and real latency does: in a burst "
    "fills come and cancels arrive too easily.",
    "queue": "Where an order stands at its price is estimated from totals; which of those before it cancel is luck, "
    "and a large order would have been seen.",
    "recorded": "The recorded market does not react: nobody withdraws, follows or leans against these orders, and who "
    "was filled then is filled again, beside them.",
    "synthetic": "The other traders are invented. They exercise the path and teach; that a strategy earns from them is "
    "no evidence.",
    "fees": "Fees are the rates given, not those of the account's tier on that day.",
    "own trades": "Own trades use up what they took until the venue tells that price again; makers who would have "
    "stepped back stay.",
}
"""What to hold against an assumption, by the word that names it in the sentence."""

_MODES = {
    "backtest": "A backtest: recorded or invented market, simulated fills, virtual time.",
    "sim": "A simulated session: the live code path over sockets, against the simulated exchange.",
    "paper": "Paper: a real market, simulated fills.",
    "live": "Live: real orders, reported by the venue.",
}


class Report(str):
    """A report's HTML; as the last line of a notebook cell it shows itself."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Report of {len(self):,} characters of HTML"

    def _repr_html_(self) -> str:
        """Return the same page in a frame, which keeps its styles and scripts apart from the notebook's."""
        page = html.escape(self, quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:{_FRAME_PX}px;border:1px solid #D5D9DF"></iframe>'


def report(
    rows: RowArray,
    definitions: Definitions,
    path: Path | str | None = None,
    *,
    title: str = "",
    assumptions: str | Sequence[str] = (),
    notes: Sequence[str] = (),
    run_hash: str = "",
) -> Report:
    """Return the report of a session, and write it to `path` if given.

    Parameters
    ----------
    rows : array of ROW
        A whole journal from its first row: of a backtest or a sim, paper or live session.
    definitions : Definitions
    path : Path or str, optional
        Where to write the HTML file.
    title : str
        The strategy's name if empty.
    assumptions : str or sequence of str
        What a simulation assumed, a line or a sentence each (``Result.assumptions``).
    notes : sequence of str
        What else a reader must know before the numbers, such as that the run was stopped early.
    run_hash : str
        The run's identity (``Result.run_hash``); the hash of `rows` if empty.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    pictures = Pictures(rows, definitions)
    figures, earned = _figures(pictures), _earned(pictures)
    executed = execution(rows, definitions) if earned is not None else None
    script, divs = components(figures)
    page = Report(
        _TEMPLATE.render(
            title=title or f"{definitions.strategy.name} · {definitions.session}",
            style=Markup(_CSS),
            bokeh=Markup(inline_scripts(list(figures.values()))),
            script=Markup(script),
            divs={name: Markup(div) for name, div in divs.items()},
            mode=definitions.mode,
            what_mode=_MODES.get(definitions.mode, ""),
            facts=_facts(rows, definitions, pictures.span),
            assumed=_assumed(assumptions),
            lacking=[*notes, *_data_notes(pictures)],
            pnl=_pnl(pictures),
            figures_of=_performance(pictures, earned),
            goals=_goals(pictures, earned, executed),
            traded=_execution(executed),
            orders=_orders(pictures),
            refusals=_refusals(rows),
            faults=_faults(rows),
            fills=_last_fills(pictures),
            fills_n=pictures.fills.height,
            run_hash=run_hash or hash_of(rows),
        )
    )
    if path is not None:
        Path(path).write_text(page, encoding="utf-8")
    return page


def inline_scripts(figures: Sequence[Any]) -> str:
    """Return Bokeh's own scripts that `figures` need, to stand in a page that needs no network.

    Asked for nothing in particular it would add those of every extension that the process has loaded, and Panel's come
    from elsewhere.
    """
    return bundle_for_objs_and_resources(list(figures), Resources(mode="inline")).scripts(tag=True)


def _figures(pictures: Pictures) -> dict[str, Any]:
    """Return what is drawn by its name in the template; all figures over time are linked."""
    shown, time = pictures.busiest[:SHOWN], pictures.time()
    figures: dict[str, Any] = {"overview": pictures.overview(shown[0], time)}
    figures |= {f"trading_{k}": pictures.trading(k, time) for k in shown[1:]}
    figures |= {f"depth_{k}": pictures.depth_map(k, time) for k in shown}
    return figures | {"latencies": pictures.latencies()}


# --- sentences -------------------------------------------------------------------------------------------------------


def _facts(rows: RowArray, definitions: Definitions, span: tuple[int, int]) -> list[tuple[str, str]]:
    strategy, (start, end) = definitions.strategy, span
    params = ", ".join(f"{name}={value!r}" for name, value in strategy.params.items())
    day = str(np.datetime64(start, "ns").astype("datetime64[D]"))
    return [
        ("strategy", f"{strategy.name}({params})" + (f", version {strategy.version}" if strategy.version else "")),
        ("instruments", ", ".join(f"{one.symbol} ({one.venue})" for one in definitions.instruments)),
        ("time", f"{day} {clock_text(start, 3)} to {clock_text(end, 3)} UTC, {_long_span(end - start)}"),
        ("journal", f"{len(rows):,} rows, seed {definitions.seed}"),
    ]


def _long_span(ns: int) -> str:
    """Return a span of time in the two units that matter.

    Examples
    --------
    >>> [_long_span(int(s * 1e9)) for s in (0.25, 95, 3725, 90_000)]
    ['250.0 ms', '1 min 35 s', '1 h 2 min', '1 d 1 h']
    """
    seconds = ns // 1_000_000_000
    if seconds < 60:
        return span_words(ns)
    for large, small, size, part in (("d", "h", 86_400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if seconds >= size:
            return f"{seconds // size:,} {large} {seconds % size // part} {small}"
    raise AssertionError(seconds)


def _assumed(assumptions: str | Sequence[str]) -> list[tuple[str, str]]:
    """Return each assumption with when it is wrong."""
    given = re.split(r"[;\n]", assumptions) if isinstance(assumptions, str) else list(assumptions)
    sentences = [one.strip() for one in given if one.strip()]
    return [(one, " ".join(text for word, text in CAVEATS.items() if word in one)) for one in sentences]


def _data_notes(pictures: Pictures) -> list[str]:
    """Return what the market data lacked, a sentence each; empty if nothing was found."""
    rows, notes = pictures.rows, []
    is_market = np.isin(rows["kind"], _MARKET)
    for one in pictures.definitions.instruments:
        mine, name = rows["instrument"] == one.id, pictures.name(one.id)
        ts = rows["ts_recv"][is_market & mine]
        if not len(ts):
            notes.append(f"{name}: no market data at all.")
            continue
        silent = np.diff(np.maximum.accumulate(ts))
        holes = silent[silent > _SILENCE_NS]
        if len(holes):
            at = clock_text(int(ts[int(silent.argmax())]), 3)
            notes.append(
                f"{name}: {_count(len(holes), 'silence')} longer than {_long_span(_SILENCE_NS)}, "
                f"{_long_span(int(holes.sum()))} in all; the longest, {_long_span(int(silent.max()))}, from {at} UTC."
            )
        states = rows["code"][mine & (rows["kind"] == Kind.BOOK_STATE)]
        for state in (BookState.STALE, BookState.RESYNCING, BookState.CROSSED):
            if n := int((states == state).sum()):
                notes.append(f"{name}: the book was {state.name.lower()} {_count(n, 'time')}.")
    return notes


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def _faults(rows: RowArray) -> list[str]:
    """Return the texts of the journal: a failed callback's traceback, a note."""
    texts = []
    for at in np.flatnonzero(rows["kind"] == Kind.TEXT)[:_MOST_FAULTS].tolist():
        payload = rows[at + 1 : at + 1 + int(rows["span"][at])]
        texts.append(f"{clock_text(int(rows['ts_recv'][at]))} {payload_bytes(payload).decode(errors='replace')}")
    return texts


def _refusals(rows: RowArray) -> list[tuple[str, str]]:
    """Return how often risk refused an order, by reason, most first."""
    refused = rows[rows["kind"] == Kind.REFUSED]
    counts: dict[str, int] = {}
    for code, n in zip(refused["code"].tolist(), refused["a"].tolist(), strict=True):
        name = Reason(code).name.lower() if code in Reason.__members__.values() else f"reason {code}"
        counts[name] = counts.get(name, 0) + max(1, n)
    return [(name, f"{n:,}") for name, n in sorted(counts.items(), key=lambda pair: -pair[1])]


def _pnl(pictures: Pictures) -> list[list[str]]:
    """Return position and P&L of each instrument at the end, as text."""
    frame = pnl_frame(pictures.replica)
    counts = np.bincount(pictures.fills["instrument"], minlength=len(pictures.definitions.instruments)).tolist()
    lines = []
    for one, line in zip(pictures.definitions.instruments, frame.iter_rows(named=True), strict=True):
        money = [amount(line[name]) for name in ("realized", "unrealized", "fees", "net")]
        lines.append([pictures.name(one.id), f"{counts[one.id]:,}", amount(line["position"]), *money, one.quote])
    return lines


def _earned(pictures: Pictures) -> Performance | None:
    """Return the session's performance; None if it is quoted in several assets, whose amounts are not added."""
    quotes = {one.quote for one in pictures.definitions.instruments}
    return performance(pictures.rows, pictures.definitions, _INTERVAL) if len(quotes) == 1 else None


def _goals(pictures: Pictures, earned: Performance | None, executed: Execution | None) -> list[list[str]]:
    """Return the key figures with their goals: name, value, goal, verdict, why."""
    if earned is None:
        return []
    frame = kpi_frame(pictures.rows, pictures.definitions, _INTERVAL, earned=earned, executed=executed)
    return [[n.replace("_", " "), amount(value), goal, verdict, why] for n, value, goal, verdict, why in frame.rows()]


def _performance(pictures: Pictures, told: Performance | None) -> tuple[list[list[str]], list[str]]:
    """Return the figures of `hftlab.analysis.performance`, a line each, and why some are missing."""
    if told is None:
        assets = ", ".join(sorted({one.quote for one in pictures.definitions.instruments}))
        return [], [f"Quoted in {assets}: amounts of several assets are not added, so there are no ratios and goals."]
    every = f"of changes every {_INTERVAL}, annualised by the root of {told.per_year:,.0f}"
    interval = f"95 %: {amount(told.sharpe_low)} to {amount(told.sharpe_high)}; {every}"
    lines = [
        ["gross", amount(told.gross), f"{told.asset}, before fees"],
        ["net", amount(told.net), f"{told.asset}, after {amount(told.fees)} of fees"],
        ["drawdown", amount(told.drawdown), f"{told.asset}; {amount(told.drawdown_s)} s below a high at the longest"],
        ["Sharpe ratio", amount(told.sharpe), interval],
        ["Sortino ratio", amount(told.sortino), every],
        ["probability", amount(told.probabilistic_sharpe), "that the true Sharpe ratio is above 0"],
        ["hit rate", amount(told.hit_rate), "share of closed round trips that earned, before fees"],
        ["turnover", amount(told.turnover), f"{told.asset}; cost {amount(100 * told.cost_share)} % of it"],
        ["inventory", amount(told.inventory), f"{told.asset} on average, {amount(told.inventory_most)} at most"],
        ["holding time", amount(told.holding_s), "s from a position's opening to its end, on average"],
    ]
    return lines, list(told.notes)


def _execution(told: Execution | None) -> tuple[list[list[str]], list[str]]:
    """Return the figures of `hftlab.analysis.execution`, a line each, and why some are missing."""
    if told is None:
        return [], []
    lines = [
        ["passive filled", amount(100 * told.fill_rate_passive), "% on average of what was asked for"],
        ["marketable filled", amount(100 * told.fill_rate_marketable), "% on average of what was asked for"],
        ["half filled within", amount(told.half_life_s), "s, of the passive orders"],
        ["slippage", amount(told.slippage_bps), "bp of notional, above 0 is cost"],
        ["shortfall", amount(told.shortfall_bps), "bp of notional, what was not filled included"],
        ["effective spread", amount(told.effective_spread_bps), "bp, above 0 was earned"],
    ]
    for horizon, bps in told.markout_bps.items():
        lines.append([f"markout {horizon}", amount(bps), "bp, above 0 is good for us"])
    return lines, list(told.notes)


def _orders(pictures: Pictures) -> list[tuple[str, str]]:
    """Return how many orders ended in each state, most first."""
    states = pictures.log.orders(pictures.replica)["status"].value_counts(sort=True)
    return [(status, f"{n:,}") for status, n in states.iter_rows()]


# --- tables ----------------------------------------------------------------------------------------------------------


def amount(value: float | None, digits: int = 4) -> str:
    """Return a number to so many significant digits, all of those before its point and 8 behind it at most.

    Missing is a dash.

    Examples
    --------
    >>> [amount(v) for v in (0.0, -0.00123456, 1.5, 123456.7, float("nan"), None)]
    ['0', '-0.001235', '1.500', '123,457', '-', '-']
    >>> amount(3e-12)
    '0'
    """
    if value is None or not math.isfinite(value):
        return "-"
    if abs(value) < 5e-9:
        return "0"
    return f"{value:,.{min(8, max(0, digits - 1 - math.floor(math.log10(abs(value)))))}f}"


def _last_fills(pictures: Pictures) -> list[list[str]]:
    """Return the last fills, newest first, as text, each with the time when it was told."""
    last = pictures.fills.tail(_LAST_FILLS).reverse()
    lines = []
    for line in last.iter_rows(named=True):
        one = pictures.definitions.instruments[line["instrument"]]
        px = f"{one.px(line['px_ticks']):,.{decimals(one.tick_size)}f}"
        qty = f"{one.qty(line['qty_lots']):,.{decimals(one.lot_size)}f}"
        role = "maker" if line["maker"] else "taker"
        lines.append([
            clock_text(line["told"], 9), pictures.name(one.id), line["side"], px, qty, role,
            amount(line["fee"]), line["fee_asset"] or "", str(line["cl_ord_id"]), f"{line['seq']:,}",
        ])  # fmt: skip
    return lines


_CSS = f"""
body {{ margin: 0 auto; padding: 18px 24px 40px; max-width: 1500px; background: #FFFFFF; color: {INK};
  font: 13px/19px 'DejaVu Sans', Verdana, 'Segoe UI', sans-serif; font-variant-numeric: tabular-nums; }}
h1 {{ font-size: 20px; line-height: 28px; margin: 0 0 2px; }}
h2 {{ font-size: 14px; margin: 26px 0 6px; padding-bottom: 3px; border-bottom: 1px solid #D5D9DF; }}
h2 i {{ font-style: normal; font-weight: normal; color: {GREY}; float: right; }}
p {{ margin: 4px 0; max-width: 78em; }}
.u {{ color: {GREY}; }}
table {{ border-collapse: collapse; }}
table + table {{ margin-top: 12px; }}
td, th {{ padding: 2px 18px 2px 0; text-align: right; vertical-align: top; font-weight: normal; white-space: nowrap; }}
th {{ color: {GREY}; border-bottom: 1px solid #D5D9DF; }}
td:first-child, th:first-child, td.t, th.t {{ text-align: left; }}
td.t {{ white-space: normal; max-width: 70em; }}
tbody tr:nth-child(even) {{ background: #F7F8FA; }}
.badge {{ border: 1.5px solid currentColor; padding: 0 6px; font-weight: bold; font-size: 12px; }}
.warn {{ color: {WARN}; }}
.pass {{ color: {BID}; }} .fail {{ color: {ASK}; }} .unknown {{ color: {GREY}; }}
.live {{ color: {HALT}; }}
.cols {{ display: flex; flex-wrap: wrap; gap: 10px 56px; }}
pre {{ font: 11px/15px 'DejaVu Sans Mono', Menlo, Consolas, monospace; white-space: pre-wrap; }}
.scroll {{ max-height: 420px; overflow: auto; }}
@media print {{ .scroll {{ max-height: none; }} }}
"""

_TEMPLATE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ title }} · hftlab report</title>
<link rel="icon" href="data:,">
<style>{{ style }}</style>
{{ bokeh }}
</head>
<body>
{% macro table(head, lines) %}
<table><thead><tr>{% for one in head %}<th>{{ one }}</th>{% endfor %}</tr></thead><tbody>
{% for line in lines %}
<tr>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table>
{% endmacro %}
<h1>{{ title }} <span class="badge {{ mode }}">{{ mode|upper }}</span></h1>
<p class="u">{{ what_mode }}</p>
<table><tbody>
{% for name, text in facts %}
<tr><td class="u">{{ name }}</td><td class="t">{{ text }}</td></tr>
{% endfor %}
</tbody></table>

<h2>What is assumed <i>and when that is wrong</i></h2>
{% if assumed %}
<table><thead><tr><th class="t">assumption</th><th class="t">wrong, because</th></tr></thead><tbody>
{% for sentence, wrong in assumed %}
<tr><td class="t">{{ sentence }}</td><td class="t">{{ wrong or "-" }}</td></tr>
{% endfor %}
</tbody></table>
{% elif mode == "backtest" or mode == "sim" %}
<p class="warn">▲ The assumptions of this simulation were not given to the report: do not believe its numbers yet.</p>
{% else %}
<p>None about the market. The figures below mark open positions at the mid.</p>
{% endif %}
{% for note in lacking %}
<p class="warn">▲ {{ note }}</p>
{% else %}
<p class="u">The market data has no silence longer than 5 s and no doubtful book.</p>
{% endfor %}

{% if goals %}
<h2>Goals <i>unknown is no pass</i></h2>
<table><thead><tr>
<th>figure</th><th>value</th><th>goal</th><th class="t">verdict</th><th class="t">why</th>
</tr></thead><tbody>
{% for name, value, goal, verdict, why in goals %}
<tr><td>{{ name }}</td><td>{{ value }}</td><td>{{ goal }}</td>
<td class="t {{ verdict }}">{{ {"pass": "●", "fail": "▲"}.get(verdict, "○") }} {{ verdict }}</td>
<td class="t">{{ why }}</td></tr>
{% endfor %}
</tbody></table>
{% endif %}

<h2>What it earned <i>open positions at the mid</i></h2>
{{ table(["instrument", "fills", "position", "realized", "unrealized", "fees", "net", "in"], pnl) }}

{% if figures_of[0] %}
<table><tbody>
{% for name, figure, meaning in figures_of[0] %}
<tr><td>{{ name }}</td><td>{{ figure }}</td><td class="t">{{ meaning }}</td></tr>
{% endfor %}
</tbody></table>
{% endif %}
{% for note in figures_of[1] %}<p class="u">{{ note }}</p>{% endfor %}

{% if traded[0] %}
<h2>How it traded <i>weighted by notional</i></h2>
<table><tbody>
{% for name, figure, meaning in traded[0] %}
<tr><td>{{ name }}</td><td>{{ figure }}</td><td class="t">{{ meaning }}</td></tr>
{% endfor %}
</tbody></table>
{% for note in traded[1] %}<p class="u">{{ note }}</p>{% endfor %}
{% endif %}

<h2>Pictures <i>drag to zoom, hover a fill to see its book, tap to keep it</i></h2>
{{ divs["overview"] }}

{% for name, div in divs.items() if name.startswith("trading") %}
{{ div }}
{% endfor %}

<h2>Depth <i>what rested at each price</i></h2>
{% for name, div in divs.items() if name.startswith("depth") %}
{{ div }}
{% endfor %}

<h2>Waiting <i>for the first answer, for the first fill</i></h2>
{{ divs["latencies"] }}

<div class="cols">
<div><h2>Orders by their end</h2>
{% if orders %}{{ table(["state", "orders"], orders) }}{% else %}<p class="u">No order was sent.</p>{% endif %}
</div>
<div><h2>Refused by risk</h2>
{% if refusals %}{{ table(["reason", "orders"], refusals) }}{% else %}<p class="u">No order was refused.</p>{% endif %}
</div>
</div>

{% if faults %}
<h2>Faults and notes</h2>
{% for text in faults %}<pre>{{ text }}</pre>{% endfor %}
{% endif %}

<h2>Last fills <i>{{ fills|length }} of {{ "{:,}".format(fills_n) }}; when they were told, UTC</i></h2>
{% if fills %}
<div class="scroll">
{{ table(["time", "symbol", "side", "price", "quantity", "role", "fee", "asset", "order", "row"], fills) }}
</div>
{% else %}<p class="u">No fill.</p>{% endif %}

<h2>Identity</h2>
<p>Hash of the rows: <code>{{ run_hash }}</code>. The same strategy, data, parameters and seed give the same hash.</p>
{{ script }}
</body>
</html>
""")
