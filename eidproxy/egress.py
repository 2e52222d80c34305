"""The egress policy: where eidproxy may connect to, as pure functions.

`router.upstream` resolves a name, asks here, dials the literal address, and checks the peer.

The policy is an explicit list of networks. A library's `is_private` cannot replace it: that is true for the link-local
metadata address, 6to4, Teredo and the benchmark ranges, false for 100.64.0.0/10, and changes between patch releases. So
does the text of an address (`::ffff:7f00:1` up to Python 3.12, `::ffff:127.0.0.1` from 3.13; musl shortens other runs
of zeros than glibc). Here an address is an integer, a network is an integer and a mask, and only this module reads and
writes their text.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

_BITS = {4: 32, 6: 128}
_OCTETS = {str(value): value for value in range(256)}
"""Each octet, by the only spelling that is accepted."""
_HEX = frozenset("0123456789abcdef")


class Address(NamedTuple):
    """An IPv4 or IPv6 address. Its text is canonical: RFC 5952, 4, always in groups of hexadecimal digits."""

    version: int
    value: int

    def __str__(self) -> str:
        if self.version == 4:
            return ".".join(str(octet) for octet in self.value.to_bytes(4, "big"))
        groups = [f"{self.value >> shift & 0xFFFF:x}" for shift in range(112, -16, -16)]
        # "::" replaces the longest run of two or more zero groups, the first of equally long ones (RFC 5952, 4.2).
        for length in range(8, 1, -1):
            for at in range(9 - length):
                if groups[at : at + length] == ["0"] * length:
                    return f"{':'.join(groups[:at])}::{':'.join(groups[at + length :])}"
        return ":".join(groups)


class Network(NamedTuple):
    """The addresses whose bits under `mask` are those of `value`."""

    version: int
    value: int
    mask: int

    def contains(self, address: Address) -> bool:
        """Return whether an address is in this network."""
        return address.version == self.version and address.value & self.mask == self.value

    def is_inside(self, outer: "Network") -> bool:
        """Return whether every address of this network is in `outer` too."""
        return self.mask & outer.mask == outer.mask and outer.contains(Address(self.version, self.value))

    def __str__(self) -> str:
        return f"{Address(self.version, self.value)}/{self.mask.bit_count()}"


def parse_literal(host: str) -> Address | None:
    """Return the address whose canonical spelling is `host`, or None for a name or anything malformed."""
    if "." in host:
        octets = [_OCTETS.get(part) for part in host.split(".", 4)]
        if len(octets) != 4:
            return None
        value = 0
        for octet in octets:
            if octet is None:
                return None
            value = value << 8 | octet
        return Address(4, value)
    left, gap, right = host.partition("::")
    before, after = left.split(":", 8) if left else [], right.split(":", 8) if right else []
    missing = 8 - len(before) - len(after)
    if missing < 0 or (missing > 0) is not bool(gap):
        return None
    value = 0
    for group in [*before, *"0" * missing, *after]:
        if not 0 < len(group) <= 4 or not _HEX.issuperset(group):
            return None
        value = value << 16 | int(group, 16)
    address = Address(6, value)
    # Only the canonical spelling passes: no leading zeros, and "::" exactly where RFC 5952 puts it.
    return address if str(address) == host else None


def parse_network(text: str) -> Network:
    """Parse `address/prefix`, or a canonical address alone. Raises ValueError, also for bits behind the prefix."""
    spelled, slash, prefix = text.partition("/")
    address = parse_literal(spelled)
    if address is None:
        raise ValueError("not an address in its canonical spelling")
    bits = _BITS[address.version]
    length = _OCTETS.get(prefix, bits + 1) if slash else bits
    if length > bits:
        raise ValueError("not a prefix length")
    mask = (1 << bits) - (1 << bits - length)
    if address.value & ~mask:
        raise ValueError("has bits behind its prefix")
    return Network(address.version, address.value, mask)


def _parse_networks(texts: str) -> tuple[Network, ...]:
    return tuple(map(parse_network, texts.split()))


DEFAULT_NETWORKS = _parse_networks("127.0.0.0/8 ::1/128 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 fd00::/8")
"""Loopback, RFC 1918, shared address space (tailnets) and locally assigned ULA. A setting can only narrow this."""

METADATA_NETWORKS = _parse_networks(
    "169.254.0.0/16 100.100.100.200/32 192.0.0.192/32 168.63.129.16/32"
    " fd00:ec2::254/128 fd20:ce::254/128 fd00:42::42/128"
)
"""Cloud metadata services. Some lie inside permitted ranges, so they are refused first."""

_LOOPBACK = DEFAULT_NETWORKS[:2]

_CARRIERS = _parse_networks("::/96 ::ffff:0:0/96 64:ff9b::/96 64:ff9b:1::/48 2002::/16 2001::/32")
"""IPv4-compatible and -mapped (RFC 4291, 2.5.5), NAT64 (RFC 6052, RFC 8215), 6to4 (RFC 3056), Teredo (RFC 4380)."""

_ISATAP = (0x00005EFE, 0x02005EFE)
"""Bits 64 to 95 of an IPv6 address that carries an IPv4 one (RFC 5214, 6.1)."""

_LABEL = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-")
_DECIMAL = frozenset("0123456789")


class Verdict(StrEnum):
    """Why an address may or may not be dialled."""

    PERMITTED = "permitted"
    NOT_AN_ADDRESS = "not_an_address"
    METADATA = "metadata"
    EMBEDDED = "embedded"
    OUTSIDE = "outside"
    LOOP = "loop"
    NO_ANSWER = "no_answer"


VERDICTS = {
    Verdict.NOT_AN_ADDRESS: "is not an IP address in standard notation",
    Verdict.METADATA: "is a cloud metadata service, which eidproxy never dials",
    Verdict.EMBEDDED: "contains another address, which eidproxy never dials",
    Verdict.OUTSIDE: "is not in your private networks (loopback, 10/8, 172.16/12, 192.168/16, 100.64/10, fd00::/8)",
    Verdict.LOOP: "is eidproxy itself, so requests would loop",
    Verdict.NO_ANSWER: "has no address",
}
"""Why an address is refused, for the person who set it."""


class Decision(NamedTuple):
    """A verdict and the address it is about. Only `PERMITTED` allows anything."""

    verdict: Verdict
    address: Address | None = None

    @property
    def permitted(self) -> bool:
        """Whether the address may be dialled."""
        return self.verdict is Verdict.PERMITTED


class EgressBlocked(Exception):
    """A name or an address leads somewhere that is not permitted."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.verdict)
        self.decision = decision


class EgressPolicy:
    """The addresses that may be dialled: inside `networks`, no metadata service, no carrier of another address."""

    def __init__(self, networks: Iterable[Network] = DEFAULT_NETWORKS) -> None:
        self.networks = tuple(networks)

    def decide(self, address: str) -> Decision:
        """Judge one address in its canonical spelling."""
        parsed = parse_literal(address)
        if parsed is None:
            return Decision(Verdict.NOT_AN_ADDRESS)
        if any(network.contains(parsed) for network in METADATA_NETWORKS):
            return Decision(Verdict.METADATA, parsed)
        if _carries_ipv4(parsed):
            return Decision(Verdict.EMBEDDED, parsed)
        if not any(network.contains(parsed) for network in self.networks):
            return Decision(Verdict.OUTSIDE, parsed)
        return Decision(Verdict.PERMITTED, parsed)

    def decide_all(self, addresses: Iterable[str]) -> list[Decision]:
        """Judge a resolver's whole answer. One refused address refuses all: the result is then its decision alone."""
        decisions = [self.decide(address) for address in addresses]
        for decision in decisions:
            if not decision.permitted:
                return [decision]
        return decisions or [Decision(Verdict.NO_ANSWER)]


def _carries_ipv4(address: Address) -> bool:
    """Return whether an IPv6 address contains an IPv4 address, which would not be judged."""
    if address.version == 4 or address.value == 1:  # ::1 is loopback, though it looks like 0.0.0.1
        return False
    return address.value >> 32 & 0xFFFFFFFF in _ISATAP or any(carrier.contains(address) for carrier in _CARRIERS)


def parse_allowed_networks(networks: Iterable[str]) -> tuple[Network, ...]:
    """Parse the networks of a setting. Raises ValueError for one that is malformed or not in `DEFAULT_NETWORKS`."""
    result = tuple(map(parse_network, networks))
    if not all(any(inner.is_inside(outer) for outer in DEFAULT_NETWORKS) for inner in result):
        raise ValueError("not inside the permitted networks")
    return result


def host_and_port(text: str) -> tuple[str, int | None]:
    """Return the host, in lower case, and the port of `host[:port]` or `[address][:port]`, as in a URL.

    Raises ValueError. `urllib.parse` is not used: it reads brackets and ports differently between patch releases of
    Python. `parse_literal` and `is_name` then judge the host.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        _, colon, port = rest.partition(":")
        is_valid = bracket and ":" in host and rest == colon + port
    else:
        host, colon, port = text.partition(":")
        is_valid = not set("[]") & set(host)
    if not is_valid or (colon and not (0 < len(port) <= 5 and _DECIMAL.issuperset(port) and 0 < int(port) < 65536)):
        raise ValueError("not a host and a port")
    return host.lower(), int(port) if colon else None


def is_loopback(address: Address) -> bool:
    """Return whether only this machine can reach an address."""
    return any(network.contains(address) for network in _LOOPBACK)


def is_name(host: str) -> bool:
    """Return whether a host is a DNS name of letters, digits and hyphens whose last label is not numeric.

    Resolvers read `127.1`, `0x7f000001` and `134744072` as addresses, so a numeric last label is never a name
    (WHATWG URL, "ends in a number").
    """
    labels = host.removesuffix(".").split(".") if len(host) <= 253 else []
    is_valid = bool(labels) and all(
        0 < len(label) <= 63 and _LABEL.issuperset(label) and "-" not in (label[0], label[-1]) for label in labels
    )
    return is_valid and not _is_number(labels[-1])


def _is_number(label: str) -> bool:
    """Return whether resolvers may read a label as a number: decimal digits, or `0x` and hexadecimal ones."""
    digits = label.lower()
    return _DECIMAL.issuperset(digits) or (digits.startswith("0x") and _HEX.issuperset(digits[2:]))
