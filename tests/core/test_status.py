"""The codes of STATUS rows."""

from __future__ import annotations

import numpy as np

from hftlab.core.rows import ROW
from hftlab.core.status import Status


def test_every_word_has_a_code_of_its_own_that_fits_the_row() -> None:
    codes = [int(status) for status in Status.__members__.values()]
    assert len(set(codes)) == len(codes), "an alias would be a second word for the same"
    assert min(codes) >= 0 and max(codes) <= np.iinfo(ROW["code"]).max
