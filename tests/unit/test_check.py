"""check: what is wrong is said by its name, with the remedy, and the exit status tells a script: 0, 1 or 78."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from eidproxy.config import FIELDS, SettingsError, load, requirement
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.script import status, stream
from tests.lab.tls import Certificate
from tests.lab.tools import ROOT, free_port

SIGNS = "visible ASCII characters, without spaces"
SECRET = "chat-secret-canary-chat-secret-canary"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """One run of `check`."""
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}
    command = [sys.executable, "-m", "eidproxy", "check", *arguments]
    return subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def secure_router(certificate: Certificate) -> Iterator[Router]:
    with Router(tls=certificate.server()) as router:
        yield router
        router.reset()  # a peer that refuses the handshake is what is looked for here


# --- TLS ----------------------------------------------------------------------------------------------------------


def test_https_to_a_plain_port_says_tls() -> None:
    """To one that waits for a request, and so is silent; and to one that answers what it does not understand."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        done = run(
            LLM_ROUTER_URL=f"https://127.0.0.1:{silent.getsockname()[1]}", EIDPROXY_ROUTER_CONNECT_TIMEOUT_SECONDS="60"
        )
        assert "fail  router: TLS: the port is open but does not speak TLS: write http://" in done.stderr
        assert time.monotonic() - began < 60, "nobody waits for connect_timeout_seconds"
        assert done.returncode == 1

    def answer(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                peer, _ = listener.accept()
                with peer:
                    if peer.recv(4096):
                        peer.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as plain:
        thread = threading.Thread(target=answer, args=[plain])
        thread.start()
        done = run(LLM_ROUTER_URL=f"https://127.0.0.1:{plain.getsockname()[1]}")
        plain.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert "does not speak TLS" in done.stderr


def test_an_untrusted_router_is_named_as_such(secure_router: Router, certificate: Certificate) -> None:
    done = run(LLM_ROUTER_URL=secure_router.url)
    assert "fail  router: TLS: the certificate is not trusted (self" in done.stderr
    assert "router.ca_file" in done.stderr
    trusted = run(LLM_ROUTER_URL=secure_router.url, EIDPROXY_ROUTER_CA_FILE=str(certificate.certificate))
    assert trusted.returncode == 0, trusted.stderr
    assert "ok    router: answers" in trusted.stdout
    assert "not in HTTP: if it speaks TLS" in run(LLM_ROUTER_URL=secure_router.url.replace("https", "http")).stderr


def test_a_router_that_is_not_there_is_no_fault_of_tls() -> None:
    done = run(LLM_ROUTER_URL=f"https://127.0.0.1:{free_port()}")
    assert "does not answer (router_ConnectError)" in done.stderr
    assert "TLS" not in done.stderr


def test_an_untrusted_edge_is_named_as_such(router: Router, secure_router: Router, tmp_path: Path) -> None:
    (tmp_path / "rules").write_text("Be kind.")
    env = {"EIDPROXY_CHAT_JWT_SECRET": SECRET, "EIDPROXY_CHAT_RULES_FILE": str(tmp_path / "rules")}
    done = run("--public-url", secure_router.url, LLM_ROUTER_URL=router.url, **env)
    assert "fail  public url: TLS: the certificate is not trusted by this machine (self" in done.stderr
    assert done.returncode == 1
    plain = run("--public-url", router.url.replace("http:", "https:"), LLM_ROUTER_URL=router.url, **env)
    assert "fail  public url: TLS: the port is open but does not speak TLS" in plain.stderr
    router.reset()


# --- The router ---------------------------------------------------------------------------------------------------


def test_an_eidproxy_as_router_fails(router: Router) -> None:
    settings: list[dict[str, Any]] = [{}, {"EIDPROXY_SERVER_API_KEY": "x"}]
    for each in settings:
        with Proxy(router, **each) as other:
            done = run(LLM_ROUTER_URL=other.url)
            assert "fail  router: is an eidproxy" in done.stderr
            assert done.returncode == 1
    assert router.posts == 0


def test_control_a_router_with_reasons_of_its_own_is_none(router: Router) -> None:
    for answer in (
        status(200, {"object": "list", "data": [{"id": "x", "owned_by": "organization_owner"}]}),
        status(503, {"error": {"message": "no", "type": "warming"}, "error_reason": "warming", "request_id": "1"}),
        status(404, []),
        stream(),
    ):
        router.script = answer
        done = run(LLM_ROUTER_URL=router.url)
        assert "ok    router: answers" in done.stdout
        assert done.returncode == 0


def test_no_key_is_sent_before_it_is_asked_for(router: Router) -> None:
    run(LLM_ROUTER_URL=router.url, EIDPROXY_ROUTER_API_KEY="router-key-canary")
    assert router.posts == 0
    assert [request.path for request in router.requests] == ["/v1/models"]
    assert b"canary" not in router.requests[0].head


def test_where_the_permitted_networks_end_is_said_in_words() -> None:
    for url, words in (
        ("http://8.8.8.8", "router.url: egress_blocked: 8.8.8.8 is not in your private networks (loopback, 10/8"),
        ("http://169.254.169.254", "169.254.169.254 is a cloud metadata service"),
        ("http://127.0.0.1:8790", "127.0.0.1 port 8790 is eidproxy itself"),
    ):
        done = run(LLM_ROUTER_URL=url)
        assert words in done.stderr
        assert done.returncode == 78
    named = run(LLM_ROUTER_URL="http://localhost:4000", EIDPROXY_ROUTER_ALLOWED_NETWORKS="10.0.0.0/8")
    assert "narrowed by router.allowed_networks" in named.stderr
    assert named.returncode == 1


def test_a_clock_that_another_one_takes_away(router: Router) -> None:
    done = run(LLM_ROUTER_URL=router.url, EIDPROXY_STREAM_DEADLINE_SECONDS="60")
    assert "note  router.read_timeout_seconds: 120 s is longer than stream.deadline_seconds (60 s)" in done.stdout
    assert "read_timeout" not in run(LLM_ROUTER_URL=router.url).stdout


def test_json(router: Router) -> None:
    done = run("--json", LLM_ROUTER_URL=router.url, EIDPROXY_SERVER_API_KEY="server-key-canary")
    told = json.loads(done.stdout)
    assert told["settings"]["server.api_key"] == {"value": "********", "origin": "environment EIDPROXY_SERVER_API_KEY"}
    assert {finding["level"] for finding in told["findings"]} == {"ok"}
    assert "canary" not in done.stdout


# --- Faults of the settings, in our words -------------------------------------------------------------------------


def faults(toml: str = "", tmp_path: Path | None = None, environment: Mapping[str, str] | None = None) -> list[str]:
    file = None
    if tmp_path is not None:
        file = tmp_path / "settings.toml"
        file.write_text(toml)
    try:
        load(file, {"LLM_ROUTER_URL": "http://127.0.0.1:4000", **(environment or {})}, {})
    except SettingsError as error:
        return error.faults
    return []


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("EIDPROXY_FOO", None),
        ("EIDPROXY_GATE_FOO", None),
        ("EIDPROXY_LOG_FORMATT", "EIDPROXY_LOG_FORMAT"),
        ("EIDPROXY_GTAE_CAPACITY", "EIDPROXY_GATE_CAPACITY"),
        ("EIDPROXY_SERVER_API_KEY_FIEL", "EIDPROXY_SERVER_API_KEY_FILE"),
        ("EIDPROXY_STREAM_DEADLINE", "EIDPROXY_STREAM_DEADLINE_SECONDS"),
        ("EIDPROXY_ROUTER_URL", "LLM_ROUTER_URL"),
    ],
)
def test_a_common_prefix_is_no_likeness(name: str, nearest: str | None) -> None:
    advice = "" if nearest is None else f"; did you mean {nearest}?"
    assert faults(environment={name: "1"}) == [f"environment: unknown name {name}{advice}"]


def test_the_misspelt_address_of_the_router() -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, {"LLM_ROUTER_ULR": "http://127.0.0.1:4000", "LLM_KEY": "x"}, {})
    assert caught.value.faults[1:] == ["environment: LLM_ROUTER_ULR is set; did you mean LLM_ROUTER_URL?"]
    assert faults(environment={"LLM_ROUTER_URLS": "x"}) == [], "it is somebody else's where ours is there"


def test_a_misspelt_section(tmp_path: Path) -> None:
    found = faults('[chta]\nrules_file = "x"\n[nonsense]\na = 1\n', tmp_path)
    assert [fault.partition(": ")[2] for fault in found] == [
        "unknown section [chta]; did you mean [chat]?",
        "unknown section [nonsense]",
    ]
    assert len(faults("[gtae]\n", tmp_path)) == 1, "an empty one too"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("EIDPROXY_GATE_CAPACITY", "two", "must be a whole number from 1 to 10000000"),
        ("EIDPROXY_STREAM_DEADLINE_SECONDS", "soon", "must be a number above 0, at most 604800"),
        ("EIDPROXY_ROUTER_ASK_USAGE", "maybe", "must be true or false"),
        ("EIDPROXY_LOG_LEVEL", "loud", "must be debug, info, warning, error or critical"),
        (
            "EIDPROXY_SERVER_API_KEY",
            "a canary",
            "must be one or more visible ASCII characters, without spaces",
        ),
    ],
)
def test_values_are_asked_for_in_our_words(name: str, value: str, words: str) -> None:
    (fault,) = faults(environment={name: value})
    assert fault.endswith(f": {words}")
    assert "canary" not in fault


def test_every_setting_can_say_what_it_must_be() -> None:
    for field in FIELDS:
        assert re.fullmatch(r"must be [^`\\]+", requirement(field.kind)), field.path
