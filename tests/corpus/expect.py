"""Write expected.json: what a reader of each recorded answer was told. See README.md.

python -m tests.corpus.expect
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.lab.stream import told

HERE = Path(__file__).parent


def split(raw: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (names in lower case) and the body without its framing."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") != "chunked":
        return int(first.split()[1]), headers, rest
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if int(size, 16) == 0:
            return int(first.split()[1]), headers, body
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]


def expected(raw: bytes) -> dict[str, Any]:
    """What stands in expected.json for one recording."""
    status, headers, body = split(raw)
    if not headers.get("content-type", "").startswith("text/event-stream"):
        return {"status": status, "stream": False}
    found = asdict(told(body))
    kept = ("text", "reasoning", "finish_reason", "chunks", "done")
    return {"status": status, "stream": True} | {name: found[name] for name in kept}


def main() -> None:
    """Write the file anew."""
    found = {path.stem: expected(path.read_bytes()) for path in sorted(HERE.glob("*.http"))}
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    (HERE / "expected.json").write_text(text, encoding="ascii")


if __name__ == "__main__":
    main()
