"""What a test needs from the machine: programs, and how long it may take."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")

ROOT = Path(__file__).parents[2]


def need(*names: str) -> list[str]:
    """The absolute paths of these programs.

    Without one of them the test is skipped on a user's machine, and fails under CI=true, where nothing may be left out.
    """
    found = [_which(name) for name in names]
    missing = [name for name, path in zip(names, found, strict=True) if path is None]
    if missing:
        without(f"missing: {', '.join(missing)}")
    return [path for path in found if path is not None]


def without(reason: str) -> None:
    """Give the test up for want of something on this machine: a skip, or a failure under CI=true."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def size(quick: int, full: int) -> int:
    """How many cases to run: `quick` in `make test`, `full` with FULL=1."""
    return full if os.environ.get("FULL") == "1" else quick


def _which(name: str) -> str | None:
    # Programs that pip installed stand beside the interpreter, which need not be on the PATH; daemons in sbin.
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]
    return shutil.which(name, path=os.pathsep.join(places))


def until(predicate: Callable[[], T], timeout: float = 30.0, what: str = "") -> T:
    """Ask every 5 ms until the answer is true and return it; fail after `timeout` seconds.

    The default guards against hanging and says nothing of how fast anything is: a busy machine takes its time.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout} s: {what or predicate}"
        time.sleep(0.005)


def free_port() -> int:
    """A port nobody listens on, outside the range from which the kernel takes ports for outgoing connections.

    Nobody is given it twice: between the choice and the use others choose, in this process and, side by side, in
    others, which choose among different ones.
    """
    while True:
        port = _ports.pop()
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            return port


def _shuffled_ports() -> list[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ports = list(range(10000 + worker, 32000, workers))
    random.shuffle(ports)
    return ports


_ports = _shuffled_ports()
