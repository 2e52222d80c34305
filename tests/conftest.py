"""Fixtures every suite may use."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from eidproxy import app
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.tls import Certificate, self_signed

LONGEST = (
    *("test_gate_replicas", "test_demo", "test_silence_outside", "test_routers", "test_proxy", "test_clients"),
    *("test_scenarios", "test_live_view", "test_hostile_clients", "test_conversations", "test_silence", "test_flows"),
    *("test_end_to_end", "test_looks", "test_signals", "test_injection", "test_live_check", "test_deadline"),
    *("test_examples", "test_slow_connects", "test_image", "test_page", "test_shutdown", "test_departures"),
    *("test_faults", "test_observability", "test_openai_client", "test_top", "test_standstill", "test_shared"),
    *("test_readme", "test_ratio", "test_relay", "test_check", "test_fuzz", "test_corpus", "test_prometheus"),
    *(
        "test_gate_outside",
        "test_composing",
        "test_markdown",
        "test_visits",
        "test_config",
        "test_history",
        "test_soak",
        "test_wedge",
    ),
)
"""Modules whose tests take or wait longest. They begin first, so that none is left over when the others are through."""


def pytest_configure() -> None:
    """Have applications that are built in the test's process do as those do that inherit its environment."""
    if os.environ.get("EIDPROXY_ACCELERATOR") == "off":
        vars(app)["IS_BUILT"] = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of these modules first; each module's tests stay together and in their order."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


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
