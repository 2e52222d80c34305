"""keepalive: what the kernel is told, under whatever names the system has for it."""

from __future__ import annotations

import socket

import pytest

from eidproxy import keepalive
from eidproxy.keepalive import enable_keepalive


def test_the_kernel_is_told() -> None:
    with socket.socket() as sock:
        enable_keepalive(sock, idle=7, interval=2, count=4)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert keepalive._IDLE is not None
        options = [keepalive._IDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
        assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [7, 2, 4]


def test_macos_has_another_name_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python has no TCP_KEEPIDLE there (cpython#25079): callers and the store were asked after two hours."""
    told: list[tuple[int, int, int]] = []

    class Told:
        """Keeps what it is told."""

        def setsockopt(self, level: int, option: int, value: int) -> None:
            """See socket."""
            told.append((level, option, value))

    monkeypatch.setattr(socket, "TCP_KEEPIDLE", None)
    monkeypatch.delattr(socket, "TCP_KEEPIDLE")
    monkeypatch.setattr(socket, "TCP_KEEPALIVE", 16, raising=False)
    assert keepalive.idle_option() == 16
    monkeypatch.setattr(keepalive, "_IDLE", keepalive.idle_option())
    enable_keepalive(Told())
    assert (socket.IPPROTO_TCP, 16, 10) in told


def test_a_peer_that_is_gone_is_no_error() -> None:
    sock = socket.socket()
    sock.close()
    enable_keepalive(sock)
