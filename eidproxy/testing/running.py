"""The real proxy for a test: a process of its own in front of a given router."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import IO, Any, Self

_PATIENCE_SECONDS = 30.0
"""How long a process may take to start or to end, on a busy machine."""


class RunningProxy:
    """`eidproxy serve` as a process of its own, on a free port. Use it with `with`."""

    def __init__(self, router_url: str, settings: Mapping[str, object] | None = None) -> None:
        self._environment = _environment(router_url, settings or {})
        self._started = threading.Event()
        self.port = 0
        self.log: list[dict[str, Any]] = []
        """The log, one object for each line: events, and one line for each request."""
        self.output: list[str] = []
        """Other lines that it printed, for instance which setting is wrong."""

    @property
    def url(self) -> str:
        """The proxy's address: the live view, `/status`, `/chat`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """The base URL for an OpenAI client."""
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
                    entry = json.loads(line)
                except ValueError:
                    self.output.append(line.rstrip("\n"))
                    continue
                self.log.append(entry)
                if entry.get("event") == "started":
                    self.port = entry["port"]
                    self._started.set()
        self._started.set()  # it ended, perhaps before it had started


def _environment(router_url: str, settings: Mapping[str, object]) -> dict[str, str]:
    """Return this environment without eidproxy's variables, plus the settings. Raises ValueError for an unknown one."""
    from eidproxy.config import FIELDS

    names = {field.path: field.env for field in FIELDS if field.env}
    unknown = settings.keys() - names.keys()
    if unknown:
        raise ValueError(f"eidproxy has no setting {', '.join(sorted(unknown))}")
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("EIDPROXY_", "LLM_ROUTER_")) and name != "CREDENTIALS_DIRECTORY"
    }
    # A test that leaves an answer unread should not wait for it.
    chosen = {"server.port": 0, "log.format": "json", "server.drain_seconds": 0.2, **settings}
    return inherited | {"LLM_ROUTER_URL": router_url} | {names[path]: _to_text(value) for path, value in chosen.items()}


def _to_text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
