"""Where eidproxy connects to (contract, P2): to the router and nowhere else, whatever names and variables say."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest
import uvloop

from eidproxy.egress import EgressBlocked, EgressPolicy
from eidproxy.router import upstream
from eidproxy.router.resolver import Resolver
from eidproxy.router.transport import TcpTransport
from eidproxy.router.upstream import Upstream
from tests.lab.callers import at_rest, check_refusal
from tests.lab.client import CHAT, RawClient, ask, chat, request_bytes
from tests.lab.cost import Beside
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.script import status, stream
from tests.lab.tools import ROOT, need, until, without
from tests.lab.tools import size as amount

# --- a resolver that lies, in this process -----------------------------------------------------------------------

FORBIDDEN = [
    *(
        "8.8.8.8",
        "169.254.169.254",
        "100.100.100.200",
        "0.0.0.0",
        "192.0.0.192",
        "168.63.129.16",
        "224.0.0.1",
        "1.1.1.1",
    ),
    *("::", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "fd00:ec2::254", "fe80::1", "2001:db8::1", "::2"),
    *("fd20:ce::254", "fd00:42::42", "2001:0:7f00:1::", "172.32.0.1", "198.18.0.1", "240.0.0.1", "255.255.255.255"),
    *("127.0.0.1 ", "0x7f000001", "2130706433", "127.1", "fe80::1%eth0", "", "localhost"),
]
GOOD = "127.0.0.1"

Schedule = Callable[[int, random.Random], list[str]]

SCHEDULES: dict[str, Schedule] = {
    "rebinding at once": lambda n, _: [GOOD] if n == 0 else ["8.8.8.8"],
    "rebinding in turn": lambda n, _: [GOOD] if n % 2 else ["169.254.169.254"],
    "bad behind good": lambda _, choose: [GOOD, choose.choice(FORBIDDEN)],
    "bad before good": lambda _, choose: [choose.choice(FORBIDDEN), GOOD],
    "bad in the middle": lambda _, choose: [GOOD, choose.choice(FORBIDDEN), "127.0.0.2"],
    "only bad": lambda _, choose: [choose.choice(FORBIDDEN)],
    "many good, one bad": lambda _, choose: [f"127.0.0.{each}" for each in range(1, 40)] + [choose.choice(FORBIDDEN)],
    "none": lambda _n, _c: [],
    "mixed families": lambda _, choose: [
        GOOD,
        choose.choice(["::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]),
    ],
    "random": lambda _, choose: [choose.choice([GOOD, *FORBIDDEN]) for _ in range(choose.randint(1, 4))],
}


def run_schedule(
    schedule: Schedule, count: int, seed: int, port: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, int, list[str]]:
    """So many connects with such answers: how many were made, how many refused, and every address dialled."""
    choose = random.Random(seed)
    dialled: list[str] = []
    made = refused = 0

    async def run() -> None:
        nonlocal made, refused
        numbers = itertools.count()
        answers: list[str] = []

        def lookup(_host: str, _port: int) -> list[str]:
            answers[:] = schedule(next(numbers), choose)
            return list(answers)

        proxy = Upstream("router.test", port, EgressPolicy(), connect_timeout_seconds=2, resolver=Resolver(lookup))

        class Watched(TcpTransport):
            """A transport, with an eye on what is dialled."""

            def __init__(self, loop: Any, protocol: Any, address: str, port: int) -> None:
                dialled.append(address)
                super().__init__(loop, protocol, address, port)

        monkeypatch.setattr(upstream, "TcpTransport", Watched)
        for _ in range(count):
            try:
                exchange = await proxy.connect(proxy.dial())
            except (EgressBlocked, httpx.ConnectError):
                refused += 1
                assert answers != [GOOD]
            else:
                made += 1
                exchange.abort()
                assert answers
                assert set(answers) == {GOOD}, answers

    uvloop.run(run())
    return made, refused, dialled


@pytest.mark.parametrize("name", SCHEDULES)
def test_lying_resolver(router: Router, name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    count = amount(100, 1000)
    made, refused, dialled = run_schedule(SCHEDULES[name], count, seed, router.port, monkeypatch)
    print(f"EIDPROXY {name}: {made} made, {refused} refused, dialled {len(dialled)}")
    assert made + refused == count
    assert set(dialled) <= {GOOD}
    assert refused > 0
    until(lambda: router.connections == made)
    router.wait_for(lambda: router.open_sockets == 0)


def test_control_a_guard_that_permits_all_is_noticed(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: with no decision the same run dials what it must not."""
    from eidproxy import egress

    def permit(self: EgressPolicy, addresses: Sequence[str]) -> list[egress.Decision]:
        return [egress.Decision(egress.Verdict.PERMITTED, address) for address in addresses]  # type: ignore[arg-type]

    monkeypatch.setattr(EgressPolicy, "decide_all", permit)
    with pytest.raises(AssertionError):
        run_schedule(lambda _n, _c: [GOOD, "127.0.0.2"], 3, 1, router.port, monkeypatch)


# --- the environment ---------------------------------------------------------------------------------------------


def test_environment_has_no_effect(router: Router, tmp_path: Path) -> None:
    """Proxy variables, netrc, resolver variables and certificates of the environment: nobody is asked."""
    with Router() as trap:
        netrc = tmp_path / ".netrc"
        netrc.write_text("machine 127.0.0.1 login hostile password hostile\n")
        aliases = tmp_path / "aliases"
        aliases.write_text(f"localhost {trap.host}\n")
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "WSS_PROXY")
        settings: dict[str, Any] = dict.fromkeys(names, trap.url)
        with Proxy(
            router,
            NO_PROXY="",
            NETRC=netrc,
            HOME=tmp_path,
            HOSTALIASES=aliases,
            RES_OPTIONS="ndots:15 use-vc",
            LOCALDOMAIN="example.com",
            SSLKEYLOGFILE=tmp_path / "keys",
            REQUESTS_CA_BUNDLE="/nonexistent",
            **settings,
        ) as proxy:
            for model in ("daily", "deep"):
                assert ask(proxy, "POST", CHAT, chat(model)).told().done
            assert proxy.get("/readyz").status == 200
            assert trap.connections == 0
            for request in router.requests:
                assert request.header("Authorization") is None
                assert request.path == "/v1/chat/completions"
            # A redirect of the router leads nowhere.
            for code in (301, 302, 303, 307, 308):
                router.enqueue(status(code, b"", [("Location", f"{trap.url}/v1/chat/completions")]))
                check_refusal(ask(proxy, "POST", CHAT, chat()), 500, "egress_blocked")
            assert trap.connections == 0
        assert not (tmp_path / "keys").exists()


def test_control_the_usual_client_obeys_the_environment(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: httpx as it comes does ask the proxy of the environment, and a redirect can lead it to the trap."""
    with Router() as trap:
        router.script = status(302, b"", [("Location", f"{trap.url}/")])
        httpx.get(router.url, trust_env=False, follow_redirects=True)
        assert trap.connections == 1
        monkeypatch.setenv("HTTP_PROXY", trap.url)
        with contextlib.suppress(httpx.TransportError):
            httpx.get(router.url)
        assert trap.connections == 2
        trap.reset()  # what a proxy is asked is not what a router is asked


def test_words_in_a_request_lead_nowhere(router: Router) -> None:
    """Addresses in every place a caller can write one."""
    with Router() as trap, Proxy(router) as proxy:
        for headers in (
            {"X-Forwarded-Host": f"127.0.0.1:{trap.port}", "Forwarded": f"host=127.0.0.1:{trap.port}"},
            {"X-Api-Base": trap.url, "X-Router-Url": trap.url, "Referer": trap.url, "Origin": trap.url},
        ):
            assert ask(proxy, "POST", CHAT, chat(say=trap.url, user=trap.url), headers).told().done
        for name in ("api_base", "base_url", "url", "router_url", "proxy"):
            check_refusal(ask(proxy, "POST", CHAT, {**chat(), name: trap.url}), 400, "unsupported_field", name)
        assert trap.connections == 0


# --- a name server of our own ------------------------------------------------------------------------------------


class NameServer:
    """A name server on UDP: answers A questions with what a test says, or is silent."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((address, 53))
        self.answers: list[str] | None = None
        self.questions = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        while True:
            try:
                data, peer = self.sock.recvfrom(2048)
            except OSError:
                return
            self.questions += 1
            if self.answers is None or len(data) < 17:
                continue
            end = data.index(b"\0", 12) + 5
            kind = struct.unpack_from("!H", data, end - 4)[0]
            records = [each for each in self.answers if kind == 1]
            head = data[:2] + struct.pack("!HHHHH", 0x8180, 1, len(records), 0, 0) + data[12:end]
            body = b"".join(b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4) + socket.inet_aton(each) for each in records)
            self.sock.sendto(head + body, peer)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()


@pytest.fixture
def names(tmp_path: Path) -> Iterator[tuple[NameServer, list[str]]]:
    """A name server, and the words before a command that make it the only one the command knows."""
    if os.geteuid() != 0:
        without("needs root for a mount namespace and port 53")
    [unshare] = need("unshare")
    address = f"127.{random.randrange(1, 255)}.{random.randrange(256)}.53"
    (tmp_path / "resolv.conf").write_text(f"nameserver {address}\noptions timeout:2 attempts:1\n")
    (tmp_path / "nsswitch.conf").write_text("hosts: files dns\n")
    script = "".join(f"mount --bind {tmp_path}/{name} /etc/{name} && " for name in ("resolv.conf", "nsswitch.conf"))
    if not Path("/etc/nsswitch.conf").exists() or subprocess.run([unshare, "-m", "true"], check=False).returncode:
        without("no mount namespaces here")
    with NameServer(address) as server:
        yield server, [unshare, "-m", "sh", "-c", f'{script}exec "$@"', "sh"]


def test_name_is_judged_at_each_connect(router: Router, names: tuple[NameServer, list[str]]) -> None:
    server, prefix = names
    server.answers = ["127.0.0.1"]
    url = f"http://router.example:{router.port}"
    with Proxy(url, prefix=prefix, canaries=["router.example", "169.254"]) as proxy:
        assert ask(proxy, "POST", CHAT, chat()).told().done
        assert router.requests[0].header("Host") == f"router.example:{router.port}"
        for bad in (["169.254.169.254"], ["127.0.0.1", "8.8.8.8"], ["8.8.8.8", "127.0.0.1"], ["100.100.100.200"]):
            server.answers = bad
            check_refusal(ask(proxy, "POST", CHAT, chat()), 500, "egress_blocked")
            assert (proxy.get("/readyz").status, proxy.get("/readyz").reason) == (503, "egress_blocked")
        server.answers = []
        check_refusal(ask(proxy, "POST", CHAT, chat()), 503, "router_ConnectError")
        server.answers = ["127.0.0.1"]
        assert ask(proxy, "POST", CHAT, chat()).told().done
        assert router.posts == 2
        # A name that leads to eidproxy itself would be a loop.
        at_rest(router, proxy)
    with Proxy(f"http://router.example:{proxy.port}", prefix=prefix, EIDPROXY_SERVER_PORT=proxy.port) as looped:
        check_refusal(ask(looped, "POST", CHAT, chat()), 500, "egress_blocked")


def served_again(proxy: Proxy) -> float:
    """How long it takes, a second at most."""
    with Beside() as beside:
        began = time.monotonic()
        until(lambda: ask(proxy, "POST", CHAT, chat()).status == 200, what="served again")
        took = time.monotonic() - began
        assert took < beside.allow(1), f"served again after {took:.2f} s"
    return took


def test_silent_name_server(router: Router, names: tuple[NameServer, list[str]]) -> None:
    """40 look-ups that nobody answers, then healthy again: served within 1 s, and the exit is not delayed."""
    server, prefix = names
    url = f"http://router.example:{router.port}"
    with Proxy(url, prefix=prefix, EIDPROXY_ROUTER_CONNECT_TIMEOUT_SECONDS=0.3) as proxy:
        for _ in range(amount(12, 40)):
            check_refusal(ask(proxy, "POST", CHAT, chat("deep")), 503, "router_ConnectTimeout")
            assert ask(proxy, "GET", "/healthz").status == 200
        server.answers = ["127.0.0.1"]
        print(f"EIDPROXY silent name server: served after {served_again(proxy):.2f} s")
        server.answers = None
        check_refusal(ask(proxy, "POST", CHAT, chat("deep")), 503, "router_ConnectTimeout")
        with Beside() as beside:
            began = time.monotonic()
            proxy.terminate()
            assert proxy.wait() == 0
            assert time.monotonic() - began < beside.allow(1)


IN_THE_EXECUTOR = """
import asyncio
from eidproxy.router.resolver import Resolver
async def resolve(resolver, host, port):
    return await asyncio.get_running_loop().run_in_executor(None, resolver._lookup, host, port)
Resolver.resolve = resolve
"""


def test_control_look_ups_in_the_executor_are_noticed(router: Router, names: tuple[NameServer, list[str]]) -> None:
    """Control: look-ups in the loop's own threads, as usual, hold up those that come after, and the exit."""
    server, prefix = names
    url = f"http://router.example:{router.port}"
    with (
        Proxy(url, prefix=prefix, planted=IN_THE_EXECUTOR, EIDPROXY_ROUTER_CONNECT_TIMEOUT_SECONDS=0.3) as proxy,
        contextlib.ExitStack() as stack,
    ):
        # More than the executor has threads on any machine; each waits 2 s for the name server.
        for _ in range(40):
            client = stack.enter_context(RawClient(proxy))
            client.send(request_bytes("POST", CHAT, chat("deep")))
        until(lambda: proxy.status()["outcomes"].get("router_ConnectTimeout") == 40)
        server.answers = ["127.0.0.1"]
        with pytest.raises(AssertionError, match="served again"):
            served_again(proxy)


# --- The proof: a network of its own, and every connect of the process ---------------------------------------------

CONNECT = re.compile(r"connect\(\d+, \{sa_family=(AF_\w+)(.*?)\}, \d+\)")


def connects(trace: Path) -> set[str]:
    """Every address a traced process tried to connect to."""
    found = set()
    for path in trace.parent.glob(trace.name + "*"):
        for family, rest in CONNECT.findall(path.read_text(errors="replace")):
            port = re.search(r"port=htons\((\d+)\)", rest)
            address = re.search(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"', rest)
            where = (address[1] or address[2]) if address else rest
            found.add(f"{family} {where} {port[1] if port else ''}".strip())
    return found


def test_every_connect(router: Router, tmp_path: Path) -> None:
    """Under strace, with all that a caller and a router can say: connects to the router alone."""
    [strace] = need("strace")
    trace = tmp_path / "trace"
    prefix = [strace, "-D", "-ff", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", str(trace)]
    if subprocess.run([strace, "-qq", "-e", "trace=connect", "true"], capture_output=True, check=False).returncode:
        without("strace may not trace here")
    with Router() as trap, Proxy(router, prefix=prefix, HTTP_PROXY=trap.url, ALL_PROXY=trap.url) as proxy:
        for script in (stream(), status(302, b"", [("Location", trap.url)]), status(503, {"error_reason": "warming"})):
            for streaming in (True, False):
                router.enqueue(script)
                ask(proxy, "POST", CHAT, chat("deep", streaming, say=trap.url))
        for path in ("/healthz", "/readyz", "/metrics", "/status", "/", "/v1/models", "/chat", "/nothing"):
            proxy.get(path)
        ask(proxy, "POST", CHAT, chat(api_base=trap.url))
        proxy.terminate()
        assert proxy.wait(10) == 0
        assert trap.connections == 0
    found = connects(trace)
    print(f"EIDPROXY connects: {sorted(found)}")
    assert found == {f"AF_INET 127.0.0.1 {router.port}"}


def test_control_strace_sees_a_connect(tmp_path: Path) -> None:
    """Control: a program that connects elsewhere is caught by the same look."""
    [strace] = need("strace")
    trace = tmp_path / "trace"
    code = "import socket; s = socket.socket(); s.settimeout(0.1); s.connect_ex(('127.9.9.9', 9))"
    done = subprocess.run(
        [strace, "-ff", "-qq", "-e", "trace=connect", "-o", str(trace), sys.executable, "-c", code], check=False
    )
    if done.returncode:
        without("strace may not trace here")
    assert connects(trace) == {"AF_INET 127.9.9.9 9"}


@contextlib.contextmanager
def namespace() -> Iterator[list[str]]:
    """A network namespace with nothing but a loopback that owns the forbidden addresses; the words to run in it."""
    if os.geteuid() != 0:
        without("needs root for a network namespace")
    [ip] = need("ip")
    name = f"eid{os.getpid()}"
    if subprocess.run([ip, "netns", "add", name], capture_output=True, check=False).returncode:
        without("no network namespaces here")
    try:
        for words in (
            "link set lo up",
            *(f"addr add {each}/32 dev lo" for each in ("8.8.8.8", "169.254.169.254", "100.100.100.200", "10.0.0.7")),
        ):
            subprocess.run([ip, "-n", name, *words.split()], check=True)
        yield [ip, "netns", "exec", name]
    finally:
        subprocess.run([ip, "netns", "del", name], check=False)


INSIDE = """
import contextlib, os, socket, sys, threading, time
from tests.lab.client import CHAT, ask, chat
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.script import status, stream
from tests.lab.tools import free_port

port = free_port()
heard = []
traps = []
for address in ("8.8.8.8", "169.254.169.254", "100.100.100.200", "10.0.0.7"):
    for number in (port, 80, 443, 53):
        trap = socket.create_server((address, number)); trap.setblocking(False); traps.append(trap)
    dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); dns.bind((address, 53)); dns.setblocking(False)
    traps.append(dns)

def check():
    for trap in traps:
        with contextlib.suppress(BlockingIOError):
            heard.append(trap.accept()[1] if trap.type == socket.SOCK_STREAM else trap.recvfrom(999))

with Router(port=port) as router:
    with Proxy(router, HTTP_PROXY="http://8.8.8.8", ALL_PROXY="http://169.254.169.254") as proxy:
        for model in ("daily", "deep"):
            assert ask(proxy, "POST", CHAT, chat(model)).told().done
        router.enqueue(status(302, b"", [("Location", "http://8.8.8.8/")]))
        ask(proxy, "POST", CHAT, chat(say="http://169.254.169.254/"))
        ask(proxy, "POST", CHAT, chat(api_base="http://10.0.0.7/"))
        for path in ("/readyz", "/status", "/metrics", "/"):
            proxy.get(path)
check()
if "control" in sys.argv:
    socket.create_connection(("8.8.8.8", 80)).close()
    check()
print("heard", len(heard))
"""


@pytest.mark.parametrize("control", [False, True])
def test_namespace_with_listeners(control: bool) -> None:
    """Listeners on the forbidden addresses hear nothing; the control, one connect on purpose, is heard."""
    with namespace() as prefix:
        done = subprocess.run(
            [*prefix, sys.executable, "-c", INSIDE, *(["control"] if control else [])],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == f"heard {int(control)}"
