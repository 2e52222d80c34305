"""Fixtures every suite may use, and how tests run side by side."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.harness import Proxy
from tests.tls import Certificate, self_signed
from tests.upstream import Router


@pytest.fixture
def router() -> Iterator[Router]:
    """A scripted router of the test's own."""
    with Router() as started:
        yield started


@pytest.fixture
def proxy(router: Router) -> Iterator[Proxy]:
    """eidproxy with default settings in front of `router`. Starting it takes a while: a suite may share one."""
    with Proxy(router) as started:
        yield started


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate for this machine."""
    return self_signed(tmp_path_factory.mktemp("tls"), "DNS:localhost", "IP:127.0.0.1")


@pytest.fixture
def seed() -> int:
    """The seed of a random test, printed; EIDPROXY_SEED plays one again."""
    value = int(os.environ.get("EIDPROXY_SEED") or random.SystemRandom().getrandbits(32))
    print(f"EIDPROXY_SEED={value}")
    return value


# --- Side by side ------------------------------------------------------------------------------------------------

# Most of the time of the suite is waiting, so `make test` runs some tests side by side. One that measures what others
# would disturb is marked `alone`: it begins when those that run have ended, and none begins before it has ended.

ROOM = Path(__file__)
"""Locked, shared or not, by each test that runs."""

DOOR = ROOM.with_name("__init__.py")
"""Locked by who waits to be alone, so that those who come later wait behind it. Everybody else only passes through."""


def _alone(item: pytest.Item | None) -> bool:
    return item is not None and item.get_closest_marker("alone") is not None


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    # The lock ends with the file, and so with the process, however that ends.
    with path.open("rb") as file:
        fcntl.flock(file, how)
        yield


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that run alone come first, so that the others are interrupted only once."""
    items.sort(key=lambda item: not _alone(item))


_room: contextlib.ExitStack | None = None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Enter the room, before the time limit of the test begins; from one that runs alone to the next, stay in it."""
    global _room
    if _room is None:
        _room = contextlib.ExitStack()
        with contextlib.ExitStack() as door:
            door.enter_context(_locked(DOOR, fcntl.LOCK_EX))
            _room.enter_context(_locked(ROOM, fcntl.LOCK_EX if _alone(item) else fcntl.LOCK_SH))
            if _alone(item):
                _room.push(door.pop_all())
    try:
        return (yield)
    finally:
        if not (_alone(item) and _alone(nextitem)):
            _room.close()
            _room = None
