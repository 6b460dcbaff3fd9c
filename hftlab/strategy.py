"""The strategy: one source, two forms.

A strategy is a class whose callbacks are plain functions of ``(ctx, state, params, event)``. They see integers only,
call methods of ``ctx``, and keep what they remember in ``state``, a record of scalars and fixed arrays. That is narrow
enough to compile with numba and wide enough to trade with, and the same functions run as plain Python by a flag:

>>> class Quote(Strategy):
...     params = record(edge_ticks=2, size_lots=5)
...     state = record(bid_id=0)
...     def on_book(ctx, state, params, event):
...         if state.bid_id == 0:
...             px = ctx.best_bid(event.instrument) - params.edge_ticks
...             state.bid_id = ctx.submit(event.instrument, BUY, px, params.size_lots, GTC, POST_ONLY)
>>> Quote(edge_ticks=3).param_values()
{'edge_ticks': 3, 'size_lots': 5}

Compiled callbacks enter the engine by address. ``ctx`` is a pointer to the engine's HOST record; its methods call the
engine's kernels through a table of addresses in that record, so a callback compiles in a fraction of a second whatever
the size of the kernels behind it, and holds no address of its own. Callbacks compile with bounds checks and Python's
error model: an index out of range or a division by zero is an error the engine can see, never silent, never a write
into somebody else's memory.

Every loop in a callback counts its turns, in both forms, by a check compiled into it: a callback that never returns
fails after `hftlab.kernels.loop.TURNS` turns, at the same row in every replay. The callbacks of a `PythonStrategy` are
counted alike, up to `PYTHON_TURNS`. What is not counted: loops inside functions that a callback calls, comprehensions,
callbacks of a `PythonStrategy` whose source cannot be read or that are decorated, and calls that wait (``time.sleep``).
For these the supervisor's watchdog is the net.

``ctx``, ``params`` and ``event`` are for reading: a callback that sets a field of them does not compile, and fails as
plain Python. So does a float where an integer is kept, or a float price: nothing is rounded without a word.

Where compiled and plain Python can differ: integers beyond 64 bits (compiled ones wrap, plain ones raise when stored),
and floating-point results of functions outside +, -, *, /. Decide on integers and both forms are byte-identical.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import inspect
import linecache
import operator
import re
import struct
import traceback
import types as python_types
from collections.abc import Callable
from typing import Any, ClassVar, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate
from numba.extending import infer_getattr, lower_builtin, register_model

from hftlab.core.errors import ConfigError, StrategyError
from hftlab.core.rows import NAT, NO_PX, ROW, BookState, Flag, Side, Tif
from hftlab.kernels import loop, risk
from hftlab.kernels.jit import call_at, function_address, kernel, user_code
from hftlab.kernels.state import CALLBACKS, HOST
from hftlab.kernels.view import AddressModel, ViewType, refuse_cut_floats, viewed_as

__all__ = [
    "ASK",
    "BID",
    "BUY",
    "Compiled",
    "Context",
    "CtxType",
    "DAY",
    "Event",
    "FOK",
    "GTC",
    "IOC",
    "LIVE",
    "MARKET",
    "NO_PX",
    "POST_ONLY",
    "PYTHON_TURNS",
    "PythonStrategy",
    "REDUCE_ONLY",
    "RecordSpec",
    "SELL",
    "Strategy",
    "counted_loops",
    "counted_method",
    "endless_loop",
    "load_strategy",
    "record",
    "source_of",
    "view_class",
]

BUY, SELL = int(Side.BUY), int(Side.SELL)
BID, ASK = int(Flag.BID), int(Flag.ASK)
GTC, IOC, FOK, DAY = int(Tif.GTC), int(Tif.IOC), int(Tif.FOK), int(Tif.DAY)
POST_ONLY, REDUCE_ONLY = int(Flag.POST_ONLY), int(Flag.REDUCE_ONLY)
LIVE = int(BookState.LIVE)
MARKET = NAT
"""As a price in ``ctx.submit``: a market order (IOC or FOK only)."""

PYTHON_TURNS = 200_000
"""Loop turns one callback of a `PythonStrategy` may take: some tens of milliseconds at the least."""

_STATE_BYTES_MAX = 65536
_DEPTH_PX, _DEPTH_QTY, _OPEN_ORDERS = loop.DEPTH_PX, loop.DEPTH_QTY, loop.OPEN_ORDERS


class RecordSpec:
    """Names, types and defaults of a strategy's params or state; made by `record`."""

    def __init__(self, defaults: dict[str, Any]) -> None:
        fields: list[tuple[Any, ...]] = []
        for name, value in defaults.items():
            if name.startswith("_") or name == "compiled":
                raise ConfigError(f"record: {name} is not free; expected another name, without a _ in front")
            array = _as_array(value)
            if array is None or array.dtype.kind not in "bif" or array.ndim > 1 or array.size == 0:
                raise ConfigError(
                    f"record: {name}={value!r}; expected an integer, a float, or a flat list of them (a fixed array)"
                )
            scalar = "<f8" if array.dtype.kind == "f" else "<i8"
            fields.append((name, scalar) if array.ndim == 0 else (name, scalar, array.shape))
        self.defaults = defaults
        self.dtype = np.dtype(fields) if fields else np.dtype([("unused", "<i8")])
        if self.dtype.itemsize > _STATE_BYTES_MAX:
            raise ConfigError(f"record: {self.dtype.itemsize} bytes; at most {_STATE_BYTES_MAX}")

    def values(self, **changed: Any) -> np.ndarray[Any, Any]:
        """Return a one-element record array of the defaults with `changed` put in.

        Raises
        ------
        ConfigError
            If a name is unknown or a value does not have the default's type.
        """
        out = np.zeros(1, self.dtype)
        for name in changed:
            if name not in self.defaults:
                raise ConfigError(f"params: no parameter {name!r}; there are {', '.join(self.defaults) or 'none'}")
        for name, default in self.defaults.items():
            given, model = _as_array(changed.get(name, default)), np.asarray(default)
            allowed = "bif" if model.dtype.kind == "f" else "bi"
            if given is None or given.dtype.kind not in allowed or given.shape != model.shape:
                kind = "a number" if model.dtype.kind == "f" else "an integer of 64 bits"
                of = f"{model.size} values, each {kind}" if model.ndim else kind
                raise ConfigError(f"params: {name}={changed.get(name, default)!r}; expected {of}")
            out[name] = given
        return out


def _as_array(value: Any) -> np.ndarray[Any, Any] | None:
    try:
        return np.asarray(value)
    except ValueError:  # a ragged list
        return None


def record(**defaults: Any) -> RecordSpec:
    """Return a record of named scalars (int, float) and fixed arrays (lists), with their defaults.

    Examples
    --------
    >>> record(n=0, weights=[0.0] * 3).dtype.itemsize
    32
    """
    return RecordSpec(defaults)


class Strategy:
    """Base of strategies that run compiled or as plain Python from one source.

    Subclasses define ``params`` and ``state`` (see `record`) and any of the callbacks ``on_start, on_book, on_trade,
    on_execution, on_timer, on_gap, on_stop``, each a function of ``(ctx, state, params, event)`` without self. An
    absent callback costs nothing.

    Parameters
    ----------
    compiled : bool
        False runs the callbacks as plain Python: slower by some 300 times, the same rows.
    **params
        Values for the class's params.
    """

    params: ClassVar[RecordSpec] = record()
    state: ClassVar[RecordSpec] = record()
    _compiled_forms: ClassVar[dict[Any, Compiled]]

    def __init__(self, *, compiled: bool = True, **params: Any) -> None:
        self.compiled = compiled
        self.param_record = self.params.values(**params)
        self.chosen = {name: self.param_record[name][0].tolist() for name in params}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("params", "state"):
            if not isinstance(getattr(cls, name), RecordSpec):
                given = getattr(cls, name)
                raise ConfigError(f"{cls.__name__}.{name} is {given!r}; expected record(name=default, ...)")
        _check_callbacks(cls, 4)

    @classmethod
    def callbacks(cls) -> dict[str, Callable[..., None]]:
        """Return the callbacks the class defines, by name."""
        return {name: getattr(cls, name) for name in CALLBACKS if hasattr(cls, name)}

    def param_values(self) -> dict[str, Any]:
        """Return every parameter with its value, in plain types."""
        return {name: self.param_record[name][0].tolist() for name in self.params.defaults}

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v}" for k, v in self.param_values().items())
        return f"{type(self).__name__}({values}{'' if self.compiled else ', compiled=False'})"


class PythonStrategy:
    """Base of strategies in free Python: ``self`` may hold anything; callbacks are ``(self, ctx, event)``.

    A class that should survive a restart gives ``snapshot() -> bytes`` and ``restore(bytes)``; without them it starts
    anew and the journal still tells what it did. Sources of chance other than ``ctx.random()`` and time other than
    ``ctx.now_ns`` make its replay differ, and the replay says so. A loop of more than `PYTHON_TURNS` turns in one
    callback is a fault.
    """

    compiled = False

    def __init__(self, **params: Any) -> None:
        self.chosen = params
        for name, value in params.items():
            setattr(self, name, value)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _check_callbacks(cls, 3)

    def param_values(self) -> dict[str, Any]:
        """Return the parameters it was made with; none where its own ``__init__`` does not pass them on."""
        return dict(getattr(self, "chosen", {}))


def _check_callbacks(cls: type, arity: int) -> None:
    for name, value in vars(cls).items():
        if not name.startswith("on_") or not callable(value):
            continue
        if name not in CALLBACKS:
            raise ConfigError(f"{cls.__name__}.{name}: no such callback; there are {', '.join(CALLBACKS)}")
        n = len(inspect.signature(value).parameters)
        if n != arity:
            expected = "(ctx, state, params, event)" if arity == 4 else "(self, ctx, event)"
            raise ConfigError(f"{cls.__name__}.{name} takes {n} arguments; expected {expected}")


# --- sources ---------------------------------------------------------------------------------------------------------


def source_of(strategy: Strategy | PythonStrategy | type) -> str:
    """Return the source of the file or notebook cell that defines a strategy's class.

    The whole file or cell, because that is what another process can run: a strategy's cell holds its own imports and
    the functions it uses.

    Raises
    ------
    StrategyError
        If the source is not to be had (a class made by exec).
    """
    cls = strategy if isinstance(strategy, type) else type(strategy)
    functions = [f for f in vars(cls).values() if isinstance(f, python_types.FunctionType)]
    if not functions:
        raise StrategyError(f"{cls.__name__} defines no callback, so there is nothing to run")
    lines = linecache.getlines(functions[0].__code__.co_filename, functions[0].__globals__)
    if not lines:
        raise StrategyError(f"{cls.__name__}: its source cannot be read; define it in a file or a notebook cell")
    return "".join(lines)


def load_strategy(
    source: str, name: str, params: dict[str, Any], *, compiled: bool = True
) -> Strategy | PythonStrategy:
    """Return the strategy `name` made from `source`, as another process does.

    Raises
    ------
    StrategyError
        If the source fails or does not define the class.
    """
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    filename = f"<strategy {name} {digest}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    module = python_types.ModuleType(f"hftlab_strategy_{digest}")
    try:
        exec(builtins.compile(source, filename, "exec", dont_inherit=True), module.__dict__)
    except Exception as error:
        raise StrategyError(f"{name}: its source fails with {type(error).__name__}: {error}") from error
    cls = module.__dict__.get(name)
    if not (isinstance(cls, type) and issubclass(cls, (Strategy, PythonStrategy))):
        raise StrategyError(f"{name}: the source defines no strategy of that name")
    if issubclass(cls, Strategy):
        return cls(compiled=compiled, **params)
    return cls(**params)


def _too_many(turns: int) -> str:
    return f"a loop ran more than {turns:,} turns in one callback: it may never return"


class _CountTurns(ast.NodeTransformer):
    """Put the turn check at the head of every loop. It tells its line, for a traceback where there is no other."""

    def __init__(self, turns: int, shift: int) -> None:
        self.turns, self.shift = turns, shift

    def _visit_loop(self, node: Any) -> Any:
        self.generic_visit(node)
        line = node.lineno + self.shift
        check = f"if _hftlab_ctx.count_turn({line}):\n    raise RuntimeError({_too_many(self.turns)!r})"
        node.body = _placed(check, node) + node.body
        return node

    visit_For = visit_While = _visit_loop


def _placed(source: str, at: ast.stmt) -> list[ast.stmt]:
    """Return statements that count as lying where `at` lies."""
    statements = ast.parse(source).body
    for statement in statements:
        for child in ast.walk(statement):
            ast.copy_location(child, at)
    return statements


def _definition(source: str) -> tuple[ast.stmt, int]:
    """Return the first statement of an indented piece of source, and the number its first line got.

    Not dedented, because a comment or a long string at the left margin would defeat that: put into a block instead.
    """
    if source[:1].isspace():
        block = ast.parse("if True:\n" + source).body[0]
        assert isinstance(block, ast.If)
        return block.body[0], 2
    return ast.parse(source).body[0], 1


def counted_loops(
    function: Callable[..., None], *, ctx: int = 0, turns: int = loop.TURNS
) -> Callable[..., None]:
    """Return `function` with turn checks in its loops, keeping its file and lines; unchanged if it has no loop.

    Parameters
    ----------
    function : function
    ctx : int
        Which of its arguments is ``ctx``.
    turns : int
        The limit that its error names; the engine sets the count.

    Raises
    ------
    StrategyError
        If its source cannot be read, or is not written with def.
    """
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError) as error:
        raise StrategyError(
            f"{function.__qualname__}: its source cannot be read, so its loops cannot be bounded; "
            "define it in a file or cell"
        ) from error
    definition, before = _definition("".join(lines))
    if not isinstance(definition, ast.FunctionDef):
        raise StrategyError(f"{function.__qualname__}: a callback must be written with def")
    if not any(isinstance(node, (ast.For, ast.While)) for node in ast.walk(definition)):
        return function
    _CountTurns(turns, first - before).visit(definition)
    arguments = [*definition.args.posonlyargs, *definition.args.args]
    # a name of its own, because a callback may use that of ctx for something else
    definition.body = _placed(f"_hftlab_ctx = {arguments[ctx].arg}", definition.body[0]) + definition.body
    definition.decorator_list = []
    ast.increment_lineno(definition, first - before)
    return _remade(function, definition)


def counted_method(method: Callable[..., None]) -> Callable[..., None]:
    """Return a bound callback of a `PythonStrategy` with turn checks in its loops.

    Free Python may make callbacks in any way. One that is no plain method, is decorated, or has no source to read is
    returned as it is.
    """
    function = getattr(method, "__func__", None)
    if not isinstance(function, python_types.FunctionType) or hasattr(function, "__wrapped__"):
        return method
    try:
        counted = counted_loops(function, ctx=1, turns=PYTHON_TURNS)
    except StrategyError:
        return method
    bound: Callable[..., None] = python_types.MethodType(counted, method.__self__)  # type: ignore[attr-defined]
    return bound


def endless_loop(function: Callable[..., None], line: int) -> str:
    """Return the traceback of a compiled callback whose loop at `line` had too many turns."""
    frame = traceback.FrameSummary(function.__code__.co_filename, line, function.__name__)
    told = ["Traceback (most recent call last):\n", *traceback.format_list([frame])]
    return "".join(told) + f"RuntimeError: {_too_many(loop.TURNS)}\n"


def _remade(function: Callable[..., None], definition: ast.FunctionDef) -> Callable[..., None]:
    """Return `function` with the body of `definition`, and its own globals, closure and defaults.

    Compiled inside a class within a function, as it was: so its free variables, ``super()`` and names with two
    underscores mean what they meant. Only the code is taken; neither class nor outer function ever runs.
    """
    free = function.__code__.co_freevars
    owner = function.__qualname__.rpartition(".")[0].rpartition(".")[2]
    name = owner if owner.isidentifier() else "_"
    outside = f"def outside({', '.join(n for n in free if n != '__class__')}):\n    class {name}:\n        pass"
    tree: Any = ast.parse(outside)
    tree.body[0].body[0].body = [definition]
    code = builtins.compile(
        ast.fix_missing_locations(tree), function.__code__.co_filename, "exec", dont_inherit=True
    )
    for part in ("outside", name, definition.name):
        code = next(c for c in code.co_consts if isinstance(c, python_types.CodeType) and c.co_name == part)
    cells = dict(zip(free, function.__closure__ or (), strict=True))
    made = python_types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, tuple(cells[n] for n in code.co_freevars)
    )
    made.__qualname__, made.__module__ = function.__qualname__, function.__module__
    return made


# --- the compiled form -----------------------------------------------------------------------------------------------

class CtxType(ViewType):
    """The view of HOST that a strategy holds: of its fields only the time; and methods."""


register_model(CtxType)(AddressModel)
_NOW_AT = int(HOST.fields["now_ns"][1])  # type: ignore[index]  # a structured dtype has fields
_CTX = CtxType("ctx", np.dtype({"names": ["now_ns"], "formats": ["<i8"], "offsets": [_NOW_AT]}), False)
_EVENT = ViewType("event", ROW, False)
_ctx_at, _event_at = viewed_as(_CTX), viewed_as(_EVENT)


_METHODS: dict[str, Any] = {}
"""The typing template of each compiled method of ``ctx``."""

_WORD = ir.IntType(64)


@infer_getattr
class _CtxMethods(AttributeTemplate):  # type: ignore[misc]  # numba is untyped
    key = CtxType

    def generic_resolve(self, ctx: CtxType, name: str) -> Any:
        return types.BoundFunction(_METHODS[name], ctx) if name in _METHODS else None


class _Code:
    """Where a method writes its code: calls of the engine's kernels by their addresses in the HOST record."""

    def __init__(self, context: Any, builder: Any, host: Any) -> None:
        self.context, self.builder, self.host = context, builder, host

    def field(self, name: str) -> Any:
        """Return the place of a field of HOST."""
        at = self.builder.add(self.host, self.word(int(HOST.fields[name][1])))  # type: ignore[index]  # it has fields
        return self.builder.inttoptr(at, _WORD.as_pointer())

    def word(self, value: int) -> Any:
        """Return a constant."""
        return ir.Constant(_WORD, value)

    def call(self, kernel_name: str, *arguments: Any) -> Any:
        """Return what ``fn_<kernel_name>`` says to the host and `arguments`."""
        known = self.context.typing_context
        by_address = known.resolve_value_type(_CALLS[1 + len(arguments)])
        signature = by_address.get_call_type(known, (types.int64,) * (2 + len(arguments)), {})
        function = self.builder.load(self.field(f"fn_{kernel_name}"))
        words = [self.word(a) if isinstance(a, int) else a for a in arguments]
        return self.context.get_function(by_address, signature)(self.builder, [function, self.host, *words])


_CALLS = {arity: call_at(arity) for arity in (1, 2, 3, 4, 7)}


def _method(name: str, returns: Any = types.int64) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that makes a compiled method of ``ctx``, all of whose arguments must be integers.

    What it decorates writes the method's code, which costs nothing to type or to compile by itself: twelve methods
    written in Python would each be a function for numba, and a quarter of a second for the first strategy of a process.
    """

    def decorate(emit: Callable[..., Any]) -> Callable[..., Any]:
        _, *asked = inspect.signature(emit).parameters.values()
        signature = inspect.Signature(asked)

        class Method(AbstractTemplate):  # type: ignore[misc]  # numba is untyped
            key = f"ctx.{name}"

            def generic(self, args: Any, kws: Any) -> Any:
                try:
                    given = signature.bind(*args, **kws).arguments
                except TypeError as error:
                    raise TypingError(f"ctx.{name}: {error}") from None
                for argument, kind in given.items():
                    if not isinstance(kind, (types.Integer, types.Boolean)):
                        raise TypingError(
                            f"ctx.{name}: {argument} is a {kind}; expected an integer: ticks, lots, ids, ns"
                        )
                typed = returns(*[types.int64] * len(asked))
                return typed.replace(recvr=self.this, pysig=signature)

        @lower_builtin(Method.key, CtxType, types.VarArg(types.int64))  # type: ignore[untyped-decorator]
        def lower(context: Any, builder: Any, typed: Any, args: Any) -> Any:
            return emit(_Code(context, builder, args[0]), *args[1:])

        _METHODS[name] = Method
        return emit

    return decorate


@_method("submit")
def _submit(to: _Code, instrument: Any, side: Any, px: Any, qty: Any, tif: Any = GTC, flags: Any = 0) -> Any:
    return to.call("submit", instrument, side, px, qty, tif, flags)


@_method("cancel")
def _cancel(to: _Code, cl_ord_id: Any) -> Any:
    return to.call("cancel", cl_ord_id)


@_method("replace")
def _replace(to: _Code, cl_ord_id: Any, px: Any, qty: Any) -> Any:
    return to.call("replace", cl_ord_id, px, qty)


@_method("set_timer")
def _set_timer(to: _Code, deadline_ns: Any, tag: Any = 0) -> Any:
    return to.call("set_timer", deadline_ns, tag)


@_method("random", types.float64)
def _random(to: _Code) -> Any:
    bits = to.builder.sitofp(to.call("random"), ir.DoubleType())
    return to.builder.fmul(bits, ir.Constant(ir.DoubleType(), 1.0 / 9007199254740992.0))


@_method("note")
def _note(to: _Code, code: Any, a: Any = 0, b: Any = 0) -> Any:
    return to.call("note", code, a, b)


@_method("depth", types.UniTuple(types.int64, 2))
def _depth(to: _Code, instrument: Any, side: Any, level: Any) -> Any:
    key = to.builder.or_(to.builder.shl(side, to.word(32)), level)
    both = [to.call("query", what, instrument, key) for what in (_DEPTH_PX, _DEPTH_QTY)]
    return to.context.make_tuple(to.builder, types.UniTuple(types.int64, 2), both)


@_method("open_orders")
def _open_orders(to: _Code) -> Any:
    return to.call("query", _OPEN_ORDERS, 0, 0)


@_method("count_turn", types.boolean)
def _count_turn(to: _Code, line: Any) -> Any:
    builder = to.builder
    left = builder.sub(builder.load(to.field("turns_left")), to.word(1))
    builder.store(left, to.field("turns_left"))
    too_many = builder.icmp_signed("<", left, to.word(0))
    with builder.if_then(too_many, likely=False):
        builder.store(line, to.field("turn_line"))
    return too_many


def _query_method(name: str, what: int) -> None:
    @_method(name)
    def ask(to: _Code, key: Any) -> Any:
        return to.call("query", what, key, 0)


_QUERIES = {
    "position": loop.POSITION,
    "best_bid": loop.BEST_BID,
    "best_ask": loop.BEST_ASK,
    "best_bid_qty": loop.BEST_BID_QTY,
    "best_ask_qty": loop.BEST_ASK_QTY,
    "book_state": loop.BOOK_STATE,
    "order_status": loop.ORDER_STATUS,
    "order_leaves": loop.ORDER_LEAVES,
    "order_px": loop.ORDER_PX,
    "working_buy": loop.WORKING_BUY,
    "working_sell": loop.WORKING_SELL,
    "last_px": loop.LAST_PX,
}
for _name, _what in _QUERIES.items():
    _query_method(_name, _what)


class Compiled:
    """A strategy's callbacks as machine code. Parameters are read from the engine's memory, so it serves any.

    Attributes
    ----------
    addresses : dict of str to int
        Entry of each callback the class defines; valid while this object lives.

    Raises
    ------
    StrategyError
        If a callback does not compile; the message gives its line.
    """

    def __init__(self, strategy: type[Strategy]) -> None:
        state, params = ViewType("state", strategy.state.dtype, True), ViewType("params", strategy.params.dtype, False)
        state_at, params_at = viewed_as(state), viewed_as(params)
        self.addresses: dict[str, int] = {}
        self._alive: list[Any] = []
        for name, function in strategy.callbacks().items():
            body = user_code(counted_loops(function))
            try:
                body.compile((_CTX, state, params, _EVENT))  # first: its caller would pass on its ban on allocation
                refuse_cut_floats(body)
            except Exception as error:  # whatever numba raises (its errors have no common base), the source is why
                raise StrategyError(f"{strategy.__name__}.{name} does not compile: {_explain(error, body)}") from error
            namespace = {
                "body": body, "ctx_at": _ctx_at, "state_at": state_at, "params_at": params_at, "event_at": _event_at,
            }  # fmt: skip
            exec(
                "def trampoline(host, state, params, event):\n"
                "    body(ctx_at(host), state_at(state), params_at(params), event_at(event))\n"
                "    return 0\n",
                namespace,
            )
            entry = kernel(types.int64(*[types.int64] * 4), checked=True)(cast(Any, namespace["trampoline"]))
            self._alive += [body, entry]
            self.addresses[name] = function_address(entry)

    @classmethod
    def of(cls, strategy: type[Strategy]) -> Compiled:
        """Return the machine code of a strategy class, compiled once for the values its callbacks read from outside.

        A compiled callback freezes the globals it names. Compiling at each use would cost the time and, as machine code
        is never given back whole, the memory.
        """
        layouts = str(strategy.state.dtype.descr), str(strategy.params.dtype.descr)
        key = (*layouts, *map(_outside, strategy.callbacks().values()))
        made: dict[Any, Compiled] = strategy.__dict__.get("_compiled_forms") or {}
        strategy._compiled_forms = made
        if key not in made:
            made.clear()
            made[key] = cls(strategy)
        return made[key]


def _outside(function: Callable[..., None]) -> tuple[Any, ...]:
    """Return the values a function reads from outside itself: plain ones as they are, others by identity."""
    outside = inspect.getclosurevars(function)
    read = {**outside.globals, **outside.nonlocals}
    plain = (bool, int, float, str)
    return tuple((name, value if isinstance(value, plain) else id(value)) for name, value in sorted(read.items()))


_REASON = re.compile(r"^\s*\w+Error: (.+)$", re.MULTILINE)
_NO_REASON = ("Failed in", "During:", "- Resolution", "No implementation", ">>>", "There are", "Pass ", "None")


def _explain(error: Exception, body: Any) -> str:
    """Return the part of a numba error that names the user's mistake, and the user's line."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(_NO_REASON)]
    found = _REASON.search(text)
    reason = found[1] if found else (lines or [text or repr(error)])[0]
    file = body.py_func.__code__.co_filename
    at = re.findall(rf'{re.escape(file)}"?(?:, line | \()(\d+)', text)
    if not at:
        return reason
    return f'{reason}\n  File "{file}", line {at[-1]}\n    {linecache.getline(file, int(at[-1])).strip()}'


# --- the plain form --------------------------------------------------------------------------------------------------


class Event:
    """The row that woke a callback, for plain Python; fields as in `hftlab.core.rows.ROW`, all read-only.

    One object serves all callbacks: keep the fields you want, not the event. ``raw`` is the row and its payload.
    """

    __slots__ = ("raw",)
    raw: bytes


def _event_field(code: str, at: int) -> property:
    unpack = struct.Struct("<" + code).unpack_from
    return property(lambda event: unpack(event.raw, at)[0])


_EVENT_FIELDS = {
    "seq": ("I", 0), "source": ("H", 4), "kind": ("B", 6), "span": ("B", 7), "ts_recv": ("q", 8), "ts_event": ("q", 16),
    "instrument": ("I", 24), "flags": ("H", 28), "code": ("H", 30), "px": ("q", 32), "qty": ("q", 40), "a": ("q", 48),
    "b": ("q", 56), "f0": ("d", 32), "f1": ("d", 40), "f2": ("d", 48), "f3": ("d", 56),
}  # fmt: skip
for _field, _where in _EVENT_FIELDS.items():
    setattr(Event, _field, _event_field(*_where))


def view_class(dtype: np.dtype[Any], name: str) -> Callable[[memoryview], Any]:
    """Return a class whose instances read and write the fields of a record in memory as Python numbers.

    Arrays are memoryviews: indexing past their end raises IndexError, as it does compiled. Over read-only memory every
    write raises TypeError.
    """
    namespace: dict[str, Any] = {"__slots__": ("_floats", "_words", *(f"_array_{n}" for n in dtype.names or ()))}

    def scalar(position: int, words: str) -> property:
        def read(self: Any) -> Any:
            return getattr(self, words)[position]

        def write(self: Any, value: Any) -> None:
            getattr(self, words)[position] = value

        return property(read, write)

    arrays: dict[str, tuple[int, int, str]] = {}
    for field in dtype.names or ():
        kind, offset = dtype.fields[field][:2]  # type: ignore[index]
        words = "_floats" if kind.base.kind == "f" else "_words"
        if kind.shape:
            arrays[field] = (offset // 8, kind.shape[0], words)
            namespace[field] = property(operator.attrgetter(f"_array_{field}"))
        else:
            namespace[field] = scalar(offset // 8, words)

    def initialise(self: Any, memory: memoryview) -> None:
        raw = memory.cast("B")
        self._words = raw.cast("q")
        self._floats = raw.cast("d")
        for field, (start, length, words) in arrays.items():
            setattr(self, f"_array_{field}", getattr(self, words)[start : start + length])

    namespace["__init__"] = initialise
    return type(name, (), namespace)


_NOW = _NOW_AT // 8
_TURNS = int(HOST.fields["turns_left"][1]) // 8  # type: ignore[index]  # a structured dtype has fields
_index = operator.index  # numba would cut a float to an integer


class Context:
    """``ctx`` for plain Python: the same methods over the same kernels as the compiled form.

    Parameters
    ----------
    host : int
        Address of the engine's HOST record.
    memory : memoryview
        The HOST record.
    """

    __slots__ = ("_host", "_words")

    def __init__(self, host: int, memory: memoryview) -> None:
        self._host = host
        self._words = memory.cast("B").cast("q")

    @property
    def now_ns(self) -> int:
        """Time of the row in work, ns UTC."""
        return self._words[_NOW]

    def count_turn(self, line: int) -> bool:
        """Count one turn of the loop at `line`; return whether there were too many. Written into loops by hftlab."""
        self._words[_TURNS] -= 1
        return self._words[_TURNS] < 0

    def submit(self, instrument: int, side: int, px: int, qty: int, tif: int = GTC, flags: int = 0) -> int:
        """Ask for a new order; return its cl_ord_id, or the negative `Reason` of the refusal.

        Parameters
        ----------
        instrument, side : int
            Index; BUY or SELL.
        px, qty : int
            Ticks (MARKET: a market order) and lots.
        tif, flags : int
            GTC, IOC, FOK or DAY; POST_ONLY, REDUCE_ONLY.
        """
        return risk.submit(
            self._host, _index(instrument), _index(side), _index(px), _index(qty), _index(tif), _index(flags)
        )

    def cancel(self, cl_ord_id: int) -> int:
        """Ask to cancel an order; return its id, or the negative `Reason`."""
        return risk.cancel(self._host, _index(cl_ord_id))

    def replace(self, cl_ord_id: int, px: int, qty: int) -> int:
        """Ask to replace an order by one of `qty` lots at `px`; return the new id, or the negative `Reason`."""
        return risk.replace(self._host, _index(cl_ord_id), _index(px), _index(qty))

    def set_timer(self, deadline_ns: int, tag: int = 0) -> int:
        """Ask for ``on_timer`` at `deadline_ns`; return the timer's id (the event's ``a``), 0 when too many wait."""
        return loop.set_timer(self._host, _index(deadline_ns), _index(tag))

    def random(self) -> float:
        """Return the next number in [0, 1) of the session's seeded sequence."""
        return loop.random_bits(self._host) * (1.0 / 9007199254740992.0)

    def note(self, code: int, a: int = 0, b: int = 0) -> int:
        """Write a NOTE row: `code` (16 bits) and two integers (its px and qty)."""
        return loop.note(self._host, _index(code), _index(a), _index(b))

    def depth(self, instrument: int, side: int, level: int) -> tuple[int, int]:
        """Return (px, qty) of a book level, 0 the best, BID or ASK side; (NO_PX, 0) where there is none."""
        of, key = _index(instrument), (side << 32) | level
        return loop.query(self._host, loop.DEPTH_PX, of, key), loop.query(self._host, loop.DEPTH_QTY, of, key)

    def open_orders(self) -> int:
        """Return the number of own open orders, over all instruments."""
        return loop.query(self._host, loop.OPEN_ORDERS, 0, 0)


_QUERY_DOCS = {
    "position": "Return the signed position in lots.",
    "best_bid": "Return the best bid in ticks, NO_PX if none.",
    "best_ask": "Return the best ask in ticks, NO_PX if none.",
    "best_bid_qty": "Return the lots at the best bid, 0 if none.",
    "best_ask_qty": "Return the lots at the best ask, 0 if none.",
    "book_state": "Return the `BookState` of an instrument's book; only LIVE may be traded on.",
    "order_status": "Return the `OrdStatus` of an own order, 0 if the table no longer holds it.",
    "order_leaves": "Return the open lots of an own order, 0 once it is terminal.",
    "order_px": "Return the price of an own order in ticks, NO_PX if the table no longer holds it.",
    "working_buy": "Return the lots of all open buys at their worst case.",
    "working_sell": "Return the lots of all open sells at their worst case.",
    "last_px": "Return the last trade's price in ticks, NO_PX before the first.",
}


def _python_query(what: int, doc: str) -> Callable[[Context, int], int]:
    def method(self: Context, key: int) -> int:
        return loop.query(self._host, what, _index(key), 0)

    method.__doc__ = doc
    return method


for _name, _what in _QUERIES.items():
    setattr(Context, _name, _python_query(_what, _QUERY_DOCS[_name]))
