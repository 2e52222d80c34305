"""openai-python, as an application uses it, against eidproxy in front of the scripted router."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.lab.callers import at_rest
from tests.lab.client import PROMPT_CANARY
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.script import Pause, Reset, Send, chunk, completion_chunk, event, status, stream, stream_head

TEXTS = ["안녕", "하세요\n", " 🦊 ", "a\u2028b\u0085c", '"quoted" \\ </script>', "끝"]
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": PROMPT_CANARY}]


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Router, Proxy]]:
    with Router() as router, Proxy(router, EIDPROXY_GATE_WAIT_TIMEOUT_SECONDS=0.3) as proxy:
        yield router, proxy


@pytest.fixture
def router(shared: tuple[Router, Proxy]) -> Iterator[Router]:
    router, proxy = shared
    router.reset()
    router.script = stream(TEXTS)
    yield router
    at_rest(router, proxy)


@pytest.fixture
def client(shared: tuple[Router, Proxy]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{shared[1].url}/v1", api_key="unused", max_retries=0, timeout=10) as client:
        yield client


@pytest.mark.parametrize("model", ["daily", "deep"])
def test_stream(router: Router, client: openai.OpenAI, model: str) -> None:
    got = []
    finish = []
    for part in client.chat.completions.create(model=model, messages=MESSAGES, stream=True):
        assert part.model == model
        assert part.object == "chat.completion.chunk"
        assert (part.usage, part.system_fingerprint) == (None, None)
        got.append(part.choices[0].delta.content or "")
        finish.append(part.choices[0].finish_reason)
    assert "".join(got) == "".join(TEXTS)
    assert got == [*TEXTS, ""]
    assert finish == [None] * len(TEXTS) + ["stop"]


@pytest.mark.parametrize("model", ["daily", "deep"])
def test_whole_answer(router: Router, client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=MESSAGES)
    assert answer.choices[0].message.content == "".join(TEXTS)
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.model, answer.object) == (model, "chat.completion")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 0


def test_stream_helper_and_usage_option(router: Router, client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="daily", messages=MESSAGES, stream_options={"include_usage": True}
    ) as events:
        assert events.get_final_completion().choices[0].message.content == "".join(TEXTS)


def test_async_client(router: Router, shared: tuple[Router, Proxy]) -> None:
    import asyncio

    async def run() -> str:
        async with openai.AsyncOpenAI(base_url=f"{shared[1].url}/v1", api_key="x", max_retries=0) as client:
            parts = await client.chat.completions.create(model="deep", messages=MESSAGES, stream=True)
            return "".join([part.choices[0].delta.content or "" async for part in parts])

    assert asyncio.run(run()) == "".join(TEXTS)


def test_models(router: Router, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["daily", "deep"]
    assert client.models.retrieve("deep").owned_by == "eidproxy"


def test_unknown_model(router: Router, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert caught.value.request_id
    assert router.posts == 0


def test_unsupported_field(router: Router, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="daily", messages=MESSAGES, extra_body={"api_base": "http://x/"})
    assert (caught.value.code, caught.value.param) == ("unsupported_field", "api_base")


@pytest.mark.parametrize("streaming", [True, False])
def test_warming(router: Router, client: openai.OpenAI, streaming: bool) -> None:
    router.script = status(503, {"error": {"type": "warming", "message": "loading /Users/x"}})
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="deep", messages=MESSAGES, stream=streaming)
    assert (caught.value.status_code, caught.value.code) == (503, "warming")
    assert 1 <= int(caught.value.response.headers["Retry-After"]) <= 60
    assert "Users" not in str(caught.value)


def test_error_in_the_stream(router: Router, client: openai.OpenAI) -> None:
    said = Send(chunk(event(completion_chunk({"content": "A"}))))
    router.script = [Send(stream_head()), said, Pause(0.05), Send(chunk(event({"error": {"type": "editor_busy"}})))]
    parts = client.chat.completions.create(model="daily", messages=MESSAGES, stream=True)
    assert next(parts).choices[0].delta.content == "A"
    with pytest.raises(openai.APIError) as caught:
        next(parts)
    assert caught.value.code == "editor_busy"


def test_cut_stream_is_an_error(router: Router, client: openai.OpenAI) -> None:
    """openai-python takes a clean end without `[DONE]` for success, so a cut must reach it as an error event."""
    said = Send(chunk(event(completion_chunk({"content": "A"}))))
    for cut in (Reset(), Send(b"0\r\n\r\n")):
        router.script = [Send(stream_head()), said, Pause(0.05), cut]
        with pytest.raises(openai.APIError) as caught:
            list(client.chat.completions.create(model="daily", messages=MESSAGES, stream=True))
        assert caught.value.code in ("router_ReadError", "upstream_truncated")


def test_retries_are_asked_for_and_forbidden(router: Router, shared: tuple[Router, Proxy]) -> None:
    with openai.OpenAI(base_url=f"{shared[1].url}/v1", api_key="unused", max_retries=1, timeout=10) as client:
        router.enqueue(status(503, {"error_reason": "upstream_cold"}))
        router.script = stream(TEXTS)
        answer = client.chat.completions.create(model="deep", messages=MESSAGES)
        assert answer.choices[0].message.content == "".join(TEXTS)
        assert router.posts == 2
        router.reset()
        router.script = status(400, {"error": "alias drift"})
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="deep", messages=MESSAGES)
        assert caught.value.code == "router_rejected"
        assert router.posts == 1


def test_queue_timeout(router: Router, client: openai.OpenAI) -> None:
    router.script = stream(gate="go")
    holder = client.chat.completions.create(model="daily", messages=MESSAGES, stream=True)
    assert next(iter(holder)).choices[0].delta.role == "assistant"
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="daily", messages=MESSAGES)
    assert caught.value.code == "gate_wait_timeout"
    assert "Retry-After" in caught.value.response.headers
    router.release("go")
    assert [part.choices[0].delta.content for part in holder][-2] == " world"


def test_leaving_a_stream(router: Router, client: openai.OpenAI) -> None:
    router.script = stream(gate="never")
    parts = client.chat.completions.create(model="daily", messages=MESSAGES, stream=True)
    next(iter(parts))
    parts.close()
    router.wait_for(lambda: router.open_sockets == 0)


def test_the_router_itself_tells(router: Router) -> None:
    """Control: asked without eidproxy, the same router gives away what the tests above look for."""
    with openai.OpenAI(base_url=f"{router.url}/v1", api_key="unused", max_retries=0) as direct:
        parts = list(direct.chat.completions.create(model="daily", messages=MESSAGES, stream=True))
    assert {part.model for part in parts} != {"daily"}
    assert any(part.usage for part in parts)
