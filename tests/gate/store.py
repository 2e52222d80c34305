"""A real redis-server, and the record of what it did.

EIDPROXY_STORE_PROGRAM is the path of another one, say a valkey-server: every suite of the gate then runs on that.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.gate.history import RECORD_BEGINS
from tests.lab.tools import free_port, need, until


class Store:
    """A server of the test's own, in a directory of its own.

    `options` are words of its command line. It keeps no data over a restart unless `durable`.
    """

    def __init__(self, *options: str, durable: bool = False, hosts: Sequence[str] = ("127.0.0.1",)) -> None:
        self._program = os.environ.get("EIDPROXY_STORE_PROGRAM") or need("redis-server")[0]
        self.port = free_port()
        self.hosts = hosts
        self._options = [*options, *(("--appendonly", "yes", "--appendfsync", "always") if durable else ())]
        self._directory = Path(tempfile.mkdtemp(prefix="eidproxy-store-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The value for EIDPROXY_GATE_URL."""
        return f"redis://{self.hosts[0]}:{self.port}/0"

    @property
    def socket_path(self) -> str:
        """Its Unix socket."""
        return str(self._directory / "store.sock")

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(
            [
                self._program, "--port", str(self.port), "--bind", *self.hosts, "--dir", str(self._directory),
                "--save", "", "--unixsocket", self.socket_path, "--loglevel", "warning", *self._options,
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until(self._answers, 60, "redis-server answers")

    def stop(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def forget(self) -> None:
        """Take its data away while it is stopped."""
        shutil.rmtree(self._directory / "appendonlydir", ignore_errors=True)

    def signal(self, number: int) -> None:
        """Send it a signal: SIGSTOP makes it slow beyond every deadline."""
        assert self._process is not None
        self._process.send_signal(number)

    def command(self, *words: str, user: tuple[str, str] | None = None) -> Any:
        """One command and its reply; an error is a RuntimeError."""
        with Wire(self.hosts[0], self.port) as wire:
            if user is not None:
                wire.call("AUTH", *user)
            return wire.call(*words)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError, RuntimeError):
            return self.command("PING") in ("PONG", None)
        return False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGCONT)
        self.stop()
        shutil.rmtree(self._directory)


class Wire:
    """The protocol by hand: the judge shares no code with what it judges."""

    def __init__(self, host: str, port: int, timeout: float | None = 5.0) -> None:
        self._sock = socket.create_connection((host, port), timeout)
        self._file = self._sock.makefile("rb")

    def call(self, *words: str) -> Any:
        """One command and its reply."""
        self._sock.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in map(_raw, words)))
        return self.reply()

    def reply(self) -> Any:
        """The next reply."""
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise OSError("the store hung up")
        kind, rest = line[:1], line[1:-2].decode()
        if kind == b"-":
            raise RuntimeError(rest)
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == "-1" else self._file.read(int(rest) + 2)[:-2].decode()
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        return rest

    def close(self) -> None:
        """Hang up, whoever reads."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _raw(word: str) -> bytes:
    return word.encode()


# --- The record --------------------------------------------------------------------------------------------------


@dataclass
class Record:
    """What the store did, command by command, as MONITOR tells it: the server's own order and clock."""

    commands: list[tuple[float, list[str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def add(self, line: str) -> None:
        """Take one line of MONITOR. Only what functions did counts, and what empties the server."""
        match = re.fullmatch(r"(\d+\.\d+) \[\d+ ([^\]]+)\] (.*)", line)
        if match is None:
            return
        words = [word.encode().decode("unicode_escape") for word in re.findall(r'"((?:[^"\\]|\\.)*)"', match[3])]
        if match[2] == "lua" or words[0].upper() == "FLUSHALL":
            with self._lock:
                self.commands.append((float(match[1]), words))

    def begin(self) -> None:
        """Mark that what came before may be missing."""
        with self._lock:
            self.commands.append((time.time(), [RECORD_BEGINS]))

    def taken(self) -> list[tuple[float, list[str]]]:
        """All so far."""
        with self._lock:
            return list(self.commands)


END = "recorded-until-here"


@contextlib.contextmanager
def recorded(store: Store) -> Iterator[Record]:
    """Record what a store does, also after it was started anew: all that it did until the end of the block."""
    record, over, caught_up = Record(), threading.Event(), threading.Event()
    wires: list[Wire] = []

    def read() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                wire = Wire(store.hosts[0], store.port, None)
                wires.append(wire)
                wire.call("MONITOR")
                record.begin()
                while not over.is_set():
                    line = str(wire.reply())
                    record.add(line)
                    if END in line:
                        caught_up.set()
            over.wait(0.002)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    until(record.taken, what="MONITOR")
    try:
        yield record
        with contextlib.suppress(OSError):  # one that is away has no more to tell
            store.command("ECHO", END)
            assert caught_up.wait(30), "MONITOR tells the last command"
    finally:
        over.set()
        for wire in wires:
            wire.close()
        thread.join(5)
