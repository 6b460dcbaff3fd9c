"""Texts with holes, against formatting the same text in Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftlab.core.errors import ConfigError
from hftlab.kernels.jit import address_of
from hftlab.kernels.template import Hole, Template, fill

literals = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)


def filled(template: Template, values: list[int]) -> str:
    table, out = np.array(values, np.int64), np.full(1024, 0xA5, np.uint8)
    end = fill(template.address, template.n, address_of(table), address_of(out)) - address_of(out)
    assert set(out[end + 8 :].tolist()) == {0xA5}
    return bytes(out[:end]).decode()


@given(st.lists(literals, min_size=4, max_size=4), st.integers(0, 2**63 - 1), st.integers(0, 10**15))
def test_filled_text_is_the_formatted_text(parts: list[str], number: int, count: int) -> None:
    a, b, c, d = parts
    template = Template(
        f"{a}\x01{b}\x02{c}\x03{d}", {"\x01": Hole(0), "\x02": Hole(0, "hex"), "\x03": Hole(1, "decimal", 5, 3)}
    )
    whole, fraction = divmod(5 * count, 1000)
    assert filled(template, [number, count]) == f"{a}{number}{b}{number:x}{c}{whole}.{fraction:03d}{d}"


def test_what_is_skipped_is_left_out() -> None:
    template = Template("apiKey=k&id=\x01", {"\x01": Hole(0)}, skip=9)
    assert template.head == b"apiKey=k&id=" and filled(template, [7]) == "id=7"


def test_a_text_of_64_bytes_is_taken_from_its_address() -> None:
    digest = np.frombuffer(b"0123456789abcdef" * 4, np.uint8)
    template = Template('"\x01"', {"\x01": Hole(0, "text64")})
    assert filled(template, [address_of(digest)]) == '"' + "0123456789abcdef" * 4 + '"'


def test_characters_that_are_no_hole_are_refused() -> None:
    with pytest.raises(ConfigError, match="no hole"):
        Template("a\x02", {"\x01": Hole(0)})
    with pytest.raises(ConfigError, match="form"):
        Hole(0, "octal")
    with pytest.raises(ConfigError, match="skip"):
        Template("ab\x01", {"\x01": Hole(0)}, skip=3)
