"""Settings from outside (contract, 7): each of them by file, environment, flag and, for a secret, its three forms."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import certifi
import pytest

from tests.lab.callers import check_refusal
from tests.lab.client import CHAT, ask, chat
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.tools import ROOT

URL = "http://127.0.0.1:4000"
"""Nobody listens there: `check` exits with 1 where the settings are right, with 78 where they are not."""

SETTINGS: dict[str, tuple[str, str, str]] = {
    # path: environment name, another value as a word, the same in TOML
    "router.url": ("LLM_ROUTER_URL", "http://10.1.2.3:4001", '"http://10.1.2.3:4001"'),
    "router.allowed_networks": ("EIDPROXY_ROUTER_ALLOWED_NETWORKS", "10.0.0.0/8", '["10.0.0.0/8"]'),
    "router.ca_file": ("EIDPROXY_ROUTER_CA_FILE", certifi.where(), f'"{certifi.where()}"'),
    "router.connect_timeout_seconds": ("EIDPROXY_ROUTER_CONNECT_TIMEOUT_SECONDS", "1.5", "1.5"),
    "router.read_timeout_seconds": ("EIDPROXY_ROUTER_READ_TIMEOUT_SECONDS", "1.5", "1.5"),
    "router.write_timeout_seconds": ("EIDPROXY_ROUTER_WRITE_TIMEOUT_SECONDS", "1.5", "1.5"),
    "router.first_event_seconds": ("EIDPROXY_ROUTER_FIRST_EVENT_SECONDS", "1.5", "1.5"),
    "router.first_event_seconds_per_kib": ("EIDPROXY_ROUTER_FIRST_EVENT_SECONDS_PER_KIB", "0.5", "0.5"),
    "router.wedge_after": ("EIDPROXY_ROUTER_WEDGE_AFTER", "0", "0"),
    "router.wedge_retry_seconds": ("EIDPROXY_ROUTER_WEDGE_RETRY_SECONDS", "1.5", "1.5"),
    "router.ask_usage": ("EIDPROXY_ROUTER_ASK_USAGE", "true", "true"),
    "router.keep_idle_seconds": ("EIDPROXY_ROUTER_KEEP_IDLE_SECONDS", "2.5", "2.5"),
    "models.daily.alias": ("EIDPROXY_MODELS_DAILY_ALIAS", "another", '"another"'),
    "models.deep.alias": ("EIDPROXY_MODELS_DEEP_ALIAS", "another", '"another"'),
    "models.max_tokens": ("EIDPROXY_MODELS_MAX_TOKENS", "77", "77"),
    "models.temperature": ("EIDPROXY_MODELS_TEMPERATURE", "1.5", "1.5"),
    "models.max_prompt_bytes": ("EIDPROXY_MODELS_MAX_PROMPT_BYTES", "77", "77"),
    "models.daily.max_tokens": ("EIDPROXY_MODELS_DAILY_MAX_TOKENS", "77", "77"),
    "models.daily.temperature": ("EIDPROXY_MODELS_DAILY_TEMPERATURE", "1.5", "1.5"),
    "models.deep.max_tokens": ("EIDPROXY_MODELS_DEEP_MAX_TOKENS", "77", "77"),
    "models.deep.temperature": ("EIDPROXY_MODELS_DEEP_TEMPERATURE", "1.5", "1.5"),
    "gate.capacity": ("EIDPROXY_GATE_CAPACITY", "3", "3"),
    "gate.max_waiting": ("EIDPROXY_GATE_MAX_WAITING", "3", "3"),
    "gate.wait_timeout_seconds": ("EIDPROXY_GATE_WAIT_TIMEOUT_SECONDS", "1.5", "1.5"),
    "gate.aging_seconds": ("EIDPROXY_GATE_AGING_SECONDS", "0.0", "0.0"),
    "gate.after_leave": ("EIDPROXY_GATE_AFTER_LEAVE", "first_event", '"first_event"'),
    "gate.settle_seconds": ("EIDPROXY_GATE_SETTLE_SECONDS", "1.5", "1.5"),
    "stream.deadline_seconds": ("EIDPROXY_STREAM_DEADLINE_SECONDS", "1.5", "1.5"),
    "stream.keepalive_seconds": ("EIDPROXY_STREAM_KEEPALIVE_SECONDS", "1.5", "1.5"),
    "stream.buffer_bytes": ("EIDPROXY_STREAM_BUFFER_BYTES", "67108864", "67108864"),
    "stream.accelerator": ("EIDPROXY_ACCELERATOR", "off", '"off"'),
    "server.host": ("EIDPROXY_SERVER_HOST", "::1", '"::1"'),
    "server.port": ("EIDPROXY_SERVER_PORT", "8888", "8888"),
    "server.uds": ("EIDPROXY_SERVER_UDS", "/tmp/x", '"/tmp/x"'),
    "server.allowed_hosts": ("EIDPROXY_SERVER_ALLOWED_HOSTS", "a.example, b.example", '["a.example", "b.example"]'),
    "server.max_body_bytes": ("EIDPROXY_SERVER_MAX_BODY_BYTES", "77", "77"),
    "server.drain_seconds": ("EIDPROXY_SERVER_DRAIN_SECONDS", "1.5", "1.5"),
    "log.level": ("EIDPROXY_LOG_LEVEL", "debug", '"debug"'),
    "log.format": ("EIDPROXY_LOG_FORMAT", "console", '"console"'),
    "chat.jwt_audience": ("EIDPROXY_CHAT_JWT_AUDIENCE", "a", '"a"'),
    "chat.jwt_issuer": ("EIDPROXY_CHAT_JWT_ISSUER", "a", '"a"'),
    "chat.jwt_leeway_seconds": ("EIDPROXY_CHAT_JWT_LEEWAY_SECONDS", "1.5", "1.5"),
    "chat.persona_file": ("EIDPROXY_CHAT_PERSONA_FILE", "/tmp/p", '"/tmp/p"'),
    "chat.max_message_chars": ("EIDPROXY_CHAT_MAX_MESSAGE_CHARS", "77", "77"),
    "chat.max_messages": ("EIDPROXY_CHAT_MAX_MESSAGES", "77", "77"),
    "chat.max_total_chars": ("EIDPROXY_CHAT_MAX_TOTAL_CHARS", "77", "77"),
}

DEFAULTS = {
    "router.connect_timeout_seconds": "5.0",
    "router.read_timeout_seconds": "120.0",
    "router.write_timeout_seconds": "30.0",
    "router.first_event_seconds": "90.0",
    "router.first_event_seconds_per_kib": "4.0",
    "router.wedge_after": "2",
    "router.wedge_retry_seconds": "30.0",
    "router.ask_usage": "false",
    "router.keep_idle_seconds": "1.0",
    "models.daily.alias": "mac-mini-default",
    "models.deep.alias": "qwen-macbook",
    "models.max_tokens": "2048",
    "models.temperature": "0.4",
    "models.max_prompt_bytes": "0",
    "models.daily.max_tokens": "none",
    "models.deep.temperature": "none",
    "gate.capacity": "1",
    "gate.max_waiting": "64",
    "gate.wait_timeout_seconds": "300.0",
    "gate.aging_seconds": "60.0",
    "gate.after_leave": "release",
    "gate.settle_seconds": "20.0",
    "stream.deadline_seconds": "300.0",
    "stream.keepalive_seconds": "15.0",
    "stream.buffer_bytes": "1048576",
    "stream.accelerator": "on",
    "server.host": "127.0.0.1",
    "server.port": "8790",
    "server.max_body_bytes": "1048576",
    "server.drain_seconds": "60.0",
    "log.level": "info",
    "chat.jwt_leeway_seconds": "0.0",
    "chat.max_message_chars": "8000",
    "chat.max_messages": "40",
    "chat.max_total_chars": "32000",
}

SECRETS = {
    "router.api_key": "EIDPROXY_ROUTER_API_KEY",
    "server.api_key": "EIDPROXY_SERVER_API_KEY",
    "server.background_api_key": "EIDPROXY_SERVER_BACKGROUND_API_KEY",
    "chat.jwt_secret": "EIDPROXY_CHAT_JWT_SECRET",
}
SECRET = "secret-canary-0123456789-0123456789-xyz"


def run(*arguments: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """One command to its end, with nothing but these variables."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    given = {name: word for name, word in {"LLM_ROUTER_URL": URL, **environment}.items() if word is not None}
    return subprocess.run(
        [sys.executable, "-m", "eidproxy", *arguments],
        env={**kept, "PYTHONPATH": str(ROOT), **given},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def shown(output: str) -> dict[str, tuple[str, str]]:
    """The table of `check`: path to value and origin."""
    found = {}
    for line in output.splitlines():
        path, _, rest = line.partition(" ")
        if "." in path and rest.endswith(")"):
            value, _, origin = rest.strip().rpartition("(")
            found[path] = (value.strip(), origin[:-1])
    return found


def test_defaults() -> None:
    done = run("check", "--all")
    assert done.returncode == 1, done.stderr
    table = shown(done.stdout)
    assert {path: table[path][0] for path in DEFAULTS} == DEFAULTS
    assert {origin for path, (_, origin) in table.items() if path != "router.url"} == {"default"}
    assert table["router.url"] == (URL, "environment LLM_ROUTER_URL")
    assert set(SETTINGS) | set(SECRETS) <= set(table)
    assert "would dial 127.0.0.1 port 4000" in done.stdout


@pytest.mark.parametrize("way", ["file", "environment", "flag"])
def test_every_setting_by(way: str, tmp_path: Path) -> None:
    """All at once: each value arrives, and `check` says where it came from."""
    file = tmp_path / "settings.toml"
    arguments: list[str] = ["check", "--all"]
    environment: dict[str, str | None] = {"LLM_ROUTER_URL": None}
    for path, (name, word, literal) in SETTINGS.items():
        if way == "file":
            with file.open("a") as out:
                out.write(f"{path} = {literal}\n")
        elif way == "environment":
            environment[name] = word
        else:
            arguments += ["--" + path.replace(".", "-").replace("_", "-"), word]
    if way == "file":
        arguments += ["--config", str(file)]
    done = run(*arguments, **environment)
    assert done.returncode in (0, 1), done.stderr + done.stdout  # whoever may be at that address
    table = shown(done.stdout)
    for path, (_, word, _) in SETTINGS.items():
        value, origin = table[path]
        assert value == word, path
        assert origin.startswith(way), (path, origin)


def test_order_of_precedence(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[gate]\ncapacity = 2\nmax_waiting = 2\naging_seconds = 2\n")
    done = run(
        *("check", "--config", str(file), "--gate-aging-seconds", "4"),
        EIDPROXY_GATE_MAX_WAITING="3",
        EIDPROXY_GATE_AGING_SECONDS="3",
    )
    table = shown(done.stdout)
    assert (table["gate.capacity"][0], table["gate.max_waiting"][0], table["gate.aging_seconds"][0]) == (
        "2",
        "3",
        "4.0",
    )


@pytest.mark.parametrize("path", SECRETS)
def test_secrets(path: str, tmp_path: Path) -> None:
    """NAME, NAME_FILE or a credential; never printed; two at once refused; no flag."""
    name = SECRETS[path]
    extra: dict[str, str | None] = {}
    if path == "chat.jwt_secret":
        rules = tmp_path / "rules"
        rules.write_text("rules")
        extra["EIDPROXY_CHAT_RULES_FILE"] = str(rules)
    if path == "server.background_api_key":
        extra["EIDPROXY_SERVER_API_KEY"] = "another-key"
    (tmp_path / "secret").write_text(SECRET + "\n")
    (tmp_path / name.lower()).write_text(SECRET)
    ways = {
        name: {name: SECRET},
        f"{name}_FILE": {f"{name}_FILE": str(tmp_path / "secret")},
        "CREDENTIALS_DIRECTORY": {"CREDENTIALS_DIRECTORY": str(tmp_path)},
    }
    for way, environment in ways.items():
        done = run("check", **environment, **extra)
        assert done.returncode == 1, done.stderr
        assert shown(done.stdout)[path] == ("********", f"environment {way}")
        assert SECRET not in done.stdout + done.stderr
    for one, other in (
        (name, f"{name}_FILE"),
        (name, "CREDENTIALS_DIRECTORY"),
        (f"{name}_FILE", "CREDENTIALS_DIRECTORY"),
    ):
        done = run("check", **ways[one], **ways[other], **extra)
        assert done.returncode == 78
        assert f"{path} is given more than once" in done.stderr
        assert SECRET not in done.stdout + done.stderr
    done = run("check", **{f"{name}_FILE": str(tmp_path / "missing")}, **extra)
    assert done.returncode == 78
    assert "cannot be read" in done.stderr
    flag = "--" + path.replace(".", "-").replace("_", "-")
    done = run("check", flag, SECRET)
    assert done.returncode == 2
    assert "No such option" in done.stderr


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("EIDPROXY_GATE_CAPACTIY", "EIDPROXY_GATE_CAPACITY"),
        ("EIDPROXY_STREAM_DEADLINE", "EIDPROXY_STREAM_DEADLINE_SECONDS"),
        ("EIDPROXY_SERVER_API_KEY_FIEL", "EIDPROXY_SERVER_API_KEY_FILE"),
    ],
)
def test_unknown_names(name: str, nearest: str) -> None:
    done = run("serve", **{name: SECRET})
    assert done.returncode == 78
    assert f"unknown name {name}; did you mean {nearest}" in done.stderr
    assert SECRET not in done.stderr


def test_unknown_keys(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[gate]\ncapacit = 2\n[stream.deadline]\nseconds = 3\n")
    done = run("check", "--config", str(file))
    assert done.returncode == 78
    assert "unknown key gate.capacit; did you mean gate.capacity?" in done.stderr
    assert "unknown key stream.deadline.seconds; did you mean stream.deadline_seconds?" in done.stderr


def test_all_faults_at_once(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("nonsense = 1\n[gate]\ncapacity = 0\n[server]\nport = 99999\n")
    done = run(
        *("check", "--config", str(file), "--models-temperature", "3"),
        LLM_ROUTER_URL="http://example.com:80/v2",
        EIDPROXY_STREAM_DEADLINE_SECONDS="soon",
        EIDPROXY_NOPE="1",
        EIDPROXY_SERVER_HOST="0.0.0.0",
        EIDPROXY_CHAT_RULES_FILE="/tmp/rules",
        EIDPROXY_LOG_LEVEL="loud",
        WEB_CONCURRENCY="2",
    )
    assert done.returncode == 78
    for word in (
        *("nonsense", "gate.capacity", "server.port", "models.temperature", "router.url", "stream.deadline_seconds"),
        *("EIDPROXY_NOPE", "server.host", "chat.jwt_secret", "log.level", "WEB_CONCURRENCY"),
    ):
        assert word in done.stderr, word
    assert "Traceback" not in done.stderr


PARAMS = """
[models.daily]
max_tokens = 100
[models.daily.params]
top_k = 20
min_p = 0.05
chat_template_kwargs = { enable_thinking = false, nested = [1, 2.5, "x"] }
[models.deep]
temperature = 1
"""


def test_each_mode_has_its_own_settings(router: Router, tmp_path: Path) -> None:
    """What is set for one mode reaches the router in its requests and in no other's, as it stands."""
    file = tmp_path / "settings.toml"
    file.write_text(PARAMS)
    own = {"top_k": 20, "min_p": 0.05, "chat_template_kwargs": {"enable_thinking": False, "nested": [1, 2.5, "x"]}}
    with Proxy(router, arguments=["--config", str(file)], EIDPROXY_MODELS_DEEP_MAX_TOKENS="200") as proxy:
        assert ask(proxy, "POST", CHAT, chat("daily")).status == 200
        assert ask(proxy, "POST", CHAT, chat("deep")).status == 200
    daily, deep = (request.json for request in router.requests)
    assert (daily["max_tokens"], daily["temperature"]) == (100, 0.4)
    assert (deep["max_tokens"], deep["temperature"]) == (200, 1)
    assert {name: daily[name] for name in own} == own
    assert daily.keys() - own.keys() == deep.keys() == {"model", "messages", "stream", "max_tokens", "temperature"}
    table = shown(run("check", "--all", "--config", str(file)).stdout)
    assert json.loads(table["models.daily.params"][0]) == own
    assert table["models.deep.params"] == ("none", "default")


def test_settings_take_effect(router: Router) -> None:
    with Proxy(
        router,
        arguments=["--models-max-tokens", "9", "--models-temperature", "1"],
        EIDPROXY_MODELS_DAILY_ALIAS="alias-one",
        EIDPROXY_MODELS_DEEP_ALIAS="alias-two",
        EIDPROXY_SERVER_ALLOWED_HOSTS="my.example, localhost",
        EIDPROXY_SERVER_MAX_BODY_BYTES=400,
        canaries=["alias-one", "alias-two"],
    ) as proxy:
        for model, alias in (("daily", "alias-one"), ("deep", "alias-two")):
            assert ask(proxy, "POST", CHAT, chat(model), {"Host": "MY.example:1"}).status == 200
            request = router.requests[-1]
            assert (request.model, request.json["max_tokens"], request.json["temperature"]) == (alias, 9, 1)
        check_refusal(ask(proxy, "POST", CHAT, chat(), {"Host": "127.0.0.1"}), 421, "host_not_allowed")
        check_refusal(ask(proxy, "POST", CHAT, chat(say="x" * 400)), 413, "body_too_large")


def test_ipv6(router: Router) -> None:
    with Router("::1") as six, Proxy(six, EIDPROXY_SERVER_HOST="::1") as proxy:
        assert ask(proxy, "POST", CHAT, chat(), {"Host": f"[::1]:{proxy.port}"}).told().done
        assert six.requests[0].header("Host") == f"[::1]:{six.port}"


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("ROUTER_FIRST_EVENT_SECONDS", "0"),
        ("ROUTER_FIRST_EVENT_SECONDS_PER_KIB", "-1"),
        ("ROUTER_FIRST_EVENT_SECONDS_PER_KIB", "nan"),
        ("ROUTER_WEDGE_AFTER", "-1"),
        ("ROUTER_WEDGE_AFTER", "1.5"),
        ("ROUTER_WEDGE_RETRY_SECONDS", "0"),
        ("ROUTER_WEDGE_RETRY_SECONDS", "inf"),
        ("GATE_AFTER_LEAVE", "Settle"),
        ("GATE_SETTLE_SECONDS", "0"),
    ],
)
def test_bounds_of_silence(name: str, word: str) -> None:
    done = run("check", **{f"EIDPROXY_{name}": word})
    assert done.returncode == 78
    assert f"environment EIDPROXY_{name}: " in done.stderr


def test_version() -> None:
    done = run("version", LLM_ROUTER_URL=None)
    assert done.returncode == 0
    assert done.stdout.strip().count(".") == 2


def test_help_prints_every_flag() -> None:
    done = run("serve", "--help")
    text = " ".join(done.stdout.split())
    for path, (name, _, _) in SETTINGS.items():
        flag = path.replace(".", "-").replace("_", "-")
        assert f"--{flag}" in done.stdout
        # The rule for the names in the environment is told once, with those that do not follow it.
        assert name == "EIDPROXY_" + flag.replace("-", "_").upper() or f"{name} for --{flag}" in text
    for path in SECRETS:
        assert "--" + path.replace(".", "-").replace("_", "-") not in done.stdout


def test_control_good_settings_pass(tmp_path: Path) -> None:
    """Control: `check` refuses faults, not settings."""
    file = tmp_path / "settings.toml"
    file.write_text("[gate]\ncapacity = 1\n")
    arguments: Sequence[str] = ("check", "--config", str(file))
    assert run(*arguments).returncode == 1
    assert run("check", "--config", str(tmp_path / "missing")).returncode == 78
    file.write_text("[gate\n")
    assert run(*arguments).returncode == 78
