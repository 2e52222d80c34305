"""The checker: whether what was seen can have been a gate's doing.

Two histories are judged. The store's own (MONITOR) must be a run of the discipline: every grant goes to whom the rules
name, at most `capacity` hold, tokens never go down, nothing is granted within one lease of a new or emptied server.
The router's (when each inference began and ended) must have a sequential order: no two overlap, unless the earlier one
belonged to a replica that stood still, which is the one case that DESIGN.md (23) gives away. A pair that this does not
excuse is told with who stood still when, seen from the moment at which the later one began.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

RECORD_BEGINS = "RECORD BEGINS"
"""Stands in a record where it was taken up, at first or again."""

LEAST_REST = 0.2
"""The part of a lease that the store still grants to who has just come to his fence: 1 - HOLD_SHARE."""

TICKETS = "eidproxy:{gate}:tickets"


@dataclass(frozen=True, slots=True)
class Span:
    """An inference, from one moment to another."""

    replica: int
    began: float
    ended: float
    name: str = "a request"


@dataclass(frozen=True, slots=True)
class Pause:
    """A replica that stood still, on the clock of the spans."""

    replica: int
    stopped: float
    """Just before SIGSTOP was sent."""
    continued: float
    """Just before SIGCONT was sent."""
    moved: float
    """When it had answered something new, and the router had seen what its sockets showed then."""


def overlaps(inferences: list[Span]) -> list[tuple[Span, Span]]:
    """Pairs of inferences that were at the router at the same time, the earlier first."""
    ordered = sorted(inferences, key=lambda span: span.began)
    return [(first, second) for first, second in combinations(ordered, 2) if second.began < first.ended]


def judged(inferences: list[Span], pauses: list[Pause], lease: float) -> tuple[list[str], int]:
    """Violations, and how many overlaps were of the documented kind (see `_fault`)."""
    violations, documented = [], 0
    for first, second in overlaps(inferences):
        faults = [_fault(first, second, pause, lease) for pause in pauses if pause.replica == first.replica]
        if None in faults:
            documented += 1
        else:
            violations.append(_told(first, second, pauses, faults))
    return violations, documented


def _fault(first: Span, second: Span, pause: Pause, lease: float) -> str | None:
    """Why a pause of the earlier one's replica is no excuse, or None when it is.

    It is one when the replica stood still while its request was at the router, when so much time had gone by that its
    lease can have ended, and when it let go as soon as it moved again. A process that stands still sends nothing, so
    a request that the router had before the end of the pause was sent before the pause.
    """
    if first.began >= pause.continued:
        return "its request came after the pause"
    if second.began < pause.stopped + lease * LEAST_REST:
        return "the lease cannot have ended yet"
    if min(first.ended, second.ended) > pause.moved:
        return "it did not let go when it moved again"
    return None


def _told(first: Span, second: Span, pauses: list[Pause], faults: list[str | None]) -> str:
    at = second.began
    if any(pause.replica == second.replica and first.began <= pause.continued <= at for pause in pauses):
        faults = [*faults, f"{second.name} was sent by a replica that had stood still"]
    still = [
        f"replica {pause.replica} stood still {pause.stopped - at:+.3f}…{pause.continued - at:+.3f} s, "
        f"answered {pause.moved - at:+.3f} s"
        for pause in pauses
    ]
    return (
        f"{first.name} of replica {first.replica} ({first.began - at:+.3f}…{first.ended - at:+.3f} s) and "
        f"{second.name} of replica {second.replica} (0…{second.ended - at:+.3f} s) overlap for "
        f"{min(first.ended, second.ended) - at:.3f} s; {'; '.join(still) or 'nobody stood still'}"
        f"{''.join(f'; {fault}' for fault in faults)}"
    )


def replayed(commands: list[tuple[float, list[str]]], *, capacity: int, lease: float, aging: float) -> list[str]:
    """What the store did against the rules, if anything."""
    faults: list[str] = []
    waiting: dict[str, dict[str, int]] = {"foreground": {}, "background": {}}
    holders: set[str] = set()
    tokens: dict[str, int] = {}
    highest = 0
    granted_from = 0.0
    for at, (verb, *words) in commands:
        verb = verb.upper()
        if verb == RECORD_BEGINS:
            # What happened before was not seen. A server that was away begins anew by itself.
            holders.clear()
            for line in waiting.values():
                line.clear()
            continue
        if verb == "FLUSHALL" or (verb == "DEL" and words[0].endswith(":holders")):
            holders.clear()
            for line in waiting.values():
                line.clear()
            # An emptied server begins its wait at the next call, which is no earlier.
            granted_from = at + lease
        elif verb == "ZADD" and words[0].rpartition(":")[2] in waiting:
            waiting[words[0].rpartition(":")[2]][words[2]] = int(words[1])
        elif verb == "ZADD" and words[0].endswith(":holders"):
            holders.add(words[2])
            if len(holders) > capacity:
                faults.append(f"{at}: {len(holders)} hold")
        elif verb == "ZREM":
            name = words[0].rpartition(":")[2]
            waiting.get(name, {}).pop(words[1], None)
            if name == "holders":
                holders.discard(words[1])
        elif verb == "HSET" and words[0] == TICKETS:
            kind, number, token = words[2].split()
            if int(token) == 0 or tokens.get(words[1]) == int(token):
                continue  # a place, or a holder who was known before the server forgot
            if int(token) <= highest:
                faults.append(f"{at}: token {token} after {highest}")
            highest, tokens[words[1]] = int(token), int(token)
            if at < granted_from - 0.001:
                faults.append(f"{at}: granted {granted_from - at:.3f} s too early")
            faults += _overtaken(at, kind, int(number), waiting, aging)
    return faults


def _overtaken(at: float, kind: str, number: int, waiting: dict[str, dict[str, int]], aging: float) -> list[str]:
    """Who should have had this slot instead. A number is the microsecond of arrival."""
    aged = (at - aging) * 1e6 if aging else 0.0
    foreground, background = waiting["foreground"], waiting["background"]
    if kind == "foreground":
        before = [n for n in foreground.values() if n < number]
        before += [n for n in background.values() if n < number and n <= aged]
    else:
        before = [n for n in background.values() if n < number]
        before += [n for n in foreground.values() if number > aged or n < number]
    return [f"{at}: {kind} {number} before {min(before)}"] if before else []
