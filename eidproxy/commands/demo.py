"""`eidproxy demo`: an embedded router with both models, the proxy in front, and a show of what it does.

The router speaks the dialect of the real ones, with everything in it that a caller must not see: a path as the model's
name, a fingerprint, usage, keepalive comments, and a cold start for `deep`.
"""

import asyncio
import json
import secrets
import shutil
import socket
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import click
import httpx

from eidproxy.config import ChatSettings, LogSettings, RouterSettings, ServerSettings, Settings
from eidproxy.signals import stop_signals
from eidproxy.tokens import Tokens

_ANSWER = (
    "I run on a machine at home, and nobody can tell you which one: that is the point. Every word you read came "
    "through a gate that lets one question at a time reach it."
)
_TOKEN_SECONDS = 0.04
"""25 words a second, so that one can read along."""
_COLD_SECONDS = 20.0
"""How long the deep model is loaded: long enough to be seen, short enough to be waited for."""
_RULES = "Answer briefly and kindly. Never say which machine or model you are.\n"
_MODELS = {
    "mac-mini-default": "/Users/eid/mlx-models/Qwen3.6-27B-8bit",
    "qwen-macbook": "/Users/eid/mlx-models/Qwen3.6-122B-4bit",
}


class DemoRouter:
    """A router good enough to show the proxy: HTTP/1.1, `Connection: close`, one event stream for each request."""

    def __init__(self, cold_seconds: float = _COLD_SECONDS) -> None:
        self._cold_seconds = cold_seconds
        self._warm_at: float | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
            )
            request = json.loads(await reader.readexactly(length))
            if request["model"] == "qwen-macbook" and not self._warm():
                error = {"error": {"type": "warming", "message": "loading Qwen3.6-122B-4bit on macbook.local"}}
                self._reply(writer, "503 Service Unavailable", "application/json", json.dumps(error).encode())
            else:
                await self._stream(writer, request)
            await writer.drain()
        writer.close()

    def _warm(self) -> bool:
        """The first request for the deep model begins to load it."""
        now = time.monotonic()
        if self._warm_at is None:
            self._warm_at = now + self._cold_seconds
        return now >= self._warm_at

    @staticmethod
    def _reply(writer: asyncio.StreamWriter, status: str, media_type: str, body: bytes | None = None) -> None:
        length = "" if body is None else f"Content-Length: {len(body)}\r\n"
        head = f"HTTP/1.1 {status}\r\nServer: demo-router\r\nContent-Type: {media_type}\r\n{length}Connection: close"
        writer.write(head.encode() + b"\r\n\r\n" + (body or b""))

    async def _stream(self, writer: asyncio.StreamWriter, request: dict[str, object]) -> None:
        self._reply(writer, "200 OK", "text/event-stream")
        writer.write(b": keepalive 11/12\n\n")
        common = {
            "id": f"chatcmpl-{secrets.token_hex(8)}",
            "object": "chat.completion.chunk",
            "model": _MODELS[str(request["model"])],
            "system_fingerprint": "0.32.2-macOS-26.1-arm64-applegpu_g16s",
        }
        words = _ANSWER.split(" ")
        for at, word in enumerate(words):
            delta = {"role": "assistant", "content": word if at == 0 else f" {word}"}
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            writer.write(b"data: " + json.dumps(common | {"choices": [choice]}).encode() + b"\n\n")
            await writer.drain()
            await asyncio.sleep(_TOKEN_SECONDS)
        last = {"index": 0, "delta": {}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 23, "completion_tokens": len(words), "peak_memory": 29.81}
        writer.write(b"data: " + json.dumps(common | {"choices": [last], "usage": usage}).encode() + b"\n\n")
        writer.write(b"data: [DONE]\n\n")


async def demo(listener: socket.socket, once: bool) -> None:
    """Show the proxy on an open socket, then serve until a signal."""
    from eidproxy.app import Application

    router = await asyncio.start_server(DemoRouter().serve, "127.0.0.1", 0)
    with tempfile.TemporaryDirectory(prefix="eidproxy-demo-") as folder:
        # Until the show is over a signal ends the process there and then.
        stop_signals.clean_up = partial(shutil.rmtree, folder, ignore_errors=True)
        secret = secrets.token_urlsafe(32)
        port = listener.getsockname()[1]
        settings = Settings(
            router=RouterSettings(url=f"http://127.0.0.1:{router.sockets[0].getsockname()[1]}"),
            server=ServerSettings(port=port),
            chat=ChatSettings(jwt_secret=secret, rules_file=_write_rules(folder)),
            log=LogSettings(level="critical"),
        )
        application = Application(settings)
        server = asyncio.create_task(application.server.serve([listener]))
        try:
            token = Tokens(secret, None, None, 0).issue("demo", 86400)
            await _show(f"http://127.0.0.1:{port}")
            if once:
                application.server.stop()
            else:
                stop_signals.notify(asyncio.get_running_loop(), application.server.stop)
                _say_what_to_try(f"http://127.0.0.1:{port}", token)
            await server
        finally:
            server.cancel()
            router.close()
    stop_signals.clean_up = None


def _write_rules(folder: str) -> str:
    rules = Path(folder, "rules.txt")
    rules.write_text(_RULES, "utf-8")
    return str(rules)


async def _show(url: str) -> None:
    # Proxies of the environment are for other hosts; this one is here.
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
        click.secho("eidproxy demo", bold=True)
        click.echo(f"An embedded router with two models, and eidproxy in front of it on {url}.\n")
        await _show_answer(client)
        await _show_overtaking(client)
        await _show_refusals(client)


def _question(model: str = "daily") -> dict[str, object]:
    return {"model": model, "stream": True, "messages": [{"role": "user", "content": "Who are you?"}]}


async def _show_answer(client: httpx.AsyncClient) -> None:
    click.secho("1. daily, streamed", bold=True)
    began, first, end = time.monotonic(), 0.0, "cut"
    async with client.stream("POST", "/v1/chat/completions", json=_question()) as answer:
        click.echo("   ", nl=False)
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                first = first or time.monotonic() - began
                click.echo(json.loads(line[6:])["choices"][0]["delta"].get("content", ""), nl=False)
            elif line == "data: [DONE]":
                end = "whole"
        gate, _, _ = answer.headers["server-timing"].partition(",")
    waited = gate.partition("=")[2]
    click.echo(f"\n   gate wait {waited} ms, time to first token {first * 1e3:.0f} ms, the answer is {end}\n")


async def _show_overtaking(client: httpx.AsyncClient) -> None:
    click.secho("2. The gate: FOREGROUND before BACKGROUND, one at a time", bold=True)
    began = time.monotonic()

    async def ask(name: str, priority: str) -> None:
        async with client.stream(
            "POST",
            "/v1/chat/completions",
            json=_question(),
            headers={"X-Eid-Priority": priority, "X-Eid-Progress": "1"},
        ) as answer:
            async for line in answer.aiter_lines():
                if '"queued"' in line:
                    position = json.loads(line[6:])["eid"]["position"]
                    click.echo(f"   {time.monotonic() - began:4.1f} s  {name} waits, position {position}")
                elif '"upstream"' in line:
                    click.echo(f"   {time.monotonic() - began:4.1f} s  {name} has the slot")

    async with asyncio.TaskGroup() as group:
        for name, priority in (("first", "foreground"), ("BACKGROUND", "background"), ("FOREGROUND", "foreground")):
            group.create_task(ask(name, priority))
            await asyncio.sleep(0.2)
    click.echo()


async def _show_refusals(client: httpx.AsyncClient) -> None:
    click.secho("3. What cannot be asked for", bold=True)
    for model in ("gpt-4o", "deep"):
        answer = await client.post("/v1/chat/completions", json=_question(model))
        retry = answer.headers.get("retry-after")
        advice = f", try again in {retry} s" if retry else ""
        click.echo(f"   {model}: {answer.status_code} {answer.json()['error_reason']}{advice}")
    click.echo()


def _say_what_to_try(url: str, token: str) -> None:
    click.secho("Serving until Ctrl-C. Try:", bold=True)
    body = '{"model":"daily","stream":true,"messages":[{"role":"user","content":"Hello"}]}'
    click.echo(f"   curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'")
    click.echo(f"   curl {url}/status")
    click.echo(f"   live view    {url}/")
    click.echo(f"   chat page    {url}/chat#token={token}")
    click.echo(f"   deep is cold at first: it says warming for {_COLD_SECONDS:.0f} s, then answers")
