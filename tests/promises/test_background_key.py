"""`server.background_api_key`: who comes with it is BACKGROUND, judged by the order at the router's sockets."""

from __future__ import annotations

from typing import Any

import pytest

from eidproxy.config import SettingsError, load
from tests.lab.callers import check_refusal
from tests.lab.client import CHAT, RawClient, ask, chat, request_bytes
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.script import stream
from tests.lab.tools import until

KEY, BACKGROUND_KEY = "key-canary-one", "key-canary-two"
KEYS: dict[str, Any] = {"EIDPROXY_SERVER_API_KEY": KEY, "EIDPROXY_SERVER_BACKGROUND_API_KEY": BACKGROUND_KEY}


def order_at_the_router(router: Router, key_of_the_job: str, header: str) -> list[str]:
    """Three callers: one holds the slot, then a job comes with `key_of_the_job`, then a person. Who was served when."""
    router.script = stream(["x"], gate="held")
    with Proxy(router, canaries=[KEY, BACKGROUND_KEY], **KEYS) as proxy:
        clients = []
        for number, (say, key, priority) in enumerate(
            (("holder", KEY, "foreground"), ("job", key_of_the_job, header), ("person", KEY, "foreground"))
        ):
            client = RawClient(proxy)
            headers = {"Authorization": f"Bearer {key}", "X-Eid-Priority": priority}
            client.send(request_bytes("POST", CHAT, chat(say=say), headers))
            clients.append(client)
            if number:
                until(lambda number=number: len(proxy.status()["gate"]["waiting"]) == number)  # type: ignore[misc]
            else:
                router.wait_for(lambda: router.waiting("held") == 1)
        router.release("held")
        for client in clients:
            assert client.read_head().status == 200
            client.read_body()
            client.close()
    assert router.max_concurrent == 1
    return [request.json["messages"][0]["content"] for request in router.requests]


@pytest.mark.parametrize("header", ["foreground", "background", "urgent"])
def test_nobody_lifts_himself(router: Router, header: str) -> None:
    """Whatever the header says, even what would be refused with the other key."""
    assert order_at_the_router(router, BACKGROUND_KEY, header) == ["holder", "person", "job"]


def test_control_with_the_other_key_the_header_counts(router: Router) -> None:
    assert order_at_the_router(router, KEY, "foreground") == ["holder", "job", "person"]


def test_any_other_key_is_refused(router: Router) -> None:
    with Proxy(router, canaries=[KEY, BACKGROUND_KEY], **KEYS) as proxy:
        for key in (KEY, BACKGROUND_KEY):
            answer = ask(proxy, "POST", CHAT, chat(), {"Authorization": f"Bearer {key}"})
            assert answer.status == 200, key
        for headers in (
            {},
            {"Authorization": "Bearer"},
            {"Authorization": f"Bearer {KEY}x"},
            {"Authorization": f"Bearer {BACKGROUND_KEY[:-1]}"},
            {"Authorization": f"Basic {BACKGROUND_KEY}"},
            {"Authorization": f"Bearer {KEY}, Bearer {BACKGROUND_KEY}"},
        ):
            check_refusal(ask(proxy, "POST", CHAT, chat(), headers), 401, "unauthorized")
        two = [("Authorization", f"Bearer {BACKGROUND_KEY}"), ("Authorization", f"Bearer {KEY}")]
        assert ask(proxy, "POST", CHAT, chat(), two).status in (400, 401)
    assert router.posts == 2


def test_it_needs_the_other_key_and_is_another() -> None:
    base = {"LLM_ROUTER_URL": "http://127.0.0.1:4000", "EIDPROXY_SERVER_BACKGROUND_API_KEY": BACKGROUND_KEY}
    with pytest.raises(SettingsError) as alone:
        load(None, base, {})
    assert [fault for fault in alone.value.faults if "server.background_api_key: needs server.api_key" in fault]
    with pytest.raises(SettingsError) as same:
        load(None, {**base, "EIDPROXY_SERVER_API_KEY": BACKGROUND_KEY}, {})
    assert [fault for fault in same.value.faults if "server.background_api_key: must be another" in fault]
    assert BACKGROUND_KEY not in str(alone.value) + str(same.value)
    assert load(None, {**base, "EIDPROXY_SERVER_API_KEY": KEY}, {}).settings.server.background_api_key
