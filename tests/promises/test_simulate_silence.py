"""The simulation of silence in its short form: the limits that know the prompt against one that does not."""

from __future__ import annotations

import pytest

from tests.lab.tools import size
from tests.simulate_silence import DEFAULTS, FIXED, SPEEDS, Speed, computing, hanging


@pytest.mark.parametrize("speed", SPEEDS, ids=lambda speed: f"{speed.prefill:.0f}")
def test_nobody_is_cut_that_would_have_been_answered(speed: Speed) -> None:
    """A box that never hangs. The control is one limit of 120 s for whatever comes."""
    requests, seed = size(5_000, 100_000), 1  # always the same draws: what is asserted is a statistic
    fixed = computing(requests, speed, seed, FIXED, 0)
    ours = computing(requests, speed, seed, DEFAULTS, 2)
    too_eager = computing(requests, speed, seed, DEFAULTS, 1)
    for name, found in (("120 s", fixed), ("allowance, after 2", ours), ("allowance, after 1", too_eager)):
        print(f"{speed.prefill:.0f} tok/s, {name}: {found._asdict()}")
    assert ours.cut == 0
    assert fixed.cut > requests / 500
    assert ours.refused < fixed.cut / 10
    assert ours.answered > fixed.answered
    assert too_eager.refused > 5 * ours.refused
    assert sum(ours) - ours.wedges == requests


@pytest.mark.parametrize("pings", [False, True], ids=["silent", "pings"])
@pytest.mark.parametrize("capacity", [1, None], ids=["daily", "deep"])
def test_ten_callers_of_a_router_that_hangs(pings: bool, capacity: int | None) -> None:
    before = hanging(0, pings=pings, old_rule=True, capacity=capacity)
    off = hanging(0, pings=pings, capacity=capacity)
    on = hanging(2, pings=pings, capacity=capacity)
    print(f"before {before}, guard off {off}, guard on {on}")
    assert on.seconds < before.seconds / 2
    assert on.seconds <= off.seconds / 2
    assert on.refused >= 4
    assert before.refused == off.refused == 0
