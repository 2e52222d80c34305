"""The soak in seconds instead of minutes, and whether it would notice."""

from __future__ import annotations

import random

import pytest

from tests.soak import MAX_SLOPE, slope, soak


def test_a_short_soak(seed: int) -> None:
    """Callers, departures and faults side by side: nothing wrong, nothing left over."""
    assert soak(3, seed) == 0


LEAKS = """
import os
from eidproxy.monitoring.metrics import Metrics
count_request = Metrics.count_request
Metrics.count_request = lambda *request: (os.open("/dev/null", os.O_RDONLY), count_request(*request))[1]
"""


def test_control_a_leak_of_descriptors_is_noticed() -> None:
    """Control: one descriptor more for each request."""
    with pytest.raises(AssertionError, match="descriptors"):
        soak(1, seed=1, planted=LEAKS, patience=1)


@pytest.mark.parametrize("leak", [0, 2, -2])
def test_control_a_leak_of_memory_is_noticed(leak: int, seed: int) -> None:
    """Ten minutes of samples as they are, with some pages of noise: two mebibytes an hour stand out, none do not."""
    choose = random.Random(seed)
    page, mebibyte = 4096, 2**20
    samples = [
        (float(at), 40 * mebibyte + leak * mebibyte * at // 3600 + page * choose.randint(-16, 16))
        for at in range(0, 600, 2)
    ]
    assert (slope(samples) > MAX_SLOPE) == (leak > 0)
