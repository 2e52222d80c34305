"""Signals at any moment, in any order and number (contract, 8): the process ends, with its status, and without a trace.

A schedule is one to six of TERM, INT and HUP, 0 to 50 ms apart, in some phase of some command; some arrive while the
process is stopped, and so in one turn of its loop. `make test` plays a few, FULL=1 all 300.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.lab.client import CHAT, RawClient, ask, chat, request_bytes
from tests.lab.router import Router
from tests.lab.script import Stall, stream
from tests.lab.tools import ROOT, free_port, need, until, without
from tests.lab.tools import size as amount

PATIENCE = 60.0
"""A process that is alive so long after its last signal will not end: this is no measure of speed."""

SERVE = ("starting", "idle", "queued", "streaming", "draining", "ending")
OTHERS = ("demo", "top", "check")
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(autouse=True, scope="module")
def hangups() -> Iterator[None]:
    """Under `nohup` every process ignores SIGHUP from its start, and eidproxy leaves that so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


class Schedule(NamedTuple):
    """What is sent, and when."""

    phase: str
    wait: float
    """Seconds from the phase to the first signal."""
    signals: list[tuple[int, float]]
    """Each, and the seconds until the next."""
    stopped: bool
    """Whether the process sleeps until all are sent."""


def schedule(choose: random.Random, phase: str) -> Schedule:
    """One at random."""
    count = choose.randint(1, 6)
    gaps = (0.0, 0.0, choose.uniform(0, 0.002), choose.uniform(0, 0.05))
    return Schedule(
        phase,
        choose.uniform(0, 3.0) if phase == "demo" else choose.uniform(0, 0.6) if phase != "idle" else 0.0,
        [(choose.choice(STOP), choose.choice(gaps)) for _ in range(count)],
        choose.random() < 0.4,
    )


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for a signal."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        without("no /proc on this machine")
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)", text, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


class Running:
    """A command of eidproxy as a process."""

    def __init__(self, command: list[str], folder: Path, **settings: object) -> None:
        self.folder = folder
        self.port = free_port()
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        environment = {**kept, "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
        environment |= {"EIDPROXY_SERVER_PORT": str(self.port)} if command[0] != "demo" else {}
        environment |= {name: str(value) for name, value in settings.items()}
        self._output = (folder / "output").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "eidproxy", *command],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=ROOT,
        )
        # Before its first line the interpreter is not ours; from then on every signal counts.
        until(lambda: self.process.poll() is not None or catches(self.process.pid, signal.SIGTERM), PATIENCE)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", self.port

    def ready(self) -> None:
        """Wait until it serves."""
        until(lambda: _answers(self.address), PATIENCE)

    def send(self, number: int) -> None:
        """A signal, unless it has ended."""
        if self.process.poll() is None:
            os.kill(self.process.pid, number)

    def play(self, plan: Schedule) -> None:
        """All of them."""
        time.sleep(plan.wait)
        if plan.stopped:
            self.send(signal.SIGSTOP)
        for number, gap in plan.signals:
            self.send(number)
            if gap:
                time.sleep(gap)
        if plan.stopped:
            self.send(signal.SIGCONT)

    def ended(self) -> tuple[int | str, str]:
        """Its status, or that it had to be killed; and its output."""
        code: int | str
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            code = "alive"
        self._output.seek(0)
        return code, self._output.read().decode(errors="replace")

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._output.close()


def bring(run: Running, router: Router, phase: str, clients: ExitStack) -> None:
    """Bring `serve` into a phase."""
    if phase == "starting":
        return
    run.ready()
    if phase in ("queued", "streaming", "draining"):
        for model in ("deep", "daily", "daily") if phase == "queued" else ("deep", "daily"):
            client = clients.enter_context(RawClient(run, timeout=PATIENCE))
            client.send(request_bytes("POST", CHAT, chat(model)))
            if model == "deep":
                client.read_head()
    if phase == "draining":
        run.send(signal.SIGTERM)
        until(lambda: run.process.poll() is not None or _drains(run), PATIENCE)
    if phase == "ending":
        run.send(signal.SIGTERM)


def _drains(run: Running) -> bool:
    with contextlib.suppress(OSError, EOFError):
        return ask(run, "GET", "/readyz", timeout=5).status == 503
    return False


def judge(plan: Schedule, router: Router, folder: Path) -> str | None:
    """Play one schedule: what was wrong, or None."""
    folder.mkdir()
    commands = {"demo": ["demo", "--port", str(free_port())], "top": ["top"], "check": ["check", "--config", "none"]}
    settings: dict[str, object] = {"LLM_ROUTER_URL": router.url, "EIDPROXY_SERVER_DRAIN_SECONDS": 0.3}
    command = ["serve"]
    if plan.phase in OTHERS:
        command = commands[plan.phase]
        # They wait for a peer that says nothing: they do not end by themselves.
        settings["EIDPROXY_ROUTER_CONNECT_TIMEOUT_SECONDS"] = 60
        if plan.phase == "top":
            command = ["top", "--url", router.url]
        elif plan.phase == "check":
            command = ["check"]
            settings["LLM_ROUTER_URL"] = "https" + router.url.removeprefix("http")
        else:
            settings = {}
    with ExitStack() as stack:
        run = stack.enter_context(Running(command, folder, **settings))
        if plan.phase not in OTHERS:
            bring(run, router, plan.phase, stack)
        run.play(plan)
        code, output = run.ended()
    wanted = 130 if plan.phase in OTHERS else 0
    left = [path.name for path in folder.iterdir() if path.name != "output"]
    if code != wanted or "Traceback" in output or "rror:" in output or left:
        return f"{plan}: {code}, {left}\n{output[-2000:]}"
    return None


@pytest.fixture
def silent(router: Router) -> Router:
    """A router that begins to answer and then says nothing more."""
    router.script = [*stream(["a"])[:3], Stall()]
    return router


@pytest.mark.timeout(1800)
def test_schedules(silent: Router, tmp_path: Path, seed: int) -> None:
    count = amount(24, 300)
    choose = random.Random(seed)
    phases = (*SERVE, *OTHERS)
    plans = [schedule(choose, phases[number % len(phases)]) for number in range(count)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(lambda item: judge(item[1], silent, tmp_path / str(item[0])), enumerate(plans)))
    bad = [verdict for verdict in verdicts if verdict is not None]
    print(f"EIDPROXY signals: {count - len(bad)} of {count} schedules")
    assert not bad, "\n".join(bad)


def is_pending(pid: int, number: int) -> bool:
    """Whether a signal was sent and not yet taken: the kernel makes one of two."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return False
    (mask,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("ShdPnd"))
    return bool(int(mask, 16) >> (number - 1) & 1)


SECOND = (signal.SIGTERM, signal.SIGINT)


@pytest.mark.parametrize("first", SECOND)
@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("gap", [0.0, 0.0003, 0.001, 0.002])
def test_a_second_signal_ends_what_runs(silent: Router, tmp_path: Path, first: int, second: int, gap: float) -> None:
    """Whatever is between the two: it does not wait for the drain, which takes ten minutes here."""
    if first == second and not gap:
        return  # the kernel makes one of them
    folder = tmp_path / "run"
    folder.mkdir()
    settings = {"LLM_ROUTER_URL": silent.url, "EIDPROXY_SERVER_DRAIN_SECONDS": 600}
    with Running(["serve"], folder, **settings) as run, ExitStack() as clients:
        bring(run, silent, "streaming", clients)
        if first == second:
            run.send(first)
            time.sleep(gap)
            until(lambda: not is_pending(run.process.pid, first))
            run.send(second)
        else:
            run.play(Schedule("streaming", 0, [(first, gap), (second, 0)], stopped=not gap))
        assert run.ended()[0] == 0


def test_signals_ahead_of_the_first_turn(silent: Router, tmp_path: Path) -> None:
    """Two in one turn of an idle server, whose drain is a task that then never begins: five of five never ended."""
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        with Running(["serve"], folder, LLM_ROUTER_URL=silent.url) as run:
            run.ready()
            run.play(Schedule("idle", 0, [(signal.SIGTERM, 0), (signal.SIGINT, 0)], stopped=True))
            assert run.ended()[0] == 0


def test_a_group_gets_it_twice(tmp_path: Path) -> None:
    """`kill -- -PGID`: make passes on what its child gets as well."""
    folder = tmp_path / "run"
    folder.mkdir()
    makefile = tmp_path / "Makefile"
    makefile.write_text(f"demo:\n\t{sys.executable} -m eidproxy demo --port {free_port()}\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    [make] = need("make")
    for wait in ("1.", "2.", "3.", "They go on")[:: amount(2, 1)]:
        with subprocess.Popen(
            [make, "-f", str(makefile), "demo"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            next(line for line in process.stdout if line.startswith(wait))
            os.killpg(process.pid, signal.SIGTERM)
            output = process.stdout.read()  # to the end of the last of the group
            process.wait(PATIENCE)
        assert "Traceback" not in output, output
        assert list(folder.iterdir()) == []


def test_a_hangup_that_is_ignored_stays_so(silent: Router, tmp_path: Path) -> None:
    """`nohup eidproxy serve`."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = Running(["serve"], tmp_path, LLM_ROUTER_URL=silent.url)
    finally:
        signal.signal(signal.SIGHUP, old)
    with run:
        run.ready()
        run.send(signal.SIGHUP)
        assert ask(run, "GET", "/readyz").status == 200
        run.send(signal.SIGTERM)
        assert run.ended()[0] == 0


def test_a_loop_that_stands_still_ends_too(silent: Router, tmp_path: Path) -> None:
    """The second signal needs no turn of the loop."""
    planted = "from eidproxy.app import Application; import time; Application.drain = lambda self: time.sleep(600)\n"
    code = planted + "import eidproxy.__main__ as m; m.main()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LLM_ROUTER_URL": silent.url}
    port = free_port()
    command = [sys.executable, "-c", code, "serve", "--server-port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            until(lambda: _answers(("127.0.0.1", port)), PATIENCE)
            process.terminate()
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def _answers(address: tuple[str, int]) -> bool:
    with contextlib.suppress(OSError, EOFError):
        return ask(address, "GET", "/healthz", timeout=5).status == 200
    return False
