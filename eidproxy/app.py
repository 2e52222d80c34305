"""The one place that builds the parts of the proxy and connects them."""

import asyncio
import contextlib
import gc
import ssl
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import httpx
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from eidproxy.config import ChatSettings, Settings
from eidproxy.egress import EgressBlocked
from eidproxy.endpoints import (
    CHAT_API,
    CHAT_CONFIG,
    CHAT_STATE,
    Endpoints,
    answered_by_relay,
    build_pages,
    json_response,
)
from eidproxy.gate import Gate, GateStatistics, GateTerms
from eidproxy.gate.choice import build_gate, is_shared
from eidproxy.inbound.chat import Model
from eidproxy.inbound.connections import Connections
from eidproxy.inbound.server import Server, connection_limit, spare_descriptors
from eidproxy.monitoring.history import History
from eidproxy.monitoring.logs import Event, Log
from eidproxy.monitoring.metrics import INTERVAL_BOUNDS, Metrics, start_loop_lag_sampler
from eidproxy.monitoring.status import (
    ROW_SECONDS,
    Deadlines,
    GateStatus,
    HolderStatus,
    RouterStatus,
    Status,
    UpstreamStatus,
    WaiterStatus,
)
from eidproxy.relay.relay import Relay, RelayServices, RelayTimers
from eidproxy.relay.settle import Settlements
from eidproxy.relay.silence import SilenceLimits
from eidproxy.relay.upstream_request import RelayLimits
from eidproxy.relay.wedge import GuardStatistics, WedgeGuard
from eidproxy.router.reasons import reason_of_fault
from eidproxy.router.resolver import Resolver
from eidproxy.router.shortcut import IS_BUILT
from eidproxy.router.transport import SplicePoller
from eidproxy.router.upstream import Upstream
from eidproxy.site import CHAT_POLICY, chat_routes, framed_by_own, live_route
from eidproxy.surface import ChatSurface, unreadable_files
from eidproxy.vocabulary import Mode, Phase, Priority, UpstreamState, WaitOutcome

VERSION = version("eidproxy")

_WATCHDOG_SECONDS = 5.0
"""Time from the deadline until the watchdog takes back a slot that is still held (contract, 6)."""

_CHECK_SECONDS = 10.0
"""Age of the last router check from which on `/status` starts a new one."""

_READY_SECONDS = 1.0
"""How long `/readyz` reuses its last check."""

_FLUSH_SECONDS = 1.0
"""How long callers have to read the errors with which a drain ends their requests."""


def why_not_accelerated(settings: Settings) -> str | None:
    """Return why usual events do not bypass the interpreter, or None when they do."""
    if settings.stream.accelerator == "off":
        return "stream.accelerator is off"
    return None if IS_BUILT else "it was not built; building needs Linux, a C compiler and Python's headers"


def build_upstream(settings: Settings, resolver: Resolver | None = None) -> Upstream:
    """Return the client of the router."""
    host, port, secure = settings.router_address
    router = settings.router
    return Upstream(
        host,
        port,
        settings.egress,
        api_key=router.api_key,
        tls=_tls_context(router.ca_file) if secure else None,
        connect_timeout_seconds=router.connect_timeout_seconds,
        write_timeout_seconds=router.write_timeout_seconds,
        # Replicas with a shared gate stay apart because a request's connection ends with its lease (decision 23).
        keep_idle_seconds=0.0 if is_shared(settings.gate.url) else router.keep_idle_seconds,
        resolver=resolver,
        poller=None if why_not_accelerated(settings) else partial(SplicePoller, INTERVAL_BOUNDS, spare_descriptors()),
    )


def build_models(settings: Settings) -> dict[Mode, Model]:
    """Return the model of each mode: its alias, parameters and limits."""
    models = settings.models
    return {
        mode: Model(
            own.alias,
            models.max_tokens if own.max_tokens is None else own.max_tokens,
            models.temperature if own.temperature is None else own.temperature,
            own.params,
            settings.router.ask_usage,
            models.max_prompt_bytes,
        )
        for mode, own in ((Mode.DAILY, models.daily), (Mode.DEEP, models.deep))
    }


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Return the terms of TLS with the router: the standard library's, and nothing is negotiated a second time."""
    context = ssl.create_default_context(cafile=ca_file)
    context.options |= ssl.OP_NO_RENEGOTIATION  # while one is open, no request could be written (RFC 9325, 3.5)
    return context


def gate_terms(settings: Settings) -> GateTerms:
    """Return the settings of the gate before `daily`."""
    gate = settings.gate
    return GateTerms(
        capacity=gate.capacity,
        max_waiting=gate.max_waiting,
        aging_seconds=gate.aging_seconds,
        wait_timeout_seconds=gate.wait_timeout_seconds,
        max_hold_seconds=settings.stream.deadline_seconds + _WATCHDOG_SECONDS,
        url=gate.url,
        lease_seconds=gate.lease_seconds,
    )


def _report_store(log: Log, error: Exception | None) -> None:
    """Log that the store of a shared gate stopped serving, or serves again."""
    if isinstance(error, EgressBlocked):
        log.alarm(Event.EGRESS_BLOCKED, verdict=error.decision.verdict)
    if error is None:
        log.state(Event.GATE_AVAILABLE)
    else:
        log.alarm(Event.GATE_UNAVAILABLE, error=type(error).__name__)


def _page_routes(chat: ChatSettings, gate: Gate, demo_routes: list[Route] | None) -> list[Route]:
    """Return the routes of the pages. `demo_routes` is the demo's own page, which shows the others in frames."""
    if not chat.enabled:
        return [live_route(has_chat=False)]
    config = {
        "title": chat.title,
        "max_message_chars": chat.max_message_chars,
        "max_messages": chat.max_messages,
        "max_total_chars": chat.max_total_chars,
    }

    async def show_config(_: Request) -> Response:
        return json_response(config)

    async def show_state(_: Request) -> Response:
        return json_response(chat_state(gate.statistics()))

    return [
        live_route(has_chat=True, is_framed=demo_routes is not None),
        Route(CHAT_API, answered_by_relay, methods=["POST"]),
        Route(CHAT_CONFIG, show_config),
        Route(CHAT_STATE, show_state),
        *chat_routes(chat.title, policy=CHAT_POLICY if demo_routes is None else framed_by_own(CHAT_POLICY)),
        *(demo_routes or ()),
    ]


def chat_state(statistics: GateStatistics) -> dict[str, Any]:
    """Return how many wait before a new question, and the seconds until its turn (0: a slot is free; None: unknown)."""
    before = statistics.depth[Priority.FOREGROUND]
    eta: int | None = 0
    if before or statistics.in_use >= statistics.slots:
        hold = statistics.mean_hold_seconds
        eta = None if hold is None else round(hold * (before + 1) / statistics.slots)
    return {"waiting": before, "eta_seconds": eta}


class Application:
    """The proxy: all parts of one process. Build it inside a running event loop."""

    def __init__(self, settings: Settings, demo_routes: list[Route] | None = None) -> None:
        self.settings = settings
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self._was_reachable: bool | None = None
        self._unready_reason: str | None = None
        self._ready_checked_at = -_READY_SECONDS
        self._attempts_at_check = 0
        self.metrics = Metrics(VERSION)
        self.log = Log(settings.log.level, settings.log.format, self.metrics.log_dropped.inc, self._loop.call_soon)
        self.upstream = build_upstream(settings)
        self.gate = build_gate(gate_terms(settings), self.metrics, partial(_report_store, self.log))
        self.history = History(
            {priority: self.metrics.gate_wait[priority, WaitOutcome.GRANTED] for priority in Priority},
            self.metrics.first_token,
        )
        self.metrics.queue_states = self.gate.statistics
        if self.upstream.shortcuts is not None:
            self.metrics.flush_shortcuts = self.upstream.shortcuts.flush_counts
        self.settlements = Settlements(self.gate, self.metrics, settings.gate.after_leave, settings.gate.settle_seconds)
        wedge_after, retry_seconds = settings.router.wedge_after, settings.router.wedge_retry_seconds
        self.guards = {mode: WedgeGuard(wedge_after, retry_seconds, self._loop.time()) for mode in Mode}
        self.metrics.upstream_states = self._upstream_states
        self.running: set[Relay] = set()
        self.connections = Connections(connection_limit(0 if self.upstream.shortcuts is None else spare_descriptors()))
        silence = SilenceLimits(
            settings.router.first_event_seconds,
            settings.router.first_event_seconds_per_kib,
            settings.router.read_timeout_seconds,
            settings.stream.deadline_seconds,
        )
        limits = RelayLimits(silence, settings.stream.keepalive_seconds)
        services = RelayServices(
            gate=self.gate,
            upstream=self.upstream,
            metrics=self.metrics,
            log=self.log,
            limits=limits,
            timers=RelayTimers(limits),
            guards=self.guards,
            settlements=self.settlements,
            on_upstream_state=self._on_upstream_state,
            running=self.running,
            epoch_seconds=time.time,
        )
        pages = build_pages(
            metrics=self.metrics,
            ready=self.ready,
            status=self.status,
            created=int(time.time()),
            extra=_page_routes(settings.chat, self.gate, demo_routes),
        )
        models = build_models(settings)
        self.endpoints = Endpoints(
            services,
            pages,
            allowed_hosts=settings.allowed_hosts,
            api_key=settings.server.api_key,
            background_api_key=settings.server.background_api_key,
            models=models,
            max_body_bytes=settings.server.max_body_bytes,
            buffer_bytes=settings.stream.buffer_bytes,
            chat=ChatSurface(settings.chat, models) if settings.chat.enabled else None,
        )
        self.server = Server(self.endpoints, self, self.connections)
        self._background_tasks: set[asyncio.Task[None]] = set()

    # server.Process

    async def on_started(self) -> None:
        """See `server.Process`."""
        self._loop.set_exception_handler(self._on_loop_error)
        start_loop_lag_sampler(self.metrics, self._loop.call_later, self._loop.time)
        self._loop.call_later(ROW_SECONDS, self._sample_history)
        # Objects built until now stay as long as the process: the collector need not scan them again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 20, 100)
        self.log.state(Event.STARTED, version=VERSION, port=self.server.port)
        for setting in unreadable_files(self.settings.chat):
            self.log.alarm(Event.RULES_MISSING, setting=setting)

    def _sample_history(self) -> None:
        self.history.sample(sum(self.gate.statistics().depth.values()))
        self._loop.call_later(ROW_SECONDS, self._sample_history)

    def drain(self) -> None:
        """See `server.Process`: refuse what is new or waits, end what is kept of departed callers; the rest goes on."""
        self.endpoints.draining = True
        self.metrics.draining = True
        drain_seconds = self.settings.server.drain_seconds
        self.log.state(Event.DRAINING, running=len(self.running), at_most_seconds=drain_seconds)
        self.gate.drain()
        for relay in list(self.running):
            relay.drain_unsent()
        self.settlements.drain()

    async def wait_drained(self) -> None:
        """See `server.Process`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.server.drain_seconds):
                await self._wait_until(lambda: not self.running and not self._owes_answers())
        self.end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_SECONDS):
                await self._wait_until(lambda: not self._owes_answers())

    def end(self) -> None:
        """See `server.Process`."""
        for relay in list(self.running):
            relay.drain()

    async def on_stopped(self) -> None:
        """See `server.Process`."""
        await self.gate.aclose()
        self.upstream.close()
        self.endpoints.refusals.flush()
        self.log.state(Event.STOPPED)
        self.log.stop_gathering()

    def _owes_answers(self) -> bool:
        return any(connection.owes_answer for connection in self.connections.open)

    async def _wait_until(self, reached: Callable[[], bool]) -> None:
        while not reached():  # noqa: ASYNC110  # only while the process stops
            await asyncio.sleep(0.02)

    # For the pages

    async def ready(self) -> str | None:
        """Return why requests would fail now, or None. Asks the router and the gate at most once a second."""
        if self.endpoints.draining:
            return "draining"
        if self._loop.time() - self._ready_checked_at >= _READY_SECONDS:
            self._unready_reason = await self._check_ready()
            self._ready_checked_at, self._attempts_at_check = self._loop.time(), self.upstream.attempts
        elif self.upstream.reachable and self.upstream.attempts > self._attempts_at_check:
            return None  # a request has reached the router since
        return self._unready_reason

    async def _check_ready(self) -> str | None:
        try:
            await self.upstream.check()
        except (EgressBlocked, httpx.TransportError) as error:
            reason: str | None = reason_of_fault(error)
        else:
            reason = None
        if self._was_reachable is not (reason is None):
            self._was_reachable = reason is None
            hint = self.upstream.hint
            facts = {} if self._was_reachable or hint is None else {"hint": hint.value}
            self.log.state(Event.ROUTER_REACHABLE if self._was_reachable else Event.ROUTER_UNREACHABLE, **facts)
        if reason is None and not await self.gate.available():
            reason = "gate_unavailable"
        return reason

    def status(self) -> Status:
        """Return the answer of `/status`."""
        now = self._loop.time()
        upstream, statistics = self.upstream, self.gate.statistics()
        age = None if upstream.checked_at is None else now - upstream.checked_at
        if age is None or age > _CHECK_SECONDS:
            self._run_in_background(self._refresh_ready())
        in_progress = self.metrics.in_progress
        return Status(
            version=VERSION,
            uptime_seconds=round(now - self._started_at, 3),
            draining=self.endpoints.draining,
            gate=GateStatus(
                slots=statistics.slots,
                in_use=statistics.in_use,
                queue_limit=statistics.queue_limit,
                holders=[
                    HolderStatus(
                        Mode.DAILY, holder.priority, round(holder.age_seconds, 3), True if holder.settling else UNSET
                    )
                    for holder in self.gate.holders()
                ],
                waiting=[
                    WaiterStatus(waiter.priority, waiter.position, round(waiter.age_seconds, 3))
                    for waiter in self.gate.waiters()
                ],
                mean_hold_seconds=_rounded(statistics.mean_hold_seconds),
            ),
            streams={mode: in_progress[mode, Phase.UPSTREAM] + in_progress[mode, Phase.STREAMING] for mode in Mode},
            outcomes=self.metrics.outcomes(),
            deadlines=Deadlines(
                stream_seconds=self.settings.stream.deadline_seconds,
                gate_wait_seconds=self.settings.gate.wait_timeout_seconds,
            ),
            router=RouterStatus(upstream.reachable, _rounded(age), UNSET if upstream.hint is None else upstream.hint),
            upstream={
                mode: UpstreamStatus(
                    state=guard.state,
                    since_seconds=round(guard.since_seconds, 3),
                    silent_ends=guard.silent_ends,
                    next_trial_seconds=_rounded(guard.next_trial_seconds),
                )
                for mode, guard in self._upstream_states().items()
            },
            history=list(self.history.rows),
        )

    def _on_upstream_state(self, mode: Mode) -> None:
        """Log the new state of a mode's guard; if its model server hangs, refuse the requests not sent yet."""
        guard = self.guards[mode].statistics(self._loop.time())
        self.log.state(Event.UPSTREAM_STATE, mode=mode, state=guard.state, silent_ends=guard.silent_ends)
        if guard.state is UpstreamState.WEDGED:
            for relay in [relay for relay in self.running if relay.mode is mode]:
                relay.refuse_unsent()

    def _upstream_states(self) -> dict[Mode, GuardStatistics]:
        now = self._loop.time()
        return {mode: guard.statistics(now) for mode, guard in self.guards.items()}

    async def _refresh_ready(self) -> None:
        if not self.endpoints.draining:
            await self.ready()

    def _run_in_background(self, work: Any) -> None:
        if not self._background_tasks:
            task = self._loop.create_task(work)
            self._background_tasks.add(task)
            task.add_done_callback(self._background_tasks.discard)
        else:
            work.close()

    def _on_loop_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an unhandled error of the loop by its class only: the loop's own handler would print values."""
        error = context.get("exception")
        self.log.fault("loop", error if isinstance(error, BaseException) else RuntimeError())


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
