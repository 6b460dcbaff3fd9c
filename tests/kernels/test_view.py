"""Records as strategies see them."""

from __future__ import annotations

import re
from typing import Any

import numba
import numpy as np
import pytest

from hftlab.kernels.jit import address_of
from hftlab.kernels.view import ViewType, refuse_cut_floats, viewed_as

NARROW = np.dtype([("a", "<u1"), ("b", "<i1"), ("c", "<u2"), ("d", "<u4"), ("e", "<u8"), ("f", "<f8"), ("g", "<i8", 3)])
SEEN, KEPT = ViewType("seen", NARROW, False), ViewType("kept", NARROW, True)
seen_at, kept_at = viewed_as(SEEN), viewed_as(KEPT)


def test_narrow_and_unsigned_fields_read_as_int64() -> None:
    @numba.njit
    def read(address: Any) -> Any:
        v = seen_at(address)
        return v.a - 256, v.b, v.c - 65536, v.d - 2**32, v.e - 1, v.f, v.g[1]

    record = np.zeros(1, NARROW)
    record[0] = (255, -1, 65535, 2**32 - 1, 2**64 - 1, 0.5, [1, 2, 3])
    found = read(address_of(record))
    assert found == (-1, -1, -1, -1, -2, 0.5, 2)
    assert all(isinstance(value, int) for value in found[:5])


def test_a_writable_view_writes_words_and_items() -> None:
    @numba.njit
    def write(address: Any) -> None:
        v = kept_at(address)
        v.e = 7
        v.f = 3
        v.g[2] += 5

    record = np.zeros(1, NARROW)
    write(address_of(record))
    assert (record["e"][0], record["f"][0], record["g"][0].tolist()) == (7, 3.0, [0, 0, 5])


@pytest.mark.parametrize(
    "line,words",
    [
        ("seen_at(x).e = 1", "seen is for reading"),
        ("seen_at(x).g[0] = 1", "readonly"),
        ("kept_at(x).g = seen_at(x).g", "set its items"),
        ("kept_at(x).z = 1", "z"),
        ("kept_at(x).a = 1", "8 bytes"),
    ],
)
def test_what_may_not_be_written_does_not_compile(line: str, words: str) -> None:
    space: dict[str, Any] = {"seen_at": seen_at, "kept_at": kept_at}
    exec(f"def f(x):\n    {line}\n", space)
    with pytest.raises(Exception, match=re.escape(words)):
        numba.njit((numba.int64,))(space["f"])


def test_views_of_other_layouts_are_other_types_under_one_name() -> None:
    other = ViewType("seen", np.dtype([("a", "<i8")]), False)
    assert str(other) == str(SEEN) == "seen"
    assert other != SEEN != KEPT
    assert ViewType("seen", NARROW, False) == SEEN


def test_a_float_that_would_be_cut_is_found() -> None:
    @numba.njit
    def cut(address: Any) -> None:
        kept_at(address).e = 1.5

    cut.compile((numba.int64,))
    with pytest.raises(TypeError, match=r"kept\.e holds integers and is given a float"):
        refuse_cut_floats(cut)
