"""Fixtures every suite may use."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

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
