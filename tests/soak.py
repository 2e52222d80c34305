"""A long mixed load with faults: does anything grow? Run by `make soak`; SOAK_SECONDS says how long (600).

python -m tests.soak
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from dataclasses import dataclass, field

from tests.lab.client import CHAT, RawClient, chat, request_bytes
from tests.lab.proxy import Proxy
from tests.lab.router import Received, Router
from tests.lab.script import Fin, Reset, Send, Stall, Step, Trickle, status, stream, wire
from tests.lab.stream import Told, told
from tests.lab.tools import until

CALLERS = 12
FAULTS = 0.1
MAX_SLOPE = 1.0
"""MiB of resident memory per hour. A short run cannot tell: it is judged only over ten minutes or more."""


@dataclass
class Seen:
    """What the callers saw."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    served: int = 0
    failed: int = 0
    left: int = 0
    wrong: list[str] = field(default_factory=list)
    took: list[tuple[float, float]] = field(default_factory=list)
    """When an honest `deep` answer ended, and how long after the router could have ended it."""


def script(choose: random.Random) -> list[Step]:
    """Mostly a good answer."""
    if choose.random() >= FAULTS:
        return stream(["a", "b", "c"], interval=choose.choice([0, 0, 0.001]))
    whole = wire(stream(["a", "b", "c"]))
    return choose.choice(
        [
            status(503, {"error_reason": "warming"}),
            status(502),
            [Reset()],
            [Fin()],
            [Send(whole[: choose.randrange(len(whole))]), Reset()],
            [Send(whole[: choose.randrange(len(whole))]), Fin()],
            [Trickle(whole, 50, 0.001)],
            [Send(b"garbage\r\n\r\n"), Stall()],
        ]
    )


def call(proxy: Proxy, choose: random.Random, seen: Seen, end: float) -> None:
    """One caller, again and again."""
    while time.monotonic() < end:
        model, streaming = choose.choice(["daily", "deep"]), choose.random() < 0.7
        headers = {"X-Eid-Priority": choose.choice(["foreground", "background"])}
        if choose.random() < 0.2:
            headers["X-Eid-Progress"] = "1"
        body = chat(model if choose.random() < 0.98 else "nope", streaming)
        began = time.monotonic()
        try:
            with RawClient(proxy, timeout=30) as client:
                client.send(request_bytes("POST", CHAT, body, headers))
                if choose.random() < FAULTS:
                    time.sleep(choose.random() * 0.02)
                    client.rst() if choose.random() < 0.5 else client.close()
                    with seen.lock:
                        seen.left += 1
                    continue
                head = client.read_head()
                content = client.read_body()
        except (OSError, EOFError) as error:
            with seen.lock:
                seen.wrong.append(repr(error))
            continue
        with seen.lock:
            said = told(content) if streaming and head.status == 200 else Told()
            if not client.clean or (streaming and head.status == 200 and said.done == bool(said.errors)):
                seen.wrong.append(f"{head.status} {content[-200:]!r}")
            if head.status == 200 and not said.errors:
                seen.served += 1
                if model == "deep":
                    seen.took.append((time.monotonic(), time.monotonic() - began))
            else:
                seen.failed += 1


def slope(samples: list[tuple[float, int]]) -> float:
    """Least squares, in MiB per hour."""
    count = len(samples)
    mean_x = sum(x for x, _ in samples) / count
    mean_y = sum(y for _, y in samples) / count
    over = sum((x - mean_x) * (y - mean_y) for x, y in samples)
    under = sum((x - mean_x) ** 2 for x, _ in samples)
    return over / under * 3600 / 2**20 if under else 0.0


def p99(values: list[float]) -> float:
    """The 99th of a hundred."""
    return sorted(values)[int(len(values) * 0.99)] if values else 0.0


def main() -> int:
    """As long as the environment says."""
    seed = int(os.environ.get("EIDPROXY_SEED") or random.SystemRandom().getrandbits(32))
    return soak(float(os.environ.get("SOAK_SECONDS", "600")), seed)


def soak(seconds: float, seed: int, *, planted: str | None = None, patience: float = 30.0) -> int:
    """Run and report. 1 when something grew, was wrong or was left over. `planted` is the fault of a control."""
    print(f"soak: {seconds:.0f} s, {CALLERS} callers, {FAULTS:.0%} faults, EIDPROXY_SEED={seed}", flush=True)
    choose = random.Random(seed)
    seen = Seen()

    def answer(_: Received) -> list[Step]:
        return script(choose)

    with Router(script=answer) as router, Proxy(router, planted=planted, EIDPROXY_LOG_LEVEL="error") as proxy:
        proxy.metrics()
        files = proxy.fds()
        began = time.monotonic()
        end = began + seconds
        callers = [
            threading.Thread(target=call, args=(proxy, random.Random(f"{seed} {number}"), seen, end))
            for number in range(CALLERS)
        ]
        for caller in callers:
            caller.start()
        memory: list[tuple[float, int]] = []
        most = 0
        while time.monotonic() < end:
            time.sleep(min(2.0, seconds / 50))
            memory.append((time.monotonic(), proxy.rss()))
            most = max(most, router.max_concurrent_by_model.get("mac-mini-default", 0))
            if router.posts > 5000:
                router.reset()  # forget what was recorded: this process must not grow either
        for caller in callers:
            caller.join()
        until(lambda: router.busy_sockets == 0 and not any(proxy.status()["streams"].values()), patience)
        until(lambda: proxy.fds() <= files, patience, "descriptors")
        forced = proxy.metric("eidproxy_gate_forced_releases_total")
        lag = proxy.metric("eidproxy_event_loop_lag_seconds_sum") / max(
            proxy.metric("eidproxy_event_loop_lag_seconds_count"), 1
        )
        running = sum(value for (name, _), value in proxy.metrics().items() if name == "eidproxy_requests_in_progress")
        # The first half warms up: the allocator's arenas reach their greatest extent, which the tenths show.
        steady = [each for each in memory if each[0] > began + seconds / 2]
        growth = slope(steady or memory)
        tenth = seconds / 10
        first = [took for at, took in seen.took if at < began + tenth]
        last = [took for at, took in seen.took if at > end - tenth]
        print(f"served {seen.served}, failed {seen.failed}, left {seen.left}, wrong {len(seen.wrong)}")
        print(f"rss {memory[0][1] / 2**20:.1f} → {memory[-1][1] / 2**20:.1f} MiB, slope {growth:+.2f} MiB/h")
        tenths = [memory[len(memory) * part // 10][1] for part in range(10)]
        print("rss by tenth of the time:", " ".join(f"{each / 2**20:.2f}" for each in tenths), "MiB")
        print(f"descriptors {files} → {proxy.fds()}, requests in progress {running:.0f}, forced releases {forced:.0f}")
        print(f"mean loop lag {lag * 1e3:.2f} ms; `deep` p99 first tenth {p99(first) * 1e3:.1f} ms, "
              f"last tenth {p99(last) * 1e3:.1f} ms")  # fmt: skip
        most = max(most, router.max_concurrent_by_model.get("mac-mini-default", 0))
        print(f"at the router: at most {most} of daily at once")
        for text in seen.wrong[:5]:
            print("wrong:", text)
        bad = bool(seen.wrong) or forced > 0 or running > 0
        bad = bad or most != 1
        if seconds >= 600:
            bad = bad or growth > MAX_SLOPE
    print("soak:", "FAILED" if bad else "ok")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
