"""How long a computation takes, in seconds of an ordinary machine that runs nothing else; how late a busy one is.

A test that bounds a cost must fail for code that is slow, not for a machine that is. So what was measured is divided by
what a fixed piece of Python took at the same time. Under a tracer, which slows each line, nothing is measured.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable
from typing import Self

import pytest

from tests.lab.client import Dialled, ask

_ORDINARY_SECONDS = 0.006
"""What `_fixed` takes on an ordinary machine."""

_NAP_SECONDS = 0.002


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


class Beside:
    """How late this machine wakes who sleeps, measured beside what a test measures.

    A promise in seconds is about the product, not about what else runs here. On a busy machine each step of a request
    (caller, proxy, router, caller) waits for a processor as long as the thread of this class does, so a bound is
    extended by that: `assert took < beside.allow(0.1)`. On an idle machine that is a millisecond or two.

    Where what is measured takes its turn behind what others ask of the same server, `where` is that server: then the
    time of a round trip to it counts as well.
    """

    STEPS = 6

    def __init__(self, where: Dialled | None = None) -> None:
        self.where = where
        self.late: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sleep, daemon=True)

    def allow(self, seconds: float) -> float:
        """The bound, extended by what the machine was late at its worst until now."""
        return seconds + self.STEPS * max(self.late, default=0.0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sleep(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            time.sleep(_NAP_SECONDS)
            if self.where is not None:
                ask(self.where, "GET", "/healthz", timeout=60)
            self.late.append(time.monotonic() - began - _NAP_SECONDS)
