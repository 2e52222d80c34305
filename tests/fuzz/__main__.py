"""python -m tests.fuzz [--frames N] [--requests N] [--bodies N] [--seed N]

Fuzz the event stream, the sanitizer, the request's edge and its body. A failure prints the seed and the bytes; it
becomes a named case in the tests of the module that was wrong.
"""

from __future__ import annotations

import argparse
import random
import time

from tests import fuzz
from tests.fuzz import bodies, requests


def main() -> None:
    """Run them all and say how much was checked."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--bodies", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    began = time.monotonic()
    found = fuzz.fuzz(options.frames, options.seed)
    seconds = time.monotonic() - began
    print(
        f"{found.frames} frames, {found.frames / seconds:.0f} frames/s: 0 canaries, 0 differing results, "
        f"{found.code_points_in} code points in, {found.code_points_out} out",
        flush=True,
    )
    began = time.monotonic()
    sound = requests.fuzz(options.requests, options.seed)
    seconds = time.monotonic() - began
    print(
        f"{options.requests} requests, {options.requests / seconds:.0f} requests/s: {sound} accepted, "
        "0 differing results",
        flush=True,
    )
    began = time.monotonic()
    reasons = bodies.fuzz(options.bodies, options.seed)
    seconds = time.monotonic() - began
    print(
        f"{options.bodies} bodies, {options.bodies / seconds:.0f} bodies/s: {reasons}, 0 differing results", flush=True
    )


if __name__ == "__main__":
    main()
