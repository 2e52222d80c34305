"""Recorded answers of real servers, and what each told its reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

EXPECTED: dict[str, dict[str, Any]] = json.loads((HERE / "expected.json").read_text())
"""Name of a recording (without `.http`) → `status`, `stream` and, for a stream, `text`, `reasoning`, `finish_reason`,
`chunks` (events whose choices are not empty) and `done` (`[DONE]` came)."""

STREAMS = sorted(name for name, value in EXPECTED.items() if value["stream"])
OTHERS = sorted(name for name, value in EXPECTED.items() if not value["stream"])


def raw(name: str) -> bytes:
    """The recorded bytes: head, framing, body."""
    return (HERE / f"{name}.http").read_bytes()
