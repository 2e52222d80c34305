"""store_client: how calls go to a store, and what becomes of them when none is there (see test_shared for one)."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as StoreUnreachable

from eidproxy.egress import EgressBlocked, EgressPolicy
from eidproxy.gate import store_client
from eidproxy.gate.address import GateAddress
from eidproxy.gate.store_client import GuardedConnection, StoreClient, addresses
from eidproxy.router.resolver import Resolver
from tests.lab.loops import played
from tests.lab.tools import free_port


def test_the_library_is_named_after_its_text() -> None:
    """So two versions can share a server while one replaces the other."""
    written = Path(store_client.__file__).with_name("gate.lua").read_text("utf-8")
    text, name = store_client._read_library()
    assert name == f"eidproxy_gate_{hashlib.sha256(written.encode()).hexdigest()[:12]}"
    assert text.startswith(f"#!lua name={name}")


class Answers:
    """How the calls of a client ended."""

    def __init__(self, port: int, call_seconds: float = 5.0) -> None:
        self.ends: list[tuple[str, str | None]] = []
        address = GateAddress(host="127.0.0.1", port=port)
        self.client = StoreClient(address, EgressPolicy(), (), call_seconds=call_seconds, on_call_end=self.note)

    def note(self, function: str, error: Exception | None) -> None:
        self.ends.append((function, None if error is None else type(error).__name__))


@played
async def test_each_call_hears_that_no_store_is_there() -> None:
    answers = Answers(free_port())
    calls = [answers.client.call("enter"), answers.client.call("leave")]
    for call in calls:
        with pytest.raises((OSError, StoreUnreachable)):
            await call.reply
        assert not call.sent
    assert [name for name, _ in answers.ends] == ["enter", "leave"]
    await answers.client.aclose()


@played
async def test_a_store_that_says_nothing_has_a_bound_and_is_left() -> None:
    gone = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with pytest.raises(ConnectionResetError):  # what was not delivered shall not take a slot later
            await reader.read()
        writer.close()
        gone.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    answers = Answers(server.sockets[0].getsockname()[1], call_seconds=0.05)
    with pytest.raises(TimeoutError):
        await answers.client.call("enter").reply
    await gone.wait()
    assert answers.ends == [("enter", "TimeoutError")]
    await answers.client.aclose()
    server.close()


@played
async def test_a_call_that_nobody_waits_for_any_more_is_not_sent() -> None:
    answers = Answers(free_port())
    call = answers.client.call("enter")
    call.reply.cancel()
    with pytest.raises((OSError, StoreUnreachable)):
        await answers.client.call("renew").reply
    assert [name for name, _ in answers.ends] == ["renew"]
    await answers.client.aclose()


@played
async def test_where_it_may_lead_is_judged_before_it_is_dialled() -> None:
    assert await addresses(GateAddress(host="127.0.0.1")) == ["127.0.0.1"]
    liar = Resolver(lambda _host, _port: ["127.0.0.1", "8.8.8.8"])
    with pytest.raises(EgressBlocked):
        await GuardedConnection(GateAddress(host="store.test"), EgressPolicy(), liar, None).addresses()
