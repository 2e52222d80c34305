"""Bodies that no honest client sends, and a slow reader of the request's rules (contract, 3) that judges each.

The reader knows nothing of eidproxy's types: it walks what Python's own `json` makes of a body, and lists every fault.
What eidproxy says must be one of them, and what it sends must be what the reader would send.
"""

from __future__ import annotations

import json
import random
import re
from typing import Any, NamedTuple

from eidproxy.errors import Refusal
from eidproxy.inbound.chat import Model, parse_chat_request
from eidproxy.vocabulary import Mode

MODELS = {mode: Model(f"alias-of-{mode}") for mode in Mode}
ECHOED = "reasoning_content reasoning reasoning_details thinking_blocks refusal annotations audio function_call parsed"
ECHOED += " provider_specific_fields"
MARKS = ["cache_control", "copilot_cache_control"]
IGNORED = "user parallel_tool_calls seed metadata service_tier safety_identifier prompt_cache_key reasoning_effort"
IGNORED += " verbosity"

Fault = tuple[str, str | None]
INVALID, UNSUPPORTED, CONTENT = "invalid_request", "unsupported_field", "unsupported_content"


class Verdict(NamedTuple):
    """What must come of a body: one of the faults, or what is sent."""

    faults: list[Fault]
    sent: dict[str, Any]
    unseen: bool = False


class _Reader:
    """Reads one body. Each method returns what is sent of a value and notes what is wrong with it."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def bad(self, where: str, reason: str = INVALID) -> None:
        self.faults.append((reason, where))

    def closed(self, value: Any, where: str, known: str) -> dict[str, Any]:
        """An object without its nulls; other names than these are faults."""
        if not isinstance(value, dict):
            self.bad(where)
            return {}
        found = {name: given for name, given in value.items() if given is not None}
        for name in found.keys() - set(known.split()):
            plain = re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,63}", name) is not None
            self.faults.append((UNSUPPORTED, name if plain else None))
        return found

    def kinded(self, value: Any, where: str, wanted: str, known: str) -> dict[str, Any]:
        """A part, tool or call: of another type, nothing else is looked at."""
        word = value.get("type") if isinstance(value, dict) else None
        if isinstance(word, str) and word != wanted:
            self.bad(f"{where}.type", CONTENT)
            return {"type": word}
        found = self.closed(value, where, f"type {known}")
        if not isinstance(word, str):
            self.bad(f"{where}.type")
        return found

    def string(self, value: dict[str, Any], name: str, where: str) -> Any:
        if not isinstance(value.get(name), str):
            self.bad(f"{where}.{name}")
        return value.get(name)

    def name(self, value: dict[str, Any], where: str) -> Any:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", str(self.string(value, "name", where))):
            self.bad(f"{where}.name")
        return value.get("name")

    def content(self, value: Any, where: str, may_be_empty: bool) -> Any:
        if isinstance(value, str):
            return value
        if may_be_empty and value in (None, []):
            return None
        if not isinstance(value, list) or not value:
            self.bad(where)
            return None
        parts = []
        for at, part in enumerate(value):
            here = f"{where}[{at}]"
            found = self.kinded(part, here, "text", "text " + " ".join(MARKS))
            parts.append({"type": "text", "text": self.string(found, "text", here)})
        return parts

    def calls(self, value: Any, where: str) -> list[Any]:
        if not isinstance(value, list):
            self.bad(where)
            return []
        calls = []
        for at, call in enumerate(value):
            here = f"{where}[{at}]"
            found = self.kinded(call, here, "function", "id function index")
            function = self.closed(found.get("function"), f"{here}.function", "name arguments parsed_arguments")
            strings = {name: self.string(function, name, f"{here}.function") for name in ("name", "arguments")}
            calls.append({"id": self.string(found, "id", here), "type": "function", "function": strings})
        return calls

    def messages(self, value: Any) -> list[Any]:
        if not isinstance(value, list) or not 1 <= len(value) <= 200:
            self.bad("messages")
            return []
        system, rest = [], []
        for at, message in enumerate(value):
            here = f"messages[{at}]"
            role = message.get("role") if isinstance(message, dict) else None
            known = {
                "assistant": "role content name tool_calls " + ECHOED,
                "tool": "role content name tool_call_id",
            }.get(str(role), "role content name")
            found = self.closed(message, here, f"{known} {' '.join(MARKS)}")
            if role not in ("system", "developer", "user", "assistant", "tool"):
                self.bad(f"{here}.role")
            if "name" in found:
                self.string(found, "name", here)
            content = self.content(found.get("content"), f"{here}.content", role in ("assistant", "tool"))
            if role in ("system", "developer"):
                system.append(content)
                continue
            sent: dict[str, Any] = {"role": role, "content": "" if content is None else content}
            if role == "assistant" and "tool_calls" in found:
                calls = self.calls(found["tool_calls"], f"{here}.tool_calls")
                if calls:
                    sent |= {"content": content, "tool_calls": calls}
            if role == "tool":
                sent["tool_call_id"] = self.string(found, "tool_call_id", here)
            rest.append(sent)
        if len(system) > 1 and not self.faults:
            texts = [text if isinstance(text, str) else "".join(part["text"] for part in text) for text in system]
            system = ["\n\n".join(texts)]
        return [*({"role": "system", "content": text} for text in system[:1]), *rest]

    def described(self, value: Any, where: str, free: str) -> dict[str, Any]:
        """A function or a JSON schema, whose one free-form part stays as it is."""
        found = self.closed(value, where, f"name description strict {free}")
        self.name(found, where)
        for name, kind in (("description", str), ("strict", bool), (free, dict)):
            if name in found and not isinstance(found[name], kind):
                self.bad(f"{where}.{name}")
        return found

    def tools(self, value: Any) -> list[Any]:
        if not isinstance(value, list):
            self.bad("tools")
            return []
        tools = []
        for at, tool in enumerate(value):
            here = f"tools[{at}]"
            found = self.kinded(tool, here, "function", "function " + " ".join(MARKS))
            function = found.get("function", tool.get("function") if isinstance(tool, dict) else None)
            function = self.described(function, f"{here}.function", "parameters")
            tools.append({"type": "function", "function": function})
        return tools

    def tool_choice(self, value: Any) -> Any:
        if isinstance(value, str) and value in ("none", "auto", "required"):
            return value
        if not isinstance(value, dict):
            self.bad("tool_choice")
            return None
        found = self.kinded(value, "tool_choice", "function", "function")
        function = self.closed(found.get("function"), "tool_choice.function", "name")
        return {"type": "function", "function": {"name": self.name(function, "tool_choice.function")}}

    def response_format(self, value: Any) -> Any:
        if not isinstance(value, dict):
            self.bad("response_format")
            return None
        kind = value.get("type")
        if kind not in ("text", "json_object", "json_schema"):
            self.bad("response_format.type")
        known = "type json_schema" if kind == "json_schema" else "type"
        found = self.closed(value, "response_format", known)
        if kind == "json_schema":
            here = "response_format.json_schema"
            return {"type": kind, "json_schema": self.described(found.get("json_schema"), here, "schema")}
        return {"type": kind}

    def number(self, value: Any, where: str, low: float, high: float) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            self.bad(where)

    def limit(self, value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
            self.bad(where)
            return 2048
        if value != -1 and value < 1:
            self.bad(where)
        return 2048 if value == -1 else min(2048, int(value))

    def request(self, value: dict[str, Any]) -> Verdict:
        top = {name: given for name, given in value.items() if given is not None}
        for name, empty in (("functions", []), ("logit_bias", {}), ("extra_body", {})):
            if top.get(name) == empty and isinstance(top.get(name), type(empty)):
                del top[name]
        known = "model messages stream max_tokens max_completion_tokens temperature top_p presence_penalty stop tools"
        known += " frequency_penalty tool_choice response_format stream_options n store logprobs " + IGNORED
        self.closed(top, "", known)
        sent: dict[str, Any] = {"messages": self.messages(top.get("messages")), "temperature": 0.4}
        for name, kind in (("stream", bool), ("stream_options", dict)):
            if name in top and not isinstance(top[name], kind):
                self.bad(name)
        for name in ("store", "logprobs"):
            if top.get(name, False) is not False:
                self.bad(name)
        if "n" in top:
            self.number(top["n"], "n", 1, 1)
        limits = [self.limit(top[name], name) for name in ("max_tokens", "max_completion_tokens") if name in top]
        sent["max_tokens"] = min([2048, *limits])
        for name, low, high in (
            ("temperature", 0, 2),
            ("top_p", 0, 1),
            ("presence_penalty", -2, 2),
            ("frequency_penalty", -2, 2),
        ):
            if name in top:
                self.number(top[name], name, low, high)
                sent[name] = top[name]
        if "stop" in top and top["stop"] != []:
            stop = sent["stop"] = top["stop"]
            words = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else [0]
            if len(words) > 4 or not all(isinstance(word, str) for word in words):
                self.bad("stop")
        tools = self.tools(top["tools"]) if "tools" in top else []
        if tools:
            sent["tools"] = tools
        if "tool_choice" in top:
            choice = self.tool_choice(top["tool_choice"])
            if tools:
                sent["tool_choice"] = choice
        unseen = bool(tools)
        if "response_format" in top:
            sent["response_format"] = self.response_format(top["response_format"])
            unseen = unseen or sent["response_format"] != {"type": "text"}
        return Verdict(self.faults, sent, unseen)


NOT_JSON = Verdict([("invalid_json", None)], {})


def judge(body: bytes) -> Verdict:
    """What the slow reader makes of a body."""
    models: list[Any] = []
    values = 0

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        return _Pairs(found)

    def constant(_: str) -> None:
        raise ValueError

    try:
        value = json.loads(body.decode(), object_pairs_hook=pairs, parse_constant=constant)
        if not isinstance(value, _Pairs):
            return NOT_JSON
        json.dumps(value, ensure_ascii=False).encode()  # lone halves of surrogate pairs
        stack: list[tuple[Any, int]] = [(value, 1)]
        while stack:
            item, depth = stack.pop()
            values += 1
            inside = [given for _, given in item.pairs] if isinstance(item, _Pairs) else item
            if isinstance(item, _Pairs):
                json.dumps([name for name, _ in item.pairs], ensure_ascii=False).encode()
            if isinstance(inside, list):
                if depth > 32:
                    return NOT_JSON
                stack += [(given, depth + 1) for given in inside]
            elif isinstance(item, str):
                item.encode()
            elif isinstance(item, float) and item - item != 0:
                return NOT_JSON
    except (ValueError, RecursionError):
        return NOT_JSON
    if values > 100_000:
        return NOT_JSON
    models = [given for name, given in value.pairs if name == "model"]
    verdict = _Reader().request(value)
    for model in models or [None]:
        if not isinstance(model, str):
            verdict.faults.insert(0, (INVALID, "model"))
        elif model not in ("daily", "deep"):
            verdict.faults.insert(0, ("model_not_found", "model"))
    return verdict


class _Pairs(dict[str, Any]):
    """An object that remembers the names that stood twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def agree(body: bytes) -> str:
    """Assert that eidproxy makes of a body what the slow reader makes of it; the reason, or `accepted`."""
    wanted = judge(body)
    try:
        request = parse_chat_request(body, MODELS)
    except Refusal as refusal:
        said = (refusal.reason, refusal.param)
        assert said in wanted.faults, (said, wanted, body)  # which of several is told is free
        return refusal.reason
    assert wanted.faults == [], (wanted.faults, body)
    found = json.loads(request.body)
    assert found == {"model": f"alias-of-{request.mode}", "stream": True, **wanted.sent}, (found, wanted, body)
    assert request.generates_unseen is wanted.unseen, body
    return "accepted"


_TEXT = ["", "a", "일상 😀", "http://x", "daily", "function", "text", "a` - at `$.messages[0]`", "\u2028"]
_ANY: list[Any] = [None, None, True, 0, 1, -1, 1.0, 1.5, 2, 3, 1e300, 10**30, [], {}, [1], {"a": None}, [None], *_TEXT]
_FIELDS = """
    model messages stream max_tokens max_completion_tokens temperature top_p stop tools tool_choice n store logprobs
    response_format role content type text function name arguments tool_calls id index parameters strict x zed
    parsed_arguments tool_call_id json_schema schema description stream_options functions logit_bias extra_body
    api_base
"""
_NAMES = [*ECHOED.split(), *IGNORED.split(), *MARKS, *_FIELDS.split(), "x" * 65]


class Bodies:
    """Writes requests, most of them sound before `garbled` breaks them in a place or two."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def body(self) -> bytes:
        rng = self.rng
        value = self._garbled(self._request(), rng.choice([0, 0, 0.01, 0.05]))
        body = json.dumps(value, ensure_ascii=rng.random() < 0.5, separators=rng.choice([(",", ":"), (", ", ": ")]))
        data = bytearray(body.encode("utf-8", "surrogatepass"))
        if rng.random() < 0.1:
            at = data.find(b"{") + 1
            data[at:at] = b'"%b":%b,' % (
                rng.choice([b"model", b"mod\\u0065l", b"messages", b"n", b"user"]),
                rng.choice([b'"daily"', b'"gpt"', b"1", b"null", b"1e999", b"[]", b'"\\ud800"', b"[" * 33 + b"]" * 33]),
            )
        for _ in range(rng.choice([0, 0, 0, 0, 1, 2])):
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.randrange(2)] = rng.choice(
                [b"", b'"', b"[", b"}", b"\\", b",", b"\xff", b"0", b"e", b"n"]
            )
        return bytes(data)

    def _request(self) -> dict[str, Any]:
        rng = self.rng
        value: dict[str, Any] = {"model": rng.choice(["daily", "deep"])}
        value["messages"] = [self._message() for _ in range(rng.choice([1, 1, 2, 3, 6]))]
        fields: list[tuple[str, list[Any]]] = [
            ("stream", [True, False, None]),
            ("max_tokens", [1, 5, 4096, -1, 100.0, 1e9, None]),
            ("max_completion_tokens", [3, -1.0, 10**20, None]),
            ("temperature", [0, 0.0, 1, 2, 1.5, None]),
            ("top_p", [0, 1, 0.5]),
            ("presence_penalty", [-2, 2.0]),
            ("frequency_penalty", [0.5, None]),
            ("stop", ["", "a", ["a", ""], [], None]),
            ("tools", [[], None, [self._tool()], [self._tool(), self._tool()]]),
            ("tool_choice", ["auto", "none", None, {"type": "function", "function": {"name": "f"}}]),
            ("response_format", [{"type": "text"}, {"type": "json_object"}, self._schema_format()]),
            ("n", [1, 1.0, None]),
            ("store", [False, None]),
            ("stream_options", [{}, {"include_usage": True}, None]),
            *((name, _ANY) for name in IGNORED.split()),
            ("extra_body", [{}]),
            ("functions", [[]]),
            ("zed", [None]),
        ]
        for name, choices in fields:
            if rng.random() < 0.15:
                value[name] = rng.choice(choices)
        return value

    def _content(self) -> Any:
        rng = self.rng
        if rng.random() < 0.7:
            return rng.choice(_TEXT)
        parts = [self._marked({"type": "text", "text": rng.choice(_TEXT)}) for _ in range(rng.randrange(1, 4))]
        return parts if rng.random() < 0.98 else [*parts, self._marked({"image_url": {}, "type": "image_url"})]

    def _marked(self, value: dict[str, Any]) -> dict[str, Any]:
        rng = self.rng
        if rng.random() < 0.1:
            value[rng.choice([*MARKS, "name"] if "role" in value else MARKS)] = rng.choice(["a", None])
        items = list(value.items())
        rng.shuffle(items)
        return dict(items)

    def _message(self) -> dict[str, Any]:
        rng = self.rng
        role = rng.choice(["system", "developer", "user", "user", "assistant", "assistant", "tool"])
        message: dict[str, Any] = {"role": role, "content": self._content()}
        if role in ("assistant", "tool") and rng.random() < 0.3:
            message["content"] = rng.choice([None, [], ""])
            if rng.random() < 0.3:
                del message["content"]
        if role == "tool":
            message["tool_call_id"] = rng.choice(_TEXT)
        if role == "assistant":
            for name in ECHOED.split():
                if rng.random() < 0.1:
                    message[name] = rng.choice(_ANY)
            if rng.random() < 0.4:
                message["tool_calls"] = rng.choice([None, [], [self._call()], [self._call(), self._call()]])
        return self._marked(message)

    def _call(self) -> dict[str, Any]:
        rng = self.rng
        function = {"name": rng.choice(_TEXT), "arguments": rng.choice(_TEXT), "parsed_arguments": rng.choice(_ANY)}
        return {"index": rng.choice(_ANY), "id": rng.choice(_TEXT), "type": "function", "function": function}

    def _described(self, free: str) -> dict[str, Any]:
        rng = self.rng
        value = {"name": rng.choice(["f", "f.g-h_1", "a" * 64]), free: rng.choice([{}, {"a": None, "b": [None]}, None])}
        return {**value, "description": rng.choice(["", "a", None]), "strict": rng.choice([True, False, None])}

    def _tool(self) -> dict[str, Any]:
        return self._marked({"type": "function", "function": self._described("parameters")})

    def _schema_format(self) -> dict[str, Any]:
        return self._marked_format({"type": "json_schema", "json_schema": self._described("schema")})

    def _marked_format(self, value: dict[str, Any]) -> dict[str, Any]:
        items = list({**value, "zed": None}.items())
        self.rng.shuffle(items)
        return dict(items)

    def _garbled(self, value: Any, rate: float) -> Any:
        rng = self.rng
        if rng.random() < rate:
            return rng.choice(_ANY)
        if isinstance(value, list):
            return [self._garbled(item, rate) for item in value]
        if isinstance(value, dict):
            found = {name: self._garbled(item, rate) for name, item in value.items() if rng.random() >= rate / 3}
            if rng.random() < rate:
                found[rng.choice(_NAMES)] = rng.choice(_ANY)
            return found
        return value


def fuzz(count: int, seed: int) -> dict[str, int]:
    """Check that many bodies; how often each reason came."""
    bodies = Bodies(random.Random(seed))
    reasons: dict[str, int] = {}
    for _ in range(count):
        reason = agree(bodies.body())
        reasons[reason] = reasons.get(reason, 0) + 1
    return reasons
