"""The checker: whether what was seen can have been a gate's doing.

Two histories are judged. The store's own (MONITOR) must be a run of the discipline: every grant goes to whom the rules
name, at most `capacity` hold, tokens never go down, nothing is granted within one lease of a new or emptied server.
The router's (when each inference began and ended) must have a sequential order: no two overlap, unless one of them
belonged to a replica that stood still just then, which is the one case that DESIGN.md names.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

RECORD_BEGINS = "RECORD BEGINS"
"""Stands in a record where it was taken up, at first or again."""

TICKETS = "eidproxy:{gate}:tickets"


@dataclass(frozen=True, slots=True)
class Span:
    """From one moment to another, on one clock: an inference, or a replica that stood still."""

    replica: int
    began: float
    ended: float
    name: str = ""


def overlaps(inferences: list[Span]) -> list[tuple[Span, Span]]:
    """Pairs of inferences that were at the router at the same time, the earlier first."""
    ordered = sorted(inferences, key=lambda span: span.began)
    return [(first, second) for first, second in combinations(ordered, 2) if second.began < first.ended]


def judged(inferences: list[Span], still: list[Span], settle: float) -> tuple[list[str], int]:
    """Violations, and how many overlaps were of the documented kind.

    Documented: the earlier one's replica had stood still when the later one began, and the overlap ended at most
    `settle` seconds after it moved again.
    """
    violations, documented = [], 0
    for first, second in overlaps(inferences):
        end = min(first.ended, second.ended)
        excuse = any(
            pause.replica == first.replica and pause.began <= second.began <= end <= pause.ended + settle
            for pause in still
        )
        if excuse:
            documented += 1
        else:
            violations.append(f"{first} and {second} overlap for {end - second.began:.3f} s; still: {still}")
    return violations, documented


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
