"""The wedge guard: its table, a second model of it, and random schedules on a virtual clock.

The model keeps a list of what happened and reads the state off it anew each time. The control is the guard that is
written first: its half-open slot leaks when a trial ends without a word, and it is never live again
(decocms/studio #5322, zentinel #261).
"""

from __future__ import annotations

import collections
import math
import random
from functools import partial

import pytest

from eidproxy.relay.silence import SilenceLimits
from eidproxy.relay.wedge import TRANSITIONS, Event, Passage, State, WedgeGuard
from eidproxy.vocabulary import UpstreamState
from tests.lab.tools import size
from tests.simulate_silence import House, Job, Said, Timeline

LIVE, SUSPECT, WEDGED = UpstreamState.LIVE, UpstreamState.SUSPECT, UpstreamState.WEDGED


def guarded(wedge_after: int = 2, retry_seconds: float = 30.0) -> WedgeGuard:
    """A guard that begins at 0."""
    return WedgeGuard(wedge_after, retry_seconds, 0.0)


def sent(guard: WedgeGuard, now: float) -> Passage:
    """A request that is at the router."""
    passage = guard.enter(now)
    assert passage is not None
    assert guard.try_send(passage, now)
    return passage


def silenced(guard: WedgeGuard, begin: float, end: float) -> bool:
    """A request that ends without an event. Whether the state changed."""
    return guard.leave(sent(guard, begin), end, silent=True)


def wedged(guard: WedgeGuard | None = None, now: float = 200.0) -> WedgeGuard:
    """A guard that became wedged at `now`."""
    guard = guard or guarded()
    silenced(guard, 0.0, now - 100.0)
    assert silenced(guard, now - 100.0, now)
    assert guard.state is WEDGED
    return guard


# Case by case


def test_two_silent_ends_in_a_row() -> None:
    guard = guarded()
    assert (guard.state, guard.is_live) == (LIVE, True)
    assert silenced(guard, 0.0, 94.0)
    assert (guard.state, guard.is_live, guard.statistics(100.0).since_seconds) == (SUSPECT, False, 6.0)
    assert guard.enter(100.0) is not None  # suspect stops nobody
    assert silenced(guard, 94.0, 188.0)
    statistics = guard.statistics(190.0)
    assert statistics == (WEDGED, 2.0, 2, 28.0, 2, 1)
    assert guard.enter(190.0) is None


def test_an_event_between_them() -> None:
    guard = guarded()
    silenced(guard, 0.0, 94.0)
    assert guard.note_event(100.0)
    assert (guard.state, guard.is_live) == (LIVE, True)
    assert silenced(guard, 101.0, 195.0)
    assert (guard.state, guard.statistics(195.0).silent_ends) == (SUSPECT, 1)


def test_each_time_it_hangs_is_counted() -> None:
    guard = wedged()
    guard.note_event(250.0)
    silenced(guard, 300.0, 400.0)
    assert silenced(guard, 400.0, 500.0)
    assert guard.statistics(500.0).wedges_total == 2


def test_a_request_that_was_sent_before_the_last_event_is_slow_not_unanswered() -> None:
    """`deep` has no gate: one long answer may run beside requests that wait behind it."""
    guard = guarded()
    first, second = sent(guard, 0.0), sent(guard, 1.0)
    assert not guard.note_event(50.0)
    assert not guard.leave(first, 94.0, silent=True)
    assert not guard.leave(second, 95.0, silent=True)
    assert (guard.state, guard.statistics(95.0).silent_ends_total) == (LIVE, 2)
    same_tick = sent(guard, 50.0)  # the clock of a loop stands still within a turn
    assert guard.leave(same_tick, 144.0, silent=True)


def test_three_in_a_row() -> None:
    guard = guarded(3)
    assert [silenced(guard, 100.0 * n, 100.0 * n + 94) for n in range(3)] == [True, False, True]
    assert guard.state is WEDGED


def test_after_one() -> None:
    guard = guarded(1)
    assert silenced(guard, 0.0, 94.0)
    assert guard.state is WEDGED


def test_zero_is_off() -> None:
    guard = guarded(0)
    for n in range(10):
        assert not silenced(guard, 100.0 * n, 100.0 * n + 94)
    assert guard.statistics(1000.0) == (LIVE, 1000.0, 0, None, 10, 0)


def test_other_ends_are_no_evidence() -> None:
    guard = guarded()
    silenced(guard, 0.0, 94.0)
    assert not guard.leave(sent(guard, 95.0), 96.0, silent=False)
    assert (guard.state, guard.statistics(96.0).silent_ends) == (SUSPECT, 1)


def test_the_next_request_after_the_retry_time_is_the_trial() -> None:
    guard = wedged(now=200.0)
    assert guard.enter(229.9) is None
    assert guard.retry_seconds(229.5) == 0.5
    trial = guard.enter(230.0)
    assert trial is not None
    assert guard.enter(230.0) is None
    assert guard.retry_seconds(230.0) == 30.0
    assert guard.statistics(230.0)[:4] == (WEDGED, 30.0, 2, None)
    assert guard.try_send(trial, 231.0)
    assert guard.note_event(232.0)
    assert guard.state is LIVE
    assert guard.enter(232.0) is not None
    assert not guard.leave(trial, 240.0, silent=False)
    assert guard.state is LIVE


def test_a_trial_that_is_silent_too() -> None:
    guard = wedged(now=200.0)
    assert not silenced(guard, 230.0, 324.0)
    assert guard.enter(353.9) is None
    assert guard.statistics(324.0) == (WEDGED, 124.0, 3, 30.0, 3, 1)
    assert guard.enter(354.0) is not None


def test_the_trial_is_known() -> None:
    guard = wedged()
    trial = guard.enter(230.0)
    assert trial is not None
    assert guard.is_trial(trial)
    assert not guard.is_trial(Passage())


def test_a_trial_that_ends_without_a_word_hands_on() -> None:
    guard = wedged(now=200.0)
    for now in (230.0, 231.0, 232.0):
        trial = guard.enter(now)
        assert trial is not None
        assert not guard.leave(trial, now + 0.5, silent=False)
        assert not guard.leave(trial, now + 0.6, silent=True)  # leaving twice does nothing
        assert guard.statistics(now + 0.7)[:4] == (WEDGED, now - 199.3, 2, 0.0)


def test_what_was_at_the_router_goes_on() -> None:
    guard = guarded()
    early = sent(guard, 150.0)
    wedged(guard, now=200.0)
    assert guard.note_event(210.0)
    assert guard.state is LIVE
    guard.leave(early, 220.0, silent=False)
    assert guard.state is LIVE


def test_what_was_at_the_router_and_is_silent_changes_nothing() -> None:
    guard = guarded()
    early = sent(guard, 150.0)
    wedged(guard, now=200.0)
    assert not guard.leave(early, 229.0, silent=True)
    assert guard.statistics(229.0) == (WEDGED, 29.0, 3, 1.0, 3, 1)


def test_what_was_let_in_and_not_sent_is_stopped() -> None:
    guard = guarded()
    waiting = guard.enter(100.0)
    assert waiting is not None
    wedged(guard, now=200.0)
    assert not guard.try_send(waiting, 200.0)
    guard.leave(waiting, 200.0, silent=False)
    trial = guard.enter(230.0)
    assert trial is not None
    assert not guard.try_send(waiting, 230.0)
    assert guard.try_send(trial, 230.0)


def test_a_trial_of_an_earlier_wedge_is_not_the_trial_of_this_one() -> None:
    guard = guarded(1)
    early = sent(guard, 0.0)
    silenced(guard, 0.0, 94.0)
    old = sent(guard, 124.0)
    guard.note_event(125.0)
    silenced(guard, 126.0, 220.0)
    trial = sent(guard, 250.0)
    assert not guard.leave(old, 251.0, silent=False)
    assert not guard.leave(early, 251.0, silent=True)  # sent before the last event
    assert guard.enter(252.0) is None  # the trial still runs
    assert not guard.leave(trial, 253.0, silent=False)
    assert guard.enter(253.0) is not None


def test_the_table_at_the_head_of_the_module_is_the_one_in_use() -> None:
    import eidproxy.relay.wedge

    lines = [line.strip() for line in (eidproxy.relay.wedge.__doc__ or "").splitlines() if " | " in line]
    events = [Event[name] for name in lines[0].partition("|")[2].split()]
    told = {}
    for line in lines[1:]:
        state, _, cells = line.partition("|")
        told[State[state.strip()]] = {
            event: State[cell] for event, cell in zip(events, cells.split(), strict=True) if cell != "-"
        }
    assert told == TRANSITIONS


# Against a model


class Model:
    """The state as what happened says it. Everything is looked up anew; nothing is kept but the list."""

    def __init__(self, wedge_after: int, retry_seconds: float) -> None:
        self.wedge_after = wedge_after
        self.retry_seconds = retry_seconds
        self.happened: list[tuple[str, int, float]] = []

    def note(self, what: str, number: int, now: float) -> None:
        """`let in`, `sent`, `heard`, `silent` or `left`, of a request."""
        if what == "heard":
            # What was before matters no more, but for when requests were sent.
            self.happened = [one for one in self.happened if one[0] == "sent"]
        self.happened.append((what, number, now))

    def _last(self, what: str, number: int | None = None) -> float:
        times = [at for name, who, at in self.happened if name == what and number in (None, who)]
        return times[-1] if times else -math.inf

    def row(self) -> list[int]:
        """Where in the list the silent ends that count stand."""
        heard = self._last("heard")
        return [
            index
            for index, (what, who, _) in enumerate(self.happened)
            if what == "silent" and self._last("sent", who) >= heard
        ]

    def state(self) -> UpstreamState:
        row = self.row()
        if self.wedge_after and len(row) >= self.wedge_after:
            return WEDGED
        return SUSPECT if self.wedge_after and row else LIVE

    def trials(self) -> list[int]:
        """Who was let in since it is wedged, in order."""
        if self.state() is not WEDGED:
            return []
        since = self.row()[self.wedge_after - 1]
        return [who for what, who, _ in self.happened[since:] if what == "let in"]

    def trial(self) -> int | None:
        """Who is the trial now."""
        over = {who for what, who, _ in self.happened if what in ("silent", "left")}
        running = [who for who in self.trials() if who not in over]
        assert len(running) <= 1
        return running[0] if running else None

    def retry_at(self) -> float:
        begun = self.happened[self.row()[self.wedge_after - 1]][2]
        failed = [at for what, who, at in self.happened if what == "silent" and who in self.trials()]
        return max([begun, *failed]) + self.retry_seconds

    def lets_in(self, now: float) -> bool:
        return self.state() is not WEDGED or (self.trial() is None and now >= self.retry_at())

    def lets_send(self, number: int) -> bool:
        return self.state() is not WEDGED or number == self.trial()


class Compared(WedgeGuard):
    """A guard that is compared with its model at each call."""

    def __init__(self, wedge_after: int, retry_seconds: float) -> None:
        super().__init__(wedge_after, retry_seconds, 0.0)
        self.model = Model(wedge_after, retry_seconds)
        self.numbers: dict[Passage, int] = {}
        self.seen: set[State] = set()
        self.changes: collections.Counter[tuple[State, State]] = collections.Counter()

    def _agree(self, now: float, before: UpstreamState, changed: bool | None) -> None:
        model, statistics = self.model, self.statistics(now)
        assert self.state is model.state()
        if changed is not None:
            assert changed == (before is not self.state)
        assert statistics.silent_ends == (len(model.row()) if self._wedge_after else 0)
        if self.state is WEDGED and model.trial() is None:
            assert statistics.next_trial_seconds == max(model.retry_at() - now, 0.0)
        else:
            assert statistics.next_trial_seconds is None

    def _apply(self, event: Event, now: float) -> bool:
        before = self._state
        changed = super()._apply(event, now)
        self.seen.add(self._state)
        self.changes[before, self._state] += 1
        return changed

    def enter(self, now: float) -> Passage | None:
        before, wanted = self.state, self.model.lets_in(now)
        passage = super().enter(now)
        assert (passage is not None) == wanted
        if passage is not None:
            self.numbers[passage] = len(self.numbers)
            self.model.note("let in", self.numbers[passage], now)
        self._agree(now, before, None)
        return passage

    def try_send(self, passage: Passage, now: float) -> bool:
        wanted = self.model.lets_send(self.numbers[passage])
        allowed = super().try_send(passage, now)
        assert allowed == wanted
        if allowed:
            self.model.note("sent", self.numbers[passage], now)
        return allowed

    def note_event(self, now: float) -> bool:
        before = self.state
        changed = super().note_event(now)
        self.model.note("heard", -1, now)
        self._agree(now, before, changed)
        return changed

    def leave(self, passage: Passage, now: float, *, silent: bool) -> bool:
        before, again = self.state, passage.left
        changed = super().leave(passage, now, silent=silent)
        if not again:
            self.model.note("silent" if silent else "left", self.numbers[passage], now)
        self._agree(now, before, changed)
        return changed


class Leaking(Compared):
    """The control: a trial that ends without a word keeps the half-open slot."""

    def leave(self, passage: Passage, now: float, *, silent: bool) -> bool:
        if passage is self._trial and not silent:
            passage.left = True
            return False
        return WedgeGuard.leave(self, passage, now, silent=silent)

    def _agree(self, now: float, before: UpstreamState, changed: bool | None) -> None:
        """It need not agree with the model here: the schedule must find it."""

    def enter(self, now: float) -> Passage | None:
        passage = WedgeGuard.enter(self, now)
        if passage is not None:
            self.numbers[passage] = len(self.numbers)
        return passage

    def try_send(self, passage: Passage, now: float) -> bool:
        return WedgeGuard.try_send(self, passage, now)


class Stuck(Exception):
    """The router answers, and requests are refused."""


LIMITS = SilenceLimits(
    first_event_seconds=20.0, first_event_seconds_per_kib=4.0, read_timeout_seconds=25.0, deadline_seconds=80.0
)
RETRY = 10.0


ANSWER = [Said(0.1, "event"), Said(0.2, "end ok")]


class Schedule:
    """A router that dies and comes back, callers of any patience, and then a router that answers."""

    def __init__(self, rng: random.Random, guard: WedgeGuard) -> None:
        self.rng = rng
        self.guard = guard
        self.timeline = Timeline()
        self.answers = True
        self.house = House(
            self.timeline, guard, LIMITS, capacity=rng.choice([1, 1, 2, 3, None]), delivers=lambda _: self.answers
        )
        self.jobs: list[Job] = []

    def _job(self) -> Job:
        """What the router says to it, as long as it says anything."""
        rng = self.rng
        said: list[Said] = []
        at = 0.0
        for _ in range(rng.randrange(4)):
            at += rng.choice([0.0, 1.0, 8.0, 30.0])
            said.append(Said(at, rng.choice(["event", "event", "comment ping", f"comment {at}"])))
        if rng.random() < 0.8:
            at += rng.choice([0.0, 2.0])
            said.append(Said(at, f"end {rng.choice(['ok', 'ok', 'router_503', 'router_ConnectError'])}"))
        patience = rng.choice([math.inf, math.inf, 0.0, 5.0, 61.0])
        return Job(said, size=rng.choice([0, 4096]), unseen=rng.random() < 0.1, patience=patience)

    def ask(self, job: Job) -> None:
        self.jobs.append(job)
        self.house.ask(job)

    def _turn(self, answers: bool) -> None:
        self.answers = answers

    def play(self) -> None:
        """Raises Stuck."""
        rng, timeline = self.rng, self.timeline
        end = 0.0
        for _ in range(rng.randrange(8, 24)):
            end += rng.choice([0.0, 0.0, 1.0, RETRY, rng.random() * 40])
            if rng.random() < 0.2:
                timeline.at(end, partial(self._turn, rng.random() < 0.35))
            timeline.at(end, lambda: self.ask(self._job()))
        timeline.run(end)
        # From now on the router answers each request that it gets; what it has got and not answered it never will.
        self.answers = True
        for job in self.house.running:
            if job.sent_at is None:
                job.said = ANSWER
        for _ in range(2 * int((LIMITS.deadline_seconds + RETRY) / 5)):
            timeline.run(timeline.now + 5.0)
            self.ask(Job(ANSWER))
        last = self.jobs[-1]
        timeline.run()
        if self.guard.state is WEDGED or last.end != "ok":
            raise Stuck(self.guard.state, last.end)
        # Nothing is left over, and no more than one request was ever let through to a router that hangs.
        assert not self.house.running
        assert not self.house.at_router
        assert self.house.queue is None or not self.house.queue.waiting
        assert self.house.most_trials <= 1
        assert all(job.end is not None for job in self.jobs)


def test_random_schedules(seed: int) -> None:
    """Never stuck once the router answers, one trial at it at a time, every state and every change of state reached."""
    schedules = size(1_000, 10_000)
    seen: set[State] = set()
    changes: collections.Counter[tuple[State, State]] = collections.Counter()
    ends: collections.Counter[str | None] = collections.Counter()
    for number in range(schedules):
        rng = random.Random(f"{seed} {number}")
        guard = Compared(rng.choice([0, 1, 2, 2, 2, 3]), RETRY)
        schedule = Schedule(rng, guard)
        try:
            schedule.play()
        except BaseException as error:
            error.add_note(f"schedule {number} of seed {seed}")
            raise
        seen |= guard.seen
        changes += guard.changes
        ends.update(job.end for job in schedule.jobs)
    print(f"{schedules} schedules, {sum(ends.values())} requests: {dict(ends)}; changes {dict(changes)}")
    assert seen == set(State)
    assert {(a, b) for a, row in TRANSITIONS.items() for b in row.values()} <= set(changes)


def test_control_a_half_open_slot_that_leaks_is_found(seed: int) -> None:
    with pytest.raises(Stuck):  # noqa: PT012
        for number in range(size(2_000, 10_000)):
            rng = random.Random(f"{seed} {number}")
            Schedule(rng, Leaking(2, RETRY)).play()


def test_control_a_model_of_another_guard_is_found_out(seed: int) -> None:
    """A guard that counts what was asked before the last event does not agree with the model."""

    class Hasty(Compared):
        def leave(self, passage: Passage, now: float, *, silent: bool) -> bool:
            passage.sent_at = math.inf
            return super().leave(passage, now, silent=silent)

    with pytest.raises(AssertionError):  # noqa: PT012
        for number in range(2_000):
            rng = random.Random(f"{seed} {number}")
            Schedule(rng, Hasty(2, RETRY)).play()
