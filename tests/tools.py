"""What a test needs from the machine: programs, and how long it may take."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


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
