"""How long a router may be silent, on a clock that is a number."""

from __future__ import annotations

import math

import pytest

from eidproxy.relay.silence import SilenceClock, SilenceLimits

LIMITS = SilenceLimits(
    first_event_seconds=90.0, first_event_seconds_per_kib=4.0, read_timeout_seconds=120.0, deadline_seconds=300.0
)
KIB = 1024


def clock(size: int = KIB, *, unseen: bool = False, sent_at: float = 0.0, deadline_at: float = 300.0) -> SilenceClock:
    """A request of so many bytes that was written at `sent_at`."""
    return SilenceClock(LIMITS, size, generates_unseen=unseen, sent_at=sent_at, deadline_at=deadline_at)


def ended(silence: SilenceClock) -> tuple[float, str | None]:
    """When it ends if nothing more comes, and why; the wall clock's end has no reason here."""
    due_at = silence.due_at
    if due_at == math.inf:
        return 300.0, None
    assert silence.reason(due_at - 0.001) is None
    return due_at, silence.reason(due_at)


@pytest.mark.parametrize(
    ("size", "unseen", "seconds"),
    [
        (0, False, 90.0),
        (KIB, False, 94.0),
        (7 * KIB + 512, False, 120.0),
        (52 * KIB, False, 298.0),
        (53 * KIB, False, 300.0),
        (KIB * KIB, False, 300.0),
        (KIB, True, 300.0),
    ],
)
def test_the_allowance_grows_with_the_prompt_up_to_the_wall_clock(size: int, unseen: bool, seconds: float) -> None:
    assert LIMITS.allowance(size, generates_unseen=unseen) == seconds
    assert clock(size, unseen=unseen).allowance == seconds


def test_a_router_without_a_first_event_is_silent() -> None:
    assert ended(clock(sent_at=5.0, deadline_at=305.0)) == (99.0, "upstream_silent")


def test_a_router_that_stops_after_an_event_is_a_read_timeout() -> None:
    silence = clock()
    silence.note_event(10.0)
    silence.note_event(40.0)
    assert silence.first_event_at == 10.0
    assert ended(silence) == (160.0, "router_ReadTimeout")


def test_a_long_prompt_may_be_silent_until_the_wall_clock() -> None:
    """60 KiB are 225 s of prefill at 68 tokens a second: nothing but the wall clock ends that."""
    silence = clock(60 * KIB)
    assert ended(silence) == (300.0, None)
    silence.note_event(226.0)
    assert ended(silence) == (300.0, None)  # 346 s would be beyond the wall clock


def test_the_wall_clock_runs_from_the_grant() -> None:
    """What connecting and writing took is not added to it."""
    assert ended(clock(52 * KIB, sent_at=1.9)) == (299.9, "upstream_silent")
    assert ended(clock(52 * KIB, sent_at=2.0)) == (300.0, None)


def test_tools_and_json_are_generated_unseen() -> None:
    silence = clock(unseen=True)
    assert ended(silence) == (300.0, None)
    silence.note_event(1.0)
    assert ended(silence) == (300.0, None)
    assert silence.reason(299.9) is None


# Comments


def test_a_comment_that_counts_up_is_a_sign_of_life() -> None:
    silence = clock()
    heard = [silence.note_comment(b"keepalive %d/12015" % (2048 * n), 40.0 * n) for n in range(1, 5)]
    assert heard == [False, True, True, True]
    assert ended(silence) == (280.0, "upstream_silent")  # 160 + 120


def test_a_changing_comment_never_shortens_the_allowance() -> None:
    silence = clock(25 * KIB)  # 190 s
    assert [silence.note_comment(text, at) for text, at in ((b"1", 5.0), (b"2", 10.0))] == [False, True]
    assert ended(silence) == (190.0, "upstream_silent")


def test_control_a_constant_comment_changes_nothing() -> None:
    silence, quiet = clock(), clock()
    assert not any(silence.note_comment(b"ping", 15.0 * n) for n in range(1, 7))
    assert ended(silence) == ended(quiet) == (94.0, "upstream_silent")


def test_a_changing_comment_counts_between_events_too() -> None:
    silence = clock()
    silence.note_event(10.0)
    silence.note_comment(b"a", 50.0)
    assert ended(silence) == (130.0, "router_ReadTimeout")
    silence.note_comment(b"b", 60.0)
    assert ended(silence) == (180.0, "router_ReadTimeout")


def test_an_event_that_is_told_late_undoes_nothing() -> None:
    """The relay tells of events only when a clock asks; a comment or a pause may have come since."""
    silence = clock()
    silence.note_event(10.0)
    silence.note_comment(b"a", 50.0)
    silence.note_comment(b"b", 60.0)
    silence.note_event(10.0)
    assert ended(silence) == (180.0, "router_ReadTimeout")


def test_a_comment_is_compared_by_its_first_256_bytes() -> None:
    silence = clock()
    silence.note_comment(b"x" * 256 + b"1", 1.0)
    assert not silence.note_comment(b"x" * 256 + b"2", 2.0)
    assert silence.note_comment(b"x" * 255 + b"y", 3.0)
    assert silence._comment is not None
    assert len(silence._comment) == 256


def test_a_comment_does_not_outlive_the_read_it_came_in() -> None:
    """What is kept is a copy, so that a buffer that is used again changes nothing."""
    silence, buffer = clock(), bytearray(b"ping")
    silence.note_comment(memoryview(buffer), 1.0)  # type: ignore[arg-type]
    buffer[:] = b"pong"
    assert silence.note_comment(b"pong", 2.0)


# A caller that reads slowly


def test_a_router_that_is_not_read_is_not_silent() -> None:
    silence = clock()
    silence.note_event(10.0)
    silence.pause()
    assert ended(silence) == (300.0, None)
    silence.resume(170.0)
    assert ended(silence) == (290.0, "router_ReadTimeout")


def test_a_router_that_was_not_read_before_its_first_event_is_no_evidence() -> None:
    silence = clock()
    silence.pause()
    silence.resume(95.0)
    assert ended(silence) == (215.0, "upstream_silent")
    assert not silence.is_silent_end("upstream_silent", 215.0)


# Evidence of a hang


@pytest.mark.parametrize("reason", ["upstream_silent", "router_ReadTimeout", "stream_deadline_exceeded"])
def test_a_clock_that_ran_out_is_evidence_unless_an_event_came(reason: str) -> None:
    silence = clock()
    silence.note_comment(b"1", 1.0)
    silence.note_comment(b"2", 2.0)
    assert silence.is_silent_end(reason, 94.0)
    silence.note_event(94.0)
    assert not silence.is_silent_end(reason, 300.0)


@pytest.mark.parametrize("reason", ["router_ConnectError", "router_503", "warming", "upstream_truncated", "draining"])
def test_what_the_router_says_is_no_evidence(reason: str) -> None:
    assert not clock().is_silent_end(reason, 200.0)


@pytest.mark.parametrize(
    ("size", "left_at", "silent"),
    [
        (KIB, 59.9, False),  # half of 94 s is 47 s, but less than a minute says nothing
        (KIB, 60.0, True),
        (20 * KIB, 84.9, False),  # half of 170 s
        (20 * KIB, 85.0, True),
        (60 * KIB, 149.0, False),
        (60 * KIB, 150.0, True),
    ],
)
def test_a_caller_that_left_late_is_evidence(size: int, left_at: float, silent: bool) -> None:
    silence = clock(size, sent_at=7.0, deadline_at=307.0)
    assert silence.is_silent_end("client_gone", 7.0 + left_at) is silent
    silence.note_event(7.0 + left_at)
    assert not silence.is_silent_end("client_gone", 7.0 + left_at)


def test_the_share_of_the_allowance_that_was_used() -> None:
    silence = clock(2 * KIB + KIB // 2, sent_at=10.0)
    assert silence.used_ratio(60.0) == 0.5
    assert silence.used_ratio(135.0) == 1.25
