"""Random and mutated input for decoders.

A decoder reads what a stranger sends. The promise tested here is small and absolute: whatever the bytes, it returns,
counts what it could not use, and keeps its invariants. Half-right input finds more than noise does, so most inputs are
documented messages with a few things wrong: a bit turned, a byte replaced by one that means something to a parser, a
piece cut out, doubled or put in from another message, a length field at its limits, the end missing. One input in
sixteen is noise.

Everything is drawn from a seeded generator: a failure names the number of the input, and the same seed and number give
the same bytes again.
"""

from __future__ import annotations

import importlib
import pkgutil
import random
from collections.abc import Callable, Iterator, Sequence

__all__ = ["Feed", "fuzz", "inputs", "targets"]

Feed = Callable[[bytes], None]
Target = Callable[[], tuple[Feed, list[bytes]]]

_TELLING = (
    b"\0", b"\xff", b"\x7f", b"\x80", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b".", b"-", b"+", b"e", b" ",
    b"0", b"9", b"00", b"null", b"true", b"[]", b"{}", b'""', b"\\u0000", b"1e308", b"99999999999999999999",
    b"-9223372036854775808", b"\xff\xff", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xc3\x28", b"\xed\xa0\x80",
)  # fmt: skip
_NOISE_ONE_IN = 16
_NOISE_BYTES = 200


def _mutated(chance: random.Random, seeds: Sequence[bytes]) -> bytes:
    data = bytearray(chance.choice(seeds))
    for _ in range(1 + (chance.getrandbits(2) & chance.getrandbits(2))):
        at = chance.randrange(len(data) + 1)
        what = chance.randrange(8)
        if what == 0 and at < len(data):
            data[at] ^= 1 << chance.getrandbits(3)
        elif what == 1 and at < len(data):
            data[at] = chance.getrandbits(8)
        elif what == 2:
            data[at:at] = chance.choice(_TELLING)
        elif what == 3:
            word = chance.choice(_TELLING)
            data[at : at + len(word)] = word
        elif what == 4:
            del data[at : at + 1 + chance.randrange(16)]
        elif what == 5:
            data[at:at] = data[at : at + 1 + chance.randrange(64)]
        elif what == 6:
            other = chance.choice(seeds)
            start = chance.randrange(len(other) + 1)
            data[at:] = other[start:]
        else:
            del data[at:]
    return bytes(data)


def inputs(seeds: Sequence[bytes], n: int, seed: int = 0) -> Iterator[bytes]:
    """Yield `n` inputs made of `seeds`, the same for the same `seed`.

    Raises
    ------
    ValueError
        If there are no seeds.

    Examples
    --------
    >>> list(inputs([b"abc"], 3)) == list(inputs([b"abc"], 3))
    True
    """
    if not seeds:
        raise ValueError("seeds is empty; expected at least one message to mutate")
    chance = random.Random(seed)
    for _ in range(n):
        if chance.randrange(_NOISE_ONE_IN) == 0:
            yield chance.randbytes(chance.randrange(_NOISE_BYTES))
        else:
            yield _mutated(chance, seeds)


def fuzz(feed: Feed, seeds: Sequence[bytes], n: int, seed: int = 0) -> None:
    """Call `feed` with each of the seeds as it is, then with `n` inputs made of them.

    Parameters
    ----------
    feed : callable(bytes)
        Hands the bytes to a decoder and asserts the decoder's invariants; returning is passing.
    seeds : sequence of bytes
        Valid messages.
    n, seed : int
        How many inputs, and of which sequence.

    Raises
    ------
    AssertionError
        If `feed` raised anything: the message gives the input's number and its bytes; the cause is chained.

    Examples
    --------
    >>> fuzz(lambda data: None, [b"abc"], 100)
    >>> fuzz(lambda data: data.decode(), [b"abc"], 100)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    AssertionError: input 4 of seed 0: UnicodeDecodeError: ...
    """
    for data in seeds:
        _feed(feed, data, "seed message")
    for number, data in enumerate(inputs(seeds, n, seed)):
        _feed(feed, data, f"input {number} of seed {seed}")


def _feed(feed: Feed, data: bytes, what: str) -> None:
    try:
        feed(data)
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}; the bytes are {data!r}") from error


def targets() -> dict[str, Target]:
    """Return every decoder of hftlab that is fuzzed: name to a function that gives its feed and its seeds.

    They stand in the modules ``hftlab.testing.targets_*``, each with a dict ``TARGETS``.
    """
    import hftlab.testing

    found: dict[str, Target] = {}
    for module in pkgutil.iter_modules(hftlab.testing.__path__):
        if module.name.startswith("targets_"):
            found.update(importlib.import_module(f"hftlab.testing.{module.name}").TARGETS)
    return found
