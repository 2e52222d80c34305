"""Tests for an app that uses eidproxy: a pytest plugin with a fake router and the real proxy in front of it.

    def test_digest(eidproxy, fake_router):
        fake_router.play(stream("Three ", "mails"), cut("Thr"))
        assert digest(base_url=eidproxy.base_url) == "Three mails"

Installing eidproxy with its extra `testing` is all it takes: pytest finds the fixtures by itself. They are
`fake_router` (see `FakeRouter`), `eidproxy` (see `RunningProxy`) and `eidproxy_settings`, which a test module overrides
to run the proxy with settings of its own. Names in `__all__` are stable.
"""

from eidproxy.testing.fake_router import (
    ALIASES,
    FINGERPRINT,
    MODEL_PATH,
    FakeRouter,
    ReceivedRequest,
    Script,
    call,
    cut,
    hang,
    refusal,
    stall,
    stream,
    wake_up,
    warming,
)
from eidproxy.testing.running import RunningProxy

__all__ = [
    "ALIASES",
    "FINGERPRINT",
    "MODEL_PATH",
    "FakeRouter",
    "ReceivedRequest",
    "RunningProxy",
    "Script",
    "call",
    "cut",
    "hang",
    "refusal",
    "stall",
    "stream",
    "wake_up",
    "warming",
]
