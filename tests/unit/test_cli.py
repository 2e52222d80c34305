"""cli: the commands as a user runs them. `serve` is tested by everything else, settings by test_config."""

import os
import re
import socket
import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import segno

from eidproxy.cli import banner
from eidproxy.config import ChatSettings, RouterSettings, Settings
from eidproxy.tokens import Tokens
from tests.lab.client import ask
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.script import stream
from tests.lab.tools import free_port

SECRET = "command-line-secret-command-line"


def run(*arguments: str, timeout: float = 30, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **env}
    command = [sys.executable, "-m", "eidproxy", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)


def test_version() -> None:
    assert run("version").stdout == version("eidproxy") + "\n"


def test_help_names_every_command() -> None:
    text = run("--help").stdout
    for command in ("serve", "check", "demo", "top", "token", "version"):
        assert f"\n  {command} " in text


def test_check_shows_settings_with_origin_and_no_secret(tmp_path: Path, router: Router) -> None:
    config = tmp_path / "eidproxy.toml"
    config.write_text('[gate]\nmax_waiting = 7\n[server]\napi_key = "key-canary-51"\n')
    done = run("check", "--config", str(config), "--gate-capacity", "2", LLM_ROUTER_URL=router.url)
    assert done.returncode == 0, done.stderr
    rows = {line.split("  ")[0].strip(): line for line in done.stdout.splitlines()}
    assert rows["gate.max_waiting"].endswith(f"7  (file {config})")
    assert rows["gate.capacity"].endswith("2  (flag --gate-capacity)")
    assert rows["router.url"].endswith(f"{router.url}  (environment LLM_ROUTER_URL)")
    assert "models.max_tokens" not in rows, "it does not differ"
    everything = run("check", "--all", LLM_ROUTER_URL=router.url).stdout
    assert any(
        line.startswith("models.max_tokens ") and line.endswith("2048  (default)") for line in everything.splitlines()
    )
    assert any(line.startswith("gate.url ") and line.endswith("none  (default)") for line in everything.splitlines())
    assert "key-canary-51" not in done.stdout + done.stderr
    assert f"ok    router: would dial 127.0.0.1 port {router.port}" in done.stdout
    assert "ok    chat surface: off" in done.stdout


def test_check_judges_the_router() -> None:
    done = run("check", LLM_ROUTER_URL="http://localhost:4000", EIDPROXY_ROUTER_ALLOWED_NETWORKS="10.0.0.0/8")
    assert done.returncode == 1
    assert "egress_blocked: 127.0.0.1 is not in your private networks" in done.stderr.replace("::1", "127.0.0.1")
    assert "cannot be resolved" in run("check", LLM_ROUTER_URL="http://name.invalid:4000").stderr
    assert run("check").returncode == 78


def test_check_tells_of_the_chat_surface(tmp_path: Path, router: Router) -> None:
    rules = tmp_path / "rules.txt"
    env: dict[str, Any] = {
        "LLM_ROUTER_URL": router.url,
        "EIDPROXY_CHAT_JWT_SECRET": SECRET,
        "EIDPROXY_CHAT_RULES_FILE": str(rules),
    }
    done = run("check", **env)
    assert "fail  chat.rules_file: cannot be read" in done.stderr
    assert done.returncode == 1
    rules.write_text("Be kind.")
    done = run("check", **env)
    assert "ok    chat surface: on" in done.stdout
    assert done.returncode == 0, done.stderr


def test_check_asks_the_router_whether_it_answers(router: Router) -> None:
    assert "ok    router: answers" in run("check", LLM_ROUTER_URL=router.url).stdout
    port = free_port()
    done = run("check", LLM_ROUTER_URL=f"http://127.0.0.1:{port}")
    assert done.returncode == 1, "a script must be able to see it"
    assert f"fail  router: 127.0.0.1 port {port} does not answer (router_ConnectError)" in done.stderr


class Holding(BaseHTTPRequestHandler):
    """An edge as it should not be: it shows every path, and holds an answer back until it is whole."""

    backend = ""

    def do_GET(self) -> None:
        self._pass(None)

    def do_POST(self) -> None:
        self._pass(self.rfile.read(int(self.headers["Content-Length"])))

    def _pass(self, body: bytes | None) -> None:
        kept = {name: self.headers[name] for name in ("Authorization", "Content-Type") if name in self.headers}
        request = urllib.request.Request(self.backend + self.path, body, kept)
        with urllib.request.urlopen(request, timeout=30) as answer:
            whole = answer.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.wfile.write(whole)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_check_tries_the_stream_through_an_edge(router: Router, tmp_path: Path) -> None:
    rules = tmp_path / "rules.txt"
    rules.write_text("Be kind.")
    router.script = stream(["a"] * 30, interval=0.02)
    env: dict[str, Any] = {"EIDPROXY_CHAT_JWT_SECRET": SECRET, "EIDPROXY_CHAT_RULES_FILE": str(rules)}
    with Proxy(router, **env) as proxy:
        direct = run("check", "--public-url", proxy.url, LLM_ROUTER_URL=router.url, **env)
        assert "ok    public url: the stream arrives as it is sent" in direct.stdout
        assert "fail  public url: shows /v1/models, /metrics, /status" in direct.stderr, "nobody stands in front"
        Holding.backend = proxy.url
        with ThreadingHTTPServer(("127.0.0.1", 0), Holding) as edge:
            thread = threading.Thread(target=edge.serve_forever)
            thread.start()
            url = f"http://127.0.0.1:{edge.server_address[1]}"
            held = run("check", "--public-url", url, LLM_ROUTER_URL=router.url, **env)
            edge.shutdown()
            thread.join()
        assert "fail  public url: the stream is buffered" in held.stderr
        assert held.returncode == 1
    gone = run("check", "--public-url", url, LLM_ROUTER_URL=router.url, **env)
    assert "fail  public url: ConnectError" in gone.stderr


def test_a_person_at_a_terminal_is_told_what_runs(router: Router) -> None:
    leader, follower = os.openpty()
    environment = {"PATH": os.environ["PATH"], "LLM_ROUTER_URL": router.url, "EIDPROXY_SERVER_PORT": str(free_port())}
    command = [sys.executable, "-m", "eidproxy", "serve"]
    with subprocess.Popen(command, stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        try:
            text = b""
            while b"started" not in text:
                text += os.read(leader, 65536)
        finally:
            process.terminate()
    os.close(leader)
    shown = text.decode().splitlines()
    assert 6 <= next(at for at, line in enumerate(shown) if "started" in line) <= 8
    for word in (router.url, environment["EIDPROXY_SERVER_PORT"], "mac-mini-default", "1 at once, 64 waiting"):
        assert word in text.decode()


def test_a_person_is_told_that_the_rules_are_missing(tmp_path: Path) -> None:
    router, chat = (
        RouterSettings(url="http://127.0.0.1:4000"),
        ChatSettings(jwt_secret=SECRET, rules_file=str(tmp_path / "no")),
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        text = banner(Settings(router=router, chat=chat), [listener])
    assert "on, at /chat, but every question is refused: chat.rules_file cannot be read" in text


def test_a_file_without_certificates_is_said(tmp_path: Path) -> None:
    empty = tmp_path / "ca.pem"
    for content in (None, "", "not a certificate"):
        if content is not None:
            empty.write_text(content)
        done = run("check", LLM_ROUTER_URL="https://127.0.0.1:4000", EIDPROXY_ROUTER_CA_FILE=str(empty))
        assert done.returncode == 78
        assert done.stderr.startswith("eidproxy: router.ca_file: ")


def test_a_port_in_use_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run("serve", "--server-port", port, LLM_ROUTER_URL="http://127.0.0.1:4000")
    assert done.returncode == 1
    assert done.stderr == f"eidproxy: cannot listen on 127.0.0.1:{port}: Address already in use\n"


@pytest.mark.parametrize(("arguments", "env"), [(["--workers", "2"], {}), ([], {"WEB_CONCURRENCY": "2"})])
def test_more_than_one_worker_is_refused(arguments: list[str], env: dict[str, Any]) -> None:
    done = run("serve", *arguments, LLM_ROUTER_URL="http://127.0.0.1:4000", **env)
    assert done.returncode == 78
    assert "gate.url" in done.stderr


def test_a_token_opens_the_chat_surface(router: Router, tmp_path: Path) -> None:
    """It needs the secret alone: no router, no rules."""
    rules = tmp_path / "rules.txt"
    rules.write_text("Be kind.")
    done = run("token", "--sub", "mina", "--ttl", "15m", EIDPROXY_CHAT_JWT_SECRET=SECRET)
    assert done.stderr == ""
    token = done.stdout.strip()
    assert Tokens(SECRET, None, None, 0).check(token.encode()) == "mina"
    with Proxy(router, EIDPROXY_CHAT_JWT_SECRET=SECRET, EIDPROXY_CHAT_RULES_FILE=rules) as proxy:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        body = {"mode": "daily", "messages": [{"role": "user", "content": "x"}]}
        assert ask(proxy, "POST", "/api/eid/chat", body, headers).status == 200


def test_a_link_logs_in_and_is_shown_as_a_code() -> None:
    arguments = ("token", "--sub", "엄마", "--ttl", "90d", "--url", "https://chat.example/", "--qr")
    done = run(*arguments, EIDPROXY_CHAT_JWT_SECRET=SECRET)
    link, _, code = done.stdout.partition("\n")
    assert link.startswith("https://chat.example/chat#token=")
    assert Tokens(SECRET, None, None, 0).check(link.partition("=")[2].encode()) == "엄마"
    # Each line of half blocks is two rows of the code; a block is light.
    rows = []
    for line in code.rstrip("\n").splitlines():
        rows += [[cell in "\N{FULL BLOCK}\N{UPPER HALF BLOCK}" for cell in line]]
        rows += [[cell in "\N{FULL BLOCK}\N{LOWER HALF BLOCK}" for cell in line]]
    quiet = 2
    dark = [[not light for light in row[quiet:-quiet]] for row in rows[quiet : quiet + len(rows[0]) - 2 * quiet]]
    expected = segno.make(link, micro=False, error="l", boost_error=False).matrix
    assert dark == [[bool(module) for module in row] for row in expected]
    assert max(map(len, code.splitlines())) <= 80
    assert re.fullmatch(
        r"Valid until \d{4}-\d\d-\d\d \d\d:\d\d\. Anyone who opens this link logs in as 엄마\.\n", done.stderr
    )


def test_token_shows_only_its_own_options() -> None:
    text = run("token", "--help").stdout
    assert set(re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE)) == {"--sub", "--ttl", "--url", "--qr", "--config"}


def test_a_token_needs_a_secret(tmp_path: Path) -> None:
    done = run("token", "--sub", "x")
    assert done.returncode == 78
    assert "chat.jwt_secret" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--ttl", ttl] for ttl in ("soon", "-1h", "1y", "", "0", "999999w")),
        *(
            ["--url", url]
            for url in ("chat.example", "https://", "https://a@b", "https://a/?b", "https://a/#b", "ftp://a")
        ),
        ["--qr"],
        ["--sub", "a\nb"],
    ],
    ids=" ".join,
)
def test_a_token_for_nothing_is_refused(arguments: list[str]) -> None:
    done = run("token", "--sub", "x", *arguments, EIDPROXY_CHAT_JWT_SECRET=SECRET)
    assert (done.returncode, done.stdout) == (2, "")
    assert arguments[0] in done.stderr
