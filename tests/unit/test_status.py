"""status: one type that the server writes and the views read; no words of a stranger reach a terminal through it."""

from __future__ import annotations

import msgspec
import pytest

from eidproxy.monitoring.status import (
    Deadlines,
    GateStatus,
    HistoryRow,
    HolderStatus,
    RouterStatus,
    Spread,
    Status,
    UpstreamStatus,
    WaiterStatus,
)

STATUS = Status(
    version="0",
    uptime_seconds=1.0,
    draining=False,
    gate=GateStatus(1, 1, 64, [HolderStatus("daily", "foreground", 0.5)], [WaiterStatus("background", 1, 0.2)], None),
    streams={"daily": 1, "deep": 0},
    outcomes={"ok": 3},
    deadlines=Deadlines(300.0, 300.0),
    router=RouterStatus(True, 0.1),
    upstream={"daily": UpstreamStatus("live", 1.0, 0, None)},
    history=[HistoryRow(0), HistoryRow(2, {"foreground": Spread(1, 0.5, 0.5)})],
)


def test_what_is_written_is_read() -> None:
    written = msgspec.json.encode(STATUS)
    assert msgspec.json.decode(written, type=Status) == STATUS
    assert b"settling" not in written, "what a slot is not is left out"
    assert b"hint" not in written
    assert b'"history":[{"waiting":0},' in written, "so is what a row has none of"


@pytest.mark.parametrize("word", ["\x1b[2J", "a\nb", "x" * 65, "이드", "a\x7f"])
def test_a_word_that_could_speak_to_a_terminal_is_refused(word: str) -> None:
    for written in (
        msgspec.structs.replace(STATUS, version=word),
        msgspec.structs.replace(STATUS, outcomes={word: 1}),
        msgspec.structs.replace(STATUS, router=RouterStatus(True, 0.1, word)),
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(msgspec.json.encode(written), type=Status)
