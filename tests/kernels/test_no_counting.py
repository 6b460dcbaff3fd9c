"""Every kernel's machine code: nothing of numba's reference counting in it.

The decorator asks for code without the runtime; numba only obeys where nothing allocates and otherwise says so at
compile time. What runs is looked at here: the object code of every kernel that this process has compiled or loaded,
whichever module of ours it is from, after the whole hot path has run. A kernel that is inlined has no code of its own;
it is part of its callers'.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import CPUDispatcher

import hftlab.kernels
import hftlab.venues
from hftlab.bench.run import Plan
from hftlab.bench.tick_to_order import prepare
from hftlab.kernels import jit
from hftlab.kernels.jit import kernel

AT_LEAST = 30
"""Kernels with code of their own; a walk that finds fewer looks in the wrong place."""


def modules() -> Iterator[Any]:
    for package in (hftlab.kernels, hftlab.venues):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield importlib.import_module(found.name)


def kernels() -> dict[str, CPUDispatcher]:
    found = {}
    for module in modules():
        for name, value in vars(module).items():
            if isinstance(value, CPUDispatcher) and value.py_func.__module__ == module.__name__:
                found[f"{module.__name__}.{name}"] = value
    return found


def object_codes(compiled: CPUDispatcher) -> list[bytes]:
    codes = []
    with global_compiler_lock:
        for result in compiled.overloads.values():
            library = result.library
            made = library._compiled_object  # None before its first use: then what it will be made of is looked at
            codes.append(bytes(made) if made else bytes(library._get_module_for_linking().as_bitcode()))
    return codes


@pytest.fixture(scope="module")
def exercised(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CPUDispatcher]:
    """Run the hot path once, so that kernels without a signature have the code that it uses."""
    plan = Plan(Path(tmp_path_factory.mktemp("bench")), scale=0.01)
    try:
        prepare(plan)
    finally:
        plan.close()
    return kernels()


def test_no_kernel_counts_references(exercised: dict[str, CPUDispatcher]) -> None:
    codes = {name: object_codes(compiled) for name, compiled in exercised.items()}
    looked_at = {name for name, found in codes.items() if found}
    counting = {name for name, found in codes.items() if any(b"NRT_" in code for code in found)}
    assert counting == set()
    assert len(looked_at) >= AT_LEAST
    assert {"hftlab.kernels.loop.run", "hftlab.kernels.loop.enter", "hftlab.kernels.risk.submit"} <= looked_at


def test_the_look_sees_a_kernel_that_counts() -> None:
    counting = numba.njit("int64(int64[::1], int64[::1])")(lambda a, b: len(a) + len(b) if a[0] else int(a[b[0]]))
    allocating = numba.njit("float64[::1](int64)")(lambda n: np.zeros(n))
    assert any(b"NRT_" in code for code in object_codes(allocating) + object_codes(counting))


def test_a_numba_without_the_private_option_compiles_kernels_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = jit.njit

    def without_it(*arguments: Any, **options: Any) -> Any:
        asked.append("_nrt" in options)
        if "_nrt" in options:
            raise KeyError("'_nrt': no such option")
        return real(*arguments, **options)

    monkeypatch.setattr(jit, "njit", without_it)
    compiled = kernel("int64(int64)")(lambda n: n + 1)
    assert compiled(41) == 42 and asked == [True, False]
