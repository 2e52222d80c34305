"""gate: what any gate is made of."""

from __future__ import annotations

from eidproxy.gate import HoldEstimate


def test_an_estimate_begins_with_the_first_hold_and_follows_the_newest() -> None:
    hold = HoldEstimate()
    assert hold.estimate_wait(1, 1) is None
    hold.add(10.0)
    assert (hold.estimate_wait(1, 1), hold.estimate_wait(3, 2)) == (10.0, 15.0)
    hold.add(20.0)
    assert hold.seconds == 12.0
