"""hints: local network privacy of macOS told apart from a host that is gone. No Mac is needed, and none was asked."""

from __future__ import annotations

import pytest

from eidproxy.router.hints import Hint, find_hint
from tests.lab.proxy import Proxy
from tests.lab.tools import until

LAN = "192.168.1.20"


@pytest.mark.parametrize("address", [LAN, "10.0.0.4", "172.31.9.9", "fd12::4"])
def test_refused_at_once_on_a_mac_is_local_network_privacy(address: str) -> None:
    assert find_hint("darwin", 65, 0.0, address) is Hint.LOCAL_NETWORK_PRIVACY
    assert find_hint("darwin", 65, 0.05, address) is Hint.LOCAL_NETWORK_PRIVACY


@pytest.mark.parametrize(
    ("platform", "code", "elapsed", "address"),
    [
        pytest.param("darwin", 65, 3.0, LAN, id="ARP gave up: the host is gone"),
        pytest.param("linux", 65, 0.0, LAN, id="another system"),
        pytest.param("linux", 113, 0.0, LAN, id="another system's own number"),
        pytest.param("darwin", 61, 0.0, LAN, id="refused: somebody is there"),
        pytest.param("darwin", None, 0.0, LAN, id="no errno, as with TLS"),
        pytest.param("darwin", 65, 0.0, "127.0.0.1", id="loopback is exempt"),
        pytest.param("darwin", 65, 0.0, "::1", id="loopback is exempt, IPv6"),
        pytest.param("darwin", 65, 0.0, "100.64.1.2", id="a tailnet is no local network"),
    ],
)
def test_anything_else_is_no_hint(platform: str, code: int | None, elapsed: float, address: str) -> None:
    assert find_hint(platform, code, elapsed, address) is None


REFUSING_MAC = """
import socket, sys
import eidproxy.router.upstream, eidproxy.router.transport

class Platform:
    platform = "{platform}"

class Refusing(eidproxy.router.transport.TcpTransport):
    __slots__ = ()
    def __init__(self, *_):
        raise OSError(65, "No route to host")

eidproxy.router.upstream.sys = Platform
eidproxy.router.upstream.TcpTransport = Refusing
"""


@pytest.mark.parametrize(("platform", "expected"), [("darwin", "local_network_privacy"), ("linux", None)])
def test_the_log_and_the_status_tell_it(platform: str, expected: str | None) -> None:
    """What no machine here can do is planted: the errno and the platform. The reason stays what it was."""
    with Proxy(f"http://{LAN}:4000", planted=REFUSING_MAC.format(platform=platform)) as proxy:
        assert proxy.get("/readyz").reason == "router_ConnectError"
        lines = [line for line in proxy.log() if line["event"] == "router_unreachable"]
        assert [line.get("hint") for line in lines] == [expected]
        router = until(lambda: proxy.status()["router"])
        assert router["reachable"] is False
        assert router.get("hint") == expected
