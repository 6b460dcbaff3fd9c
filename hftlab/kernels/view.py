"""Records in memory as a strategy's compiled code sees them.

numba has records, but three of their habits are traps for whoever writes a strategy. A uint64 field and an int64 number
make a float, a uint8 wraps below zero; a float stored into an integer field is cut without a word; and any field may be
written, the event of the journal included. A *view* is an address with a list of fields, and nothing else: integer
fields of any width read as int64, a view that is not writable does not compile a write, and `refuse_cut_floats` finds
the silent cuts after compilation. It costs what a record costs: one load a field.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core import ir as numba_ir
from numba.core.datamodel.models import PrimitiveModel
from numba.core.errors import TypingError
from numba.core.typing.templates import AttributeTemplate
from numba.extending import (
    infer_getattr,
    intrinsic,
    lower_getattr_generic,
    lower_setattr_generic,
    register_model,
)
from numba.np.arrayobj import make_array, populate_array

__all__ = ["AddressModel", "ViewType", "refuse_cut_floats", "viewed_as"]

_WORD = ir.IntType(64)


class ViewType(types.Type):  # type: ignore[misc]  # numba is untyped
    """numba type of a record in memory, carried as its address.

    Parameters
    ----------
    title : str
        What the user calls it, such as ``state``.
    dtype : numpy.dtype
        Fields: integers and floats of any width, and flat arrays of int64 or float64. All others are not to be seen.
    writable : bool
        Whether fields of 8 bytes may be set.
    """

    def __init__(self, title: str, dtype: np.dtype[Any], writable: bool) -> None:
        self.title, self.writable = title, writable
        self.placed = {field: (where[0], int(where[1])) for field, where in (dtype.fields or {}).items()}
        layout = ",".join(f"{field}:{kind.str}{kind.shape}@{at}" for field, (kind, at) in self.placed.items())
        self._key = (title, layout, writable)
        super().__init__(name=title)

    @property
    def key(self) -> tuple[str, str, bool]:
        """What makes two views the same type; the name alone is for messages."""
        return self._key


@register_model(ViewType)
class AddressModel(PrimitiveModel):  # type: ignore[misc]  # numba is untyped
    """How a view lies in a register: register it for each subclass of `ViewType`."""

    def __init__(self, manager: Any, view: Any) -> None:
        super().__init__(manager, view, _WORD)


def _field_type(view: ViewType, field: str) -> Any:
    kind = view.placed[field][0]
    scalar = types.float64 if kind.base.kind == "f" else types.int64
    return types.Array(scalar, 1, "C", readonly=not view.writable) if kind.shape else scalar


@infer_getattr
class _ViewFields(AttributeTemplate):  # type: ignore[misc]  # numba is untyped
    key = ViewType

    def generic_resolve(self, view: ViewType, field: str) -> Any:
        return _field_type(view, field) if field in view.placed else None


def _pointer(builder: Any, view: ViewType, address: Any, field: str, item: Any) -> Any:
    at = builder.add(address, ir.Constant(_WORD, view.placed[field][1]))
    return builder.inttoptr(at, item.as_pointer())


@lower_getattr_generic(ViewType)  # type: ignore[untyped-decorator]  # numba is untyped
def _read(context: Any, builder: Any, view: ViewType, address: Any, field: str) -> Any:
    kind = view.placed[field][0]
    if not kind.shape:
        if kind.kind == "f":
            return builder.load(_pointer(builder, view, address, field, ir.DoubleType()))
        word = builder.load(_pointer(builder, view, address, field, ir.IntType(8 * kind.itemsize)))
        if kind.itemsize == 8:
            return word
        return builder.sext(word, _WORD) if kind.kind == "i" else builder.zext(word, _WORD)
    array_type = _field_type(view, field)
    array = make_array(array_type)(context, builder)
    populate_array(
        array,
        data=_pointer(builder, view, address, field, context.get_data_type(array_type.dtype)),
        shape=cgutils.pack_array(builder, [ir.Constant(_WORD, kind.shape[0])]),
        strides=cgutils.pack_array(builder, [ir.Constant(_WORD, 8)]),
        itemsize=ir.Constant(_WORD, 8),
        meminfo=None,
    )
    return array._getvalue()


@lower_setattr_generic(ViewType)  # type: ignore[untyped-decorator]  # numba is untyped
def _write(context: Any, builder: Any, signature: Any, args: Any, field: str) -> None:
    view = signature.args[0]
    kind = view.placed[field][0]
    if not view.writable:
        raise TypingError(f"{view.title}.{field} = ...: {view.title} is for reading; keep what changes in state")
    if kind.shape:
        raise TypingError(f"{view.title}.{field} = ...: it is a fixed array; set its items, {view.title}.{field}[i]")
    if kind.itemsize != 8:
        raise TypingError(f"{view.title}.{field} = ...: only fields of 8 bytes can be set")
    builder.store(args[1], _pointer(builder, view, args[0], field, args[1].type))


def viewed_as(view: ViewType) -> Any:
    """Return an intrinsic, ``int64 -> view``, that takes an address for a view."""

    @intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
    def cast(typingctx: Any, address: Any) -> Any:
        return view(types.int64), lambda context, builder, signature, args: args[0]

    return cast


def refuse_cut_floats(dispatcher: Any) -> None:
    """Raise if compiled code stores a float where an integer is kept: numba cuts it, plain Python would refuse.

    Parameters
    ----------
    dispatcher : numba dispatcher
        Compiled, not loaded from a cache.

    Raises
    ------
    TypeError
        Naming the line.
    """
    for result in dispatcher.overloads.values():
        kinds = result.type_annotation.typemap
        for block in result.type_annotation.blocks.values():
            for statement in block.body:
                if isinstance(statement, numba_ir.SetAttr):
                    view = kinds[statement.target.name]
                    if not isinstance(view, ViewType) or statement.attr not in view.placed:
                        continue
                    kept: Any = _field_type(view, statement.attr)
                    what = f"{view.title}.{statement.attr}"
                elif isinstance(statement, (numba_ir.SetItem, numba_ir.StaticSetItem)):
                    kept = getattr(kinds[statement.target.name], "dtype", None)
                    what = "this array"
                else:
                    continue
                if isinstance(kept, types.Integer) and isinstance(kinds[statement.value.name], types.Float):
                    raise TypeError(
                        f"{what} holds integers and is given a float; write int(...), or give it a float default\n"
                        f'File "{statement.loc.filename}", line {statement.loc.line}'
                    )
