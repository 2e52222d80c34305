"""Silence on a virtual clock: who is cut or refused that would have been answered, and who waits in vain.

    python -m tests.simulate_silence [requests]

`House` is a relay in small: it asks the guard, the queue and the silence clock what a relay asks them, in the same
order, and has no socket. Two tables are printed. The first plays a box that never hangs, only computes: at three
prefill speeds measured by users (68, 111 and 262 tokens a second), with prompts of log-normal size and 1 % cold loads
of 90 s. The second plays a router that says nothing, and ten callers.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import math
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from eidproxy.gate.admission import AdmissionQueue, Ticket
from eidproxy.relay.silence import SilenceClock, SilenceLimits
from eidproxy.relay.wedge import Passage, WedgeGuard
from eidproxy.vocabulary import Priority, UpstreamState

DEFAULTS = SilenceLimits(
    first_event_seconds=90.0, first_event_seconds_per_kib=4.0, read_timeout_seconds=120.0, deadline_seconds=300.0
)
FIXED = SilenceLimits(
    first_event_seconds=120.0, first_event_seconds_per_kib=0.0, read_timeout_seconds=120.0, deadline_seconds=300.0
)
"""One read timeout for whatever comes."""

WAIT_TIMEOUT = 300.0
RETRY = 30.0


class Said(NamedTuple):
    """What a router does so many seconds after it got a request."""

    after: float
    what: str
    """`event`, `comment <text>` or `end <reason>`."""


@dataclass(eq=False)
class Job:
    """One request."""

    said: list[Said]
    size: int = 1024
    unseen: bool = False
    priority: Priority = Priority.FOREGROUND
    patience: float = math.inf
    arrived_at: float = 0.0
    sent_at: float | None = None
    ended_at: float | None = None
    end: str | None = None
    retry_after: float | None = None
    silent: bool = False
    passage: Passage | None = None
    ticket: Ticket | None = None
    clock: SilenceClock | None = None
    heard: bool = field(default=False)

    @property
    def waited(self) -> float:
        """Seconds from its arrival to its end."""
        assert self.ended_at is not None
        return self.ended_at - self.arrived_at


class Timeline:
    """Virtual time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when: float, act: Callable[[], None]) -> None:
        """Do it then."""
        heapq.heappush(self._due, (when, next(self._order), act))

    def run(self, until: float = math.inf) -> None:
        """Until nothing is due, or to that moment."""
        while self._due and self._due[0][0] <= until:
            self.now, _, act = heapq.heappop(self._due)
            act()
        if until < math.inf:
            self.now = until


class House:
    """Guard, gate and silence clock around one router. `capacity` None is a mode without a gate."""

    def __init__(
        self,
        timeline: Timeline,
        guard: WedgeGuard,
        limits: SilenceLimits = DEFAULTS,
        *,
        capacity: int | None = 1,
        clock: type[SilenceClock] = SilenceClock,
        knows_unseen: bool = True,
        delivers: Callable[[Job], bool] = lambda _: True,
    ) -> None:
        self.timeline = timeline
        self.guard = guard
        self.limits = limits
        self.queue = AdmissionQueue(capacity, 64, 60.0) if capacity else None
        self.delivers = delivers
        """Whether the router still says to this request what it was going to say."""
        self.jobs: dict[int, Job] = {}
        self.running: set[Job] = set()
        self.at_router: set[Job] = set()
        self.sent_while_wedged: set[Job] = set()
        """Trials, by what the router sees: those at it that came while the guard stopped others."""
        self.most_trials = 0
        self._clock = clock
        self._knows_unseen = knows_unseen

    def ask(self, job: Job) -> None:
        """A request arrives."""
        now = job.arrived_at = self.timeline.now
        job.passage = self.guard.enter(now)
        if job.passage is None:
            self._refuse(job, "upstream_wedged")
            return
        self.running.add(job)
        if job.patience < math.inf:
            self.timeline.at(now + job.patience, lambda: self.conclude(job, "client_gone"))
        if self.queue is None:
            self._start(job)
            return
        job.ticket, displaced = self.queue.request(job.priority, now)
        if displaced is not None:
            self.conclude(self.jobs[displaced.number], "gate_queue_full")
        if job.ticket is None:
            self.conclude(job, "gate_queue_full")
            return
        self.jobs[job.ticket.number] = job
        if job.ticket.granted_at is not None:
            self._start(job)
        else:
            self.timeline.at(now + WAIT_TIMEOUT, lambda: self._expire(job))

    def _expire(self, job: Job) -> None:
        if job.sent_at is None:
            self.conclude(job, "gate_wait_timeout")

    def _start(self, job: Job) -> None:
        now = self.timeline.now
        assert job.passage is not None
        if not self.guard.try_send(job.passage, now):
            self.conclude(job, "upstream_wedged")
            return
        job.sent_at = now
        self.at_router.add(job)
        if self.guard.state is UpstreamState.WEDGED:
            self.sent_while_wedged.add(job)
            self.most_trials = max(self.most_trials, len(self.sent_while_wedged))
        deadline_at = now + self.limits.deadline_seconds
        job.clock = self._clock(
            self.limits,
            job.size,
            generates_unseen=job.unseen and self._knows_unseen,
            sent_at=now,
            deadline_at=deadline_at,
        )
        self.timeline.at(deadline_at, lambda: self.conclude(job, "stream_deadline_exceeded"))
        for after, what in job.said:
            self.timeline.at(now + after, lambda what=what: self._say(job, what))  # type: ignore[misc]
        self._look(job)

    def _look(self, job: Job) -> None:
        if job.end is not None or job.clock is None:
            return
        reason = job.clock.reason(self.timeline.now)
        if reason is not None:
            self.conclude(job, reason)
        elif job.clock.due_at < math.inf:
            self.timeline.at(job.clock.due_at, lambda: self._look(job))

    def _say(self, job: Job, what: str) -> None:
        if job.end is not None or job.clock is None or not self.delivers(job):
            return
        kind, _, word = what.partition(" ")
        if kind == "event":
            job.clock.note_event(self.timeline.now)
            if self.guard.note_event(self.timeline.now):
                self.sent_while_wedged.clear()
            self._look(job)
        elif kind == "comment":
            job.clock.note_comment(word.encode(), self.timeline.now)
        else:
            self.conclude(job, word)

    def conclude(self, job: Job, reason: str) -> None:
        """The end of a request, whatever ends it: the guard hears of it before the slot goes on."""
        if job.end is not None:
            return
        now = self.timeline.now
        self._refuse(job, reason)
        self.running.discard(job)
        self.at_router.discard(job)
        self.sent_while_wedged.discard(job)
        assert job.passage is not None
        job.silent = job.clock is not None and job.clock.is_silent_end(reason, now)
        if self.guard.leave(job.passage, now, silent=job.silent) and self.guard.state is UpstreamState.WEDGED:
            for other in [other for other in self.running if other.sent_at is None]:
                self.conclude(other, "upstream_wedged")
        if self.queue is not None and job.ticket is not None:
            for ticket in self.queue.leave(job.ticket, now):
                self._start(self.jobs[ticket.number])
            del self.jobs[job.ticket.number]

    def _refuse(self, job: Job, reason: str) -> None:
        job.end = reason
        job.ended_at = self.timeline.now
        if reason == "upstream_wedged":
            job.retry_after = self.guard.retry_seconds(self.timeline.now)


# --- A box that computes, and never hangs --------------------------------------------------------------------------


class Speed(NamedTuple):
    """A machine: tokens a second into it and out of it."""

    prefill: float
    output: float


SPEEDS = (Speed(68, 12), Speed(111, 18), Speed(262, 40))
BYTES_A_TOKEN = 4


@dataclass
class Work:
    """One drawn request: what it would take."""

    job: Job
    seconds: float


def drawn(rng: random.Random, speed: Speed, cold_seconds: float = 90.0) -> Work:
    """A request of a real chat: median 3 KiB, p99 98 KiB; a fifth with tools, a tenth with a JSON format."""
    size = min(int(3072 * math.exp(rng.gauss(0, 1.5))) + 200, 1_048_576)
    tokens = min(200 * math.exp(rng.gauss(0, 0.8)), 2048)
    unseen = rng.random() < 0.3
    first = size / BYTES_A_TOKEN / speed.prefill + (cold_seconds if rng.random() < 0.01 else 0.0)
    seconds = first + tokens / speed.output
    begins = seconds if unseen else first
    # One event in 30 s stands for the steady stream of an answer that is seen.
    events = [Said(begins + 30.0 * n, "event") for n in range(int((seconds - begins) / 30) + 1)]
    return Work(Job([*events, Said(seconds, "end ok")], size=size, unseen=unseen), seconds)


class Verdict(NamedTuple):
    """How a run ended, for requests that would have been answered within the wall clock, had nobody cut them."""

    answered: int
    cut: int
    """By silence."""
    refused: int
    """As wedged."""
    no_turn: int
    """By the queue: full, or the wait too long."""
    wedges: int
    over_the_clock: int
    """Those that no limit could have saved."""


def computing(
    requests: int, speed: Speed, seed: int, limits: SilenceLimits, wedge_after: int, *, every: float = 90.0
) -> Verdict:
    """Play so many requests, one each `every` seconds on average."""
    rng = random.Random(seed)
    timeline = Timeline()
    guard = WedgeGuard(wedge_after, RETRY, 0.0)
    house = House(timeline, guard, limits, knows_unseen=limits is not FIXED)
    counts: collections.Counter[str] = collections.Counter()
    arrivals = 0.0
    batch = 2_000  # what has ended is counted and forgotten, so that memory stays small
    for begin in range(0, requests, batch):
        works = []
        for _ in range(min(batch, requests - begin)):
            arrivals += rng.expovariate(1 / every)
            work = drawn(rng, speed)
            works.append(work)
            timeline.at(arrivals, lambda job=work.job: house.ask(job))  # type: ignore[misc]
        timeline.run()
        arrivals = max(arrivals, timeline.now)
        for work in works:
            end = work.job.end or ""
            counts["over" if work.seconds > limits.deadline_seconds else end] += 1
    return Verdict(
        answered=counts["ok"],
        cut=counts["upstream_silent"] + counts["router_ReadTimeout"],
        refused=counts["upstream_wedged"],
        no_turn=counts["gate_queue_full"] + counts["gate_wait_timeout"],
        wedges=guard.statistics(timeline.now).wedges_total,
        over_the_clock=counts["over"],
    )


# --- A router that says nothing ------------------------------------------------------------------------------------


class PingsAreLife(SilenceClock):
    """The old rule: whatever is read is a sign of life."""

    def note_comment(self, text: bytes, now: float) -> bool:
        """Begin the pause anew."""
        self._silence_began_at = now
        return True


class Vain(NamedTuple):
    """What ten callers of a silent router go through."""

    seconds: float
    """Waited in vain, all together."""
    longest: float
    refused: int
    """Told at once."""


def hanging(
    wedge_after: int, *, pings: bool = False, old_rule: bool = False, capacity: int | None = 1, callers: int = 10
) -> Vain:
    """Ten callers, one a minute, of a router that takes requests and says nothing, or pings every 15 s."""
    timeline = Timeline()
    limits = FIXED if old_rule else DEFAULTS
    guard = WedgeGuard(wedge_after, RETRY, 0.0)
    house = House(timeline, guard, limits, capacity=capacity, clock=PingsAreLife if old_rule else SilenceClock)
    said = [Said(15.0 * n, "comment ping") for n in range(1, 21)] if pings else []
    jobs = [Job(list(said)) for _ in range(callers)]
    for number, job in enumerate(jobs):
        timeline.at(60.0 * number, lambda job=job: house.ask(job))  # type: ignore[misc]
    timeline.run()
    return Vain(
        seconds=sum(job.waited for job in jobs),
        longest=max(job.waited for job in jobs),
        refused=sum(job.end == "upstream_wedged" and job.waited == 0 for job in jobs),
    )


def main() -> None:
    """Print both tables."""
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    print(f"{requests} requests of a box that never hangs; one each 90 s on average")
    print("| tok/s in, out | limit | answered | cut | refused | no turn | wedges | over 300 s |")
    print("|---|---|---|---|---|---|---|---|")
    for speed in SPEEDS:
        for name, limits, wedge_after in (
            ("120 s", FIXED, 0),
            ("allowance", DEFAULTS, 0),
            ("allowance, guard after 2", DEFAULTS, 2),
            ("allowance, guard after 1", DEFAULTS, 1),
        ):
            found = computing(requests, speed, 1, limits, wedge_after)
            print(f"| {speed.prefill:.0f}, {speed.output:.0f} | {name} | {' | '.join(map(str, found))} |")
    print("\n10 callers, one a minute, of a router that says nothing")
    print("| router | before: waited in vain, longest | guard off | guard on | told at once |")
    print("|---|---|---|---|---|")
    for name, pings, capacity in (
        ("silent, daily", False, 1),
        ("constant pings, daily", True, 1),
        ("silent, deep", False, None),
        ("constant pings, deep", True, None),
    ):
        before = hanging(0, pings=pings, old_rule=True, capacity=capacity)
        off = hanging(0, pings=pings, capacity=capacity)
        on = hanging(2, pings=pings, capacity=capacity)
        print(
            f"| {name} | {before.seconds:.0f} s, {before.longest:.0f} s | {off.seconds:.0f} s, {off.longest:.0f} s "
            f"| {on.seconds:.0f} s, {on.longest:.0f} s | {on.refused} |"
        )


if __name__ == "__main__":
    main()
