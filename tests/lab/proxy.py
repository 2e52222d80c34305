"""The caller's side of the tests: eidproxy as a real process, a raw client, a slow and obvious reader of event streams.

with Router() as router, Proxy(router, EIDPROXY_GATE_MAX_WAITING=2) as proxy:
    answer = ask(proxy, "POST", CHAT, chat("daily"))
    assert answer.status == 200 and answer.told().text == "Hello world"

client = RawClient(proxy)                    # the same by hand, to leave at a chosen moment
client.send(request_bytes("POST", CHAT, chat("deep")))
status, headers = client.read_head()
for raw in client.events(): ...
client.rst()
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab.client import ANSWER_CANARY, PROMPT_CANARY, Answer, Headers, RawClient, ask
from tests.lab.router import Router
from tests.lab.script import FINGERPRINT, MODEL_PATH
from tests.lab.tools import ROOT, free_port, without

CANARIES: list[str] = [
    PROMPT_CANARY,
    ANSWER_CANARY,
    MODEL_PATH,
    FINGERPRINT,
    "mac-mini",  # the alias and the host of the machine
    "qwen-macbook",
]


def impatient(seconds: float) -> dict[str, Any]:
    """Settings for `Proxy`: a router may be silent for so long, before the first event and after it, and none hangs."""
    return {
        "EIDPROXY_ROUTER_FIRST_EVENT_SECONDS": seconds,
        "EIDPROXY_ROUTER_FIRST_EVENT_SECONDS_PER_KIB": 0,
        "EIDPROXY_ROUTER_READ_TIMEOUT_SECONDS": seconds,
        "EIDPROXY_ROUTER_WEDGE_AFTER": 0,
    }


# --- The proxy ---------------------------------------------------------------------------------------------------

Sample = tuple[str, frozenset[tuple[str, str]]]


def parse_metrics(text: str) -> dict[Sample, float]:
    """The samples of a Prometheus text page."""
    found: dict[Sample, float] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)(?: \S+)?", line)
        assert match, f"bad sample: {line!r}"
        labels = re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or "")
        key = (match[1], frozenset(labels))
        assert key not in found, f"twice: {line!r}"
        found[key] = float(match[3])
    return found


def sample(name: str, **labels: str) -> Sample:
    """The key of one sample, by its full name (`eidproxy_…`) and all its labels."""
    return name, frozenset(labels.items())


class Proxy:
    """`eidproxy serve` as a process of its own, with these settings and nothing else in its environment.

        with Proxy(router, EIDPROXY_STREAM_DEADLINE_SECONDS=2) as proxy: ...

    Settings are environment variables by their full names (any name: HTTP_PROXY too); a value of None unsets one.
    `arguments` follow `serve`; `prefix` is a program that starts it (strace -D, faketime, ip netns exec). `planted` is
    Python that runs in the process before its main: the fault that a control must find.
    With `ready=False` it is not waited for. The port is free unless EIDPROXY_SERVER_PORT is set.

    On exit it gets SIGTERM, then a second one, and must end with status 0; its output must hold no traceback and no
    canary. A process that the test ended itself is judged by the test, but its output is judged all the same.
    """

    def __init__(
        self,
        router: Router | str | None = None,
        *,
        arguments: Sequence[str] = (),
        prefix: Sequence[str] = (),
        planted: str | None = None,
        ready: bool = True,
        ready_timeout: float = 60.0,
        canaries: Iterable[str] = (),
        **settings: object,
    ) -> None:
        self.settings = {name: str(value) for name, value in settings.items() if value is not None}
        if router is not None:
            self.settings.setdefault("LLM_ROUTER_URL", router if isinstance(router, str) else router.url)
        if "EIDPROXY_SERVER_UDS" not in self.settings and settings.get("EIDPROXY_SERVER_PORT", "") is not None:
            self.settings.setdefault("EIDPROXY_SERVER_PORT", str(free_port()))
        self.host = self.settings.get("EIDPROXY_SERVER_HOST", "127.0.0.1")
        self.port = int(self.settings.get("EIDPROXY_SERVER_PORT", "0"))
        self.patience = (20.0, 20.0)
        """Seconds after the first and after the second SIGTERM."""
        self.canaries = [*CANARIES, *canaries]
        program = [*_coverage(), "-m", "eidproxy"] if planted is None else ["-c", planted + _MAIN]
        self._command = [*prefix, sys.executable, *program, "serve", *arguments]
        self._ready = ready
        self._ready_timeout = ready_timeout
        self._signalled = False
        self._metrics_at = -1.02
        self._process: subprocess.Popen[bytes] | None = None
        self._output: Path | None = None

    # Where it is

    @property
    def address(self) -> tuple[str, int] | str:
        """Where to dial it."""
        return self.settings.get("EIDPROXY_SERVER_UDS") or (self.host, self.port)

    @property
    def url(self) -> str:
        """Its base URL, without a slash at the end."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process."""
        assert self._process is not None, "not started"
        return self._process

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid

    # What it does

    def output(self) -> bytes:
        """Everything it has written to stdout and stderr so far."""
        assert self._output is not None, "not started"
        return self._output.read_bytes()

    def log(self) -> list[dict[str, Any]]:
        """Its log lines. A line that is not a JSON object fails; one that is being written is none yet."""
        text = self.output()
        lines = [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]
        assert all(isinstance(line, dict) for line in lines)
        return lines

    def get(self, path: str, headers: Headers = ()) -> Answer:
        """GET, with the API key when one is set."""
        key = self.settings.get("EIDPROXY_SERVER_API_KEY")
        pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        if key is not None:
            pairs.append(("Authorization", f"Bearer {key}"))
        return ask(self, "GET", path, headers=pairs)

    def metrics(self) -> dict[Sample, float]:
        """Its metrics, as they are now: {(name, frozenset of label pairs): value}.

        The text may be up to 1 s old (contract, 2), so that who looked a moment ago waits until it is written anew.
        """
        time.sleep(max(self._metrics_at + 1.02 - time.monotonic(), 0))
        answer = self.get("/metrics")
        self._metrics_at = time.monotonic()
        assert answer.status == 200, answer
        return parse_metrics(answer.body.decode())

    def metric(self, name: str, **labels: str) -> float:
        """One sample, as it is now; for several of one moment take `metrics`. KeyError when there is none."""
        return self.metrics()[sample(name, **labels)]

    def status(self) -> dict[str, Any]:
        """Its /status."""
        answer = self.get("/status")
        assert answer.status == 200, answer
        value = answer.json()
        assert isinstance(value, dict)
        return value

    def fds(self) -> int:
        """How many descriptors it has open."""
        return len(os.listdir(self._proc("fd")))

    def holds(self, client: RawClient) -> bool:
        """Whether it still has its end of this connection open: the kernel names no owner of one that was closed."""
        near = f":{client.sock.getsockname()[1]:04X}"
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        ours = [row for row in rows if row[1].endswith(f":{self.port:04X}") and row[2].endswith(near)]
        return any(row[9] != "0" for row in ours)

    def rss(self) -> int:
        """Its resident memory in bytes."""
        pages = int(self._proc("statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        """How long it has had a processor so far: what it took to do a thing, whatever else the machine does."""
        return int(self._proc("schedstat").read_text().split()[0]) / 1e9

    def _proc(self, name: str) -> Path:
        path = Path(f"/proc/{self.pid}/{name}")
        if not Path("/proc/self/fd").exists():
            without("no /proc on this machine")
        return path

    # How it ends

    def signal(self, number: int) -> None:
        """Send it a signal. From then on the test answers for how it ends."""
        self._signalled = True
        self.process.send_signal(number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)

    def wait(self, timeout: float = 30.0) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait(timeout)

    def wait_ready(self, timeout: float | None = None) -> None:
        """Until /healthz answers 200. Fails at once, with the output, when the process ends instead."""
        deadline = time.monotonic() + (self._ready_timeout if timeout is None else timeout)
        while True:
            with contextlib.suppress(OSError, EOFError):
                if ask(self, "GET", "/healthz", timeout=2.0).status == 200:
                    return
            code = self.process.poll()
            assert code is None, f"eidproxy ended with {code}:\n{self.output().decode(errors='replace')}"
            assert time.monotonic() < deadline, f"not ready:\n{self.output().decode(errors='replace')}"
            time.sleep(0.005)

    def __enter__(self) -> Self:
        handle, name = tempfile.mkstemp(prefix="eidproxy-", suffix=".log")
        self._output = Path(name)
        with os.fdopen(handle, "wb") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                cwd=ROOT,
            )
        if self._ready:
            try:
                self.wait_ready()
            except BaseException:
                self._stop()
                self._output.unlink()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._output is not None
        ended = self.process.poll()
        verdict = self._stop()
        if ended is not None and not self._signalled and self._ready:
            verdict = f"ended by itself with {ended}"
        text = self.output().decode(errors="replace")
        self._output.unlink()
        if error is not None:
            error.add_note(f"eidproxy's output ({verdict or 'ended well'}):\n{text[-8000:]}")
            return
        assert verdict is None, f"{verdict}:\n{text}"
        assert "Traceback" not in text, text
        for canary in self.canaries:
            assert canary not in text, f"{canary!r} stands in the output:\n{text}"

    def _stop(self) -> str | None:
        """End the process; the reason why that was not well, or None."""
        process = self.process
        if process.poll() is not None:
            return None
        # A test that stopped it with SIGSTOP would otherwise wait for ever.
        process.send_signal(signal.SIGCONT)
        for patience in self.patience:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(patience)
                return None if code == 0 or self._signalled else f"ended with {code} after SIGTERM"
        process.kill()
        process.wait()
        return "had to be killed"

    def _environment(self) -> dict[str, str]:
        coverage = ("COVERAGE_FILE", "COVERAGE_PROCESS_START")
        # The suite runs with the accelerator and without it.
        kept = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "EIDPROXY_ACCELERATOR", *coverage)
        base = {name: os.environ[name] for name in kept if name in os.environ}
        return {**base, "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT), **self.settings}


_MAIN = """
import sys
from eidproxy.__main__ import main
sys.argv[0] = "eidproxy"
main()
"""


def _coverage() -> list[str]:
    return ["-m", "coverage", "run", "--parallel-mode"] if os.environ.get("EIDPROXY_COVERAGE") else []
