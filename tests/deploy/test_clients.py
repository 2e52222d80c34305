"""The recipes of deploy/clients.md, run as they stand there: only the port is changed."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY, fenced, run
from tests.harness import Proxy
from tests.tools import need, without
from tests.upstream import Router, Script, status, stream

BASE = "http://127.0.0.1:8790"
HERE = Path(__file__).parent

Run = Callable[[str], "subprocess.CompletedProcess[str]"]


def recipe(language: str, mark: str) -> str:
    """The one recipe of that language in which `mark` stands."""
    (found,) = [block for block in fenced(DEPLOY / "clients.md", language) if mark in block]
    assert BASE in found
    return found


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the locked packages of the JavaScript recipes."""
    npm, _node = need("npm", "node")
    home = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, home)
    done = run(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=home)
    if done.returncode != 0:
        without(f"npm cannot install the locked packages: {done.stderr[-500:]}")
    yield home
    shutil.rmtree(home / "node_modules")


@pytest.fixture(params=["openai-python", "LangChain", "openai-node", "Vercel AI SDK", "curl"])
def client(request: pytest.FixtureRequest, proxy: Proxy, tmp_path: Path) -> tuple[str, Callable[[], str]]:
    """A client's name, and its recipe as a function that returns what a user sees."""
    name = str(request.param)
    language, mark = {
        "openai-python": ("python", "openai.OpenAI("),
        "LangChain": ("python", "langchain_openai"),
        "openai-node": ("js", "new OpenAI("),
        "Vercel AI SDK": ("js", "createOpenAICompatible"),
        "curl": ("sh", "curl "),
    }[name]
    text = recipe(language, mark).replace(BASE, proxy.url)
    if language == "python":
        package = mark.removesuffix(".OpenAI(")
        if importlib.util.find_spec(package) is None:
            without(f"missing: {package}")
        command, suffix, place = [sys.executable], "py", tmp_path
    elif language == "js":
        command, suffix, place = need("node"), "mjs", request.getfixturevalue("modules")
    else:
        need("curl")
        command, suffix, place = need("sh"), "sh", tmp_path
    script = place / f"recipe.{suffix}"
    script.write_text(text)

    def seen() -> str:
        done = run(*command, script, cwd=place, env={"PYTHONWARNINGS": "ignore"})
        print(done.stderr[-1500:])
        return done.stdout if done.returncode == 0 else f"{done.stdout}\nexit {done.returncode}\n{done.stderr}"

    return name, seen


@pytest.mark.timeout(240)
def test_recipe_shows_the_answer(client: tuple[str, Callable[[], str]], router: Router) -> None:
    name, seen = client
    router.script = stream(["One ", "two ", "three."])
    text = seen()
    if name == "curl":
        assert text.count('"content":"two "') == 1
        assert text.rstrip().endswith("data: [DONE]")
    else:
        assert "One two three." in text
    assert "failed" not in text
    assert "exit" not in text
    if name.startswith("openai"):
        assert "finished: stop" in text
    assert [request.model for request in router.requests] == ["mac-mini-default"]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        # Never tried again: x-should-retry is false.
        (status(400, {"error": {"message": "no such alias"}}), "router_rejected"),
        (stream(["One "], finish=None, done=False), "upstream_truncated"),
    ],
    ids=["before the stream", "in the stream"],
)
def test_recipe_shows_the_failure(
    client: tuple[str, Callable[[], str]], router: Router, script: Script, reason: str
) -> None:
    name, seen = client
    router.script = script
    text = seen()
    if name == "Vercel AI SDK":
        # It shows the sentence for people, not the code.
        sentence = {"router_rejected": "refused the request", "upstream_truncated": "ended before it was complete"}
        assert f"{sentence[reason]}" in text
    else:
        assert reason in text
    if name == "curl":
        assert "[DONE]" not in text
        assert ("exit 22" in text) == (reason == "router_rejected")
    if name.startswith("openai") or name == "LangChain":
        assert f"failed: {reason}" in text
    assert "no such alias" not in text
    assert router.posts == 1
