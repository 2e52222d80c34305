"""Addresses and names, each with the verdict expected: every range at both sides of both of its edges."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from eidproxy.egress import (
    DEFAULT_NETWORKS,
    METADATA_NETWORKS,
    EgressPolicy,
    Verdict,
    is_name,
    literal,
    narrowed,
)

YES, OUT, META = Verdict.PERMITTED, Verdict.OUTSIDE, Verdict.METADATA
CARRIED, NO = Verdict.EMBEDDED, Verdict.NOT_AN_ADDRESS


def _words(text: str) -> list[str]:
    return text.split()


ADDRESSES: dict[Verdict, str] = {
    YES: """
        127.0.0.0 127.0.0.1 127.0.1.1 127.255.255.255 ::1
        10.0.0.0 10.0.0.1 10.255.255.255 172.16.0.0 172.31.255.255 192.168.0.0 192.168.255.255
        100.64.0.0 100.64.0.1 100.100.100.199 100.100.100.201 100.127.255.255
        fd00:: fd00::1 fd00:ec2::253 fd00:ec2::255 fd20:ce::253 fd20:ce::255 fd00:42::41 fd00:42::43
        fd7a:115c:a1e0::1 fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff fd00::ffff:a00:1 fd00::5eff:a00:1
        fd00::5efd:a00:1 fd00::100:5efe:a00:1
    """,
    OUT: """
        0.0.0.0 0.0.0.1 1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 126.255.255.255 128.0.0.0
        100.63.255.255 100.128.0.0 172.15.255.255 172.32.0.0 192.167.255.255 192.169.0.0
        169.253.255.255 169.255.0.0 192.0.0.0 192.0.0.1 192.0.0.191 192.0.0.193 192.0.2.1 192.88.99.1
        168.63.129.15 168.63.129.17 198.17.255.255 198.18.0.0 198.19.255.255 198.51.100.1 203.0.113.1
        224.0.0.0 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.254 255.255.255.255
        fc00:: fc00::1 fcff:ffff:ffff:ffff:ffff:ffff:ffff:ffff fe00::1 fe7f::1 fe80:: fe80::1 febf::1
        fec0:: fec0::1 feff::1 ff00:: ff02::1 ff05::2 2000:: 2001:db8::1 2001:4860:4860::8888
        2606:4700:4700::1111 2600:: 2003::1 3fff::1 3ffe::1 4000:: 5f00::1 100:: 100::1 100:0:0:1::
        2001:1:: 2001:10::1 2001:20::1 64:ff9a:ffff:ffff:ffff:ffff:ffff:ffff 64:ff9b:2:: 64:ff9b::1:0:0
        1::1 1:0:0:1::
    """,
    META: """
        169.254.0.0 169.254.0.1 169.254.169.254 169.254.170.2 169.254.255.255 100.100.100.200 192.0.0.192
        168.63.129.16 fd00:ec2::254 fd20:ce::254 fd00:42::42
    """,
    CARRIED: """
        :: ::2 ::7f00:1 ::a00:1 ::ffff ::ffff:ffff ::ffff:7f00:1 ::ffff:a00:1 ::ffff:a9fe:a9fe ::ffff:808:808
        64:ff9b:: 64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b::ffff:ffff 64:ff9b:1:: 64:ff9b:1::a00:1
        64:ff9b:1:ffff:ffff:ffff:ffff:ffff
        2002:: 2002:808:808::1 2002:7f00:1::1 2002:a00:1:: 2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff
        2001:: 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:0:ffff:ffff:ffff:ffff:ffff:ffff
        fe80::5efe:a00:1 fd00::5efe:a00:1 fd00::5efe:808:808 fd00::200:5efe:808:808 fd00:1:2:3:0:5efe:7f00:1
        fd00:1:2:3:200:5efe:a9fe:a9fe 2001:db8::5efe:808:808
    """,
}

SPELLINGS = _words("""
    127.1 127.0.1 127 0 1 2130706433 134744072 0x7f000001 0x7f.1 0x7f.0.0.1 0X7F000001 0177.0.0.1 017700000001
    127.0.0.01 127.00.0.1 0127.0.0.1 127.0.0.1. 127.0.0.256 256.0.0.1 127.0.0.-1 127.0.0.+1 127.0.0 1.2.3.4.5
    127.0.0.1/8 127.0.0.1:80 .127.0.0.1 127..0.1 127.0.0.0x1 10.0.0.1e0 1_0.0.0.1
    0:0:0:0:0:0:0:1 ::0001 ::01 0::1 ::1%lo ::1%1 fe80::1%eth0 fd00::1%eth0 [::1] ::1] ::1/128 :1 1: ::: :::1 1::2::3
    FD00::1 Fd00::1 fd00:0:0:0:0:0:0:1 fd00::0:1 fd00::0001 fd00:0000::1 fd00::1:: fd00:::1 fd00::g
    ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::FFFF:7F00:1 fd00::10.0.0.1 fd00::5efe:10.0.0.1 64:ff9b::8.8.8.8
    localhost router router.local example.com 12345::1 1:2:3:4:5:6:7 1:2:3:4:5:6:7:8:9 fd00::1%25lo
""")

ODD_SPELLINGS = [
    "",
    " ",
    " 127.0.0.1",
    "127.0.0.1 ",
    "127.0.0.1\n",
    "127.0.0.1\x00",
    "10.0.0.1\t",
    "\uff1127.0.0.1",
    "①27.0.0.1",
    "127。0。0。1",
    "127.0.0.1\u00ad",
    "١٢٧.0.0.1",
    "::1\n",
    "::1 ",
    "\uff46d00::1",
    "fd00::1%",
]

CASES = [(text, verdict) for verdict, texts in ADDRESSES.items() for text in _words(texts)]
CASES += [(text, NO) for text in [*SPELLINGS, *ODD_SPELLINGS]]


def test_the_table_is_large_and_has_no_repetition() -> None:
    texts = [text for text, _ in CASES]
    assert len(texts) == len(set(texts))
    assert len(texts) >= 200


@pytest.mark.parametrize(("text", "verdict"), CASES, ids=[repr(text) for text, _ in CASES])
def test_an_address_is_judged(text: str, verdict: Verdict) -> None:
    decision = EgressPolicy().decide(text)
    assert decision.verdict is verdict
    assert decision.permitted is (verdict is YES)
    assert decision.address == (None if verdict is NO else ip_address(text))


@pytest.mark.parametrize("network", DEFAULT_NETWORKS, ids=str)
def test_both_sides_of_each_edge_of_a_permitted_network(network: object) -> None:
    network = ip_network(str(network))
    policy = EgressPolicy()
    first, last = network[0], network[-1]
    assert policy.decide(str(first)).permitted
    assert policy.decide(str(last)).permitted
    assert not policy.decide(str(first - 1)).permitted
    assert not policy.decide(str(last + 1)).permitted


@pytest.mark.parametrize("network", METADATA_NETWORKS, ids=str)
def test_metadata_is_refused_whatever_is_permitted(network: object) -> None:
    network = ip_network(str(network))
    policy = EgressPolicy([ip_network("0.0.0.0/0"), ip_network("::/0"), network])
    assert policy.decide(str(network[0])).verdict is META
    assert policy.decide(str(network[-1])).verdict is META
    assert policy.decide(str(network[0] - 1)).permitted
    assert policy.decide(str(network[-1] + 1)).permitted


@pytest.mark.parametrize("text", _words(ADDRESSES[CARRIED]))
def test_a_carrier_is_refused_whatever_is_permitted(text: str) -> None:
    assert EgressPolicy([ip_network("::/0")]).decide(text).verdict is CARRIED


# Whole answers of a resolver


def test_every_address_of_an_answer_is_judged() -> None:
    decisions = EgressPolicy().decide_all(["127.0.0.1", "::1", "10.0.0.1"])
    assert [str(decision.address) for decision in decisions] == ["127.0.0.1", "::1", "10.0.0.1"]
    assert all(decision.permitted for decision in decisions)


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("bad", ["8.8.8.8", "169.254.169.254", "::ffff:7f00:1", "0x7f000001", "fe80::1%lo"])
def test_one_bad_address_refuses_all(bad: str, at: int) -> None:
    answer = ["127.0.0.1", "10.0.0.1"]
    answer.insert(at, bad)
    assert EgressPolicy().decide_all(answer) == [EgressPolicy().decide(bad)]


def test_no_answer_is_no_permit() -> None:
    (decision,) = EgressPolicy().decide_all([])
    assert decision.verdict is Verdict.NO_ANSWER
    assert not decision.permitted


# The setting


def test_a_setting_narrows() -> None:
    policy = EgressPolicy(narrowed(["100.101.102.103/32", "fd7a:115c:a1e0::/48"]))
    assert policy.decide("100.101.102.103").permitted
    assert policy.decide("fd7a:115c:a1e0::9").permitted
    for text in ("100.101.102.102", "100.101.102.104", "127.0.0.1", "::1", "10.0.0.1", "fd7a:115c:a1e1::"):
        assert policy.decide(text).verdict is OUT


def test_a_setting_may_name_all_that_is_permitted() -> None:
    assert narrowed(map(str, DEFAULT_NETWORKS)) == DEFAULT_NETWORKS
    assert narrowed(["10.1.2.3"]) == (ip_network("10.1.2.3/32"),)
    assert narrowed([]) == ()


@pytest.mark.parametrize(
    "text",
    _words("""
        0.0.0.0/0 ::/0 8.8.8.8 8.0.0.0/8 10.0.0.0/7 126.0.0.0/7 172.16.0.0/11 192.168.0.0/15 100.64.0.0/9
        169.254.169.254 169.254.0.0/16 fc00::/7 fd00::/7 fe80::/10 ::/127 ::ffff:10.0.0.0/104 ::ffff:127.0.0.1
        10.0.0.1/8 fd00::1/8 10.0.0.0/33 10.0.0.0/-1 10.0.0.0/ / localhost 127.1 0x7f000001/32 2130706433
        1.1.1.1,10.0.0.1
    """),
)
def test_a_setting_never_widens(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        narrowed(["127.0.0.0/8", text])


# Hosts


@pytest.mark.parametrize("text", [text for text, verdict in CASES if verdict is not NO])
def test_a_canonical_address_is_a_literal(text: str) -> None:
    assert literal(text) == ip_address(text)


@pytest.mark.parametrize("text", [*(text for text in SPELLINGS if "%" not in text), *ODD_SPELLINGS])
def test_any_other_spelling_is_no_literal(text: str) -> None:
    assert literal(text) is None


@pytest.mark.parametrize("text", ["::1%lo", "fe80::1%eth0", "fd00::1%eth0"])
def test_an_address_with_a_zone_is_never_permitted(text: str) -> None:
    address = literal(text)
    assert address is not None
    assert EgressPolicy().decide(str(address)).verdict is NO


NAMES = [
    "localhost",
    "router",
    "router.local",
    "mac-mini.tail1234.ts.net",
    "a.b.c.d",
    "1.router",
    "127.0.0.1.nip.io",
    "1and1.com",
    "example.com.",
    "a.",
    "xn--9n2bp8q.kr",
    "0xg",
    "a1",
    "1a",
    "a" * 63,
    f"{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 61}",
]
NO_NAMES = [
    "",
    ".",
    "..",
    "a..b",
    ".a",
    "-a",
    "a-",
    "a.-b",
    "a-.b",
    "llm_router",
    "a b",
    "a\n",
    "a\x00",
    "a%20b",
    "a/b",
    "a@b",
    "a:80",
    "[::1]",
    "::1",
    "fd00::1",
    "127.0.0.1",
    "127.0.0.1.",
    "127.1",
    "127",
    "0",
    "2130706433",
    "0x7f000001",
    "0X7F000001",
    "0x",
    "a.0x1",
    "a.0x",
    "a.1",
    "a.1.",
    "1.2.3.4.5",
    "256.256.256.256",
    "0177.0.0.1",
    "日상.kr",
    "ﬁ.com",
    "①27.com",
    "a。b",
    "a\u00adb",
    "\u017f",
    "a" * 64,
    f"{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 62}",
    "a." * 127,
]


@pytest.mark.parametrize("text", NAMES)
def test_a_name(text: str) -> None:
    assert is_name(text)
    assert literal(text) is None


@pytest.mark.parametrize("text", NO_NAMES)
def test_no_name(text: str) -> None:
    assert not is_name(text)


def test_a_long_host_is_judged_at_once() -> None:
    assert not is_name("a" * 250 + "!")
    assert not is_name("a-" * 126 + "-")
    assert not is_name("a." * 100_000)
