"""record: one value for metrics and log, whatever the reason of a request is spelled like."""

from __future__ import annotations

import pytest

from eidproxy.errors import RouterReason
from eidproxy.monitoring.record import RequestRecord
from eidproxy.vocabulary import Mode, Outcome, Surface


@pytest.mark.parametrize(
    ("reason", "label", "own", "outcome"),
    [
        (None, "none", "", Outcome.OK),
        ("draining", "draining", "draining", Outcome.ERROR),
        ("client_gone", "client_gone", "client_gone", Outcome.CLIENT_GONE),
        ("router_http_429", "router_http", "router_http_429", Outcome.ERROR),
        (RouterReason("draining"), "other", "", Outcome.ERROR),
        (RouterReason("client_gone"), "other", "", Outcome.ERROR),
    ],
)
def test_a_router_s_word_is_none_of_ours(reason: str | None, label: str, own: str, outcome: Outcome) -> None:
    record = RequestRecord(request_id="r", surface=Surface.CHAT, mode=Mode.DEEP, reason=reason, status=200, seconds=1.0)
    assert (record.label, record.own_reason, record.outcome) == (label, own, outcome)
