"""history: what five seconds and five minutes were like, read from histograms that are counted anyway."""

from collections.abc import Iterable

import pytest

from eidproxy.monitoring.history import History, quantile
from eidproxy.monitoring.metrics import Distribution
from eidproxy.monitoring.status import ROWS, Spread
from tests.lab.client import CHAT, RawClient, ask, chat, request_bytes
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.script import stream
from tests.lab.tools import until

BOUNDS = (1.0, 2.0, 4.0)


def distribution(values: Iterable[float] = ()) -> Distribution:
    found = Distribution(BOUNDS)
    for value in values:
        found.observe(value)
    return found


def test_a_row_holds_its_own_five_seconds() -> None:
    waits, first = distribution([4.0, 4.0]), distribution()
    history = History({"foreground": waits}, {"daily": first})
    waits.observe(1.5)
    waits.observe(0.5)
    history.sample(waiting=3)
    first.observe(2.0)
    history.sample(waiting=0)
    one, two = history.rows
    assert (one.waiting, two.waiting) == (3, 0)
    assert one.gate_wait["foreground"] == Spread(2, 1.0, 1.9), "what came before the first row is none of it"
    assert one.first_token == {}, "nothing in five minutes is nothing at all"
    assert two.gate_wait["foreground"] == Spread(0, None, 1.9), "the five minutes still have some"
    assert two.first_token["daily"].count == 1


def test_five_minutes_are_kept_and_no_more() -> None:
    waits = distribution()
    history = History({"foreground": waits}, {})
    waits.observe(3.0)
    for number in range(ROWS):
        history.sample(number)
    assert history.rows[-1].gate_wait["foreground"].count == 0
    assert history.rows[0].gate_wait["foreground"].count == 1
    history.sample(ROWS)
    assert (len(history.rows), history.rows[0].waiting, history.rows[-1].waiting) == (ROWS, 1, ROWS)
    assert history.rows[-1].gate_wait == {}, "the one of more than five minutes ago is forgotten"


@pytest.mark.parametrize(
    ("values", "part", "expected"),
    [
        ([0.5] * 4, 0.5, 0.5),
        ([0.5] * 4, 0.95, 0.95),
        ([0.5, 1.5, 1.5, 3.0], 0.75, 2.0),
        ([0.5, 1.5, 3.0, 3.0], 0.75, 3.0),
        ([9.0], 0.95, 4.0),
        ([3.0], 1.0, 4.0),
    ],
    ids=["half of the first", "low", "a bound", "between two bounds", "above all bounds", "the last bound"],
)
def test_quantiles_are_read_as_prometheus_reads_them(values: list[float], part: float, expected: float) -> None:
    assert quantile(part, BOUNDS, distribution(values).counts) == pytest.approx(expected)


def test_a_page_that_is_opened_now_sees_what_was(router: Router) -> None:
    """Through the real process: a row for each five seconds, with those who waited and what they met."""
    with Proxy(router) as proxy:
        assert proxy.status()["history"] == []
        router.script = stream(gate="go")
        with RawClient(proxy) as holder, RawClient(proxy) as waiter:
            for client in (holder, waiter):
                client.send(request_bytes("POST", CHAT, chat()))
            router.wait_for(lambda: router.waiting("go") == 1)
            until(lambda: proxy.status()["history"], 10, "the first row")
            router.release("go")
            for client in (holder, waiter):
                client.read_head()
                client.read_body()
        assert ask(proxy, "POST", CHAT, chat("deep")).status == 200
        rows = until(lambda: proxy.status()["history"][1:] and proxy.status()["history"], 10, "the second row")
    first, second = rows[:2]
    assert (first["waiting"], second["waiting"]) == (1, 0)
    assert first["gate_wait"]["foreground"]["count"] == 1
    assert second["gate_wait"]["foreground"]["count"] == 1
    assert second["gate_wait"]["foreground"]["p95_seconds"] > 1, "one waited for seconds"
    assert second["first_token"]["deep"]["count"] == 1
    assert "background" not in second["gate_wait"]
