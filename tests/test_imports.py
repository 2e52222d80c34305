"""Imports run one way, and the pure modules reach for nothing that waits, talks or looks at a clock."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import eidproxy

PACKAGE = Path(eidproxy.__file__).parent

ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli", "signals"},
    # pure
    "vocabulary": set(),
    "repair": set(),
    "errors": {"repair", "vocabulary"},
    "http1": {"errors"},
    "chat": {"errors", "vocabulary"},
    "sse": set(),
    "chunk": set(),
    "dialect": {"repair"},
    "tool_calls": {"chunk", "dialect", "repair"},
    "sanitize": {"chunk", "dialect", "errors", "repair", "sse", "tool_calls", "vocabulary"},
    "completion": {"chunk"},
    "stream": {"chunk", "completion", "sanitize", "sse", "vocabulary"},
    "admission": {"vocabulary"},
    "silence": set(),
    "wedge": {"vocabulary"},
    "egress": set(),
    "hints": {"egress"},
    # shell
    "logs": set(),
    "metrics": {"errors", "vocabulary"},
    "config": {"chat", "egress", "vocabulary"},
    "flags": {"config"},
    "tokens": {"errors"},
    "pages": {"errors"},
    "status": set(),
    "history": {"metrics", "status"},
    "signals": set(),
    "keepalive": set(),
    "top": {"config", "signals", "status"},
    "countdown": set(),
    "wire": {"keepalive"},
    "resolver": {"egress"},
    "connection": {"countdown", "errors", "http1"},
    "server": {"connection", "keepalive"},
    "surface": {"chat", "config", "errors", "http1", "tokens", "vocabulary"},
    "idle": {"countdown", "wire"},
    "upstream": {"countdown", "egress", "hints", "idle", "keepalive", "resolver", "wire"},
    "gate": {"admission", "countdown", "errors", "metrics", "vocabulary"},
    "settle": {"gate", "metrics", "vocabulary"},
    "gate_link": {"config", "egress", "keepalive", "resolver", "upstream"},
    "gate_redis": {"config", "errors", "gate", "gate_link", "metrics", "upstream", "vocabulary"},
    "progress": {"stream"},
    "relay": {
        "chat",
        "completion",
        "connection",
        "countdown",
        "errors",
        "gate",
        "logs",
        "metrics",
        "progress",
        "settle",
        "silence",
        "stream",
        "upstream",
        "vocabulary",
        "wedge",
    },
    "endpoints": {
        "chat",
        "connection",
        "errors",
        "http1",
        "logs",
        "metrics",
        "pages",
        "relay",
        "status",
        "surface",
        "vocabulary",
    },
    "app": {
        "admission",
        "chat",
        "config",
        "connection",
        "endpoints",
        "gate",
        "gate_redis",
        "history",
        "logs",
        "metrics",
        "pages",
        "relay",
        "resolver",
        "server",
        "settle",
        "silence",
        "status",
        "surface",
        "upstream",
        "vocabulary",
        "wedge",
    },
    "schema": {"chat", "chunk", "completion"},
    "look": {"errors", "upstream", "vocabulary"},
    "check": {"app", "config", "gate_redis", "hints", "look", "surface", "tokens", "upstream"},
    "live_check": {"app", "check", "config", "look", "top", "vocabulary"},
    "service": set(),
    "fake_router": set(),
    "testing": {"config", "fake_router"},
    "demo_people": {"fake_router"},
    "demo": {"app", "config", "demo_people", "fake_router", "pages", "signals", "tokens"},
    "cli": {
        *("app", "check", "config", "demo", "flags", "live_check", "logs", "schema", "service", "signals"),
        *("surface", "tokens", "top"),
    },
}
"""What each module may import of the package. A new import is a decision: it is written down here first."""

PURE = (
    *("vocabulary", "repair", "errors", "http1", "chat", "sse", "chunk", "dialect", "tool_calls", "sanitize"),
    *("completion", "stream", "admission", "silence", "wedge", "egress", "hints"),
)

PURE_MAY_IMPORT = {
    "bisect",
    "codecs",
    "collections.abc",
    "enum",
    "itertools",
    "math",
    "msgspec",
    "operator",
    "re",
    "typing",
}

NEVER_LOADED = {
    "anyio",
    "asyncio",
    "httpx",
    "httptools",
    "starlette",
    "uvicorn",
    "uvloop",
    "structlog",
    "logging",
    "socket",
}


def _imports(path: Path) -> set[str]:
    """Every module a file imports, wherever in the file; `from eidproxy import x` counts as `eidproxy.x`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            module = node.module or ""
            found |= {f"eidproxy.{alias.name}" for alias in node.names} if module == "eidproxy" else {module}
    return found


def _own(path: Path) -> set[str]:
    return {name.removeprefix("eidproxy.") for name in _imports(path) if name.startswith("eidproxy")}


MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_what_it_may(module: str) -> None:
    assert module in ALLOWED, f"{module} is new: say in ALLOWED what it may import"
    assert _own(PACKAGE / f"{module}.py") <= ALLOWED[module]


def test_the_table_has_no_circle() -> None:
    order = list(TopologicalSorter(ALLOWED).static_order())
    assert set(order) == set(ALLOWED)


def test_the_table_names_no_module_that_is_gone() -> None:
    assert set(ALLOWED) <= set(MODULES)


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_imports_values_only(module: str) -> None:
    path = PACKAGE / f"{module}.py"
    foreign = {name for name in _imports(path) if not name.startswith("eidproxy")}
    assert foreign <= PURE_MAY_IMPORT
    assert _own(path) <= set(PURE)


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_awaits_nothing(module: str) -> None:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    waiting = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith, ast.Yield, ast.YieldFrom)
    assert not [node for node in ast.walk(tree) if isinstance(node, waiting)]


def test_pure_modules_load_nothing_that_does_io() -> None:
    code = (
        f"import sys; before = set(sys.modules); import {', '.join(f'eidproxy.{name}' for name in PURE)}; "
        "print(*(name.partition('.')[0] for name in sys.modules.keys() - before))"
    )
    code = f"import sys; sys.path[:0] = {sys.path!r}; {code}"
    command = [sys.executable, "-I", "-S", "-c", code]  # no site: it may load anything
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "msgspec" in loaded
    assert not NEVER_LOADED & set(loaded)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_uses_the_middleware_that_hides_departures(module: str) -> None:
    assert "starlette.middleware" not in (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
