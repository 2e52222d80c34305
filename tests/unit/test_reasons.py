"""Every exception of the connection to the router has a reason of the table."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from eidproxy.egress import Decision, EgressBlocked, Verdict
from eidproxy.errors import RULES
from eidproxy.router import upstream
from eidproxy.router.reasons import REASONS, reason_of_fault


def test_what_the_upstream_raises_has_a_row() -> None:
    spelled = set(re.findall(r"httpx\.(\w+)\(", Path(upstream.__file__).read_text("utf-8")))
    assert spelled <= {kind.__name__ for kind in REASONS}
    assert set(REASONS.values()) <= set(RULES)


@pytest.mark.parametrize("kind", [kind for kind in REASONS if issubclass(kind, httpx.TransportError)])
def test_a_connection_that_failed_has_its_class_as_reason(kind: type[httpx.TransportError]) -> None:
    assert reason_of_fault(kind("")) == f"router_{kind.__name__}"


def test_a_blocked_address_and_a_class_that_nobody_knows() -> None:
    assert reason_of_fault(EgressBlocked(Decision(Verdict.LOOP))) == "egress_blocked"
    assert reason_of_fault(httpx.PoolTimeout("")) == "router_error"
