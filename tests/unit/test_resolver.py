"""What the resolver makes of the answers of this machine's C library."""

from __future__ import annotations

import asyncio
import socket

import pytest

from eidproxy.egress import EgressPolicy, Verdict
from eidproxy.router.resolver import Resolver, canonical


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        # glibc and macOS spell these two so; nobody else does.
        ("::ffff:127.0.0.1", "::ffff:7f00:1"),
        ("::127.0.0.1", "::7f00:1"),
        # musl shortens one zero, and the longest text instead of the longest run.
        ("fd00::2:3:4:5:6:7", "fd00:0:2:3:4:5:6:7"),
        ("FD00:0:0::1", "fd00::1"),
        # What is no address, or has a zone, stays as it is, and no policy permits it.
        ("fe80::1%lo", "fe80::1%lo"),
        ("fd00::1%1", "fd00::1%1"),
        ("localhost", "localhost"),
        ("127.1", "127.1"),
        ("127.0.0.1\x00", "127.0.0.1\x00"),
        ("", ""),
    ],
)
def test_the_spelling_of_a_library_becomes_ours(text: str, ours: str) -> None:
    assert canonical(text) == ours


@pytest.mark.parametrize(
    ("host", "answer", "verdict"),
    [
        ("127.0.0.1", ["127.0.0.1"], Verdict.PERMITTED),
        ("::ffff:127.0.0.1", ["::ffff:7f00:1"], Verdict.EMBEDDED),
        ("::ffff:a9fe:a9fe", ["::ffff:a9fe:a9fe"], Verdict.EMBEDDED),
    ],
)
def test_an_answer_is_told_in_our_spelling(host: str, answer: list[str], verdict: Verdict) -> None:
    if ":" in host and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    found = asyncio.run(Resolver().resolve(host, 80))
    assert found == answer
    assert EgressPolicy().decide_all(found)[0].verdict is verdict
