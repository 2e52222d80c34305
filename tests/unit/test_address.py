"""address: `gate.url`, read in one way, and refused without being repeated."""

from __future__ import annotations

import pytest

from eidproxy.gate.address import GateAddress, gate_address


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://Store.internal", GateAddress("store.internal")),
        ("redis://127.0.0.1:7000/3", GateAddress("127.0.0.1", 7000, database=3)),
        ("rediss://user:p%40ss@[fd00::1]", GateAddress("fd00::1", username="user", password="p@ss", secure=True)),
        ("unix://:secret@/run/a%20b.sock?db=2", GateAddress(path="/run/a b.sock", password="secret", database=2)),
    ],
)
def test_what_a_url_says(url: str, address: GateAddress) -> None:
    assert gate_address(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "redis://canary:x@8.8.8.8",
        "redis://canary@169.254.169.254",
        "redis://canary@127.1",
        "redis://canary@host:0",
        "redis://canary@host/one",
        "redis://canary@host#x",
        "redis://canary@host?db=1",
        "rediss://canary@host?ssl_ca_certs=/no/such/file",
        "rediss://canary@host?ssl_ca_certs=a&ssl_ca_certs=b",
        "unix://canary@host/path",
        "unix://canary@",
        "http://canary@host",
        "redis://canary@ho st",
    ],
)
def test_what_is_refused_is_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match=r"\S") as caught:
        gate_address(url)
    assert "canary" not in str(caught.value)


def test_a_password_has_no_repr() -> None:
    assert "secret" not in repr(GateAddress(password="secret"))
