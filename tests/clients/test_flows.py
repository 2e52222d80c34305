"""Real clients through eidproxy: a stream, a whole answer, a second turn and a loop of tools, on both models.

Each client runs in its own environment (see tests/environments.py) as one program that plays all flows and prints what
its user sees. The router judges the other side: what a client gave back of our answers must arrive as a conversation.
"""

from __future__ import annotations

import collections
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients import model
from tests.deploy.files import run
from tests.environments import environment, program
from tests.lab.callers import at_rest
from tests.lab.proxy import Proxy
from tests.lab.router import Received, Router

HERE = Path(__file__).parent
BASIC = ("stream", "whole", "turns", "tools")


@dataclass(frozen=True)
class Client:
    """What is known of a client beforehand."""

    name: str
    environment: str = "clients"
    flows: tuple[str, ...] = BASIC
    thinks: bool = False
    """Shows the reasoning of `deep`, and gives it back in the next request."""
    helper_thinks: bool = True
    """Its helper joins the pieces of the reasoning. openai-node's keeps the last one alone, as of any unknown field."""
    calls: bool = True
    """Gives tool calls and their results back as such. smolagents writes them into the text."""


CLIENTS = [
    Client(
        "openai-python",
        flows=(*BASIC, "tools_dumped", "turns_helper", "tools_helper", "turns_parsed"),
        thinks=True,
    ),
    Client("LangChain"),
    Client("LiteLLM", thinks=True),
    Client("pydantic-ai", thinks=True),
    Client("openai-agents"),
    Client("smolagents", calls=False),
    Client("strands-agents", "clients-openai2", ("stream", "turns", "tools"), thinks=True),
    Client("llm"),
    Client("openai-node", "clients-node", (*BASIC, "turns_helper", "tools_helper"), thinks=True, helper_thinks=False),
    Client("LangChain js", "clients-node"),
    Client("AI SDK openai", "clients-node"),
    Client("AI SDK openai-compatible", "clients-node", thinks=True),
]

TEXT = "".join(model.ANSWER)
SAID = {"stream": f"1. {TEXT}", "whole": f"1. {TEXT}", "turns": f"2. {TEXT}", "tools": "21 °C, 24 °C"}
SAID["parsed"] = "Seoul 21"


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Router, Proxy]]:
    with Router(script=model.answer) as router, Proxy(router) as proxy:
        yield router, proxy


@pytest.mark.timeout(240)
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_flows(client: Client, shared: tuple[Router, Proxy], tmp_path: Path) -> None:
    router, proxy = shared
    router.reset()
    found = play(client, f"{proxy.url}/v1", tmp_path)
    wanted = {f"{mode} {flow}": seen(client, mode, flow) for mode in ("daily", "deep") for flow in client.flows}
    assert found.keys() == wanted.keys()
    assert {flow: found[flow] for flow in wanted if found[flow] != wanted[flow]} == {}
    for alias in ("mac-mini-default", "qwen-macbook"):
        asked = [request for request in router.requests if request.model == alias]
        assert not any("reasoning" in request.body.decode() for request in asked)
        if client.calls:
            histories = collections.Counter(told(request) for request in asked if " assistant:" in told(request))
            assert histories == collections.Counter(map(history, filter(history, client.flows)))
    at_rest(router, proxy)


def play(client: Client, base: str, place: Path) -> dict[str, dict[str, Any]]:
    """Run all flows of a client; what its user saw in each, without what it leaves undefined."""
    if client.environment == "clients-node":
        # Node looks for packages beside the program.
        script = environment(client.environment) / "flows.mjs"
        shutil.copy(HERE / script.name, script)
        command = [program("clients", "node"), script]
    else:
        command = [program(client.environment, "python"), HERE / "flows.py"]
    modes = "".join(
        f"- {{model_id: eid-{mode}, model_name: {mode}, api_base: {base}, supports_tools: true}}\n"
        for mode in ("daily", "deep")
    )
    (place / "extra-openai-models.yaml").write_text(modes)
    quiet = {"LLM_USER_PATH": str(place), "OPENAI_API_KEY": "unused", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = run(*command, client.name, base, cwd=place, env=quiet, timeout=200)
    print(done.stderr[-6000:])
    assert done.returncode == 0
    found = json.loads(done.stdout.splitlines()[-1])
    return {flow: {key: value for key, value in seen.items() if value is not None} for flow, seen in found.items()}


def seen(client: Client, mode: str, flow: str) -> dict[str, str]:
    """What the user of a client must see."""
    kind, _, way = flow.partition("_")
    said = {"text": SAID["parsed"] if way == "parsed" else SAID[kind]}
    if mode == "deep" and client.thinks and way != "parsed":
        joined = way != "helper" or client.helper_thinks
        said["reasoning"] = "".join(model.THOUGHT) if joined else model.THOUGHT[-1]
    return said


def history(flow: str) -> str | None:
    """What the router must have been told in the last request of a flow, as `told` writes it."""
    kind, _, way = flow.partition("_")
    if kind == "turns":
        answered = json.dumps(model.JSON) if way == "parsed" else f"1. {TEXT}"
        return f" user:Say hello. assistant:{answered} user:Say it again."
    if kind == "tools":
        called = " ".join(f"{name}({arguments['city']})" for _, name, arguments in model.CALLS)
        return f" user:How warm is it in Seoul and in Busan? assistant:{called} tool:21 °C tool:24 °C"
    return None


def told(request: Received) -> str:
    """A conversation in one line, its system message left out. Results stand in the order of their calls."""
    first, *rest = request.json["messages"]
    messages = rest if first["role"] == "system" else [first, *rest]
    line = ""
    results = {each["tool_call_id"]: model.text(each) for each in messages if each["role"] == "tool"}
    for message in messages:
        assert message["role"] != "system", "a second system message, or a late one"
        if message["role"] == "tool":
            continue
        line += f" {message['role']}:{model.text(message)}"
        calls = message.get("tool_calls", ())
        functions = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]
        line += " ".join(f"{name}({arguments['city']})" for name, arguments in functions)
        line += "".join(f" tool:{results.pop(call['id'])}" for call in calls)
    assert not results, "results without a call"
    return line
