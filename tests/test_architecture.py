"""The house rules that no other tool holds: layers, public names, what may not happen below the sockets."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "hftlab"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Layers L0 to L3: what they do depends on their arguments alone.
SANS_IO = {
    "core", "kernels", "journal", "codecs", "strategy",
    "engine", "sim", "analysis", "venues", "strategies", "tracking",
}  # fmt: skip
OUTSIDE = {"asyncio", "socket", "selectors", "ssl", "http", "aiohttp", "websockets", "picows", "requests", "httpx"}
CLOCKS = {
    "time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns", "time.perf_counter", "time.perf_counter_ns",
    "time.clock_gettime", "time.clock_gettime_ns", "datetime.now", "datetime.utcnow", "date.today",
}  # fmt: skip


def name_of(module: Path) -> str:
    return module.relative_to(PACKAGE.parent).as_posix()


def is_sans_io(module: Path) -> bool:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py") in SANS_IO


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of everything imported, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def impurities(source: str) -> list[str]:
    """Return what `source` does that only layer 4 and above may do."""
    tree = ast.parse(source)
    found = [f"line {n}: imports {name}" for n, name in imported(tree) if name.split(".")[0] in OUTSIDE]
    found += [f"line {n}: imports {name}" for n, name in imported(tree) if name in CLOCKS]
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            found.append(f"line {node.lineno}: async")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            found.append(f"line {node.lineno}: print")
        elif isinstance(node, ast.Attribute):
            dotted = ".".join(ast.unparse(node).split(".")[-2:])
            if dotted in CLOCKS:
                found.append(f"line {node.lineno}: {dotted}")
    return found


def public_names(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return None


def undocumented(source: str) -> list[str]:
    """Return the public classes and functions of `source`, and public methods of those classes, with no docstring."""
    tree = ast.parse(source)
    public = public_names(tree) or []
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name in public:
            found += [] if ast.get_docstring(node) else [node.name]
            inner = node.body if isinstance(node, ast.ClassDef) else []
            for member in inner:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and not member.name.startswith("_"):
                    found += [] if ast.get_docstring(member) else [f"{node.name}.{member.name}"]
    return found


def file_sets(venues: Path) -> dict[str, set[str]]:
    folders = [folder for folder in venues.iterdir() if (folder / "__init__.py").is_file()] if venues.is_dir() else []
    return {folder.name: {file.name for file in folder.glob("*.py")} for folder in folders}


def test_rooms_import_downwards_only() -> None:
    command = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [command, "--no-cache", "--no-logo"], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Contracts: 1 kept, 0 broken." in done.stdout


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_module_says_what_it_is(module: Path) -> None:
    assert ast.get_docstring(ast.parse(module.read_text())), f"{name_of(module)} has no docstring"


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_public_names_are_listed_sorted_and_once(module: Path) -> None:
    tree = ast.parse(module.read_text())
    public = public_names(tree)
    if public is None:
        defined = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
        assert not [name for name in defined if not name.startswith("_")], f"{name_of(module)} has no __all__"
    else:
        assert public == sorted(set(public))


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_public_names_are_documented(module: Path) -> None:
    assert undocumented(module.read_text()) == []


@pytest.mark.parametrize("module", [m for m in MODULES if is_sans_io(m)], ids=name_of)
def test_no_socket_clock_async_or_print_below_layer_4(module: Path) -> None:
    assert impurities(module.read_text()) == []


def test_only_the_kernel_decorator_names_numbas() -> None:
    for module in MODULES:
        # a peer's script runs in the peer's own environment, and compiles as the peer's users do
        if module != PACKAGE / "kernels" / "jit.py" and PACKAGE / "bench" / "peers" not in module.parents:
            names = {name for _, name in imported(ast.parse(module.read_text()))}
            assert not names & {"numba.njit", "numba.jit", "numba.vectorize"}, name_of(module)
            assert "numba.njit" not in module.read_text() and "@njit" not in module.read_text(), name_of(module)


def test_only_tracking_imports_mlflow() -> None:
    for module in MODULES:
        names = {name.split(".")[0] for _, name in imported(ast.parse(module.read_text()))}
        assert "mlflow" not in names or module.relative_to(PACKAGE).parts[0].startswith("tracking"), name_of(module)


def test_every_venue_has_the_same_files() -> None:
    sets = file_sets(PACKAGE / "venues")
    names = set().union(*sets.values()) if sets else set()
    assert {venue: names - files for venue, files in sets.items() if names - files} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import socket", "from asyncio import run", "import websockets.asyncio.client", "from time import time_ns",
        "import time\nnow = time.monotonic_ns()", "import datetime\nnow = datetime.datetime.now()",
        "async def read(): ...", "def show(): print('x')", "def late():\n    import aiohttp",
    ],
)  # fmt: skip
def test_the_scan_sees_each_thing_forbidden_below_layer_4(source: str) -> None:
    assert len(impurities(source)) == 1


def test_the_scan_lets_docstrings_and_plain_code_pass() -> None:
    assert impurities('"""print(time.time()) and socket."""\nimport threading\nthreading.Event().wait(0.005)\n') == []


def test_the_scan_sees_public_names_without_docstring() -> None:
    source = '__all__ = ["A", "f"]\nclass A:\n    "A."\n    def m(self): ...\ndef f(): ...\ndef _g(): ...\n'
    assert undocumented(source) == ["A.m", "f"]
