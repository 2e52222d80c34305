"""The shared gate: the same promises as `LocalGate`, kept in Redis or Valkey for any number of replicas.

The server decides the order (`gate.lua`). This module keeps the leases: it renews each one every third of its length,
and gives up a slot that it could not renew after four fifths, before the server can grant that slot to another request.
It counts from *before* it sends a call, so the server's lease always ends later.

This module trusts only the answer to a call. The message that wakes a waiter may be as old as a pause of this process,
so the waiter renews first, and holds its slot only if that answer says so.
"""

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import Callable
from functools import partial

from eidproxy.errors import Refusal
from eidproxy.gate import GateStatistics, Holder, Permit, Waiter
from eidproxy.gate.shared_permit import RedisPermit
from eidproxy.gate.store_client import Call, GuardedConnection, Reply, StoreClient
from eidproxy.monitoring.metrics import Metrics
from eidproxy.vocabulary import Priority, WaitOutcome

CALL_SECONDS = 0.3
"""Time limit for an answer of the store, so that a caller gets its 503 within 500 ms."""

HOLD_SHARE = 0.8
"""The part of a lease after which a holder that could not renew stops."""

_ROUNDS_A_LEASE = 3
"""Renewals in one lease: two in a row may fail."""
_POLL_SECONDS = 0.5
"""Time between rounds while a request waits. A round also finds a grant whose message was lost, or an expired lease."""

_CLOSE_SECONDS = 1.0
"""How long `aclose` waits for the store to confirm releases. Those it did not confirm end with their leases."""
_LISTEN_AGAIN_SECONDS = 0.25
"""Delay before a broken subscription is made again. Meanwhile the rounds find what was published."""
_VALUES_A_PERMIT = 4  # values for each ticket: state, number, token, position


class LeaseTerms:
    """The durations that follow from the length of a lease, in seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.hold_seconds = seconds * HOLD_SHARE
        self.round_seconds = seconds / _ROUNDS_A_LEASE
        self.poll_seconds = min(_POLL_SECONDS, self.round_seconds)
        self.call_seconds = call_seconds(seconds)


def call_seconds(lease_seconds: float) -> float:
    """Return the time limit of a call: shorter for a short lease, so that one slow call does not end it."""
    return min(CALL_SECONDS, lease_seconds / 4)


class RedisGate:
    """A gate in a store that replicas share.

    Each permit has a lease in the store. Rounds, which schedule one another, renew what is due, repeat releases that
    were not confirmed, and notice a store that does not answer.

    `statistics`, `holders` and `waiters` show the requests of this replica only; the position of a waiter counts the
    waiters of all replicas.
    """

    def __init__(
        self,
        build_client: Callable[["RedisGate"], StoreClient],
        metrics: Metrics,
        *,
        capacity: int,
        max_waiting: int,
        lease_seconds: float,
        wait_timeout_seconds: float,
        max_hold_seconds: float,
        on_availability_change: Callable[[Exception | None], None] = lambda _error: None,
    ) -> None:
        """Begin to listen to the store and to renew leases.

        `on_availability_change` is called when the store becomes available (None) or unavailable (the error).
        """
        self._metrics = metrics
        self._capacity = capacity
        self._max_waiting = max_waiting
        self._lease = LeaseTerms(lease_seconds)
        self._wait_timeout_seconds = wait_timeout_seconds
        self._max_hold_seconds = max_hold_seconds
        self._on_availability_change = on_availability_change
        self._loop = asyncio.get_running_loop()
        self._replica = secrets.token_hex(8)
        self._arrivals = 0
        self._permits: dict[str, RedisPermit] = {}
        self._waiting: dict[Priority, dict[str, RedisPermit]] = {priority: {} for priority in Priority}
        self._holders: dict[str, RedisPermit] = {}
        self._releases: dict[str, tuple[int, float]] = {}
        """Releases that the store has not confirmed, by permit: the token, and when the lease ends by itself."""
        self._releasing: set[str] = set()
        self._mean_hold_seconds: float | None = None
        self._is_draining = False
        self._is_available: bool | None = None
        self._is_round_unanswered = False
        self._next_full_renewal_at = 0.0
        self._round_timer: asyncio.TimerHandle | None = None
        self._round_at = 0.0
        self._subscription: GuardedConnection | None = None
        self._follows_queue = False
        """Whether the subscription includes the moves of the queue."""
        self._follow_task: asyncio.Task[None] | None = None
        metrics.gate_backend_up = False
        self._client = build_client(self)
        self._listen_task = self._loop.create_task(self._listen())
        self._run_round()

    # For a relay

    def acquire(self, priority: Priority, on_position_change: Callable[[], None] | None = None) -> RedisPermit:
        """See `Gate.acquire`. Only the server knows whether the queue is full, so `granted` raises that refusal."""
        if self._is_draining:
            self._metrics.gate_wait[priority, WaitOutcome.DRAINING].observe(0)
            raise Refusal("draining")
        self._arrivals += 1
        permit = RedisPermit(self, f"{self._replica}:{self._arrivals}", priority, self._loop.time())
        permit.on_position_change = on_position_change
        permit.wait_timer = self._loop.call_later(self._wait_timeout_seconds, self._on_wait_timeout, permit)
        permit.answer_timer = self._loop.call_later(self._lease.call_seconds, self._refuse_unavailable, permit)
        self._permits[permit.id] = self._waiting[priority][permit.id] = permit
        permit.enter_call = self._client.call("enter", permit.id, priority)
        permit.enter_call.reply.add_done_callback(partial(self._on_entered, permit))
        return permit

    def release(self, permit: Permit) -> None:
        """See `Gate.release`."""
        assert isinstance(permit, RedisPermit)  # noqa: S101  # a gate is only given back its own permits
        if permit.id not in self._permits:
            return
        now = self._loop.time()
        if permit.granted_at is not None:
            self._metrics.gate_hold[permit.priority].observe(now - permit.granted_at)
        else:
            self._metrics.gate_wait[permit.priority, WaitOutcome.CANCELLED].observe(now - permit.arrived_at)
        self._forget(permit)
        self._free_on_server(permit)

    def drain(self) -> None:
        """See `Gate.drain`."""
        self._is_draining = True
        for priority in Priority:
            for permit in list(self._waiting[priority].values()):
                self._turn_away(permit, Refusal("draining"), WaitOutcome.DRAINING)

    def is_held(self, permit: RedisPermit) -> bool:
        """See `Permit.is_held`. During a pause of this process the server may have granted the slot to others."""
        if permit.id in self._holders and permit.lease_lost_at <= self._loop.time():
            self._end_lost(permit)
        return permit.id in self._holders

    def estimate_wait(self, position: int) -> float | None:
        """Return the seconds until the waiter at a position has a slot, from the mean hold of all replicas, or None."""
        mean = self._mean_hold_seconds
        return None if mean is None else mean * position / self._capacity

    # For the operator's views

    def statistics(self) -> GateStatistics:
        """See `Gate.statistics`. Counts are those of this replica, so that a sum over all replicas is the total."""
        now = self._loop.time()
        oldest = {priority: next(iter(line.values()), None) for priority, line in self._waiting.items()}
        return GateStatistics(
            slots=self._capacity,
            in_use=len(self._holders),
            settling=sum(permit.settling for permit in self._holders.values()),
            queue_limit=self._max_waiting,
            depth={priority: len(line) for priority, line in self._waiting.items()},
            oldest_wait_seconds={p: now - permit.arrived_at if permit else 0.0 for p, permit in oldest.items()},
            mean_hold_seconds=self._mean_hold_seconds,
        )

    def holders(self) -> list[Holder]:
        """See `Gate.holders`."""
        now = self._loop.time()
        return [
            Holder(permit.priority, now - (permit.granted_at or now), permit.settling)
            for permit in self._holders.values()
        ]

    def waiters(self) -> list[Waiter]:
        """See `Gate.waiters`."""
        now = self._loop.time()
        waiters = [
            Waiter(permit.priority, max(permit.position, 1), now - permit.arrived_at)
            for line in self._waiting.values()
            for permit in line.values()
        ]
        return sorted(waiters, key=lambda waiter: waiter.position)

    async def available(self) -> bool:
        """See `Gate.available`."""
        call = self._client.call("enter", "", "")
        await asyncio.wait([call.reply], timeout=self._lease.call_seconds)
        if not call.reply.done():
            call.reply.cancel()
            return False
        return not call.reply.cancelled() and call.reply.exception() is None

    async def aclose(self) -> None:
        """See `Gate.aclose`. Waits for the store, so that other replicas get the slots now and not a lease later."""
        self.drain()
        for permit in list(self._holders.values()):
            self.release(permit)
        give_up_at = self._loop.time() + _CLOSE_SECONDS
        while self._releases and self._loop.time() < give_up_at:  # noqa: ASYNC110  # only while the process stops
            await asyncio.sleep(0.01)
        if self._round_timer is not None:
            self._round_timer.cancel()
        tasks = [self._listen_task] if self._follow_task is None else [self._listen_task, self._follow_task]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await self._client.aclose()

    # Answers of the store

    def on_call_end(self, function: str, error: Exception | None) -> None:
        """Record how a call ended: report a change of availability, and begin a round soon while the store fails.

        A store without free memory still renews and releases (see `gate.lua`), so only an `enter` that succeeds shows
        that it serves.
        """
        if error is None and function != "enter":
            return
        up = error is None
        if self._is_available is not up:
            self._is_available = up
            self._metrics.gate_backend_up = up
            self._on_availability_change(error)
        if not up:
            self._schedule_round(self._lease.poll_seconds)

    def _on_entered(self, permit: RedisPermit, done: "asyncio.Future[Reply]") -> None:
        if permit.id not in self._permits or done.cancelled():
            return
        if done.exception() is not None:
            self._refuse_unavailable(permit)
            return
        sent_at, (mean, state, number, token, position) = done.result()
        self._learn_mean(mean)
        if permit.answer_timer is not None:
            permit.answer_timer.cancel()
        if state == b"full":
            refusal = Refusal("gate_queue_full", retry_seconds=self.estimate_wait(position))
            self._turn_away(permit, refusal, WaitOutcome.FULL, has_place=False)
            return
        self._apply(permit, sent_at, state, number, token, position)
        if state == b"waits":
            # A round at once if the caller wants its position and the subscription to queue moves is not made yet.
            self._schedule_round(
                0 if permit.on_position_change is not None and not self._follows_queue else self._lease.poll_seconds
            )

    def _renew(self, permits: list[RedisPermit]) -> Call:
        arguments: list[str | int] = []
        for permit in permits:
            arguments += (permit.id, permit.priority, permit.number, permit.token)
        call = self._client.call("renew", *arguments)
        call.reply.add_done_callback(partial(self._on_renewed, permits))
        return call

    def _on_renewed(self, permits: list[RedisPermit], done: "asyncio.Future[Reply]") -> None:
        if done.cancelled() or done.exception() is not None:
            self._next_full_renewal_at = 0.0  # the next round renews all again; each lease timer stays set
            return
        sent_at, (mean, *reports) = done.result()
        self._learn_mean(mean)
        for index, permit in enumerate(permits):
            if permit.id in self._permits:
                self._apply(permit, sent_at, *reports[index * _VALUES_A_PERMIT : (index + 1) * _VALUES_A_PERMIT])

    def _apply(self, permit: RedisPermit, sent_at: float, state: bytes, number: int, token: int, position: int) -> None:
        """Apply the server's answer about a permit: it is `gone`, `holds` a slot, or `waits` at a position.

        `number` is its order of arrival and `token` its fencing token. The server began the new lease no earlier than
        `sent_at`.
        """
        now = self._loop.time()
        if state == b"gone":
            if permit.granted_at is None and permit.priority is Priority.BACKGROUND and permit.lease_lost_at > now:
                # Its lease had not ended, so the server displaced it; the message that says so is late or lost.
                self._on_displaced(permit)
            else:
                self._end_lost(permit)
            return
        permit.number = number
        lease_lost_at = sent_at + self._lease.hold_seconds
        if lease_lost_at <= now:
            self._end_lost(permit)  # the answer lay unread during a pause of this process: it may be out of date
            return
        if permit.lease_timer is not None:
            permit.lease_timer.cancel()
        permit.lease_lost_at = lease_lost_at
        permit.lease_timer = self._loop.call_at(lease_lost_at, self._end_lost, permit)
        if state == b"holds":
            permit.token = token
            if permit.granted_at is None:
                self._begin_hold(permit, now)
        elif position != permit.position:
            permit.position = position
            if permit.on_position_change is not None:
                permit.on_position_change()

    def _begin_hold(self, permit: RedisPermit, now: float) -> None:
        permit.granted_at = now
        permit.on_position_change = None
        if permit.wait_timer is not None:
            permit.wait_timer.cancel()
        del self._waiting[permit.priority][permit.id]
        self._holders[permit.id] = permit
        self._metrics.gate_wait[permit.priority, WaitOutcome.GRANTED].observe(now - permit.arrived_at)
        permit.watchdog_timer = self._loop.call_later(self._max_hold_seconds, self._take_back, permit)
        if not permit.grant_future.done():
            permit.grant_future.set_result(None)
        self._schedule_round(self._lease.round_seconds)

    def _learn_mean(self, microseconds: int) -> None:
        if microseconds >= 0:
            self._mean_hold_seconds = microseconds / 1e6

    # The end of a permit

    def _on_wait_timeout(self, permit: RedisPermit) -> None:
        refusal = Refusal("gate_wait_timeout", retry_seconds=self.estimate_wait(max(permit.position, 1)))
        self._turn_away(permit, refusal, WaitOutcome.EXPIRED)

    def _on_displaced(self, permit: RedisPermit) -> None:
        refusal = Refusal("gate_queue_full", retry_seconds=self.estimate_wait(max(permit.position, 1)))
        self._turn_away(permit, refusal, WaitOutcome.FULL, has_place=False)

    def _refuse_unavailable(self, permit: RedisPermit) -> None:
        self._turn_away(permit, Refusal("gate_unavailable"), None)

    def _end_lost(self, permit: RedisPermit) -> None:
        """End a permit whose lease is over or was not renewed in time: stop its request, then tell the server."""
        if permit.granted_at is None:
            self._refuse_unavailable(permit)
            return
        self._metrics.lease_lost.inc()
        self._metrics.gate_hold[permit.priority].observe(self._loop.time() - permit.granted_at)
        self._revoke(permit, "gate_unavailable")

    def _take_back(self, permit: RedisPermit) -> None:
        """Take back a slot for the watchdog: see `LocalGate`."""
        self._metrics.forced_releases.inc()
        self._revoke(permit, "internal_error")

    def _revoke(self, permit: RedisPermit, reason: str) -> None:
        self._forget(permit)
        if permit.on_revoked is not None:
            permit.on_revoked(reason)
        self._free_on_server(permit)

    def _turn_away(
        self, permit: RedisPermit, refusal: Refusal, outcome: WaitOutcome | None, *, has_place: bool = True
    ) -> None:
        """End a wait with a refusal. `has_place`: whether the server may hold a place for the permit."""
        if permit.id not in self._permits:
            return
        if outcome is not None:
            self._metrics.gate_wait[permit.priority, outcome].observe(self._loop.time() - permit.arrived_at)
        self._forget(permit)
        if has_place:
            self._free_on_server(permit)
        if not permit.grant_future.done():
            permit.grant_future.set_exception(refusal)
            permit.grant_future.exception()  # marks it as retrieved: a waiter that left in this tick never reads it

    def _forget(self, permit: RedisPermit) -> None:
        del self._permits[permit.id]
        self._waiting[permit.priority].pop(permit.id, None)
        self._holders.pop(permit.id, None)
        permit.on_position_change = None
        for timer in (permit.answer_timer, permit.wait_timer, permit.lease_timer, permit.watchdog_timer):
            if timer is not None:
                timer.cancel()

    def _free_on_server(self, permit: RedisPermit) -> None:
        """Tell the server to free the slot or place that it may hold for a permit, as soon as it can be reached."""
        if permit.enter_call is not None and not permit.enter_call.sent:
            permit.enter_call.reply.cancel()
            return
        self._releases[permit.id] = permit.token, self._loop.time() + self._lease.seconds
        self._releasing.add(permit.id)
        # The loop closes an aborted transport in its next turn; without the delay the client could send before that.
        self._loop.call_soon(self._send_release, permit.id, permit.token)

    def _send_release(self, number: str, token: int) -> None:
        self._releasing.add(number)
        call = self._client.call("leave", number, token)
        call.reply.add_done_callback(partial(self._on_released, number))

    def _on_released(self, number: str, done: "asyncio.Future[Reply]") -> None:
        self._releasing.discard(number)
        if done.cancelled() or done.exception() is not None:
            self._schedule_round(self._lease.poll_seconds)
        else:
            self._releases.pop(number, None)
            self._learn_mean(done.result().values[0])

    # Rounds: periodic renewals

    def _run_round(self) -> None:
        """Check the store, renew the leases that are due in one call, and repeat releases that were not confirmed."""
        now = self._loop.time()
        self._round_timer = None
        for number, (token, give_up_at) in list(self._releases.items()):
            if now >= give_up_at:
                del self._releases[number]  # the lease has ended, which frees it
            elif number not in self._releasing:
                self._send_release(number, token)
        if not self._is_round_unanswered:
            self._is_round_unanswered = True
            call = self._client.call("enter", "", "")
            permits_to_renew = self._permits_to_renew(now)
            if permits_to_renew:
                call = self._renew(permits_to_renew)
            call.reply.add_done_callback(self._on_round_ended)
            if self._follow_task is None or self._follow_task.done():
                self._follow_task = self._loop.create_task(self._follow_queue_if_wanted())
        waiting = any(self._waiting.values()) or self._releases or not self._is_available
        self._schedule_round(self._lease.poll_seconds if waiting else self._lease.round_seconds)

    def _permits_to_renew(self, now: float) -> list[RedisPermit]:
        """Return the permits to renew now: all of them once in each third of a lease.

        In between only holders, our next in line, and waiters whose callers are told their position.
        """
        permits = self._permits
        if now >= self._next_full_renewal_at - 0.001:
            self._next_full_renewal_at = now + self._lease.round_seconds
        else:
            heads = [number for line in self._waiting.values() for number in itertools.islice(line, self._capacity)]
            told = [permit.id for permit in permits.values() if permit.on_position_change is not None]
            permits = {number: permits[number] for number in (*self._holders, *heads, *told)}
        return [permit for permit in permits.values() if permit.number]

    def _on_round_ended(self, _done: "asyncio.Future[Reply]") -> None:
        self._is_round_unanswered = False

    def _schedule_round(self, seconds: float) -> None:
        when = self._loop.time() + seconds
        if self._round_timer is not None:
            if self._round_at <= when:
                return
            self._round_timer.cancel()
        self._round_at = when
        self._round_timer = self._loop.call_at(when, self._run_round)

    # Messages from the store

    async def _listen(self) -> None:
        while True:
            connection = self._client.connection()
            try:
                async with asyncio.timeout(self._lease.call_seconds):
                    await connection.connect()
                    await connection.send_command("SUBSCRIBE", f"eidproxy:gate:{self._replica}")
                self._subscription, self._follows_queue = connection, False
                self._schedule_round(0)  # finds what was published while nobody listened
                while True:
                    kind, _, message = await connection.read_response()
                    if kind == b"message":
                        self._on_message(message.decode())
            except Exception:  # noqa: BLE001, S110  # rounds go on, and the client reports the fault
                pass
            finally:
                self._subscription = None
                await connection.disconnect(nowait=True)
            await asyncio.sleep(_LISTEN_AGAIN_SECONDS)

    async def _follow_queue_if_wanted(self) -> None:
        """Subscribe to the moves of the queue while a caller is told its position, and unsubscribe when none is.

        The store sends each move to every subscriber; with a thousand replicas that delays the grant.
        """
        wanted = any(
            permit.on_position_change is not None for line in self._waiting.values() for permit in line.values()
        )
        connection = self._subscription
        if connection is not None and wanted is not self._follows_queue:
            self._follows_queue = wanted
            with contextlib.suppress(Exception):
                async with asyncio.timeout(self._lease.call_seconds):
                    await connection.send_command("SUBSCRIBE" if wanted else "UNSUBSCRIBE", "eidproxy:gate:moved")

    def _on_message(self, message: str) -> None:
        word, _, number = message.partition(" ")
        permit = self._permits.get(number)
        if word == "moved":
            if any(permit.on_position_change is not None for permit in self._permits.values()):
                self._schedule_round(0)
        elif word == "full" and permit is not None:
            self._on_displaced(permit)
        elif word == "granted":
            if permit is not None:
                self._renew([permit])
            elif number not in self._releases:
                # The server granted a slot to a request that was given up here.
                self._releases[number] = 0, self._loop.time() + self._lease.seconds
                self._send_release(number, 0)
