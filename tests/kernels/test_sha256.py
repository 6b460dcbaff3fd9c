"""SHA-256 in a kernel against hashlib, by the CPU's instructions and by plain arithmetic."""

from __future__ import annotations

import hashlib
import hmac

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftlab.kernels import sha256 as module
from hftlab.kernels.jit import address_of
from hftlab.kernels.sha256 import SCRATCH_BYTES, HmacKey, compress, sha256, sign_hex


@given(st.binary(max_size=300))
def test_digest_is_hashlibs(message: bytes) -> None:
    assert sha256(message) == hashlib.sha256(message).digest()


@pytest.mark.parametrize("n", [0, 54, 55, 56, 63, 64, 65, 119, 120, 128])
def test_digest_is_hashlibs_where_the_padding_begins_a_block(n: int) -> None:
    assert sha256(b"a" * n) == hashlib.sha256(b"a" * n).digest()


@given(st.binary(min_size=1, max_size=150), st.binary(max_size=300))
def test_signature_is_that_of_the_standard_library(secret: bytes, message: bytes) -> None:
    assert HmacKey(secret).sign(message) == hmac.new(secret, message, hashlib.sha256).hexdigest()


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=64, max_size=64))
def test_both_ways_of_compressing_a_block_agree(start: bytes, block: bytes) -> None:
    data, words = np.frombuffer(block, np.uint8), np.zeros(64, np.int64)
    states = [np.frombuffer(bytearray(start), np.uint32) for _ in range(2)]
    for state, way in zip(states, (compress, module._plain_block), strict=True):
        way(address_of(state), address_of(data), address_of(words))
    assert np.array_equal(*states)


@given(st.binary(max_size=200), st.binary(max_size=100))
def test_a_head_absorbed_before_gives_the_signature_of_the_whole(head: bytes, tail: bytes) -> None:
    key, message = HmacKey(b"secret"), head + tail
    state, absorbed = key.after(head)
    assert absorbed == len(head) // 64 * 64
    rest = np.frombuffer(bytearray(message[absorbed:] + bytes(72)), np.uint8)
    scratch, kept = np.zeros(SCRATCH_BYTES, np.uint8), state.copy()
    at, n = address_of(scratch), len(message)
    sign_hex(address_of(state), key.outer, address_of(rest), n - absorbed, n, at)
    assert bytes(scratch[:64]).decode() == hmac.new(b"secret", message, hashlib.sha256).hexdigest()
    assert np.array_equal(state, kept), "a key serves any number of messages"


def test_constants_are_those_of_the_standard() -> None:
    assert (module._K[0], module._K[31], module._K[63]) == (0x428A2F98, 0x14292967, 0xC67178F2)


@pytest.mark.parametrize(("features", "has"), [("+sse4.2,+sha", True), ("+sse4.2", False), ("-sha", False)])
def test_extensions_are_not_used_for_a_cpu_that_is_not_said_to_have_them(
    monkeypatch: pytest.MonkeyPatch, features: str, has: bool
) -> None:
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(module.numba.config, "CPU_FEATURES", features)
    assert module._cpu_has_sha() is has


def test_extensions_are_not_used_on_another_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.platform, "machine", lambda: "aarch64")
    assert module._cpu_has_sha() is False
