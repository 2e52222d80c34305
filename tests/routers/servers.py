"""Real model servers and routers as processes of their own, started by the commands of deploy/routers.md."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.deploy.files import DEPLOY, fenced
from tests.environments import program
from tests.lab.client import ask
from tests.lab.proxy import Proxy
from tests.lab.tools import free_port, until

ROUTERS = DEPLOY / "routers.md"
KEY = "sk-canary-of-the-router"


@dataclass
class Server:
    """A server and how to start it again. Its output goes to a file beside its model."""

    command: list[str]
    place: Path
    port: int
    health: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it serves."""
        # No request of theirs may leave this machine.
        quiet = {"HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "*"}
        keys = {"DAILY_KEY": KEY, "DEEP_KEY": "unused", "LITELLM_MASTER_KEY": KEY}
        with (self.place / f"{self.port}.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.place,
                env={**os.environ, **quiet, **keys},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        until(self.serves, 240, f"{self.command[0]} serves: {self.said()[-2000:]}")

    def serves(self) -> bool:
        """Whether its own word for health is 200."""
        assert self.process is not None
        assert self.process.poll() is None, self.said()
        try:
            return ask(("127.0.0.1", self.port), "GET", self.health, timeout=5).status == 200
        except (OSError, EOFError):
            return False

    def said(self) -> str:
        """Its output."""
        return (self.place / f"{self.port}.log").read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def started(server: Server) -> Iterator[Server]:
    """The server, until the block ends."""
    try:
        server.start()
        yield server
    finally:
        server.kill()


def proxied(router: Server, key: str = KEY, **settings: Any) -> Proxy:
    """eidproxy in front of a router."""
    return Proxy(router.url, canaries=[KEY, str(router.place)], EIDPROXY_ROUTER_API_KEY=key, **settings)


def command(word: str, changes: dict[str, str]) -> list[str]:
    """The one command of deploy/routers.md that begins with this program, words changed."""
    (line,) = [block for block in fenced(ROUTERS, "sh") if block.startswith(f"{word} ")]
    words = shlex.split(line)
    assert changes.keys() <= set(words), words
    return [changes.get(each, each) for each in words]


def llama_server(place: Path) -> Server:
    """llama-server with the toy model in `place`, and a key."""
    port = free_port()
    (place / "key").write_text(KEY + "\n")
    changes = {
        "llama-server": str(program("routers", "llama-server-vulkan")),
        "/models/daily.gguf": str(place / "toy.gguf"),
        "/etc/llama/key": str(place / "key"),
        "8080": str(port),
    }
    return Server(command("llama-server", changes), place, port, "/health")


def mlx_lm_server(place: Path) -> Server:
    """mlx_lm.server with the toy model in `place`."""
    port = free_port()
    for alias in ("mac-mini-default", "qwen-macbook"):
        if not (place / alias).exists():
            (place / alias).symlink_to("mlx")
    changes = {"mlx_lm.server": str(program("routers", "mlx_lm.server")), "8080": str(port)}
    return Server(command("mlx_lm.server", changes), place, port, "/health")


def litellm(place: Path, daily: Server, deep: Server) -> Server:
    """LiteLLM before two servers."""
    port = free_port()
    (text,) = [block for block in fenced(ROUTERS, "yaml") if "litellm_params" in block]
    text = text.replace("http://127.0.0.1:8080", daily.url).replace("http://192.168.1.30:8080", deep.url)
    (place / "config.yaml").write_text(text)
    changes = {"litellm": str(program("routers", "litellm")), "4000": str(port)}
    return Server(command("litellm", changes), place, port, "/health/liveliness")
