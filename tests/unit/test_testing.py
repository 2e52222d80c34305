"""testing: the public plugin. The examples of its page are run as they stand, in a pytest of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from eidproxy import testing
from eidproxy.testing import FakeRouter, RunningProxy, call, cut, hang, refusal, stall, stream, wake_up, warming
from tests.deploy.files import DEPLOY, fenced
from tests.lab.client import CHAT, RawClient, ask, chat, request_bytes

PAGE = DEPLOY / "testing.md"
EXAMPLES = fenced(PAGE, "python")


def address(running: RunningProxy) -> tuple[str, int]:
    return "127.0.0.1", running.port


@pytest.mark.parametrize("number", range(3))
def test_the_examples_run(number: int, tmp_path: Path) -> None:
    """With nothing but the plugin: no conftest, no settings of ours, every warning an error."""
    path = tmp_path / f"test_example_{number}.py"
    path.write_text(EXAMPLES[number])
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(path)]
    if not entry_points(group="pytest11", name="eidproxy"):
        command += ["-p", "eidproxy.testing.plugin"]  # an environment from before the entry point
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "EIDPROXY_LOG_LEVEL": "nonsense"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert len(EXAMPLES) == 3


def test_the_page_names_what_there_is() -> None:
    text = PAGE.read_text("utf-8")
    scripts = {"stream", "call", "refusal", "warming", "wake_up", "cut", "stall", "hang"}
    assert scripts <= set(testing.__all__)
    for name in (*scripts, "requests", "max_concurrent", "left", "ended", "wait_for", "wake", "RunningProxy"):
        assert name in text
    for name in testing.__all__:
        assert hasattr(testing, name)


def test_the_demo_needs_no_pytest() -> None:
    """It has the fake router of the same package, and pytest is an extra."""
    code = "import sys; sys.modules['pytest'] = None; import eidproxy.commands.demo"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- The scripts, through the real proxy ---------------------------------------------------------------------------


def test_each_script_is_what_its_name_says(fake_router: FakeRouter, eidproxy: RunningProxy) -> None:
    def answer(mode: str = "daily") -> tuple[int, str | None, str, str | None]:
        got = ask(address(eidproxy), "POST", CHAT, chat(mode))
        told = got.told() if got.status == 200 else None
        return got.status, got.reason, told.text if told else "", told.finish_reason if told else None

    assert answer() == (200, None, "Hello!", "stop")
    fake_router.play(stream("a", "b", finish_reason="length"))
    assert answer() == (200, None, "ab", "length")
    fake_router.play(call("weather", {"city": "서울"}))
    assert answer() == (200, None, "", "tool_calls")
    fake_router.play(refusal(404, "not_found_error"))
    assert answer()[0] == 503
    fake_router.play(warming())
    assert answer()[:2] == (503, "warming")
    fake_router.play(cut("a"))
    got = ask(address(eidproxy), "POST", CHAT, chat())
    assert got.told().text == "a"
    assert "upstream_truncated" in got.body.decode()
    fake_router.play(wake_up(stream("up"), refused=2), mode="deep")
    assert [answer("deep")[0] for _ in range(3)] == [503, 503, 200]
    fake_router.play(stream("one"), stream("two"))
    assert [answer()[2] for _ in range(3)] == ["one", "two", "two"], "the last one goes on"
    fake_router.play(lambda asked: stream(asked.question.upper()))
    assert ask(address(eidproxy), "POST", CHAT, chat(say="loud")).told().text == "LOUD"


def test_thinking_comes_first(fake_router: FakeRouter, eidproxy: RunningProxy) -> None:
    fake_router.play(stream("yes", thinking=["hm", "."]))
    events = ask(address(eidproxy), "POST", CHAT, chat()).events()
    deltas = [event.json()["choices"][0]["delta"] for event in events[:-1]]
    assert [delta.get("reasoning_content") or delta.get("content") for delta in deltas[:3]] == ["hm", ".", "yes"]


@pytest.mark.parametrize("script", [hang(), stall("a", "b")], ids=["hang", "stall"])
def test_silence_ends_when_it_is_woken_or_left(fake_router: FakeRouter, eidproxy: RunningProxy, script: object) -> None:
    assert isinstance(script, testing.Script)
    fake_router.play(script)
    with RawClient(address(eidproxy)) as client:
        client.send(request_bytes("POST", CHAT, chat()))
        fake_router.wait_for(lambda it: it.concurrent == 1)
    fake_router.wait_for(lambda it: it.left == 1 and it.concurrent == 0)
    thread = threading.Thread(target=lambda: ask(address(eidproxy), "POST", CHAT, chat()))
    thread.start()
    fake_router.wait_for(lambda it: it.concurrent == 1)
    fake_router.wake()
    fake_router.wait_for(lambda it: it.ended["daily"] == 1)
    thread.join(30)


def test_what_it_says_of_itself_goes_no_further(fake_router: FakeRouter, eidproxy: RunningProxy) -> None:
    answer = ask(address(eidproxy), "POST", CHAT, chat(stream=True))
    direct = ask(("127.0.0.1", fake_router.port), "POST", CHAT, chat("mac-mini-default"))
    for canary in (testing.MODEL_PATH, testing.FINGERPRINT, "fake-router"):
        assert canary in f"{direct.headers}{direct.body.decode()}", "the control: the router tells it"
        assert canary not in f"{answer.headers}{answer.body.decode()}"


def test_it_knows_two_aliases_and_no_third(fake_router: FakeRouter) -> None:
    direct = ("127.0.0.1", fake_router.port)
    assert ask(direct, "POST", CHAT, chat("nobody")).status == 404
    models = [each["id"] for each in ask(direct, "GET", "/v1/models").json()["data"]]
    assert models == ["mac-mini-default", "qwen-macbook"]
    with pytest.raises(ValueError, match="daily or deep"):
        fake_router.play(stream("x"), mode="gpt-4o")
    with pytest.raises(TimeoutError):
        fake_router.wait_for(lambda it: it.concurrent == 9, 0.01)


def test_a_wrong_setting_says_which(fake_router: FakeRouter) -> None:
    with pytest.raises(ValueError, match=r"no setting gate\.capacitty"):
        RunningProxy(fake_router.url, {"gate.capacitty": 2})
    with pytest.raises(RuntimeError, match=r"gate\.capacity"), RunningProxy(fake_router.url, {"gate.capacity": "many"}):
        pass


def test_the_log_is_there(eidproxy: RunningProxy) -> None:
    ask(address(eidproxy), "POST", CHAT, chat())
    with RunningProxy("http://127.0.0.1:9", {"server.allowed_hosts": ["localhost", "127.0.0.1"]}) as other:
        assert other.log[0]["event"] == "started"
    assert [line["event"] for line in other.log][-1] == "stopped"
