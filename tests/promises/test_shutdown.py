"""Signals (contract, 8): a drain explains itself, lets what runs finish, and ends; kill -9 leaves no hindrance."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.lab.callers import at_rest, check_error_event, check_refusal
from tests.lab.client import CHAT, Answer, RawClient, ask, chat, request_bytes
from tests.lab.proxy import Proxy, impatient
from tests.lab.router import Router
from tests.lab.script import Send, Stall, stream, stream_head
from tests.lab.stock import Stock
from tests.lab.stream import told
from tests.lab.tools import free_port, until

GO = "go"


def begin(proxy: Proxy, model: str = "daily", **headers: str) -> RawClient:
    """A caller that has asked."""
    client = RawClient(proxy, timeout=15)
    client.send(request_bytes("POST", CHAT, chat(model), {name.replace("_", "-"): v for name, v in headers.items()}))
    return client


def finish(client: RawClient) -> Answer:
    """Its answer."""
    with client:
        head = client.read_head()
        return Answer(head.status, head.headers, client.read_body(), client.clean)


def ready(proxy: Proxy) -> bool:
    """Whether /readyz says 200."""
    with contextlib.suppress(OSError, EOFError):
        return proxy.get("/readyz").status == 200
    return False


def test_drain(router: Router) -> None:
    """What runs finishes; what waits, has not begun or comes anew gets 503 `draining`; /readyz says so; exit 0."""
    router.script = stream(gate=GO)
    with Proxy(router) as proxy:
        running, deep = begin(proxy), begin(proxy, "deep")
        router.wait_for(lambda: router.waiting(GO) == 2)
        queued, told = begin(proxy), begin(proxy, X_Eid_Progress="1")
        half_head, half_body = RawClient(proxy), RawClient(proxy)
        data = request_bytes("POST", CHAT, chat())
        half_head.send(data[:20])
        half_body.send(data[:-5])
        idle = RawClient(proxy)
        idle.send(request_bytes("GET", "/healthz"))
        assert idle.read_head().status == 200
        idle.read_body()
        until(lambda: len(proxy.status()["gate"]["waiting"]) == 2)
        proxy.terminate()
        check_refusal(finish(queued), 503, "draining")
        check_error_event(finish(told), 503, "draining")
        for half in (half_head, half_body):
            check_refusal(finish(half), 503, "draining")
        for model in ("daily", "deep"):
            answer = ask(proxy, "POST", CHAT, chat(model))
            check_refusal(answer, 503, "draining")
            assert answer.get("Connection") == "close"
        idle.send(data)
        assert idle.read_head().status == 503
        idle.close()
        check_refusal(proxy.get("/readyz"), 503, "draining")
        assert proxy.get("/healthz").status == 200
        assert proxy.status()["draining"] is True
        assert proxy.metric("eidproxy_draining") == 1
        assert proxy.process.poll() is None
        assert router.posts == 2
        router.release(GO)
        for client in (running, deep):
            said = finish(client).told()
            assert (said.text, said.done, said.errors) == ("Hello world", True, [])
        assert proxy.wait() == 0
        assert [line["event"] for line in proxy.log() if line["event"] != "request"] == [
            "started",
            "draining",
            "stopped",
        ]
    router.wait_for(lambda: router.open_sockets == 0)


def test_what_is_not_yet_at_the_router_is_turned_away() -> None:
    """A connect to a router whose queue is full may take longer than the whole drain."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        for _ in range(4):  # nobody accepts, so these fill the queue
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        proxy = stack.enter_context(Proxy(f"http://127.0.0.1:{address[1]}", EIDPROXY_ROUTER_CONNECT_TIMEOUT_SECONDS=60))
        asked = [begin(proxy), begin(proxy, "deep")]

        def connecting(mode: str) -> float:
            return proxy.metric("eidproxy_requests_in_progress", mode=mode, phase="upstream")

        until(lambda: connecting("daily") + connecting("deep") == 2)
        proxy.terminate()
        for client in asked:
            check_refusal(finish(client), 503, "draining")
        assert proxy.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_process_ends_at_once(router: Router, number: int) -> None:
    with Proxy(router) as proxy:
        client = RawClient(proxy)
        proxy.signal(number)
        assert proxy.wait() == 0  # whose patience is shorter than a drain of 60 s
        client.close()


def test_drain_seconds(router: Router) -> None:
    """What does not finish in time ends with an error event, or with a status when nothing was sent yet."""
    router.script = [Stall()]
    router.enqueue([*stream(["a"])[:3], Stall()])
    with Proxy(router, EIDPROXY_SERVER_DRAIN_SECONDS=0.5) as proxy:
        streaming = begin(proxy)
        router.wait_for(lambda: router.posts == 1)
        streaming.read_head()
        silent = begin(proxy, "deep")
        router.wait_for(lambda: router.posts == 2)
        began = time.monotonic()
        proxy.terminate()
        head = streaming._head
        with streaming:
            answer = Answer(200, head.headers if head else [], streaming.read_body(), streaming.clean)
        # Not before, and not after the 60 s of the default.
        assert 0.45 < time.monotonic() - began < 30
        check_error_event(answer, 503, "draining")
        assert answer.told().text == "a"
        check_refusal(finish(silent), 503, "draining")
        router.wait_for(lambda: router.open_sockets == 0)
        assert proxy.wait() == 0
        reasons = [line["reason"] for line in proxy.log() if line["event"] == "request"]
        assert reasons == ["draining", "draining"]


def test_second_signal(router: Router) -> None:
    router.script = [*stream(["a"])[:3], Stall()]
    with Proxy(router) as proxy:
        client = begin(proxy)
        client.read_head()
        proxy.terminate()
        until(lambda: proxy.status()["draining"])
        proxy.terminate()
        assert proxy.wait() == 0
        head = client._head
        with client:
            answer = Answer(200, head.headers if head else [], client.read_body(), client.clean)
        check_error_event(answer, 503, "draining")
        router.wait_for(lambda: router.open_sockets == 0)


def test_slow_reader_does_not_hold_the_end(router: Router) -> None:
    """A caller that does not take its answer is waited for no longer than the drain lasts."""
    router.script = [Send(stream_head()), *stream(["x" * 4000] * 500)[1:]]
    with Proxy(router, EIDPROXY_SERVER_DRAIN_SECONDS=0.5, EIDPROXY_STREAM_BUFFER_BYTES=10_000_000) as proxy:
        client = RawClient(proxy, receive_buffer=4096)
        client.send(request_bytes("POST", CHAT, chat()))
        router.wait_for(lambda: router.posts == 1 and router.concurrent == 0)
        proxy.terminate()
        assert proxy.wait() == 0
        client.close()


@pytest.mark.parametrize("phase", ["idle", "queued", "connecting", "before the first byte", "mid-stream"])
def test_kill_and_start_again(router: Router, phase: str) -> None:
    """After kill -9 the router's sockets are closed, and a new process is ready as soon as the first one was."""
    router.script = [Stall()] if phase != "mid-stream" else [*stream(["a"])[:3], Stall()]
    port = free_port()
    clients = []
    began = time.monotonic()
    with Proxy(router, EIDPROXY_SERVER_PORT=port, ready=False) as proxy:
        until(lambda: ready(proxy), 60, "ready")
        first = time.monotonic() - began
        if phase != "idle":
            clients.append(begin(proxy))
            if phase != "connecting":
                router.wait_for(lambda: router.posts == 1)
        if phase == "queued":
            clients.append(begin(proxy))
            until(lambda: proxy.status()["gate"]["waiting"])
        if phase == "mid-stream":
            clients[0].read_head()
        proxy.kill()
        assert proxy.wait() == -signal.SIGKILL
        router.wait_for(lambda: router.open_sockets == 0)
    for client in clients:
        with contextlib.suppress(OSError, EOFError):
            client.recv_all()
        client.close()
    router.script = stream()
    began = time.monotonic()
    with Proxy(router, EIDPROXY_SERVER_PORT=port, ready=False) as proxy:
        until(lambda: ready(proxy), 60, "ready")
        took = time.monotonic() - began
        print(f"EIDPROXY kill -9, {phase}: ready {took:.2f} s after the new start, {first:.2f} s after the first")
        assert took <= max(2.0, 4 * first)
        assert ask(proxy, "POST", CHAT, chat()).told().done
        at_rest(router, proxy)


def test_unix_socket_is_taken_over(router: Router, tmp_path: Path) -> None:
    """What kill -9 leaves of a Unix socket does not hinder the next start."""
    path = str(tmp_path / "socket")
    with Proxy(router, EIDPROXY_SERVER_UDS=path) as proxy:
        assert ask(proxy, "POST", CHAT, chat()).told().done
        assert os.stat(path).st_mode & 0o777 == 0o660
        proxy.kill()
        proxy.wait()
    assert os.path.exists(path)
    with Proxy(router, EIDPROXY_SERVER_UDS=path) as proxy:
        assert ask(proxy, "POST", CHAT, chat()).told().done


def test_stopped_router(router: Router) -> None:
    """A router that is stopped, not gone: what asks it ends with its allowance, and a drain is not delayed by it."""
    router.script = [Stall()]
    with Proxy(router, **impatient(0.5)) as proxy:
        check_refusal(ask(proxy, "POST", CHAT, chat()), 503, "upstream_silent")
        client = begin(proxy)
        router.wait_for(lambda: router.posts == 2)
        proxy.terminate()
        check_refusal(finish(client), 503, "upstream_silent")
        assert proxy.wait() == 0


def test_port_in_use(router: Router) -> None:
    with Proxy(router) as proxy, Proxy(router, EIDPROXY_SERVER_PORT=proxy.port, ready=False) as second:
        assert second.wait() == 1
        assert b"cannot listen" in second.output()
        assert proxy.get("/healthz").status == 200


def test_control_a_stock_server_refuses_while_it_drains(router: Router) -> None:
    """Control: the usual server lets what runs finish too, but whoever comes meanwhile is not told why."""
    router.script = stream(gate=GO)
    with Stock(router) as proxy, RawClient(proxy) as running:
        running.send(request_bytes("POST", CHAT, chat()))
        router.wait_for(lambda: router.waiting(GO) == 1)
        proxy.process.terminate()
        # Refused; or, where the connection came just before the listener closed, reset, or closed without a word.
        with pytest.raises((ConnectionError, EOFError)):
            until(lambda: ask(proxy, "GET", "/healthz").status == 503)
        router.release(GO)
        assert running.read_head().status == 200
        assert told(running.read_body()).done


def test_control_the_listener_stays_open(router: Router) -> None:
    """Control: a process that is really gone refuses, so the 503 of a drain above is the proxy's own word."""
    with Proxy(router) as proxy:
        proxy.terminate()
        proxy.wait()
        with pytest.raises(ConnectionRefusedError):
            ask(proxy, "GET", "/readyz")


# --- The path of a Unix socket is a name, not a lock ---------------------------------------------------------------


def test_a_socket_somebody_answers_at_is_not_taken_over(router: Router, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with Proxy(router, EIDPROXY_SERVER_UDS=path) as proxy:
        with Proxy(router, EIDPROXY_SERVER_UDS=path, ready=False) as second:
            assert second.wait(20) == 78
            assert b"somebody answers" in second.output()
        assert proxy.get("/healthz").status == 200
        # One that is stopped, or too busy to accept, is somebody too.
        proxy.process.send_signal(signal.SIGSTOP)
        try:
            with Proxy(router, EIDPROXY_SERVER_UDS=path, ready=False) as second:
                assert second.wait(20) == 78
        finally:
            proxy.process.send_signal(signal.SIGCONT)
        assert ask(proxy, "POST", CHAT, chat()).told().done


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_is_left_alone(router: Router, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "socket"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with Proxy(router, EIDPROXY_SERVER_UDS=path, ready=False) as proxy:
        assert proxy.wait(20) == 78
        assert b"is no socket" in proxy.output()
    assert path.is_symlink() or path.exists()


def test_of_many_that_start_at_once_one_serves(router: Router, tmp_path: Path) -> None:
    """On the socket of one that was killed: each finds it dead, and one may remove it."""
    path = str(tmp_path / "socket")
    with Proxy(router, EIDPROXY_SERVER_UDS=path) as dead:
        dead.kill()
        dead.wait()
    with contextlib.ExitStack() as all_of_them:
        rivals = [all_of_them.enter_context(Proxy(router, EIDPROXY_SERVER_UDS=path, ready=False)) for _ in range(6)]
        until(lambda: sum(rival.process.poll() is None for rival in rivals) == 1, 60)
        [winner] = [rival for rival in rivals if rival.process.poll() is None]
        winner.wait_ready()
        assert ask(winner, "POST", CHAT, chat()).told().done
        assert sorted(rival.wait() for rival in rivals if rival is not winner) == [78] * 5
        assert os.listdir(tmp_path) == ["socket"]
        for rival in rivals:
            rival._signalled = True
