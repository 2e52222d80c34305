"""Signals that stop the process (contract, 8): one handler, from the first line of the program to its last.

A loop's own handlers come late (imports take half a second) and go early (a loop that closes sets the defaults back),
and a task that is to end something may not have begun. So the handler is the process's, and what must happen does not
rely on a loop or a task:

    who runs                                   the first signal           the second
    starting, or a command that owes nothing   clean up, exit `code`      -
    a server, from `notify` on                 `stop` on the loop         `stop` on the loop, and at most a second more
    the last lines, from `ignore` on           nothing                    nothing

Little is imported here, and of the standard library alone: until `install` ran, a signal does what Python does.
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
"""SIGHUP stops like SIGTERM: the terminal was closed, and there is nothing to read anew."""

INTERRUPTED = 130
"""The status that shells give to what Ctrl-C ended: 128 and the number of SIGINT."""
_GRACE_SECONDS = 1.0
"""How long a server has to end after the second signal before the process ends without it."""


class StopSignals:
    """What a signal to stop does now. There is one for the process: `stop_signals`."""

    def __init__(self) -> None:
        self.code = INTERRUPTED
        """The exit status of a process that a signal ends at once."""
        self.clean_up: Callable[[], object] | None = None
        """Called before such an end, between any two lines of whatever runs: it must not rely on buffers or locks."""
        self._stop: Callable[[], object] | None = None
        self._loop: Any = None
        self._received = 0

    def install(self) -> None:
        """Take the signals. `nohup` is obeyed: a SIGHUP that is ignored already stays so."""
        if sys.argv[1:2] == ["serve"]:
            self.code = 0
        for number in STOP_SIGNALS:
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    def notify(self, loop: Any, stop: Callable[[], object]) -> None:
        """Have each signal call `stop` on the loop from now on, and the exit status be 0."""
        self._stop, self.code = stop, 0
        self._loop = loop

    def ignore(self) -> None:
        """The process is about to exit by itself. The interpreter sets handlers to the default before it is gone."""
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._loop is None:
            self._exit()
        self._received += 1
        if self._received == 2:
            with suppress(RuntimeError):  # no thread is to be had: the loop has it to itself
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
