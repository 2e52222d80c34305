"""What an operator can be told about a router that cannot be reached, beyond the reason. Decided on values."""

from enum import StrEnum

from eidproxy.egress import literal, network

_EHOSTUNREACH = 65
"""macOS's number, "No route to host". It is written out, since this is decided, and tested, on other systems too."""

_AT_ONCE_SECONDS = 0.05
"""A host that is really gone has the same errno, but only once ARP has given up, which takes seconds."""

_LOCAL_NETWORKS = tuple(map(network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8")))
"""What can be a local network: neither loopback, which is exempt, nor a tailnet, which is no broadcast network."""


class Hint(StrEnum):
    """Every hint there is."""

    LOCAL_NETWORK_PRIVACY = "local_network_privacy"
    """macOS 15 and later refuse the local network to agents, without a word (Apple TN3179). See deploy/README.md."""


def hint(platform: str, code: int | None, elapsed_seconds: float, address: str) -> Hint | None:
    """Judge a connect to `address` that failed with errno `code` after so many seconds; `platform` as in `sys`."""
    if platform != "darwin" or code != _EHOSTUNREACH or elapsed_seconds > _AT_ONCE_SECONDS:
        return None
    parsed = literal(address)
    is_local = parsed is not None and any(local.holds(parsed) for local in _LOCAL_NETWORKS)
    return Hint.LOCAL_NETWORK_PRIVACY if is_local else None
