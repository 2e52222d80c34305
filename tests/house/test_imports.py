"""Imports run one way, and the pure modules reach for nothing that waits, talks or looks at a clock."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import eidproxy

PACKAGE = Path(eidproxy.__file__).parent
TESTS = Path(__file__).parents[1]

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
    "silence": {"errors"},
    "wedge": {"vocabulary"},
    "egress": set(),
    "hints": {"egress"},
    # shell
    "record": {"errors", "vocabulary"},
    "logs": {"errors", "record", "vocabulary"},
    "metrics": {"errors", "record", "vocabulary"},
    "settings": {"egress", "vocabulary"},
    "validation": {"chat", "choice", "egress", "errors", "settings", "vocabulary"},
    "sources": {"settings", "validation"},
    "config": {"settings", "sources", "validation"},
    "flags": {"config"},
    "tokens": {"errors", "http1"},
    "site": {"errors"},
    "status": set(),
    "history": {"metrics", "status"},
    "signals": set(),
    "keepalive": set(),
    "view": {"status"},
    "top": {"config", "signals", "status", "view"},
    "timeouts": set(),
    "shortcut": set(),
    "transport": {"keepalive", "shortcut"},
    "resolver": {"egress"},
    "connections": {"errors", "timeouts"},
    "connection": {"connections", "timeouts", "errors", "http1"},
    "server": {"connection", "connections", "keepalive"},
    "listener": {"config", "server"},
    "surface": {"chat", "config", "errors", "http1", "tokens", "vocabulary"},
    "tls": {"transport"},
    "idle": {"timeouts", "transport"},
    "response": set(),
    "exchange": {"response", "shortcut", "timeouts", "transport"},
    "upstream": {"timeouts", "egress", "exchange", "hints", "idle", "resolver", "tls", "transport"},
    "reasons": {"egress", "errors"},
    "gate": {"vocabulary"},
    "local": {"admission", "timeouts", "errors", "gate", "metrics", "vocabulary"},
    "settle": {"gate", "metrics", "vocabulary"},
    "address": {"egress"},
    "store_client": {"address", "egress", "keepalive", "resolver"},
    "shared_permit": {"store_client", "vocabulary"},
    "shared": {"errors", "gate", "shared_permit", "store_client", "metrics", "vocabulary"},
    "shared_factory": {"address", "gate", "shared", "store_client", "metrics", "egress"},
    "choice": {"address", "admission", "gate", "local", "metrics", "shared_factory"},
    "progress": {"stream"},
    "states": {"errors", "vocabulary"},
    "splice": {"connection", "exchange", "metrics", "response", "shortcut", "stream", "wedge"},
    "answer": {"completion", "connection", "errors", "progress", "splice", "stream", "vocabulary"},
    "tally": {"answer", "errors", "metrics", "stream", "vocabulary"},
    "watch": {"answer", "exchange", "silence", "timeouts"},
    "upstream_request": {
        "answer",
        "errors",
        "exchange",
        "metrics",
        "progress",
        "reasons",
        "response",
        "settle",
        "silence",
        "splice",
        "states",
        "stream",
        "timeouts",
        "upstream",
        "vocabulary",
        "watch",
    },
    "relay": {
        "answer",
        "chat",
        "completion",
        "connection",
        "egress",
        "errors",
        "exchange",
        "gate",
        "logs",
        "metrics",
        "progress",
        "reasons",
        "record",
        "settle",
        "silence",
        "splice",
        "states",
        "stream",
        "tally",
        "timeouts",
        "upstream",
        "upstream_request",
        "vocabulary",
        "wedge",
    },
    "endpoints": {
        "chat",
        "connection",
        "connections",
        "errors",
        "http1",
        "logs",
        "metrics",
        "record",
        "site",
        "relay",
        "status",
        "surface",
        "tokens",
        "vocabulary",
    },
    "app": {
        "chat",
        "egress",
        "choice",
        "config",
        "connections",
        "endpoints",
        "reasons",
        "gate",
        "history",
        "logs",
        "metrics",
        "record",
        "site",
        "relay",
        "resolver",
        "server",
        "settle",
        "shortcut",
        "silence",
        "status",
        "surface",
        "upstream",
        "upstream_request",
        "vocabulary",
        "wedge",
        "transport",
    },
    "schema": {"chat", "chunk", "completion"},
    "look": {"chunk", "egress", "exchange", "response", "errors", "reasons", "upstream", "vocabulary"},
    "check": {
        *("app", "choice", "config", "egress", "hints", "look", "reasons", "server", "surface", "tokens", "upstream"),
    },
    "live_check": {"app", "check", "choice", "config", "look", "top", "vocabulary"},
    "service": set(),
    "fake_router": set(),
    "running": {"config"},
    "testing": {"fake_router", "running"},
    "plugin": {"fake_router", "running"},
    "people": {"fake_router"},
    "demo": {"app", "config", "fake_router", "people", "signals", "site", "tokens"},
    "cli": {
        *("app", "check", "choice", "config", "demo", "flags", "listener", "live_check", "logs", "schema"),
        *("service", "shortcut", "signals", "surface", "tokens", "top"),
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
    return (
        {name.rpartition(".")[2] for name in _imports(path) if name.startswith("eidproxy")}
        - set(PACKAGES)
        - {"_splice"}
    )


def _module(path: Path) -> str:
    """The name of a module. A package whose face holds code goes by the name of its folder."""
    return path.parent.name if path.stem == "__init__" and path.parent != PACKAGE else path.stem


FACES = {"config", "gate", "testing"}
"""Packages whose `__init__` holds what every module of theirs is, or what is public of them."""

PACKAGES = sorted({path.parent.name for path in PACKAGE.glob("*/__init__.py")} - FACES)

PATHS = {
    _module(path): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.stem != "__init__" or path.parent == PACKAGE or path.parent.name in FACES
}
"""The file of each module, by its name alone: no two have the same."""

MODULES = sorted(PATHS)


def dotted(module: str) -> str:
    """The name to import it by."""
    return ".".join(PATHS[module].relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def test_no_two_modules_have_one_name() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if path.parent.name not in {*PACKAGES} or path.stem != "__init__"]
    assert len(files) == len(MODULES)


def test_the_root_is_a_map() -> None:
    assert len([name for name in MODULES if PATHS[name].parent == PACKAGE]) + len(PACKAGES) + len(FACES) <= 22


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_what_it_may(module: str) -> None:
    assert module in ALLOWED, f"{module} is new: say in ALLOWED what it may import"
    assert _own(PATHS[module]) <= ALLOWED[module]


def test_the_table_has_no_circle() -> None:
    order = list(TopologicalSorter(ALLOWED).static_order())
    assert set(order) == set(ALLOWED)


ELSEWHERE = {
    "__init__": "../house/test_imports.py",
    "__main__": "test_signals.py",
    "listener": "../promises/test_shutdown.py",
    **dict.fromkeys(("response", "upstream"), "test_exchange.py"),
    "people": "test_demo.py",
    "connections": "test_connection.py",
    **dict.fromkeys(("settings", "sources"), "test_config.py"),
    **dict.fromkeys(("answer", "splice", "states", "tally", "upstream_request"), "test_relay.py"),
    **dict.fromkeys(("fake_router", "plugin", "running"), "test_testing.py"),
    **dict.fromkeys(("choice", "shared_factory", "shared_permit"), "test_shared.py"),
}
"""Modules whose tests have another name."""


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_tests_of_its_name(module: str) -> None:
    assert (TESTS / "unit" / ELSEWHERE.get(module, f"test_{module}.py")).exists()


def test_every_dependency_is_imported() -> None:
    """By the package; anyio, which callbacks have no use for, by the tests alone (DESIGN, Dependencies)."""
    listed = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    spelled = {"pyjwt": "jwt"}
    names = {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in listed}
    of_ours = {name.partition(".")[0] for module in MODULES for name in _imports(PATHS[module])}
    assert {name for name in names if spelled.get(name, name) not in of_ours} == {"anyio"}
    assert "anyio" in _imports(TESTS / "lab" / "loops.py")


def test_the_table_names_no_module_that_is_gone() -> None:
    assert set(ALLOWED) <= set(MODULES)


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_imports_values_only(module: str) -> None:
    path = PATHS[module]
    foreign = {name for name in _imports(path) if not name.startswith("eidproxy")}
    assert foreign <= PURE_MAY_IMPORT
    assert _own(path) <= set(PURE)


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_awaits_nothing(module: str) -> None:
    tree = ast.parse(PATHS[module].read_text(encoding="utf-8"))
    waiting = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith, ast.Yield, ast.YieldFrom)
    assert not [node for node in ast.walk(tree) if isinstance(node, waiting)]


def test_pure_modules_load_nothing_that_does_io() -> None:
    code = (
        f"import sys; before = set(sys.modules); import {', '.join(map(dotted, PURE))}; "
        "print(*(name.partition('.')[0] for name in sys.modules.keys() - before))"
    )
    code = f"import sys; sys.path[:0] = {sys.path!r}; {code}"
    command = [sys.executable, "-I", "-S", "-c", code]  # no site: it may load anything
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "msgspec" in loaded
    assert not NEVER_LOADED & set(loaded)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_uses_the_middleware_that_hides_departures(module: str) -> None:
    assert "starlette.middleware" not in PATHS[module].read_text(encoding="utf-8")


_PLANTED = re.compile(r"(^|\n|; )(import|from) (eidproxy|tests)\b")

_LOOKS_UP = """
import json, sys
for place, imports, names in json.load(sys.stdin):
    scope = {}
    try:
        for line in imports:
            exec(line, scope)
    except ModuleNotFoundError as error:
        assert error.name == "redis", f"{place}: {error}"
    for root, *rest in names:
        found = scope.get(root)
        for name in rest if root in scope else ():
            assert hasattr(found, name), f"{place}: {root}.{'.'.join(rest)}"
            found = getattr(found, name)
"""


def _planted() -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Where tests hold code as text that imports our modules, with its imports and the names that it only sets."""
    for path in sorted(TESTS.rglob("*.py")):
        for text in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(text, ast.Constant) and isinstance(text.value, str) and _PLANTED.search(text.value):
                code = re.sub(r"\{\w+(![rs])?\}", "0", text.value.removeprefix("; "))  # what is filled in later
                nodes = list(ast.walk(ast.parse(code)))
                imports = [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
                dotted = [(ast.unparse(node), type(node.ctx)) for node in nodes if isinstance(node, ast.Attribute)]
                read = {name for name, kind in dotted if kind is ast.Load}  # these are missed where the code runs
                names = [name.split(".") for name, kind in dotted if kind is ast.Store and name not in read]
                yield f"{path.name}:{text.lineno}", imports, names


def test_what_is_planted_as_text_names_what_there_is() -> None:
    """Text is not renamed with the code it names, and what is set on a name that nobody reads changes nothing.

    Looked up in a process of its own: some of it has an effect when it is imported.
    """
    planted = list(_planted())
    assert planted
    command = [sys.executable, "-c", _LOOKS_UP]
    looked = subprocess.run(
        command, input=json.dumps(planted), cwd=TESTS.parent, capture_output=True, text=True, check=False
    )
    assert looked.returncode == 0, looked.stderr
