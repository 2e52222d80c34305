"""A crowd of callers that leave, at any moment and in any way, and how soon the router's side was free.

tally = crowd(proxy.address, 500, seed)
assert free_after(router, tally)[-1] < 1
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import multiprocessing
import random
import socket
import struct
import time
from dataclasses import dataclass, field

from tests.lab.client import CHAT, RawClient, chat, request_bytes
from tests.lab.router import Router
from tests.lab.script import Fin, Pause, Stall, Step, Trickle, stream, wire

WAYS = ("fin", "rst", "shut_wr", "stray", "pipelined", "silent")
MOMENTS = ("in the head", "in the body", "queued", "connecting", "first byte", "mid-stream", "at the end", "after")


@dataclass
class Tally:
    """What was seen of a crowd of callers that left."""

    left: dict[str, float] = field(default_factory=dict)
    """When each of those that had sent a whole request began to leave."""
    kinds: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)


def script(choose: random.Random) -> list[Step]:
    """An answer that is slow somewhere, so that there is a moment to leave at."""
    whole = stream(["a", "b", "c"])
    kind = choose.randrange(6)
    if kind == 0:
        return [Stall()]
    if kind == 1:
        return [*whole[:1], Stall()]
    if kind == 2:
        return [*whole[:3], Stall()]
    if kind == 3:
        return [Trickle(wire(whole), 40, 0.001)]
    if kind == 4:
        return [Pause(choose.random() * 0.01), *whole, Fin()]
    return [*whole]


async def visit(where: tuple[str, int], number: int, choose: random.Random, deep: float, tally: Tally) -> None:
    """One caller: connect, ask (for `deep` with that chance) as far as the moment says, leave in some way."""
    loop = asyncio.get_running_loop()
    moment, way = choose.choice(MOMENTS), choose.choice(WAYS)
    if way == "silent":
        # Who asks and then says nothing more is served or cut; who never finishes asking is timed out.
        moment = choose.choice(MOMENTS[:1] if choose.random() < 0.1 else MOMENTS[-2:])
    tally.kinds[moment, way] += 1
    model = "deep" if choose.random() < deep else "daily"
    priority = choose.choice(["foreground", "background"])
    headers = {"X-Eid-Priority": priority, **({"X-Eid-Progress": "1"} if choose.random() < 0.3 else {})}
    ask_for = request_bytes("POST", CHAT, chat(model, choose.random() < 0.8, say=f"visitor {number}"), headers)
    head_end = ask_for.index(b"\r\n\r\n") + 4
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, where)
        with contextlib.suppress(ConnectionError, TimeoutError):
            if moment == "in the head":
                await loop.sock_sendall(sock, ask_for[: choose.randrange(head_end)])
            elif moment == "in the body":
                await loop.sock_sendall(sock, ask_for[: choose.randrange(head_end, len(ask_for))])
            else:
                await loop.sock_sendall(sock, ask_for)
                if moment == "queued":
                    await asyncio.sleep(choose.random() * 0.05)
                elif moment in ("connecting", "first byte"):
                    await asyncio.sleep(choose.random() * 0.004)
                elif moment == "mid-stream":
                    async with asyncio.timeout(choose.random() * 0.3):
                        await loop.sock_recv(sock, choose.choice([1, 100, 700]))
                else:
                    async with asyncio.timeout(choose.random() * 0.5):
                        got = b""
                        while not got.endswith(b"0\r\n\r\n") and b"Content-Length" not in got:
                            data = await loop.sock_recv(sock, 65536)
                            if not data:
                                break
                            got += data
                            if moment == "at the end" and b"[DONE]" in got:
                                break
        await leave(sock, way, moment, number, ask_for, tally)


async def leave(sock: socket.socket, way: str, moment: str, number: int, ask_for: bytes, tally: Tally) -> None:
    """Leave in one of the ways. From `tally.left` on the caller is gone."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError, TimeoutError):
        if way == "silent" and moment == "in the head":
            async with asyncio.timeout(8):
                while await loop.sock_recv(sock, 65536):
                    pass
        tally.left[f"visitor {number}"] = time.monotonic()
        if way == "stray":
            await loop.sock_sendall(sock, b"\r")
        elif way == "pipelined":
            await loop.sock_sendall(sock, ask_for)
        elif way == "shut_wr":
            sock.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(2):
                while await loop.sock_recv(sock, 65536):
                    pass
        if way in ("rst", "pipelined"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def crowd(where: tuple[str, int], count: int, seed: int, *, at_once: int = 200, deep: float = 0.2) -> Tally:
    """So many callers, in a process of their own: in this one they would delay the router, who measures."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_crowd, where, count, seed, at_once, deep).result()


def _crowd(where: tuple[str, int], count: int, seed: int, at_once: int, deep: float) -> Tally:
    tally = Tally()

    async def visit_all() -> None:
        places = asyncio.Semaphore(at_once)

        async def one(number: int) -> None:
            async with places:
                await visit(where, number, random.Random(f"{seed} {number}"), deep, tally)

        await asyncio.gather(*(one(number) for number in range(count)))

    asyncio.run(visit_all())
    return tally


def free_after(router: Router, tally: Tally) -> list[float]:
    """Seconds from a caller's leaving to the close of its connection at the router, of those that were there."""
    delays = []
    for close in router.closes:
        if close.request is None:
            continue
        said = close.request.json["messages"][0]["content"]
        if said in tally.left and close.phase == "answer":
            delays.append(max(close.at - tally.left[said], 0))
    return sorted(delays)


def departs(way: str, client: RawClient) -> None:
    """Leave with a request running."""
    if way == "second request at once then reset":
        client.send(request_bytes("POST", CHAT, chat()))
        client.rst()
    elif way == "stray byte then fin":
        client.send(b"\r")
        client.fin()
    else:
        getattr(client, way)()


LEAVING = ("fin", "rst", "close", "second request at once then reset", "stray byte then fin")
