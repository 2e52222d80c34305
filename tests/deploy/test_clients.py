"""The recipes of deploy/clients.md, run as they stand there with the real packages: only the port is changed.

A recipe is run thrice in one process: for an answer, for a refusal before it, and for an answer that is cut.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.files import DEPLOY, fenced, run
from tests.environments import environment
from tests.lab.client import CHAT, ask, chat
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.script import status, stream
from tests.lab.tools import need

BASE = "http://127.0.0.1:8790"
CUT = "\n----- end of a run\n"

AGAIN = {
    "python": f"""
import runpy, sys, traceback
for _ in range(int(sys.argv[2])):
    try:
        runpy.run_path(sys.argv[1], run_name="__main__")
    except Exception as error:
        print("".join(traceback.format_exception_only(error)))
    print({CUT!r}, flush=True)
""",
    "js": f"""
for (let run = 0; run < Number(process.argv[3]); run++) {{
  await import(`${{process.argv[2]}}?${{run}}`).catch((error) => console.log(String(error)));
  console.log({json.dumps(CUT)});
}}
""",
    "sh": f"""
for run in $(seq "$2"); do
  export LLM_USER_PATH="$PWD/run$run"
  mkdir "$LLM_USER_PATH"
  sh "$1" 2> errors
  printf '\\nexit %s\\n' $?
  cat errors
  printf '{CUT}'
done
""",
}


@dataclass(frozen=True)
class Recipe:
    """Where a recipe runs, by what it is found, and what its user sees of a failure."""

    name: str
    language: str
    mark: str
    environment: str = "clients"
    shows: str = "sentence"
    """`code`: the recipe prints the reason; `sentence`: the client shows the sentence for people."""
    streams: bool = True
    """A whole answer that failed would be asked for again, after the time that Retry-After says."""


RECIPES = [
    Recipe("curl", "sh", "curl ", shows="code"),
    Recipe("openai-python", "python", "openai.OpenAI(", shows="code"),
    Recipe("LangChain", "python", "langchain_openai", shows="code"),
    Recipe("LiteLLM", "python", "litellm"),
    Recipe("pydantic-ai", "python", "pydantic_ai", streams=False),
    Recipe("openai-agents", "python", "from agents", streams=False),
    Recipe("smolagents", "python", "smolagents", streams=False),
    Recipe("strands-agents", "python", "strands", "clients-openai2"),
    Recipe("LlamaIndex", "python", "llama_index", "clients-openai2"),
    Recipe("llm", "sh", "llm -m"),
    Recipe("openai-node", "js", "new OpenAI(", shows="code"),
    Recipe("LangChain js", "js", "new ChatOpenAI(", shows="code"),
    Recipe("AI SDK openai-compatible", "js", "createOpenAICompatible"),
    Recipe("AI SDK openai", "js", "createOpenAI("),
]

SENTENCES = {"router_rejected": "refused the request", "upstream_truncated": "ended before it was complete"}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipe(recipe: Recipe, router: Router, proxy: Proxy, tmp_path: Path) -> None:
    scripts = [
        stream(["One ", "two ", "three."]),
        # Never tried again: x-should-retry is false.
        status(400, {"error": {"message": "no such alias"}}),
        stream(["One "], finish=None, done=False),
    ][: 3 if recipe.streams else 2]
    router.enqueue(*scripts)
    answered, *failed = seen(recipe, proxy, tmp_path, len(scripts))
    assert [request.model for request in router.requests] == ["mac-mini-default"] * len(scripts)

    for reason, text in zip(("router_rejected", "upstream_truncated"), failed, strict=False):
        assert (reason if recipe.shows == "code" else SENTENCES[reason]) in text
        assert "no such alias" not in text
    if recipe.name == "curl":
        assert answered.count('"content":"two "') == 1
        assert "data: [DONE]\n\n\nexit 0" in answered
        assert "[DONE]" not in failed[1]
        assert "exit 22" in failed[0]
        assert "exit 0" in failed[1]
        return
    assert "One two three." in answered
    assert "failed" not in answered
    if recipe.name.startswith("openai-") and recipe.shows == "code":
        assert "finished: stop" in answered


def seen(recipe: Recipe, proxy: Proxy, place: Path, runs: int) -> list[str]:
    """What a user sees in each run of a recipe."""
    (text,) = [block for block in fenced(DEPLOY / "clients.md", recipe.language) if recipe.mark in block]
    assert BASE in text
    text = text.replace(BASE, proxy.url)
    programs = environment(recipe.environment) / "bin"
    match recipe.language:
        case "python":
            command, suffix = [str(programs / "python")], "py"
        case "js":
            command, suffix = [str(programs / "node")], "mjs"
            (place / "node_modules").symlink_to(environment("clients-node") / "node_modules")
        case _:
            need("curl")
            command, suffix = need("sh"), "sh"
    script, again = place / f"recipe.{suffix}", place / f"again.{suffix}"
    script.write_text(text)
    again.write_text(AGAIN[recipe.language])
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONWARNINGS": "ignore"}
    beside = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    done = run(*command, again, script, str(runs), cwd=place, env={**quiet, **beside}, timeout=200)
    print(done.stdout[-3000:], done.stderr[-3000:])
    assert done.returncode == 0
    *texts, rest = done.stdout.split(CUT)
    assert len(texts) == runs, rest
    return texts


def test_settings_to_take_out(router: Router, proxy: Proxy) -> None:
    """Each is refused by its name, and without them the request is served."""
    (block,) = fenced(DEPLOY / "clients.md", "json")
    for field, value in json.loads(block).items():
        answer = ask(proxy, "POST", CHAT, chat("daily", **{field: value}))
        assert (answer.status, answer.json()["error"]["param"]) == (400, field)
        assert field in answer.json()["error"]["message"]
    assert router.posts == 0
    for field in ("image_url", "input_audio"):
        parts = [{"type": field, field: {"url": "data:,"}}]
        answer = ask(proxy, "POST", CHAT, chat("daily", messages=[{"role": "user", "content": parts}]))
        assert (answer.status, answer.reason) == (400, "unsupported_content")
    stays: dict[str, Any] = {"user": "u", "seed": 1, "store": False, "metadata": {"a": "b"}, "reasoning_effort": "low"}
    stays |= {"verbosity": "low", "service_tier": "auto", "parallel_tool_calls": True, "stream_options": {}}
    assert ask(proxy, "POST", CHAT, chat("daily", **stays)).told().done
    assert not stays.keys() - {"stream_options"} & router.requests[-1].json.keys()


def test_what_asks_for_another_endpoint_is_told_so(proxy: Proxy) -> None:
    for path in ("/v1/responses", "/v1/completions"):
        answer = ask(proxy, "POST", path, {"model": "daily", "input": "Hello"})
        assert (answer.status, answer.reason) == (404, "not_found")
        assert "/v1/chat/completions" in answer.json()["error"]["message"]
