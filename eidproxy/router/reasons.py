"""The reason of the table `RULES` for each exception that `upstream` raises; for a router's status see `errors`."""

import httpx

from eidproxy.egress import EgressBlocked
from eidproxy.errors import RULES


def _row(reason: str) -> str:
    """Return the reason. Raises KeyError, and so fails the import, if it has no row in the table."""
    RULES[reason]
    return reason


REASONS: dict[type[Exception], str] = {
    EgressBlocked: _row("egress_blocked"),
    httpx.ConnectError: _row("router_ConnectError"),
    httpx.ConnectTimeout: _row("router_ConnectTimeout"),
    httpx.ReadError: _row("router_ReadError"),
    httpx.ReadTimeout: _row("router_ReadTimeout"),
    httpx.WriteError: _row("router_WriteError"),
    httpx.WriteTimeout: _row("router_WriteTimeout"),
    httpx.RemoteProtocolError: _row("router_RemoteProtocolError"),
}

_OTHER = _row("router_error")


def reason_of_fault(error: Exception) -> str:
    """Return the reason for an exception that `upstream` raised."""
    return REASONS.get(type(error), _OTHER)
