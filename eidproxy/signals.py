"""Signals that stop the process (contract, 8): one handler, from the first line of the program to its last.

A loop's own handlers come late (imports take half a second) and go early (a loop that closes restores the defaults),
and a task that should end something may not have begun. So the process has its own handler, and what must happen does
not rely on a loop or a task:

    what runs                                  the first signal           the second
    starting, or a command that owes nothing   clean up, exit `code`      -
    a server, from `notify` on                 `stop` on the loop         `stop` on the loop, and at most a second more
    the last lines, from `ignore` on           nothing                    nothing

This module imports little, and only the standard library: until `install` runs, a signal does what Python does.
"""

import _thread
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""SIGHUP stops like SIGTERM: the terminal was closed, and there are no settings to reload."""

INTERRUPTED = 130
"""The exit status that shells report for a process that Ctrl-C ended: 128 plus the number of SIGINT."""
_GRACE_SECONDS = 1.0
"""How long a server may take to end after the second signal; then the process ends without it."""


class StopSignals:
    """The handler of signals that stop the process. There is one instance: `stop_signals`."""

    def __init__(self) -> None:
        self.code = INTERRUPTED
        """The exit status of a process that a signal ends at once."""
        self.clean_up: Callable[[], object] | None = None
        """Called before that exit, between any two lines of running code, so it must not rely on buffers or locks."""
        self._stop: Callable[[], object] | None = None
        self._loop: Any = None
        self._received = 0

    def install(self) -> None:
        """Install the handler. `nohup` is obeyed: a SIGHUP that is already ignored stays ignored."""
        if sys.argv[1:2] == ["serve"]:
            self.code = 0
        for number in STOP_SIGNALS:
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    def notify(self, loop: Any, stop: Callable[[], object]) -> None:
        """From now on, call `stop` on the loop for each signal and exit with 0."""
        self._stop, self.code = stop, 0
        self._loop = loop

    def ignore(self) -> None:
        """Ignore signals from now on: the process exits, and the interpreter restores the defaults before that."""
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._loop is None:
            self._exit()
        self._received += 1
        if self._received == 2:
            with suppress(RuntimeError):  # no thread can start: only the loop can end the process
                # Not `threading`, whose locks the interrupted line may hold.
                _thread.start_new_thread(self._exit_later, ())
        with suppress(RuntimeError):  # the loop is closed: the process is ending
            self._loop.call_soon_threadsafe(self._stop)

    def _exit_later(self) -> None:
        time.sleep(_GRACE_SECONDS)
        self._exit()

    def _exit(self) -> None:
        try:
            if self.clean_up is not None:
                self.clean_up()
        finally:
            os._exit(self.code)


stop_signals = StopSignals()
