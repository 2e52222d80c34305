"""The address of a shared gate's store, parsed from `gate.url`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from eidproxy.egress import VERDICTS, EgressPolicy, host_and_port, is_name, parse_allowed_networks, parse_literal


@dataclass(frozen=True, repr=False)
class GateAddress:
    """The address of a shared gate's store, and the login. It has no repr, since it holds a password."""

    host: str = ""
    port: int = 6379
    path: str | None = None
    """A Unix socket, instead of host and port."""
    database: int = 0
    username: str | None = None
    password: str | None = None
    secure: bool = False
    ca_file: str | None = None
    """The file of authorities for TLS; None is the system's store."""

    @property
    def egress(self) -> EgressPolicy:
        """The addresses that the store may have: only `host` itself when it is an address."""
        address = parse_literal(self.host)
        return EgressPolicy() if address is None else EgressPolicy(parse_allowed_networks([str(address)]))


def gate_address(url: str) -> GateAddress:
    """Parse `gate.url`: `redis[s]://[user][:password]@host[:port][/database][?ssl_ca_certs=file]` or
    `unix://[user][:password]@/path[?db=number]`. Raises ValueError; its text does not repeat the URL.
    """
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("is not a URL")  # Python versions differ in what `urlsplit` strips
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise ValueError("is not a URL") from None
    known = {"redis": set(), "rediss": {"ssl_ca_certs"}, "unix": {"db"}}.get(parts.scheme)
    if known is None or parts.fragment:
        raise ValueError("must be redis://, rediss:// or unix://")
    if set(options) - known or len(options) != len(parse_qsl(parts.query, keep_blank_values=True)):
        raise ValueError("has an unknown option; rediss:// takes ssl_ca_certs, unix:// takes db")
    database = options.get("db", "") if parts.scheme == "unix" else parts.path.removeprefix("/")
    if database and not (database.isdecimal() and len(database) <= 4):
        raise ValueError("the database must be a number of at most 4 digits")
    login: dict[str, Any] = {
        "database": int(database or 0),
        "username": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password) if parts.password else None,
    }
    if parts.scheme == "unix":
        if parts.netloc.rpartition("@")[2] or len(parts.path) < 2:
            raise ValueError("must contain the absolute path of the Unix socket")
        return GateAddress(path=unquote(parts.path), **login)
    return _network_gate(parts, options.get("ssl_ca_certs"), login)


def _network_gate(parts: SplitResult, ca_file: str | None, login: dict[str, Any]) -> GateAddress:
    try:
        host, port = host_and_port(parts.netloc.rpartition("@")[2])
    except ValueError:
        raise ValueError("has no valid host and port") from None
    address = parse_literal(host)
    if address is None and not is_name(host):
        raise ValueError("the host must be an IP address in standard notation or a DNS name")
    if address is not None and not (decision := EgressPolicy().decide(str(address))).permitted:
        raise ValueError(f"egress_blocked: the address {VERDICTS[decision.verdict]}")
    if ca_file is not None and not Path(ca_file).is_file():
        raise ValueError("ssl_ca_certs: the file does not exist")
    return GateAddress(host=host, port=port or 6379, secure=parts.scheme == "rediss", ca_file=ca_file, **login)
