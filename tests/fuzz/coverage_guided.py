"""python -m tests.fuzz.coverage_guided [libFuzzer options]

The same comparisons, led by the branches that inputs reach. Needs atheris, which exists for Linux and macOS.
`-max_total_time=60` ends it after a minute.
"""

from __future__ import annotations

import importlib
import random
import sys
from typing import Any

try:
    atheris: Any = importlib.import_module("atheris")
except ImportError:
    sys.exit("skipped: atheris is not installed")

with atheris.instrument_imports(include=["eidproxy"]):
    from eidproxy import chat, chunk, dialect, http1, repair, sanitize, sse, stream, tool_calls

from eidproxy.errors import Refusal
from tests import fuzz
from tests.fuzz import requests

MODULES = (chat, chunk, dialect, http1, repair, sanitize, sse, stream, tool_calls)


def one(data: bytes) -> None:
    """The first byte chooses what the rest is: a stream, a request, or a body of the main job."""
    if not data:
        return
    kind, data = data[0] % 3, data[1:]
    rng = random.Random(len(data))
    if kind == 0:
        fuzz.check(data, rng, limit=200, mutated=True)
    elif kind == 1:
        requests.agree(data, rng)
    else:
        try:
            request = chat.parse_chat_request(data, chat.Defaults())
        except Refusal as refusal:
            if refusal.status not in (400, 404):
                raise
            return
        chat.upstream_body(request, "alias", ask_usage=False)


def main() -> None:
    """Hand over to libFuzzer."""
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
