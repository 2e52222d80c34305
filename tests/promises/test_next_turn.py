"""What eidproxy answers, it accepts (contract, 3)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from eidproxy.inbound.chat import Model, parse_chat_request
from eidproxy.relay.completion import Completion
from eidproxy.vocabulary import Mode
from tests import fuzz
from tests.lab.tools import size

openai_chat = pytest.importorskip("openai.types.chat")
streaming = pytest.importorskip("openai.lib.streaming.chat")

QUESTION = {"role": "user", "content": "And tomorrow?"}
MODELS = {mode: Model("alias") for mode in Mode}
SENT = {"role", "content", "tool_calls"}


def whole_message(body: bytes) -> Any:
    """The message of the answer to a caller that asked for no stream."""
    completion = Completion(1, "daily")
    fuzz.run([body], completion=completion)
    return json.loads(completion.encode("id", "stop"))["choices"][0]["message"]


def chunks(body: bytes) -> list[Any]:
    """What a caller that asked for a stream gets, with its last chunk."""
    lines = fuzz.run([body]).output.split(b"\n\n")
    head = {"id": "id", "object": "chat.completion.chunk", "created": 1, "model": "daily"}
    last = {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    return [*(json.loads(line.removeprefix(b"data: ")) for line in lines if line), last]


def gathered(body: bytes) -> Iterator[Any]:
    """The message as openai-python's own helper puts it together, in each form in which people keep it."""
    state = streaming.ChatCompletionStreamState()
    for chunk in chunks(body):
        state.handle_chunk(openai_chat.ChatCompletionChunk.model_validate(chunk))
    for completion in (state.current_completion_snapshot, state.get_final_completion()):
        message = completion.choices[0].message
        yield message.model_dump()
        yield message.model_dump(exclude_none=True)
        yield message.to_dict()


def next_turn(message: Any) -> list[Any]:
    """What the router gets of a conversation with that message in it."""
    body = json.dumps({"model": "daily", "messages": [QUESTION, message, QUESTION]}).encode()
    sent: list[Any] = json.loads(parse_chat_request(body, MODELS).body)["messages"]
    assert [sent[0], sent[2]] == [QUESTION, QUESTION]
    assert set(sent[1]) <= SENT
    return sent


@pytest.mark.timeout(1800)
def test_every_answer_is_valid_in_the_next_request(seed: int) -> None:
    rng = random.Random(seed)
    grammar = fuzz.Grammar(rng)
    calls = messages = 0
    for number in range(size(400, 20_000)):
        body = grammar.stream()
        if number % 2:
            body = fuzz.mutate(body, rng)
        if not fuzz.run([body]).output:
            continue
        message = whole_message(body)
        sent = next_turn(message)[1]
        assert (sent["content"] or "") == (message["content"] or "")
        assert sent.get("tool_calls") == message.get("tool_calls")
        calls += len(message.get("tool_calls", ()))
        messages += 1
        for kept in gathered(body):
            messages += 1
            sent = next_turn(kept)[1]
            assert (sent["content"] or "") == (message["content"] or "")
            assert [call["function"] for call in sent.get("tool_calls", ())] == [
                call["function"] for call in message.get("tool_calls", ())
            ]
    print(f"{messages} messages, {calls} calls: 0 refused")
    assert calls > 20
