"""app: what becomes of the settings, and what is asked of the router before somebody asks for it."""

from __future__ import annotations

import pytest

from eidproxy.app import Application, build_models, chat_state
from eidproxy.config import Settings, load
from eidproxy.gate import GateStatistics
from eidproxy.gate.local import LocalGate
from eidproxy.inbound.chat import Model
from eidproxy.vocabulary import Mode, Priority
from tests.lab.loops import played
from tests.lab.router import Router
from tests.lab.tools import free_port


def settings(**environ: str) -> Settings:
    base = {"LLM_ROUTER_URL": "http://127.0.0.1:9", "EIDPROXY_LOG_LEVEL": "critical"}
    return load(None, {**base, **environ}, {}).settings


def test_a_mode_has_its_own_bounds_or_those_of_all() -> None:
    models = build_models(
        settings(
            EIDPROXY_MODELS_MAX_TOKENS="100",
            EIDPROXY_MODELS_DEEP_MAX_TOKENS="7",
            EIDPROXY_MODELS_DEEP_TEMPERATURE="0",
            EIDPROXY_MODELS_MAX_PROMPT_BYTES="9",
            EIDPROXY_ROUTER_ASK_USAGE="true",
        )
    )
    assert models[Mode.DAILY] == Model("mac-mini-default", 100, 0.4, {}, True, 9)
    assert models[Mode.DEEP] == Model("qwen-macbook", 7, 0.0, {}, True, 9), "0 is a temperature of its own"


@pytest.mark.parametrize(
    ("in_use", "before", "hold", "eta"),
    [(0, 0, None, 0), (0, 0, 8.0, 0), (1, 0, 8.0, 8), (1, 2, 8.0, 24), (1, 0, None, None)],
)
def test_the_chat_is_told_who_is_before_a_new_question(
    in_use: int, before: int, hold: float | None, eta: int | None
) -> None:
    """Work in the background is not."""
    depth = {Priority.FOREGROUND: before, Priority.BACKGROUND: 5}
    statistics = GateStatistics(1, in_use, 0, 64, depth, {}, hold)
    assert chat_state(statistics) == {"waiting": before, "eta_seconds": eta}


@played
async def test_whether_it_is_ready_is_asked_at_most_once_a_second() -> None:
    with Router() as router:
        application = Application(settings(LLM_ROUTER_URL=router.url))
        assert isinstance(application.gate, LocalGate)
        assert [await application.ready() for _ in range(3)] == [None] * 3
        router.wait_for(lambda: router.connections == 1)
        application._ready_checked_at -= 1.0
        assert await application.ready() is None
        router.wait_for(lambda: router.connections == 2)
        application.drain()
        assert await application.ready() == "draining"
        await application.on_stopped()


@played
async def test_why_it_is_not_ready_is_a_reason_of_the_table() -> None:
    application = Application(settings(LLM_ROUTER_URL=f"http://127.0.0.1:{free_port()}"))
    assert await application.ready() == "router_ConnectError"
    assert application.status().router.reachable is False
    await application.on_stopped()
