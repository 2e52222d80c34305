"""Where eidproxy may connect to, decided on values. The shell resolves, asks here, dials the literal, asks again.

The permit is an explicit list of networks. A library's `is_private` is none: it is true for the link-local metadata
address, 6to4, Teredo and the benchmark ranges, false for 100.64.0.0/10, and it changes between patch releases.
"""

import re
from collections.abc import Iterable
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

DEFAULT_NETWORKS: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "127.0.0.0/8",
        "::1/128",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "fd00::/8",
    )
)
"""Loopback, RFC 1918, shared address space (tailnets) and locally assigned ULA. A setting can only narrow this."""

METADATA_NETWORKS: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "169.254.0.0/16",
        "100.100.100.200/32",
        "192.0.0.192/32",
        "168.63.129.16/32",
        "fd00:ec2::254/128",
        "fd20:ce::254/128",
        "fd00:42::42/128",
    )
)
"""Cloud metadata services. Some lie inside permitted ranges, so they are refused first."""

_ISATAP = (0x00005EFE, 0x02005EFE)
"""Bits 64 to 95 of an IPv6 address that carries an IPv4 one (RFC 5214, 6.1)."""

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}\.?")
_NUMERIC = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


class Verdict(StrEnum):
    """Why an address may or may not be dialled."""

    PERMITTED = "permitted"
    NOT_AN_ADDRESS = "not_an_address"
    METADATA = "metadata"
    EMBEDDED = "embedded"
    OUTSIDE = "outside"
    LOOP = "loop"
    NO_ANSWER = "no_answer"


class Decision(NamedTuple):
    """A verdict and the address it is about. Only `PERMITTED` allows anything."""

    verdict: Verdict
    address: Address | None = None

    @property
    def permitted(self) -> bool:
        """Whether the address may be dialled."""
        return self.verdict is Verdict.PERMITTED


class EgressPolicy:
    """The addresses that may be dialled: inside `networks`, no metadata service, no carrier of another address."""

    def __init__(self, networks: Iterable[Network] = DEFAULT_NETWORKS) -> None:
        self.networks = tuple(networks)

    def decide(self, address: str) -> Decision:
        """Judge one address in its canonical spelling."""
        try:
            parsed = ip_address(address)
        except ValueError:
            return Decision(Verdict.NOT_AN_ADDRESS)
        if str(parsed) != address or getattr(parsed, "scope_id", None):
            return Decision(Verdict.NOT_AN_ADDRESS)
        if any(parsed in network for network in METADATA_NETWORKS):
            return Decision(Verdict.METADATA, parsed)
        if isinstance(parsed, IPv6Address) and _carries_ipv4(parsed):
            return Decision(Verdict.EMBEDDED, parsed)
        if not any(parsed in network for network in self.networks):
            return Decision(Verdict.OUTSIDE, parsed)
        return Decision(Verdict.PERMITTED, parsed)

    def decide_all(self, addresses: Iterable[str]) -> list[Decision]:
        """Judge a whole answer of a resolver. One bad address refuses them all: the result is then that one alone."""
        decisions = [self.decide(address) for address in addresses]
        for decision in decisions:
            if not decision.permitted:
                return [decision]
        return decisions or [Decision(Verdict.NO_ANSWER)]


def _carries_ipv4(address: IPv6Address) -> bool:
    """Mapped, compatible, NAT64, 6to4, Teredo and ISATAP addresses lead to an IPv4 address that was not judged."""
    if address == IPv6Address(1):
        return False
    return (
        int(address) >> 32 == 0
        or address.ipv4_mapped is not None
        or address.sixtofour is not None
        or address.teredo is not None
        or int(address) >> 80 == 0x0064FF9B0001
        or int(address) >> 32 == 0x0064FF9B << 64
        or (int(address) >> 32) & 0xFFFFFFFF in _ISATAP
    )


def narrowed(networks: Iterable[str]) -> tuple[Network, ...]:
    """Networks of a setting. Raises ValueError for one that is no network or not inside the permitted ones."""
    result: list[Network] = []
    for text in networks:
        network = ip_network(text)
        if not any(network.version == outer.version and network.subnet_of(outer) for outer in DEFAULT_NETWORKS):  # type: ignore[arg-type]
            raise ValueError("not inside the permitted networks")
        result.append(network)
    return tuple(result)


def literal(host: str) -> Address | None:
    """The address a host is the canonical spelling of, or None when it is a name or malformed."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return address if str(address) == host else None


def is_name(host: str) -> bool:
    """Whether a host is a DNS name of letters, digits and hyphens whose last label is not numeric.

    Resolvers read `127.1`, `0x7f000001` and `134744072` as addresses, so a numeric last label is never a name
    (WHATWG URL, "ends in a number").
    """
    if len(host) > 253 or not _NAME.fullmatch(host):
        return False
    return not _NUMERIC.fullmatch(host.rstrip(".").rpartition(".")[2])
