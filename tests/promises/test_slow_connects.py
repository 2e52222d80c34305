"""Callers that leave while eidproxy connects to a machine that is slow to answer (contract, P6): nothing stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.lab.tools import ROOT, need, without
from tests.lab.tools import size as amount


def play(seed: int, count: int, *options: str) -> dict[str, Any]:
    """The figures of `tests.slow_connects` in a network of its own, where packets may be dropped."""
    unshare, nft, _ = need("unshare", "nft", "ip")
    if os.geteuid() != 0:
        without("needs root for a network namespace")
    alone = [unshare, "-n"]
    if subprocess.run([*alone, nft, "add table inet probe"], capture_output=True, check=False).returncode:
        without("no network namespaces, or no packet filter, here")
    command = [*alone, sys.executable, "-m", "tests.slow_connects", "--seed", str(seed), "--count", str(count)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert isinstance(figures, dict)
    return figures


@pytest.mark.timeout(900)
def test_crowd_that_leaves_slow_connects(seed: int) -> None:
    count = amount(240, 2000)
    seen = play(seed, count)
    delays = seen["free_after_seconds"]
    p99 = delays[int(len(delays) * 0.99)]
    print(
        f"EIDPROXY departures under slow connects: {count} in {seen['seconds']} s, {seen['connects']} connects, "
        f"{seen['slow']} of them slow, {seen['left_in_a_slow_connect']} given up in a slow connect; "
        f"slot free p50 {delays[len(delays) // 2] * 1e3:.1f} p99 {p99 * 1e3:.1f} max {delays[-1] * 1e3:.1f} ms; "
        f"made as the caller left {seen['made_as_the_caller_left_of_100']} of 100; {seen['stuck']} stuck, "
        f"honest served after {seen['served_after_a_round_seconds'] * 1e3:.1f} ms at most, outcomes {seen['outcomes']}"
    )
    # The play was what it is meant to be.
    assert seen["left_in_a_slow_connect"] > count / 40  # of 9 seeds the least gave a tenth
    assert 0 < seen["made_as_the_caller_left_of_100"] < 100
    assert seen["stuck"] == 0
    assert seen["served_after_the_crowd_seconds"] is not None
    late = seen["late_seconds"]
    assert max(seen["served_after_the_crowd_seconds"], seen["served_after_a_round_seconds"]) < 0.5 + late
    assert p99 < 0.1 + late
    assert delays[-1] < 1 + late
    words = " ".join(seen["outcomes"])
    assert not any(word in words for word in ("internal", "router", "upstream", "stream")), words


@pytest.mark.timeout(300)
def test_control_a_stock_pool_gets_stuck(seed: int) -> None:
    """Control: the same callers before a pooled client. A slot of its pool is lost, and nobody is served any more."""
    seen = play(seed, amount(0, 300), "--stock")
    print(f"EIDPROXY stock pool under slow connects: stuck after {seen['rounds']} rounds")
    assert seen["stuck"] == 3
