"""What eidproxy costs, beside nginx and beside the obvious relay, on this machine: `make bench`.

One router, one load client, the proxies in turn, round after round; the table shows medians over the rounds and the
medians of the ratios within a round, since machines drift. The proxy is alone on one processor where there are two.
CPU is that of the proxy's process from /proc, so this runs on Linux. nginx passes bytes through; the other two parse
and rebuild each event; only eidproxy has a gate, deadlines, metrics and logs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from eidproxy.commands.check import is_optimized
from eidproxy.router.shortcut import IS_BUILT
from tests.lab.tools import ROOT, free_port, until


class Scenario(NamedTuple):
    """How many streams at once, how many in all, how many events each, how far apart."""

    name: str
    streams: int
    total: int
    events: int
    microseconds: int


SCENARIOS = (
    Scenario("200 streams, 50 events a second each", 200, 200, 100, 20_000),
    Scenario("16 streams, as fast as they go", 16, 200, 512, 0),
    Scenario("one caller, 8 events", 1, 400, 8, 0),
)

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/log; worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  upstream router {{ server 127.0.0.1:{router}; keepalive 512; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://router; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""


class Peer(NamedTuple):
    """A proxy under measurement."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    def cpu_seconds(self) -> float:
        """What its process used so far, in user and in system mode."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        user, system = stat.rpartition(") ")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def rss_mib(self) -> float:
        """Its resident memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 2**20


@contextmanager
def started(command: list[str], cpu: int, port: int, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program on one processor, listening."""
    if shutil.which("taskset") and (os.cpu_count() or 1) > 1:
        command = ["taskset", "-c", str(cpu), *command]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **env}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, env=environment, cwd=ROOT)
    try:
        until(lambda: listens(port), 20, f"{command[-1]} listens")
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def listens(port: int) -> bool:
    """Whether somebody listens on a port."""
    lines = Path("/proc/net/tcp").read_text().splitlines()
    return any(f":{port:04X} 00000000:0000 0A" in line for line in lines)


def peers(stack: ExitStack, router: int, names: list[str]) -> list[Peer]:
    """Start the proxies."""
    url = f"http://127.0.0.1:{router}"
    ready = []
    for name in names:
        port = free_port()
        env = {}
        if name == "nginx":
            program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
            if program is None:
                print("nginx is not installed: left out", file=sys.stderr)
                continue
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            configuration = Path(folder, "nginx.conf")
            configuration.write_text(NGINX.format(folder=folder, router=router, port=port))
            command = [program, "-p", folder, "-c", str(configuration)]
        elif name == "obvious":
            command = [sys.executable, "-m", "uvicorn", "tests.bench.obvious:app", "--port", str(port)]
            command += ["--no-access-log", "--log-level", "error", "--backlog", "4096"]
            env = {"LLM_ROUTER_URL": url}
        else:
            command = [sys.executable, "-m", "eidproxy", "serve"]
            # The gate is on the path but lets everybody through: what is measured is the cost, not the wait.
            env = {
                "LLM_ROUTER_URL": url,
                "EIDPROXY_SERVER_PORT": str(port),
                "EIDPROXY_GATE_CAPACITY": "100000",
                "EIDPROXY_GATE_MAX_WAITING": "100000",
            }
        ready.append(Peer(name, port, stack.enter_context(started(command, 0, port, **env))))
    return ready


def measure(peer: Peer, scenario: Scenario) -> dict[str, float]:
    """One run of a scenario over a proxy."""
    command = [sys.executable, "-m", "tests.bench.load", str(peer.port), *(str(number) for number in scenario[1:])]
    if shutil.which("taskset") and (os.cpu_count() or 1) > 1:
        command = ["taskset", "-c", "1", *command]
    before = peer.cpu_seconds()
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=ROOT, check=False)
    if done.returncode:
        return {"ok": 0, "failed": scenario.total, "events": 0}
    result: dict[str, float] = json.loads(done.stdout)
    cpu = peer.cpu_seconds() - before
    result["cpu_us_per_event"] = cpu * 1e6 / max(result["events"], 1)
    result["cpu_us_per_stream"] = cpu * 1e6 / scenario.total
    result["rss_mib"] = peer.rss_mib()
    return result


Results = dict[tuple[str, str], list[dict[str, float]]]


def run(names: list[str], scenarios: tuple[Scenario, ...], rounds: int) -> Results:
    """Every scenario over every proxy, in turn, round after round."""
    results: Results = {}
    with ExitStack() as stack:
        router = free_port()
        stack.enter_context(started([sys.executable, "-m", "tests.bench.router", str(router)], 1, router))
        running = peers(stack, router, names)
        for peer in running:
            measure(peer, Scenario("warm up", 4, 20, 16, 0))
        for _ in range(rounds):
            for scenario in scenarios:
                for peer in running:
                    results.setdefault((scenario.name, peer.name), []).append(measure(peer, scenario))
    return results


def ratio(results: Results, scenario: str, name: str, base: str, figure: str) -> float | None:
    """The median over the rounds of a figure's ratio to another proxy's in the same round."""
    pairs = zip(results.get((scenario, name), []), results.get((scenario, base), []), strict=False)
    ratios = [own[figure] / other[figure] for own, other in pairs if own.get(figure) and other.get(figure)]
    return statistics.median(ratios) if ratios else None


FIGURES = (
    ("cpu_us_per_event", "CPU µs/event"),
    ("cpu_us_per_stream", "CPU µs/stream"),
    ("event_p50", "event p50 µs"),
    ("event_p99", "p99 µs"),
    ("first_p50", "first event p50 µs"),
    ("rss_mib", "RSS MiB"),
    ("failed", "failed"),
    ("leaks", "leaks"),
)


def table(results: Results, names: list[str], scenarios: tuple[Scenario, ...]) -> Iterator[str]:
    """The figures, with the ratio to nginx in brackets."""
    for scenario in scenarios:
        yield f"\n{scenario.name} ({scenario.total} streams of {scenario.events} events)\n"
        yield "| proxy | " + " | ".join(title for _, title in FIGURES) + " |"
        yield "|---" * (len(FIGURES) + 1) + "|"
        for name in names:
            runs = results.get((scenario.name, name))
            if not runs:
                continue
            cells = []
            for figure, _ in FIGURES:
                values = [run[figure] for run in runs if figure in run]
                cell = f"{statistics.median(values):,.{1 if figure.startswith('cpu') else 0}f}" if values else "-"
                beside = None if name == "nginx" else ratio(results, scenario.name, name, "nginx", figure)
                cells.append(cell if beside is None or figure in ("failed", "leaks") else f"{cell} ({beside:.2f})")
            yield f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    names = ["nginx", "obvious", "eidproxy"]
    began = time.monotonic()
    results = run(names, SCENARIOS, options.rounds)
    packages = ", ".join(f"{name} {version(name)}" for name in ("uvicorn", "uvloop", "httptools", "httpx", "msgspec"))
    print(f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}, {packages}")
    if not is_optimized():
        print("This Python was built without --enable-optimizations: an event takes a sixth longer than it might.")
    print("accelerator:", "on" if IS_BUILT else "not built")
    print("in brackets: the ratio to nginx within a round")
    for line in table(results, names, SCENARIOS):
        print(line)
    print(f"\n{options.rounds} rounds, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
