"""How long a computation takes, in seconds of an ordinary machine that runs nothing else.

A test that bounds a cost must fail for code that is slow, not for a machine that is. So what was measured is divided by
what a fixed piece of Python took at the same time. Under a tracer, which slows each line, nothing is measured.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable

import pytest

_ORDINARY_SECONDS = 0.006
"""What `_fixed` takes on an ordinary machine."""


def _fixed() -> None:
    total = 0
    for number in range(100_000):
        total += number


def _measured(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def cost(call: Callable[[], object], times: int = 3) -> float:
    """The best of some runs. The collector is off: it would look at the test runner's own heap each time."""
    if sys.gettrace() is not None:
        pytest.skip("a tracer is on: coverage is not speed")
    collects = gc.isenabled()
    gc.disable()
    try:
        return min(_measured(call) / max(_measured(_fixed) / _ORDINARY_SECONDS, 1.0) for _ in range(times))
    finally:
        if collects:
            gc.enable()
