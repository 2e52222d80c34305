"""An exception, or a cancellation, at each call on a request's path (contract, P6): slot free, socket closed.

The calls of a request's path are wrapped, one scenario is played and counted, and then played again once for each call,
which fails. Afterwards nothing may be left, and the next request must be served. In this process, with real sockets.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import inspect
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

from eidproxy import app, endpoints, gate, timeouts
from eidproxy.app import Application
from eidproxy.config import load
from eidproxy.gate import admission, local
from eidproxy.inbound import connection, connections
from eidproxy.inbound.connection import Connection
from eidproxy.monitoring import logs, metrics
from eidproxy.relay import (
    answer,
    chunk,
    completion,
    progress,
    relay,
    sanitize,
    splice,
    sse,
    stream,
    upstream_request,
    watch,
)
from eidproxy.router import exchange, idle, response, transport, upstream
from tests.lab.client import CHAT, chat, request_bytes
from tests.lab.router import Router
from tests.lab.script import Stall, status
from tests.lab.script import stream as stream_script
from tests.lab.tools import size as amount

PATH: list[type] = [
    *(admission.AdmissionQueue, endpoints.Endpoints, local.LocalGate, local.LocalPermit, gate.HoldEstimate, logs.Log),
    *(
        metrics.StreamCounters,
        metrics.Metrics,
        relay.Relay,
        upstream_request.UpstreamRequest,
        sanitize.Sanitizer,
        completion.Completion,
        connection.Connection,
    ),
    *(
        connections.Connections,
        sse.EventParser,
        exchange.Exchange,
        response.ResponseParser,
        watch.SilenceWatch,
        splice.ShortcutAttempts,
        upstream.Upstream,
        transport.TcpTransport,
        timeouts.TimeoutQueue,
    ),
    *(idle.IdleConnections, idle._IdleConnection),
    *(
        metrics.Count,
        metrics.Distribution,
        stream.Stream,
        splice.Splice,
        answer.Answer,
        chunk.Frames,
        progress.Progress,
    ),
]

GIVING_BACK = {
    "AdmissionQueue.leave",
    "LocalGate._on_granted",
    "LocalGate.release",
    "Relay._release_slot",
    "Relay.conclude",
    "Relay.on_disconnect",
    "Relay.on_wall_clock",
}
"""What gives back itself: when that fails, the watchdog takes the slot back, or the caller's end does."""


PURE = {
    *("AdmissionQueue._aged", "AdmissionQueue._grant", "AdmissionQueue._next", "Connection.__init__"),
    *(
        "Exchange.__init__",
        "Exchange.abort",
        "Exchange.connection_made",
        "LocalPermit.__init__",
        "Relay._close_upstream",
    ),
    *("Connection.connection_lost", "Connection.connection_made", "Relay._detach", "Connections.remove"),
    *("TimeoutQueue._expire_due", "TimeoutQueue.stop", "TcpTransport.abort"),
    *(
        "IdleConnections._on_timeout",
        "IdleConnections._discard",
        "IdleConnections.close",
        "IdleConnections.reset_trust",
    ),
    *("IdleConnections.drop",),
}
"""Assignments and the closing of the socket itself: failing before their first statement, they have not been called."""


def test_the_names_exist() -> None:
    """A list of names that no function has any more excuses nothing, and nobody would notice."""
    known = {f"{kind.__name__}.{name}" for kind in PATH for name in vars(kind)}
    assert known >= PURE | GIVING_BACK


class Fault(Exception):
    """The injected one. It is no class that anything on the path expects."""


class Saboteur:
    """Wraps every function of the classes on the path; counts the calls; makes one of them fail."""

    def __init__(self) -> None:
        self.calls = 0
        self.names: list[str] = []
        self.fail_at = -1
        self.hit = ""
        self.what: Callable[[], None] = lambda: None
        self.armed = False

    def call(self, name: str) -> None:
        """One call of the path."""
        if not self.armed:
            return
        self.names.append(name)
        number, self.calls = self.calls, self.calls + 1
        # Two runs are not the same call for call: what counts is the one that fails now.
        if number >= self.fail_at >= 0 and name not in PURE:
            self.armed, self.hit = False, name
            self.what()

    @contextlib.contextmanager
    def wrapped(self) -> Iterator[None]:
        """The classes, wrapped."""
        old: list[tuple[type, str, Any]] = []
        for kind in PATH:
            for name, function in list(vars(kind).items()):
                if inspect.isfunction(function) and name != "__repr__":
                    old.append((kind, name, function))
                    setattr(kind, name, self._wrap(f"{kind.__name__}.{name}", function))
        try:
            yield
        finally:
            for kind, name, function in old:
                setattr(kind, name, function)

    def _wrap(self, name: str, function: Any) -> Any:
        if inspect.iscoroutinefunction(function):

            async def later(*args: Any, **kwargs: Any) -> Any:
                self.call(name)
                return await function(*args, **kwargs)

            return later

        def now(*args: Any, **kwargs: Any) -> Any:
            self.call(name)
            return function(*args, **kwargs)

        return now


class Stage:
    """The application on a real listener in this loop, a scripted router behind it."""

    def __init__(self, router: Router, application: Application, port: int) -> None:
        self.router = router
        self.application = application
        self.port = port

    async def caller(
        self, body: object, headers: dict[str, str], leave_after: int | None = None, patience: float = 0.4
    ) -> bytes:
        """Ask and read to the end, or leave after so many bytes, or when it takes longer than a moment."""
        got = b""
        writer = None
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(patience):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(request_bytes("POST", CHAT, body, {**headers, "Connection": "close"}))
                while data := await reader.read(65536 if leave_after is None else leave_after):
                    got += data
                    if leave_after is not None:
                        break
        if writer is not None:
            writer.transport.abort()
        return got

    async def clean(self, seconds: float) -> None:
        """Nothing is left over."""
        application = self.application
        deadline = time.monotonic() + seconds
        while True:
            statistics = application.gate.statistics()
            left = {
                "in use": statistics.in_use,
                "waiting": sum(statistics.depth.values()),
                "running": len(application.running),
                "in progress": sum(abs(count) for count in application.metrics.in_progress.values()),
                "router sockets": self.router.open_sockets,
                "connections": len(application.connections.open),
            }
            if not any(left.values()):
                return
            if time.monotonic() > deadline:
                raise AssertionError({name: count for name, count in left.items() if count})
            await asyncio.sleep(0.001)


async def two_in_line(stage: Stage) -> None:
    """A stream, and one that waits behind it and is told so."""
    await asyncio.gather(stage.caller(chat(), {}), stage.caller(chat(), {"X-Eid-Progress": "1"}))


async def whole_answer(stage: Stage) -> None:
    """A whole answer of `deep`, a refusal, a page."""
    await stage.caller(chat("deep", False), {})
    await stage.caller(chat("nope"), {})


async def leaver(stage: Stage) -> None:
    """One that leaves mid-stream with one behind it."""
    stage.router.enqueue([*stream_script()[:3], Stall()])
    await asyncio.gather(stage.caller(chat(), {}, 100), stage.caller(chat(), {}))


async def router_fault(stage: Stage) -> None:
    """A status, and an error in the stream."""
    stage.router.enqueue(status(503, {"error_reason": "warming"}))
    await stage.caller(chat(), {})
    stage.router.enqueue(stream_script(finish=None))
    await stage.caller(chat(), {})


async def out_of_time(stage: Stage) -> None:
    """A router that is silent until the deadline."""
    stage.router.enqueue([*stream_script()[:2], Stall()])
    await stage.caller(chat(), {})


SCENARIOS = [two_in_line, whole_answer, leaver, router_fault, out_of_time]


def fail() -> None:
    """The injected exception."""
    raise Fault


async def play(kind: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_WATCHDOG_SECONDS", 0.5)
    loop = asyncio.get_running_loop()
    unexpected: collections.Counter[str] = collections.Counter()
    loop.set_exception_handler(lambda _, context: unexpected.update([type(context.get("exception")).__name__]))
    saboteur = Saboteur()
    with Router() as router, saboteur.wrapped(), contextlib.ExitStack() as closing:
        environment = {"LLM_ROUTER_URL": router.url, "EIDPROXY_STREAM_DEADLINE_SECONDS": "0.5"}
        environment["EIDPROXY_LOG_LEVEL"] = "critical"
        environment["EIDPROXY_ROUTER_KEEP_IDLE_SECONDS"] = "0.02"
        application = Application(load(None, environment, {}).settings)
        listener = await loop.create_server(
            lambda: Connection(application.endpoints, application.connections, loop), "127.0.0.1", 0
        )
        closing.callback(listener.close)
        stage = Stage(router, application, listener.sockets[0].getsockname()[1])

        def cancel() -> None:
            for each in list(application.running):
                if each._task is not None:
                    each._task.cancel()

        saboteur.what = fail if kind == "exception" else cancel
        points: list[tuple[Any, int, str]] = []
        for scenario in SCENARIOS:
            saboteur.names, saboteur.calls, saboteur.fail_at, saboteur.armed = [], 0, -1, True
            await scenario(stage)
            saboteur.armed = False
            await stage.clean(30)
            points += [(scenario, at, name) for at, name in enumerate(saboteur.names) if name not in PURE]
        chosen = select(points, seed)
        forced = 0.0
        for scenario, number, _ in chosen:
            saboteur.calls, saboteur.fail_at, saboteur.armed, saboteur.hit = 0, number, True, ""
            await scenario(stage)
            saboteur.armed, name = False, saboteur.hit
            exempt = kind == "exception" and name in GIVING_BACK
            try:
                await stage.clean(30)
            except AssertionError as left:
                raise AssertionError(f"{scenario.__name__}: {kind} at call {number}, {name}: {left}") from None
            if exempt:
                await asyncio.sleep(0.7)  # a watchdog that was not cancelled has fired by then
            now = application.metrics.forced_releases.value
            assert now == forced or exempt, f"{scenario.__name__}: {kind} at call {number}, {name}: watchdog"
            forced = now
            router.reset()
            answer = await stage.caller(chat(), {}, patience=30)
            assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"), (scenario.__name__, name, answer)
            await stage.clean(3)
        print(
            f"EIDPROXY injection: {kind} at {len(chosen)} of {len(points)} calls of {len({p[2] for p in points})} "
            f"functions, {int(forced)} slots by the watchdog, loop's handler {dict(unexpected)}"
        )
        assert len({name for _, _, name in points}) > 80


def select(points: list[tuple[Any, int, str]], seed: int) -> list[tuple[Any, int, str]]:
    """All of them with FULL=1, else some."""
    if amount(0, 1):
        return points
    return random.Random(seed).sample(points, 60)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["exception", "cancel"])
def test_every_call(kind: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    uvloop.run(play(kind, seed, monkeypatch))


def test_control_a_broken_end_is_noticed(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Control: with an end that gives back the socket and not the slot, the same play fails."""
    monkeypatch.setattr(relay.Relay, "_release_slot", lambda _: None)
    with pytest.raises(AssertionError, match=r"in use|watchdog"):
        uvloop.run(play("exception", seed, monkeypatch))
