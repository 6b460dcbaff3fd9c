"""Fixtures that every room's tests share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent

collect_ignore = ["journal/litmus.py"]
"""A script: were it imported, its kernels would be cached under a name that the script's own process does not have."""


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of recorded market data beside the project; skip where it was not delivered."""
    folder = PROJECT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the recorded market data, a folder shared/data beside the project, which is not here")
    return folder


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an empty HFTLAB_HOME for one test.

    pytest's own tmp_path is too long for it: the path of a Unix socket must fit 108 bytes.
    """
    folder = Path(tempfile.mkdtemp(prefix="hft"))
    monkeypatch.setenv("HFTLAB_HOME", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
