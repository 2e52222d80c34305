"""The pytest plugin: three fixtures. Only pytest loads it; nothing else of the package needs pytest."""

from collections.abc import Iterator

import pytest

from eidproxy.testing.fake_router import FakeRouter
from eidproxy.testing.running import RunningProxy


@pytest.fixture
def fake_router() -> Iterator[FakeRouter]:
    """A router for this test alone. It answers "Hello!" until the test calls `play`."""
    with FakeRouter() as router:
        yield router


@pytest.fixture
def eidproxy_settings() -> dict[str, object]:
    """Settings of the `eidproxy` fixture by their paths. Override it: `{"gate.capacity": 2}`."""
    return {}


@pytest.fixture
def eidproxy(fake_router: FakeRouter, eidproxy_settings: dict[str, object]) -> Iterator[RunningProxy]:
    """The real proxy, in front of `fake_router`."""
    with RunningProxy(fake_router.url, eidproxy_settings) as running:
        yield running
