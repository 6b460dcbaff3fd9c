"""What a strategy may be, in which words it is refused, and that both forms see the same."""

from __future__ import annotations

import inspect
import linecache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hftlab.core.errors import ConfigError, StrategyError
from hftlab.core.rows import ROW, Flag, Kind, RowArray, join_rows, new_rows
from hftlab.strategy import (
    BUY,
    NO_PX,
    Compiled,
    Context,
    PythonStrategy,
    Strategy,
    counted_loops,
    counted_method,
    load_strategy,
    record,
    source_of,
    view_class,
)


def cell(source: str, number: int = 1) -> dict[str, Any]:
    """Return the names that a notebook cell defines, its lines in linecache as IPython keeps them."""
    name = f"<cell-{number}-{abs(hash(source))}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, name, "exec"), space)
    return space


HEAD = "from hftlab.strategy import *\n"


def strategy_of(body: str, state: str = "n=0, x=0.5, list=[0] * 4", params: str = "size=3, weights=[1.0, 2.0]") -> Any:
    """Return a Strategy class whose on_trade is `body`."""
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    source = (
        f"{HEAD}class Trial(Strategy):\n    params = record({params})\n    state = record({state})\n"
        f"    def on_trade(ctx, state, params, event):\n{lines}"
    )
    return cell(source)["Trial"]


def trade(**fields: int) -> RowArray:
    rows = new_rows(1)
    rows["kind"], rows["ts_recv"] = Kind.TRADE, 5
    for name, value in fields.items():
        rows[name] = value
    return rows


def both(strategy: Any, rows: RowArray | None = None) -> tuple[Any, Any]:
    """Return the engines of the compiled and the plain form after a start and `rows`, and compare what they wrote."""
    from decimal import Decimal

    from hftlab.core.definitions import Definitions, Limits, StrategyRef
    from hftlab.core.instruments import Instrument
    from hftlab.engine import Engine, RowBuffer, control_row

    of = Definitions(
        "t", "sim", (Instrument(0, "v", "S", Decimal(1), Decimal(1)),), (Limits(1, 1, 1, 1),), StrategyRef("Trial", "")
    )
    engines, wrote = [], []
    for compiled in (True, False):
        engine, sink = Engine(of, strategy(compiled=compiled)), RowBuffer()
        engine.process(join_rows([control_row("start", 1), rows if rows is not None else trade(px=7, qty=2)]), sink)
        engines.append(engine)
        wrote.append(sink.rows().tobytes())
    assert wrote[0] == wrote[1]
    return engines[0], engines[1]


# --- shape -----------------------------------------------------------------------------------------------------------


def test_a_misspelled_callback_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"Odd\.on_boook: no such callback; there are on_start, on_book"):
        type("Odd", (Strategy,), {"on_boook": lambda ctx, state, params, event: None})


def test_a_callback_of_the_wrong_arity_is_told_what_to_take() -> None:
    with pytest.raises(ConfigError, match=r"on_book takes 3 arguments; expected \(ctx, state, params, event\)"):
        type("Odd", (Strategy,), {"on_book": lambda self, ctx, event: None})
    with pytest.raises(ConfigError, match=r"on_book takes 4 arguments; expected \(self, ctx, event\)"):
        type("Odd", (PythonStrategy,), {"on_book": lambda ctx, state, params, event: None})


@pytest.mark.parametrize("name", ["params", "state"])
def test_params_and_state_must_be_records(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"Odd\.{name} is \{{'a': 1\}}; expected record"):
        type("Odd", (Strategy,), {name: {"a": 1}})


@pytest.mark.parametrize(
    "value", ["text", None, [[1, 2], [3, 4]], [[1], [2, 3]], [], 2**63, 2**70, {"a": 1}, 1j, ["a"], [1, None]]
)
def test_a_record_holds_numbers_and_flat_lists_of_them_only(value: Any) -> None:
    with pytest.raises(ConfigError, match="record: a="):
        record(a=value)


@pytest.mark.parametrize("name", ["_a", "compiled"])
def test_names_that_mean_something_else_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"record: {name} is not free"):
        record(**{name: 1})


def test_a_record_is_bounded() -> None:
    with pytest.raises(ConfigError, match="at most 65536"):
        record(a=[0] * 10_000)


@pytest.mark.parametrize(
    "given,words",
    [
        ({"sise": 4}, "no parameter 'sise'; there are size, edge, ladder"),
        ({"size": 4.0}, "size=4.0; expected an integer of 64 bits"),
        ({"size": "4"}, "size='4'; expected an integer"),
        ({"size": 2**63}, "expected an integer of 64 bits"),
        ({"size": [4]}, "expected an integer"),
        ({"edge": None}, "edge=None; expected a number"),
        ({"ladder": [1]}, "expected 2 values, each an integer"),
        ({"ladder": 1}, "expected 2 values"),
        ({"ladder": [1.5, 2]}, "expected 2 values, each an integer"),
    ],
)
def test_parameters_of_the_wrong_name_or_kind_are_told_so(given: dict[str, Any], words: str) -> None:
    class Plain(Strategy):
        params = record(size=1, edge=0.5, ladder=[1, 2])

    with pytest.raises(ConfigError, match=words):
        Plain(**given)


def test_parameters_are_kept_in_plain_types() -> None:
    class Plain(Strategy):
        params = record(size=1, edge=0.5, ladder=[1, 2])

    made = Plain(size=np.int64(4), edge=2, ladder=(3, 4), compiled=False)
    assert made.param_values() == {"size": 4, "edge": 2.0, "ladder": [3, 4]}
    assert made.chosen == {"size": 4, "edge": 2.0, "ladder": [3, 4]}
    assert type(made.chosen["size"]) is int
    assert repr(made) == "Plain(size=4, edge=2.0, ladder=[3, 4], compiled=False)"


# --- reading and writing ---------------------------------------------------------------------------------------------


def test_fields_that_share_a_name_with_the_machinery_work() -> None:
    trial = strategy_of(
        "state.q += 1\nstate.f[1] = state.q\nstate.words = 3\nstate.array_f = 4",
        "q=0, f=[0.0, 0.0], words=0, array_f=0",
    )
    left, right = both(trial)
    assert left._state.tobytes() == right._state.tobytes()
    assert left._state.view(np.int64).tolist()[0] == 1


def test_an_event_reads_the_same_in_both_forms_whatever_its_bits() -> None:
    body = "\n".join(
        f"ctx.note({k}, event.{name} - 3, -event.{name})"
        for k, name in enumerate(["seq", "source", "kind", "span", "ts_recv", "ts_event", "instrument", "flags", "code",
                                  "px", "qty", "a", "b"])
    ) + "\nstate.x = event.f2 + event.f3"  # fmt: skip
    rows = trade(a=2**62 - 1, b=2**63 - 4, px=-5, qty=5, flags=0xFFF3, code=0xFFFF, source=0xFFFF, ts_event=17)
    compiled, plain = both(strategy_of(body), rows)
    assert compiled._state.tobytes() == plain._state.tobytes()
    assert not compiled.faults and not plain.faults


def test_an_event_hides_the_marks_that_differ_between_run_and_replay() -> None:
    body = "ctx.note(1, event.flags, event.seq)"
    rows = trade(flags=int(Flag.BID | Flag.COMMIT | Flag.OUTPUT), seq=999)
    compiled, _ = both(strategy_of(body), rows)
    assert not compiled.faults


@pytest.mark.parametrize(
    "line,words",
    [
        ("event.px = 5", "event is for reading"),
        ("params.size = 5", "params is for reading"),
        ("params.weights[0] = 5.0", "Cannot modify readonly array"),
        ("ctx.now_ns = 5", "ctx is for reading"),
        ("state.list = params.weights", "set its items"),
        ("state.n = 1.5", "holds integers and is given a float"),
        ("state.n += 0.5", "holds integers and is given a float"),
        ("state.list[1] = state.x", "holds integers and is given a float"),
        ("ctx.submit(0, BUY, 100.5, 1)", "px is a float64; expected an integer"),
        ("ctx.submit(0, BUY, 100, qty=state.x)", "qty is a float64; expected an integer"),
        ("ctx.best_bid(0.0)", "key is a float64"),
        ("ctx.submit(0, BUY)", "missing a required argument"),
        ("ctx.note(1, why=2)", "unexpected keyword argument"),
        ("ctx.random(1)", "too many positional arguments"),
        ("state.missing = 1", "missing"),
        ("state.n = event.nothing", "nothing"),
        ("ctx.sell_everything()", "sell_everything"),
        ("state.n = 'text'", "Cannot cast"),
        ("import os", "IMPORT_NAME"),
        ("ctx.arena = 0", "arena"),
        ("state.n = ctx.host", "host"),
    ],
)
def test_a_wrong_line_does_not_compile_and_is_named_and_fails_in_plain_python(line: str, words: str) -> None:
    from hftlab.engine import Engine

    trial = strategy_of(f"state.n = 1\n{line}")
    with pytest.raises(StrategyError, match=r"Trial\.on_trade does not compile") as told:
        Compiled(trial)
    assert words in str(told.value)
    assert str(told.value).endswith(f"line 7\n    {line}")
    if line == "import os":
        return
    from decimal import Decimal

    from hftlab.core.definitions import Definitions, Limits, StrategyRef
    from hftlab.core.instruments import Instrument
    from hftlab.engine import RowBuffer, control_row

    of = Definitions(
        "t", "sim", (Instrument(0, "v", "S", Decimal(1), Decimal(1)),), (Limits(1, 1, 1, 1),), StrategyRef("Trial", "")
    )
    engine = Engine(of, trial(compiled=False))
    rows = join_rows([control_row("start", 1), trade(px=7)])
    before = rows.tobytes()
    engine.process(rows, RowBuffer())
    assert engine.faults and line in engine.faults[0].traceback
    assert rows.tobytes() == before


def test_both_forms_of_ctx_take_the_same_arguments_by_name() -> None:
    """Each method that plain Python has, with every argument named, and with its defaults left out."""
    asked = {
        name: list(inspect.signature(method).parameters.values())[1:]
        for name, method in vars(Context).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }
    assert len(asked) >= 20
    lines = []
    for name, parameters in asked.items():
        lines.append(f"ctx.{name}({', '.join(f'{p.name}=state.n' for p in parameters)})")
        lines.append(f"ctx.{name}({', '.join('state.n' for p in parameters if p.default is p.empty)})")
    trial = strategy_of("\n".join(lines))
    assert set(Compiled(trial).addresses) == {"on_trade"}


def test_a_python_strategy_may_keep_what_it_saw() -> None:
    class Keeps(PythonStrategy):
        def __init__(self) -> None:
            super().__init__()
            self.raw: list[bytes] = []

        def on_trade(self, ctx: Any, event: Any) -> None:
            self.raw.append(event.raw)
            with pytest.raises(AttributeError):
                event.px = 1

    keeps = Keeps()

    def make(compiled: bool) -> Any:
        return keeps

    both(make)
    assert len(keeps.raw) == 2
    assert np.frombuffer(keeps.raw[0], ROW)["px"][0] == 7


def test_a_view_over_read_only_memory_refuses_every_write() -> None:
    view = view_class(record(n=1, list=[1, 2]).dtype, "View")(memoryview(bytes(24)))
    for write in (lambda: setattr(view, "n", 1), lambda: view.list.__setitem__(0, 1)):
        with pytest.raises(TypeError):
            write()


# --- loops -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "while True:\n    pass",
        "for i in range(10**12):\n    state.n = i",
        "for i in range(10**4):\n    for j in range(10**4):\n        pass",
        "n = 0\nwhile n < 10:\n    if n >= 0:\n        continue",
        "for i in range(3):\n    pass\nelse:\n    while 1:\n        pass",
    ],
)
def test_a_loop_that_does_not_end_is_ended(body: str) -> None:
    compiled, plain = both(strategy_of(body))
    for engine in (compiled, plain):
        assert "1,000,000 turns" in engine.faults[0].traceback


def test_loops_that_end_count_for_nothing() -> None:
    trial = strategy_of("for k in range(1000):\n    state.n += k\nstate.n += sum([k for k in range(10)])")
    compiled, plain = both(trial, join_rows([trade()] * 1500))
    assert not compiled.faults and not plain.faults
    assert compiled._state.tobytes() == plain._state.tobytes()


def test_refusals_are_told_alike_by_both_forms() -> None:
    compiled, plain = both(strategy_of("for k in range(1000):\n    ctx.submit(0, 1 + k % 2, 5, 1 + k % 3, 1)"))
    assert compiled.counters() == plain.counters()
    assert compiled.counters()["refusals"] == 1000


class Base(PythonStrategy):
    def on_trade(self, ctx: Any, event: Any) -> None:
        self.base = event.px


def test_counting_the_turns_of_a_python_strategy_leaves_python_as_it_is() -> None:
    calls = 0

    class Free(Base):
        seen: int

        def on_trade(self, _: Any, event: Any = None) -> None:
            """Loops over everything: its closure, its private names, its base."""
            nonlocal calls
            for _ in range(3):
                calls += 2
                self.__hidden = Free.__name__

            def inner(ctx: int) -> int:
                while ctx < 5:
                    ctx += 1
                return ctx

            self.seen = inner(2)
            super().on_trade(_, event)

    free = Free()
    counted = counted_method(free.on_trade)
    assert counted.__self__ is free and counted.__func__.__code__ is not Free.on_trade.__code__  # type: ignore[attr-defined]
    engines = both(lambda compiled: free)
    assert calls == 12 and not engines[0].faults
    assert (free.base, free.seen, free._Free__hidden) == (7, 5, "Free")  # type: ignore[attr-defined]


def test_a_python_callback_that_cannot_be_read_or_is_decorated_runs_as_it_is() -> None:
    import functools

    def twice(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(self: Any, ctx: Any, event: Any) -> None:
            function(self, ctx, event)
            function(self, ctx, event)

        return wrapper

    class Odd(PythonStrategy):
        n = 0

        @twice
        def on_trade(self, ctx: Any, event: Any) -> None:
            for _ in range(3):
                self.n += 1

    space: dict[str, Any] = {"PythonStrategy": PythonStrategy}
    exec(
        "class Made(PythonStrategy):\n    n = 0\n    def on_trade(self, ctx, event):\n"
        "        for _ in range(6):\n            self.n += 1\n",
        space,
    )
    for odd in (Odd(), space["Made"]()):
        both(lambda compiled, odd=odd: odd)
        assert odd.n == 12


@pytest.mark.parametrize(
    "body",
    [
        "while True:\n    pass",
        "for _ in iter(int, 1):\n    pass",
        "while True:\n    try:\n        1 / 0\n    except Exception:\n        pass",
    ],
)
def test_a_python_strategy_that_does_not_end_is_ended(body: str) -> None:
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    source = f"{HEAD}class Trial(PythonStrategy):\n    def on_trade(self, ctx, event):\n{lines}"
    trial = cell(source)["Trial"]
    engine, _ = both(lambda compiled: trial())
    assert "200,000 turns" in engine.faults[0].traceback
    assert body.splitlines()[0] in engine.faults[0].traceback


def test_comments_and_strings_at_the_margin_do_not_matter() -> None:
    source = (
        f"{HEAD}class Trial(Strategy):\n    state = record(n=0)\n    def on_trade(ctx, state, params, event):\n"
        "# a comment at the margin\n        for k in range(3):\n            state.n += 1\n"
    )
    compiled, _ = both(cell(source)["Trial"])
    assert compiled._state.view(np.int64).tolist() == [3]


def test_values_from_outside_are_seen_by_both_forms_and_by_the_next_engine() -> None:
    def made(step: int) -> Any:
        class Closed(Strategy):
            state = record(n=0)

            def on_trade(ctx, state, params, event):
                for _ in range(2):
                    state.n += step

        return Closed

    for step in (3, 4):
        compiled, plain = both(made(step))
        assert compiled._state.tobytes() == plain._state.tobytes() == np.int64(2 * step).tobytes()
    space = cell(f"{HEAD}STEP = 5\nclass Trial(Strategy):\n    state = record(n=0)\n"
                 "    def on_trade(ctx, state, params, event):\n        state.n += STEP\n")  # fmt: skip
    for step in (5, 6):
        space["STEP"] = step
        compiled, plain = both(space["Trial"])
        assert compiled._state.tobytes() == plain._state.tobytes() == np.int64(step).tobytes()


def test_a_class_compiles_once_whatever_its_parameters() -> None:
    trial = strategy_of("state.n += params.size")
    assert Compiled.of(trial) is Compiled.of(trial)


def test_a_callback_without_source_or_def_is_refused() -> None:
    space: dict[str, Any] = {}
    exec("def on_trade(ctx, state, params, event):\n    pass\n", space)
    with pytest.raises(StrategyError, match="its source cannot be read"):
        counted_loops(space["on_trade"])
    source = f"{HEAD}on_trade = lambda ctx, state, params, event: None\n"
    with pytest.raises(StrategyError, match="written with def"):
        counted_loops(cell(source)["on_trade"])


# --- sources ---------------------------------------------------------------------------------------------------------

CELL = f"""{HEAD}
STEP = 2

class Quote(Strategy):
    params = record(size=1)
    state = record(n=0)

    def on_trade(ctx, state, params, event):
        while state.n % 7 != 6:
            state.n += 1
        ctx.note(1, state.n * STEP, params.size)
"""


def test_a_strategy_of_a_cell_goes_to_another_process_and_comes_back() -> None:
    first = cell(CELL)["Quote"]
    assert source_of(first) == source_of(first(size=2)) == CELL
    again = load_strategy(source_of(first), "Quote", {"size": 4})
    assert isinstance(again, Strategy)
    assert source_of(again) == CELL
    assert again.param_values() == {"size": 4}
    left, _ = both(first)
    right, _ = both(type(again))
    assert left._state.tobytes() == right._state.tobytes()
    plain = load_strategy(CELL, "Quote", {}, compiled=False)
    assert plain.compiled is False


def test_a_strategy_of_a_file_has_the_whole_file_as_source(tmp_path: Path) -> None:
    from hftlab.strategies import maker

    assert source_of(maker.Maker) == Path(maker.__file__).read_text()


def test_a_source_that_fails_or_lacks_the_class_is_told_so() -> None:
    with pytest.raises(StrategyError, match="Quote: its source fails with ZeroDivisionError"):
        load_strategy("1 / 0", "Quote", {})
    with pytest.raises(StrategyError, match="its source fails with SyntaxError"):
        load_strategy("class", "Quote", {})
    with pytest.raises(StrategyError, match="defines no strategy of that name"):
        load_strategy("Quote = 5", "Quote", {})
    with pytest.raises(ConfigError, match="no parameter 'sise'"):
        load_strategy(CELL, "Quote", {"sise": 1})


def test_a_class_without_callbacks_or_source_has_no_source() -> None:
    with pytest.raises(StrategyError, match="defines no callback"):
        source_of(type("Empty", (Strategy,), {}))
    space: dict[str, Any] = {"Strategy": Strategy}
    exec("class Made(Strategy):\n    def on_book(ctx, state, params, event):\n        pass\n", space)
    with pytest.raises(StrategyError, match="its source cannot be read"):
        source_of(space["Made"])


def test_words_of_the_strategy_keep_their_values() -> None:
    assert (BUY, NO_PX) == (1, -(2**62))
