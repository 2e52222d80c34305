"""python -m tests.fuzz.coverage_guided FOLDER [libFuzzer options]

The same comparisons, led by the branches that inputs reach. FOLDER keeps what was found to reach new ones; it is filled
with written streams, requests and bodies first. Needs atheris, which exists for Linux and macOS. `-max_total_time=60`
ends it after a minute.
"""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path
from typing import Any

try:
    atheris: Any = importlib.import_module("atheris")
except ImportError:
    sys.exit("skipped: atheris is not installed")

with atheris.instrument_imports(include=["eidproxy"]):
    from eidproxy.inbound import chat, http1
    from eidproxy.relay import chunk, dialect, repair, sanitize, sse, stream, tool_calls

from tests import fuzz
from tests.fuzz import bodies, requests

MODULES = (chat, chunk, dialect, http1, repair, sanitize, sse, stream, tool_calls)
STREAM, REQUEST, BODY = 0, 1, 2


def one(data: bytes) -> None:
    """The first byte chooses what the rest is: a stream, a request, or a body of the main job."""
    if not data:
        return
    kind, data = data[0] % 3, data[1:]
    rng = random.Random(len(data))
    if kind == STREAM:
        fuzz.check(data, rng, limit=200 if len(data) % 2 else 4096, mutated=True)
    elif kind == REQUEST:
        requests.agree(data, rng)
    else:
        bodies.agree(data)


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Break the input as the other fuzzers break theirs, or as libFuzzer does: neither alone gets far."""
    rng = random.Random(seed)
    if not data or rng.random() < 0.5:
        mutated: bytes = atheris.Mutate(data, max_size)
        return mutated
    breaks = requests.mutate if data[0] % 3 == REQUEST else fuzz.mutate
    broken = breaks(data[1:], rng)
    return (data[:1] + broken)[:max_size]


def fill(folder: Path) -> None:
    """Write the inputs to begin with."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    streams, written = fuzz.Grammar(rng), bodies.Bodies(rng)
    inputs = [bytes([STREAM]) + streams.stream() for _ in range(300)]
    inputs += [bytes([BODY]) + written.body() for _ in range(300)]
    inputs += [bytes([REQUEST]) + request for request, _ in requests.VARIANTS.values()]
    for number, data in enumerate(inputs):
        (folder / f"written-{number}").write_bytes(data)


def main() -> None:
    """Hand over to libFuzzer."""
    fill(Path(sys.argv[1]))
    atheris.Setup(sys.argv, one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
