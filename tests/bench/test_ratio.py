"""A regression of the cost of an event by a factor of two cannot land unseen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.__main__ import Scenario, ratio, run

PACED = Scenario("paced", 100, 100, 40, 20_000)
SHORT = Scenario("short", 4, 200, 8, 0)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="CPU times come from /proc")
def test_an_event_costs_less_than_in_the_obvious_relay() -> None:
    """Usually 0.25 for an event and 0.3 for a stream; both bounds leave room for a noisy machine, not for 2 x."""
    results = run(["obvious", "eidproxy"], (PACED, SHORT), rounds=2)
    for scenario in (PACED, SHORT):
        for result in results[scenario.name, "eidproxy"]:
            assert (result["failed"], result["leaks"], result["ok"]) == (0, 0, scenario.total)
    event = ratio(results, "paced", "eidproxy", "obvious", "cpu_us_per_event")
    stream = ratio(results, "short", "eidproxy", "obvious", "cpu_us_per_stream")
    print(f"CPU beside the obvious relay: {event:.2f} for an event, {stream:.2f} for a stream")
    assert event is not None
    assert event < 0.5
    assert stream is not None
    assert stream < 0.6
