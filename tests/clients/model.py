"""A model for the scripted router that holds a conversation: it thinks on `deep`, calls tools, answers from results.

It looks at nothing but the request, so flows need no scripts of their own and may come in any order.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tests.lab.router import Received
from tests.lab.script import DONE, LAST_CHUNK, Send, Step, chunk, completion_chunk, event, stream_head

DEEP = "qwen-macbook"
THOUGHT = ["Let me ", "think… ", "음 🤔"]
ANSWER = ["안녕 ", "👩‍💻", " world"]
CALLS = [("call_router_1", "temperature", {"city": "Seoul"}), ("call_router_2", "temperature", {"city": "Busan"})]
JSON = {"city": "Seoul", "degrees": 21}


def answer(request: Received) -> list[Step]:
    """The script of the answer to this request. Like mlx it says the role in each chunk, and counts at the end."""
    deltas, finish = _deltas(request.json)
    thoughts: list[dict[str, Any]] = [{"reasoning_content": thought} for thought in THOUGHT]
    told = [*(thoughts if request.model == DEEP else ()), *deltas]
    chunks = [completion_chunk({"role": "assistant", **delta}) for delta in told]
    chunks.append(completion_chunk({"role": "assistant", "content": ""}, finish))
    chunks.append(completion_chunk(choices=[], usage={"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}))
    return [Send(stream_head()), *(Send(chunk(event(each))) for each in chunks), Send(chunk(DONE)), Send(LAST_CHUNK)]


def _deltas(body: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    messages: list[dict[str, Any]] = body["messages"]
    tools = [tool["function"]["name"] for tool in body.get("tools") or ()]
    news = messages[max((n for n, each in enumerate(messages) if each["role"] == "assistant"), default=-1) + 1 :]
    # Some agents put the results of tools into a user's message.
    results = [result for each in news for result in re.findall(r"\d+ °C", text(each))]
    if results and "final_answer" in tools:  # smolagents is answered through a tool
        return _called([("call_router_3", "final_answer", {"answer": ", ".join(results)})]), "tool_calls"
    if results:
        return _said([", ".join(results)]), "stop"
    if tools:
        return _called(CALLS), "tool_calls"
    if (body.get("response_format") or {}).get("type") == "json_schema":
        return _said([json.dumps(JSON)]), "stop"
    turn = sum(each["role"] == "user" for each in messages)
    return _said([f"{turn}. ", *ANSWER]), "stop"


def _said(texts: list[str]) -> list[dict[str, Any]]:
    return [{"content": text} for text in texts]


def _called(calls: list[tuple[str, str, dict[str, str]]]) -> list[dict[str, Any]]:
    """The pieces of these calls: the name first, then the arguments in two halves."""
    pieces = []
    for index, (name, function, arguments) in enumerate(calls):
        text = json.dumps(arguments)
        begun = {"index": index, "id": name, "type": "function", "function": {"name": function, "arguments": ""}}
        halves = [{"index": index, "function": {"arguments": half}} for half in (text[:7], text[7:])]
        pieces += [{"content": None, "tool_calls": [piece]} for piece in (begun, *halves)]
    return pieces


def text(message: dict[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or ())
