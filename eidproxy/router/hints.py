"""Hints for an operator whose router cannot be reached, beyond the reason. A pure function finds them."""

from enum import StrEnum

from eidproxy.egress import parse_literal, parse_network

_EHOSTUNREACH = 65
"""macOS's errno for "No route to host". A literal, since the tests run on systems that have another number."""

_AT_ONCE_SECONDS = 0.05
"""A refusal is faster than this. A host that is really gone has the same errno, but only seconds later, after ARP."""

_LOCAL_NETWORKS = tuple(map(parse_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8")))
"""Networks that can be local: not loopback, which is exempt, nor a tailnet, which is no broadcast network."""


class Hint(StrEnum):
    """All hints."""

    LOCAL_NETWORK_PRIVACY = "local_network_privacy"
    """macOS 15 and later silently refuse the local network to agents (Apple TN3179). See deploy/README.md."""


def find_hint(platform: str, code: int | None, elapsed_seconds: float, address: str) -> Hint | None:
    """Return the hint for a connect to `address` that failed with errno `code`, or None.

    `platform` is `sys.platform`; the connect failed after `elapsed_seconds`.
    """
    if platform != "darwin" or code != _EHOSTUNREACH or elapsed_seconds > _AT_ONCE_SECONDS:
        return None
    parsed = parse_literal(address)
    is_local = parsed is not None and any(local.contains(parsed) for local in _LOCAL_NETWORKS)
    return Hint.LOCAL_NETWORK_PRIVACY if is_local else None
