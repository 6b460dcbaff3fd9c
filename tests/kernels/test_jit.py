"""What the kernel decorator promises: no reference counting, no stale cache, errors that are seen."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from hftlab.kernels import jit
from hftlab.kernels.jit import (
    CallResult,
    address_of,
    call_at,
    copy_bytes,
    cycle_counter,
    function_address,
    kernel,
    load,
    load_acquire,
    record_at,
    source_hash,
    store,
    store_release,
)

POINT = np.dtype([("x", "<i8"), ("y", "<f8")], align=True)
point_at = record_at(POINT)
call2 = call_at(2)


def llvm_of(compiled: Any) -> str:
    """Return the code of a kernel, compiled afresh: one that comes from a cache shows none."""
    (result,) = compiled.overloads.values()
    checked = compiled.targetoptions["boundscheck"]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFTLAB_CACHE", folder)
        (text,) = kernel(result.signature, checked=checked)(compiled.py_func).inspect_llvm().values()
    assert compiled.__name__ in text and "define" in text
    return str(text)


def sum_products(a: Any, b: Any) -> int:
    total = 0
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@kernel("int64(int64, int64)")
def divide(a: int, b: int) -> int:
    return a // b


@kernel("int64(int64, int64)", checked=True)
def divide_checked(a: int, b: int) -> int:
    return a // b


@kernel("int64(int64, int64, int64)")
def call_two(address: int, a: int, b: int) -> int:
    return call2(address, a, b)


@kernel("int64(int64[::1], int64)")
def item(array: Any, i: int) -> int:
    return array[i]


@kernel("int64(int64[::1], int64)", checked=True)
def item_checked(array: Any, i: int) -> int:
    return array[i]


@kernel("void(int64, int64)")
def move_word(destination: int, source: int) -> None:
    store(destination, load(source) + 1)


@kernel("void(int64, int64)")
def publish_word(destination: int, source: int) -> None:
    store_release(destination, load_acquire(source) + 1)


@kernel("void(int64, int64, int64)")
def move_bytes(destination: int, source: int, size: int) -> None:
    copy_bytes(destination, source, size)


@kernel("int64(int64)")
def step_point(address: int) -> int:
    point = point_at(address)
    point.y = point.y * 2.0
    point.x = point.x + 1
    return point.x


@kernel("uint64()")
def cycles() -> int:
    return cycle_counter()


def test_kernel_on_arrays_holds_no_call_of_the_reference_counting_runtime() -> None:
    types = "int64(int64[::1], int64[::1])"
    (plain,) = numba.njit(types)(sum_products).inspect_llvm().values()
    assert "NRT_" in plain, "the plain decorator counts: this test can fail"
    compiled = kernel(types)(sum_products)
    assert "NRT_" not in llvm_of(compiled)
    assert compiled(np.arange(4), np.arange(4)) == 14


@pytest.mark.parametrize("compiled", [item, item_checked, call_two, move_word, step_point], ids=lambda k: k.__name__)
def test_kernels_with_signatures_hold_no_reference_counting(compiled: Any) -> None:
    assert "NRT_" not in llvm_of(compiled)


def test_kernel_without_a_signature_compiles_at_the_first_call_for_its_types() -> None:
    lazy = kernel()(sum_products)
    assert not lazy.signatures
    assert lazy(np.arange(3), np.arange(3)) == 5
    assert len(lazy.signatures) == 1


def test_checked_kernel_raises_where_python_would() -> None:
    array = np.arange(3)
    assert item_checked(array, 2) == 2
    with pytest.raises(IndexError):
        item_checked(array, 3)
    with pytest.raises(ZeroDivisionError):
        divide_checked(1, 0)


def test_unchecked_kernel_follows_numpy_and_does_not_raise() -> None:
    assert divide(7, 2) == 3
    assert divide(1, 0) == 0


def test_call_by_address_gives_the_result_of_the_callee() -> None:
    assert call_two(function_address(divide), 42, 5) == 8
    assert call_two(function_address(divide_checked), 42, 5) == 8


def test_call_by_address_of_a_callee_that_raises_returns_raised() -> None:
    assert call_two(function_address(divide_checked), 1, 0) == CallResult.RAISED
    assert call_two(function_address(divide_checked), 6, 3) == 2, "the next call is not touched by the error before"


@pytest.mark.parametrize("move", [move_word, publish_word], ids=["plain", "ordered"])
def test_words_are_read_and_written_at_addresses(move: Any) -> None:
    words = np.array([-5, 0, 7])
    move(address_of(words) + 8, address_of(words))
    assert words.tolist() == [-5, -4, 7]


def test_publication_is_a_release_store_and_an_acquire_load() -> None:
    ordered, plain = llvm_of(publish_word), llvm_of(move_word)
    assert "store atomic i64" in ordered and "release, align 8" in ordered
    assert "load atomic i64" in ordered and "acquire, align 8" in ordered
    assert "atomic" not in plain


def test_copy_moves_exactly_the_bytes_asked_for() -> None:
    source, destination = np.arange(1, 9, dtype=np.uint8), np.zeros(8, np.uint8)
    move_bytes(address_of(destination) + 1, address_of(source), 3)
    assert destination.tolist() == [0, 1, 2, 3, 0, 0, 0, 0]


def test_address_of_a_read_only_array_is_its_first_byte() -> None:
    whole = np.frombuffer(bytes(range(16)), np.uint8)
    assert not whole.flags.writeable
    assert address_of(whole[4:]) - address_of(whole) == 4


def test_record_view_reads_and_writes_the_memory_at_its_address() -> None:
    points = np.array([(1, 1.5), (10, 2.5)], POINT)
    assert step_point(address_of(points) + POINT.itemsize) == 11
    assert points.tolist() == [(1, 1.5), (11, 5.0)]


def test_cycle_counter_goes_forward() -> None:
    first = cycles()
    sum(range(1000))
    assert cycles() > first > 0


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a package of four modules that stands in for hftlab: top imports middle, middle imports bottom."""
    root = tmp_path / "hftlab"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "__init__.py").write_text("")
    (root / "top.py").write_text("from hftlab.middle import (\n    X,\n)\n")
    (root / "middle.py").write_text("from hftlab.deep import bottom\nX = 1\n")
    (root / "deep" / "bottom.py").write_text("LIMIT = 1\n")
    (root / "other.py").write_text("LIMIT = 1\n")
    monkeypatch.setattr(jit, "_PACKAGE", root)
    forget()
    yield root
    forget()


def forget() -> None:
    jit._closure.cache_clear()
    source_hash.cache_clear()


@pytest.mark.parametrize("changed", ["top.py", "middle.py", "deep/bottom.py", "deep/__init__.py"])
def test_source_hash_changes_with_any_module_imported_however_indirectly(package: Path, changed: str) -> None:
    before = source_hash(str(package / "top.py"))
    with (package / changed).open("a") as file:
        file.write("LIMIT = 2\n")
    forget()
    assert source_hash(str(package / "top.py")) != before


def test_source_hash_ignores_modules_that_are_not_imported(package: Path) -> None:
    before = source_hash(str(package / "top.py"))
    (package / "other.py").write_text("LIMIT = 2\n")
    forget()
    assert source_hash(str(package / "top.py")) == before


def test_kernel_compiled_by_one_process_is_loaded_by_the_next(tmp_path: Path) -> None:
    script = tmp_path / "one.py"
    script.write_text(
        "from hftlab.kernels.jit import kernel\n"
        "@kernel('int64(int64)')\n"
        "def double(x):\n"
        "    return 2 * x\n"
        "print(double(21), sum(double.stats.cache_hits.values()))\n"
    )
    environment = {**os.environ, "HFTLAB_CACHE": str(tmp_path / "cache")}
    runs = [
        subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs == ["42 0\n", "42 1\n"]


def test_decorator_leaves_numbas_own_cache_folder_as_it_was() -> None:
    before = numba.config.CACHE_DIR
    kernel("int64(int64)")(lambda x: x)
    assert before == numba.config.CACHE_DIR
