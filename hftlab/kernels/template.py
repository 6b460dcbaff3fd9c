"""Texts with holes: a request laid out once, filled at every order.

**Model.** All requests of one kind differ in a few numbers. A template is written as text with control characters where
numbers go; it is cut into pieces once, each a literal and the form of the number after it. Filling copies literals in
steps of 8 bytes and writes digits: some 100 ns for 400 bytes, without a Python object.

**Promise.** What is filled is what formatting the same text in Python gives. The caller has checked that every number
is 0 or more and that the result fits: a literal may write 7 bytes beyond its end before the next piece overwrites them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from hftlab.core.errors import ConfigError
from hftlab.kernels.jit import address_of, kernel, load, record_at
from hftlab.kernels.write import put_bytes, put_decimal, put_hex, put_uint

__all__ = ["Hole", "Template", "fill"]

_PIECE = np.dtype([(name, "<i8") for name in ["at", "n", "form", "value", "unit", "decimals"]])
piece_at = record_at(_PIECE)
_PIECE_BYTES = _PIECE.itemsize
_END, _UINT, _HEX, _DECIMAL, _TEXT = 0, 1, 2, 3, 4


class Hole:
    """What goes into a hole: the number `value` of the table of values, in one of four forms.

    Parameters
    ----------
    value : int
        Index into the table.
    form : str
        ``uint``, ``hex``, ``decimal`` (a count of steps of ``unit x 10**-decimals``), or ``text64``: the value is the
        address of 64 bytes.
    unit, decimals : int
    """

    __slots__ = ("decimals", "form", "unit", "value")
    _FORMS: Mapping[str, int] = {"uint": _UINT, "hex": _HEX, "decimal": _DECIMAL, "text64": _TEXT}

    def __init__(self, value: int, form: str = "uint", unit: int = 1, decimals: int = 0) -> None:
        if form not in self._FORMS:
            raise ConfigError(f"form={form!r}; expected one of {', '.join(self._FORMS)}")
        self.value, self.form, self.unit, self.decimals = value, self._FORMS[form], unit, decimals


class Template:
    """A text with holes, cut into pieces.

    Parameters
    ----------
    text : str
        ASCII; the keys of `holes`, characters below the blank, stand where numbers go.
    holes : mapping of str to Hole
    skip : int
        Leave out so many bytes at the front: they are known to whoever fills.

    Attributes
    ----------
    address, n : int
        Of the pieces, for `fill`.
    head : bytes
        The text before the first hole, what is skipped included.

    Examples
    --------
    >>> values, out = np.array([617, 42], np.int64), np.zeros(64, np.uint8)
    >>> template = Template("px=\\x01&id=\\x02;", {"\\x01": Hole(0, "decimal", 1, 2), "\\x02": Hole(1, "hex")})
    >>> end = fill(template.address, template.n, address_of(values), address_of(out))
    >>> bytes(out[: end - address_of(out)])
    b'px=6.17&id=2a;'
    """

    def __init__(self, text: str, holes: Mapping[str, Hole], skip: int = 0) -> None:
        parts: list[tuple[str, Hole | None]] = []
        literal = ""
        for character in text:
            if character in holes:
                parts.append((literal, holes[character]))
                literal = ""
            elif character < " " or character > "~":
                raise ConfigError(f"template holds {character!r}, which is no hole of it; expected printable ASCII")
            else:
                literal += character
        parts.append((literal, None))
        self.head = parts[0][0].encode()
        if skip > len(self.head):
            raise ConfigError(f"skip={skip}; the text before the first hole has {len(self.head)} bytes")
        parts[0] = (parts[0][0][skip:], parts[0][1])
        self._literals = np.frombuffer("".join(p for p, _ in parts).encode() + bytes(8), np.uint8)
        self._pieces = self._cut(parts)
        self.address, self.n = address_of(self._pieces), len(parts)

    def _cut(self, parts: list[tuple[str, Hole | None]]) -> npt.NDArray[np.void]:
        pieces = np.zeros(len(parts), _PIECE)
        at = address_of(self._literals)
        for piece, (literal, hole) in zip(pieces, parts, strict=True):
            piece["at"], piece["n"] = at, len(literal)
            at += len(literal)
            if hole is not None:
                piece["form"], piece["value"] = hole.form, hole.value
                piece["unit"], piece["decimals"] = hole.unit, hole.decimals
        return pieces


@kernel("int64(int64, int64, int64, int64)")
def fill(pieces: int, n: int, values: int, out: int) -> int:
    """Write a template's text at `out`; return the address after it.

    Parameters
    ----------
    pieces, n : int64
        Of the `Template`.
    values : int64
        Address of the table of int64 values.
    out : int64
        Where to write; 8 bytes beyond the text are overwritten.
    """
    for k in range(n):
        piece = piece_at(pieces + k * _PIECE_BYTES)
        out = put_bytes(out, piece.at, piece.n)
        form = piece.form
        if form == _END:
            continue
        value = load(values + 8 * piece.value)
        if form == _UINT:
            out = put_uint(out, value)
        elif form == _DECIMAL:
            out = put_decimal(out, value, piece.unit, piece.decimals)
        elif form == _HEX:
            out = put_hex(out, value)
        else:
            out = put_bytes(out, value, 64)
    return out
