"""deploy/examples: each router started from its own files, eidproxy from its own, and `check --live` over both.

Changed are the port, the addresses and folders of the models, and how long a start may take: nothing of the form.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.files import DEPLOY, documents, fenced, passed
from tests.environments import program
from tests.lab.client import CHAT, ask, chat
from tests.lab.proxy import Proxy
from tests.lab.tools import free_port, without
from tests.routers.servers import KEY, ROUTERS, Server, llama_server, started

EXAMPLES = DEPLOY / "examples"
README = DEPLOY.parent / "README.md"

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy model in both forms."""
    place = tmp_path_factory.mktemp("models")
    passed(program("routers", "python"), Path(__file__).with_name("toy.py"), place)
    return place


@contextlib.contextmanager
def from_example(name: str, place: Path, health: str, *words: str, **env: str) -> Iterator[Server]:
    """The router that start.sh of an example starts; its programs are those of the environment."""
    port = free_port()
    path = f"{program('routers', 'python').parent}{os.pathsep}{os.environ['PATH']}"
    command = ["env", f"PATH={path}", f"PORT={port}", *(f"{key}={value}" for key, value in env.items())]
    server = Server([*command, str(EXAMPLES / name / "start.sh"), *words], place, port, health)
    with started(server):
        yield server


def checked(name: str, router: Server, key: str = "") -> list[str]:
    """What `check --live` says with the example's own settings."""
    env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "LLM_ROUTER_URL": router.url}
    if key:
        env["EIDPROXY_ROUTER_API_KEY"] = key
    command = [sys.executable, "-m", "eidproxy", "check", "--live", "--config", str(EXAMPLES / name / "eidproxy.toml")]
    env["EIDPROXY_SERVER_PORT"] = str(free_port())
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, cwd=DEPLOY.parent, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + router.said()[-2000:]
    return re.findall(r"^(ok|note|skip) +([\w ]+):", done.stdout, re.MULTILINE)


WORKS = {("ok", subject) for subject in ("router", "key", "daily", "deep", "whole", "nothing told")}


def test_litellm(place: Path, tmp_path: Path) -> None:
    with started(llama_server(place)) as model:
        text = (EXAMPLES / "litellm/config.yaml").read_text("utf-8")
        for address in ("http://127.0.0.1:8080", "http://192.168.1.30:8080"):
            assert address in text
            text = text.replace(address, model.url)
        config = tmp_path / "config.yaml"
        config.write_text(text)
        with from_example("litellm", place, "/health/liveliness", CONFIG=str(config), DEEP_KEY=KEY) as router:
            assert set(checked("litellm", router, KEY)) >= WORKS
            with Proxy(router.url, EIDPROXY_ROUTER_API_KEY=KEY) as proxy:
                assert ask(proxy, "POST", CHAT, chat("deep"), timeout=60).told().done


def test_mlx(place: Path, tmp_path: Path) -> None:
    with from_example("mlx", place, "/health", str(place / "mlx"), MODELS=str(tmp_path / "links")) as router:
        assert set(checked("mlx", router)) >= WORKS
        assert sorted(path.name for path in (tmp_path / "links").iterdir()) == ["mac-mini-default", "qwen-macbook"]


def test_llama_swap_by_its_shape() -> None:
    """It is in no package registry: only what its documentation says of the file is looked at."""
    (config,) = documents(EXAMPLES / "llama-swap/config.yaml")
    assert list(config["models"]) == ["mac-mini-default", "qwen-macbook"]
    for model in config["models"].values():
        words = model["cmd"].split()
        assert words[0] == "llama-server"
        assert {"--port", "${PORT}", "--model", "--parallel", "--jinja"} <= set(words)
    assert config["sendLoadingState"] is False
    assert set(config["matrix"]["vars"].values()) == set(config["models"])
    start = (EXAMPLES / "llama-swap/start.sh").read_text("utf-8")
    assert 'llama-swap --config "${CONFIG:-config.yaml}" --listen "127.0.0.1:${PORT:-4000}"' in start


# --- The same in the documents -------------------------------------------------------------------------------------


def yaml_of(path: Path, word: str) -> Any:
    try:
        import yaml
    except ImportError:
        without("missing: PyYAML")
    (text,) = [block for block in fenced(path, "yaml") if word in block]
    return yaml.safe_load(text)


def test_routers_md_says_the_same() -> None:
    assert yaml_of(ROUTERS, "litellm_params") == documents(EXAMPLES / "litellm/config.yaml")[0]
    assert yaml_of(ROUTERS, "llama-server") == documents(EXAMPLES / "llama-swap/config.yaml")[0]


@pytest.mark.parametrize("name", ["README.md", "deploy/README.ko.md"])
def test_the_readme_says_the_same(name: str) -> None:
    """Its few lines for each router are those of the example, with nothing changed."""
    path = DEPLOY.parent / name
    short = yaml_of(path, "litellm_params")
    assert short == {"model_list": documents(EXAMPLES / "litellm/config.yaml")[0]["model_list"]}
    assert yaml_of(path, "llama-server") == {"models": documents(EXAMPLES / "llama-swap/config.yaml")[0]["models"]}
    (mlx,) = [block for block in fenced(path, "sh") if "mlx_lm.server" in block]
    told = re.search(r"mlx_lm\.server.*", mlx, re.DOTALL)
    start = re.search(r"mlx_lm\.server --model.*", (EXAMPLES / "mlx/start.sh").read_text("utf-8"), re.DOTALL)
    assert told is not None
    assert start is not None
    assert told[0].split() == start[0].replace('"${PORT:-4000}"', "4000").split()
