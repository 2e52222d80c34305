"""For the tests of an app that asks eidproxy: a pytest plugin with a fake router and the real proxy in front of it.

    def test_digest(eidproxy, fake_router):
        fake_router.play(stream("Three ", "mails"), cut("Thr"))
        assert digest(base_url=eidproxy.base_url) == "Three mails"

Installing eidproxy with its extra `testing` is all it takes: pytest finds the fixtures by itself. They are `fake_router` (see
`FakeRouter`), `eidproxy` (see `RunningProxy`) and `eidproxy_settings`, which a test module overrides to run the proxy
with settings of its own. Names that stand in `__all__` stay.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import IO, Any, Self

import pytest

from eidproxy.fake_router import (
    ALIASES,
    FINGERPRINT,
    MODEL_PATH,
    Asked,
    FakeRouter,
    Script,
    call,
    cut,
    hang,
    refusal,
    stall,
    stream,
    wake_up,
    warming,
)

__all__ = [
    "ALIASES",
    "FINGERPRINT",
    "MODEL_PATH",
    "Asked",
    "FakeRouter",
    "RunningProxy",
    "Script",
    "call",
    "cut",
    "eidproxy",
    "eidproxy_settings",
    "fake_router",
    "hang",
    "refusal",
    "stall",
    "stream",
    "wake_up",
    "warming",
]

_PATIENCE_SECONDS = 30.0


class RunningProxy:
    """`eidproxy serve` as a process of its own, on a free port. Use it with `with`."""

    def __init__(self, router_url: str, settings: Mapping[str, object] | None = None) -> None:
        self._environment = _environment(router_url, settings or {})
        self._started = threading.Event()
        self.port = 0
        self.log: list[dict[str, Any]] = []
        """What it has logged, one object a line: its events, and one line for each request."""
        self.output: list[str] = []
        """What it printed beside that, for instance which setting is wrong."""

    @property
    def url(self) -> str:
        """Where it is: the live view, `/status`, `/chat`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes."""
        return f"{self.url}/v1"

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "eidproxy", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=self._environment,
            text=True,
        )
        assert self._process.stderr is not None  # noqa: S101  # it is a pipe
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True)
        self._reader.start()
        self._started.wait(_PATIENCE_SECONDS)
        if not self.port:
            self.__exit__()
            raise RuntimeError("eidproxy did not start:\n" + "\n".join(self.output))
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()

    def _read(self, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                try:
                    told = json.loads(line)
                except ValueError:
                    self.output.append(line.rstrip("\n"))
                    continue
                self.log.append(told)
                if told.get("event") == "started":
                    self.port = told["port"]
                    self._started.set()
        self._started.set()  # it ended, perhaps before it began


def _environment(router_url: str, settings: Mapping[str, object]) -> dict[str, str]:
    """The tester's environment without what it says to eidproxy, and the settings by their paths."""
    from eidproxy.config import FIELDS

    names = {field.path: field.env for field in FIELDS if field.env}
    unknown = settings.keys() - names.keys()
    if unknown:
        raise ValueError(f"eidproxy has no setting {', '.join(sorted(unknown))}")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("EIDPROXY_", "LLM_ROUTER_")) and name != "CREDENTIALS_DIRECTORY"
    }
    # A test that leaves an answer unread should not wait for it.
    own = {"server.port": 0, "log.format": "json", "server.drain_seconds": 0.2, **settings}
    return kept | {"LLM_ROUTER_URL": router_url} | {names[path]: _spelled(value) for path, value in own.items()}


def _spelled(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@pytest.fixture
def fake_router() -> Iterator[FakeRouter]:
    """A router of this test's own. It answers "Hello!" until it is told something else."""
    with FakeRouter() as router:
        yield router


@pytest.fixture
def eidproxy_settings() -> dict[str, object]:
    """Settings of the `eidproxy` fixture by their paths. Override it: `{"gate.capacity": 2}`."""
    return {}


@pytest.fixture
def eidproxy(fake_router: FakeRouter, eidproxy_settings: dict[str, object]) -> Iterator[RunningProxy]:
    """The real proxy, in front of `fake_router`."""
    with RunningProxy(fake_router.url, eidproxy_settings) as running:
        yield running
