"""The commands: serve, check, demo, top, token, service, completion, schema, version."""

import asyncio
import os
import resource
import socket
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import click
import uvloop

from eidproxy.commands.flags import SettingsCommand, setting_flags
from eidproxy.config import Loaded, ServerSettings, Settings, SettingsError, load
from eidproxy.gate.choice import is_shared
from eidproxy.signals import INTERRUPTED, stop_signals

if TYPE_CHECKING:
    from eidproxy.commands.service import Kind, Step

EX_CONFIG = 78
"""The exit code of sysexits.h for a wrong configuration."""

_HIJACKERS = (
    # These let the environment choose the address of a name.
    *("HOSTALIASES", "LOCALDOMAIN", "RES_OPTIONS"),
    # These choose the trusted authorities, and a file for the session keys of TLS.
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"),
)
"""Variables that the C library's resolver and OpenSSL obey."""


def _load_or_exit(config: Path | None, flags: Mapping[str, str | None]) -> Loaded:
    given = {name.replace("__", "."): value for name, value in flags.items() if value is not None}
    try:
        return load(config, os.environ, given)
    except SettingsError as error:
        for fault in error.faults:
            click.echo(f"eidproxy: {fault}", err=True)
        sys.exit(EX_CONFIG)


# Help is as wide as the terminal, up to a width that is still easy to read.
@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """A local-only proxy for self-hosted language models."""


@cli.command(cls=SettingsCommand)
@click.option("--workers", type=int, default=1, metavar="N", help="must be 1, since the gate is inside the process")
@setting_flags
def serve(config: Path | None, workers: int, **flags: str | None) -> None:
    """Serve until SIGTERM or Ctrl-C; a second signal stops at once."""
    if workers != 1:
        click.echo("eidproxy: --workers must be 1; for more processes, run replicas with gate.url", err=True)
        sys.exit(EX_CONFIG)
    settings = _load_or_exit(config, flags).settings
    harden()
    from eidproxy.inbound.listener import SocketTaken, listen

    try:
        sockets = listen(settings)
    except SocketTaken as taken:
        click.echo(f"eidproxy: server.uds: {taken}", err=True)
        sys.exit(EX_CONFIG)
    except OSError as error:
        where = settings.server.uds or f"{settings.server.host}:{settings.server.port}"
        click.echo(f"eidproxy: cannot listen on {where}: {error.strerror}", err=True)
        sys.exit(1)
    if sys.stderr.isatty():
        click.echo(banner(settings, sockets), err=True)
    uvloop.run(run(settings, sockets))


def banner(settings: Settings, sockets: list[socket.socket]) -> str:
    """What a person at a terminal wants to know, in a few lines. It is for that person: it names the router."""
    from eidproxy.surface import unreadable_files

    where = settings.server.uds or f"http://{settings.server.host}:{sockets[0].getsockname()[1]}"
    gate = settings.gate
    chat = "on, at /chat" if settings.chat.enabled else "off"
    if unreadable := unreadable_files(settings.chat):
        chat += f", but every question is refused: {', '.join(unreadable)} cannot be read"
    lines = (
        ("eidproxy", version("eidproxy")),
        ("listens", f"{where}   live view at /, metrics at /metrics"),
        ("router", settings.router.url),
        ("models", f"daily = {settings.models.daily.alias}, deep = {settings.models.deep.alias}"),
        ("gate", f"{gate.capacity} at once, {gate.max_waiting} waiting{', shared' if is_shared(gate.url) else ''}"),
        (
            "timeouts",
            f"{settings.stream.deadline_seconds:g} s for an answer, {gate.wait_timeout_seconds:g} s in the queue",
        ),
        ("chat", chat),
    )
    return "\n".join(f"{name:<9} {text}" for name, text in lines)


async def run(settings: Settings, sockets: list[socket.socket]) -> None:
    """Serve on open sockets until a signal."""
    from eidproxy.app import Application

    application = Application(settings)
    application.upstream.own_addresses = frozenset(
        sock.getsockname()[:2] for sock in sockets if sock.family != socket.AF_UNIX
    )
    stop_signals.notify(asyncio.get_running_loop(), application.server.stop)
    await application.server.serve(sockets)


def harden() -> None:
    """Take away what could tell or redirect: core dumps hold prompts, libraries print, variables lead astray."""
    from eidproxy.monitoring.logs import silence_libraries

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in _HIJACKERS:
        os.environ.pop(name, None)
    silence_libraries()


_PORT_TRIES = 20
"""How many ports after a taken one the demo tries."""


@cli.command()
@click.option("--once", is_flag=True, help="exit after the demonstration")
@click.option("--open", "open_browser", is_flag=True, help="open the chat and the live view in the browser")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8790,
    show_default=True,
    metavar="PORT",
    help="port to listen on; if it is in use, the next free port",
)
def demo(once: bool, open_browser: bool, port: int) -> None:
    """Run a demonstration with an embedded router and a web page.

    It shows an answer, the gate, refusals and a model that hangs. Then three simulated people keep asking until Ctrl-C.
    """
    from eidproxy.commands.demo import demo as show

    harden()
    listener = _free_listener(port)
    uvloop.run(show(listener, once=once, open_browser=open_browser))
    if not once:
        sys.exit(INTERRUPTED)


def _free_listener(wanted: int) -> socket.socket:
    """Return a listener at the port, or at the next one that is free. Exits with 1 if none is."""
    from eidproxy.inbound.listener import listen

    for port in range(wanted, min(wanted + _PORT_TRIES, 65535) + 1):
        try:
            (listener,) = listen(Settings(server=ServerSettings(port=port)))
        except OSError as error:
            fault = error.strerror
            continue
        if port != wanted:
            click.echo(f"Port {wanted} is in use; using {port} instead.")
        return listener
    click.echo(f"eidproxy: cannot listen on port {wanted} or the next ones: {fault}; choose another", err=True)
    sys.exit(1)


@cli.command(cls=SettingsCommand, shows_settings=False)
@click.option("--all", "everything", is_flag=True, help="show all settings, not only changed ones")
@click.option("--live", is_flag=True, help="test the router with at most 7 short requests and 100 tokens")
@click.option("--measure", is_flag=True, help="with --live, also time a prompt of 2,000 tokens (3 more requests)")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.option("--public-url", metavar="URL", help="also test the stream through the edge in front")
@setting_flags
def check(
    config: Path | None,
    everything: bool,
    live: bool,
    measure: bool,
    as_json: bool,
    public_url: str | None,
    **flags: str | None,
) -> None:
    """Show the settings that differ from the default, and test them.

    It connects to the router. Each finding says what to do.

    With --live it also sends requests, through the eidproxy that runs here if there is one. It prints no answer and no
    model name.

    Exit status: 0, 1 if something would fail, 78 if the settings are wrong.
    """
    if (measure and not live) or (live and (everything or public_url is not None)):
        raise click.UsageError("--measure needs --live; --all and --public-url cannot be used with --live")
    loaded = _load_or_exit(config, flags)
    if live:
        from eidproxy.commands.live_check import live_check

        works = live_check(loaded.settings, measure=measure, as_json=as_json)
    else:
        from eidproxy.commands.check import check as report

        works = report(loaded, public_url, everything=everything, as_json=as_json)
    sys.exit(0 if works else 1)


@cli.command()
@click.option(
    "--once", is_flag=True, help="print once as plain text and exit; the default if the output is not a terminal"
)
@click.option("--url", metavar="URL", help="URL of eidproxy; default: the listener in the settings")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="seconds between two updates",
)
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="settings file, TOML")
def top(once: bool, url: str | None, interval: float, config: Path | None) -> None:
    """Show the live view in the terminal until Ctrl-C or q.

    If the server needs an API key, set EIDPROXY_SERVER_API_KEY or EIDPROXY_SERVER_API_KEY_FILE.
    """
    from eidproxy.commands.top import TopError, connect, is_base_url, is_drawable, show_once, watch

    if url is not None and not is_base_url(url):
        raise click.BadParameter(
            "must be http:// or https:// with a host, optionally a port and a path", param_hint="--url"
        )
    # `top` does not use the router, so none need be set: this URL only makes the settings valid.
    client, name = connect(_load_or_exit(config, {"router__url": "http://router"}).settings, url)
    plain = once or not is_drawable(sys.stdout)
    try:
        # uvloop, here too: asyncio's own loop may sleep through a signal that comes just before it waits.
        uvloop.run(show_once(client, name, sys.stdout) if plain else watch(client, name, interval, sys.stdout))
    except TopError as error:
        click.echo(f"eidproxy: {name} {error}", err=True)
        sys.exit(1)


def _duration(_: click.Context, __: click.Parameter, text: str) -> float:
    from eidproxy.tokens import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _base_url(_: click.Context, __: click.Parameter, url: str | None) -> str | None:
    from eidproxy.tokens import parse_base_url

    try:
        return None if url is None else parse_base_url(url)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@cli.command()
@click.option("--sub", required=True, metavar="NAME", help="name of the person (subject of the token), one for each")
@click.option(
    "--ttl",
    default="1h",
    show_default=True,
    metavar="TIME",
    callback=_duration,
    help="lifetime of the token: a number with s, m, h, d or w",
)
@click.option(
    "--url",
    metavar="URL",
    callback=_base_url,
    help="URL of the chat: print a login link instead of the token",
)
@click.option("--qr", is_flag=True, help="also print the link as a QR code")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="settings file, TOML")
def token(sub: str, ttl: float, url: str | None, qr: bool, config: Path | None) -> None:
    """Issue a token for the chat, or a login link.

    The token is signed with the secret of the server: set EIDPROXY_CHAT_JWT_SECRET or EIDPROXY_CHAT_JWT_SECRET_FILE, or
    use the settings file. Neither the router nor eidproxy has to run.

    \b
    eidproxy token --sub 엄마 --ttl 90d --url https://chat.example --qr
    """
    from eidproxy.tokens import Tokens, login_link, qr_code

    if not sub or not sub.isprintable():
        raise click.BadParameter("must be a name of printable characters", param_hint="--sub")
    if qr and url is None:
        raise click.UsageError("--qr needs --url, since the QR code holds the link")
    # `token` uses neither router nor rules: these values only make the settings valid.
    chat = _load_or_exit(config, {"router__url": "http://router", "chat__rules_file": "rules"}).settings.chat
    assert chat.jwt_secret is not None  # noqa: S101  # rules without a secret are a fault of the settings
    issuer = Tokens(chat.jwt_secret, chat.jwt_audience, chat.jwt_issuer, chat.jwt_leeway_seconds)
    issued = issuer.issue(sub, ttl)
    if url is None:
        click.echo(issued)
        return
    click.echo(login_link(url, issued))
    if qr:
        click.echo(qr_code(login_link(url, issued), colour=sys.stdout.isatty()))
    until = datetime.now().astimezone() + timedelta(seconds=ttl)
    click.echo(f"Valid until {until:%Y-%m-%d %H:%M}. Anyone who opens this link logs in as {sub}.", err=True)


@cli.group()
def service() -> None:
    """Install eidproxy as a service of this machine, or remove it.

    The service is a systemd unit on Linux and a LaunchDaemon on a Mac.
    """


_yes = click.option("--yes", is_flag=True, help="do not ask for confirmation")
_root = click.option("--root", default="", metavar="DIR", help="change the offline system in this folder")


@service.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="settings file to install; default: keep the installed one",
)
@_yes
@_root
def install(config: Path | None, yes: bool, root: str) -> None:
    """Check the settings, show the steps, ask, and carry them out.

    \b
    sudo /opt/eidproxy/bin/eidproxy service install --config deploy/eidproxy.toml
    """
    from eidproxy.commands import service as services
    from eidproxy.commands.check import check as report

    kind = _service_kind()
    source = config if config is not None else Path(root + kind.settings)
    if not source.exists():
        click.echo(f"eidproxy: {source} does not exist; name your settings file with --config", err=True)
        sys.exit(EX_CONFIG)
    if kind is services.SYSTEMD:
        os.environ.update(services.credentials(root))
    if not report(_load_or_exit(source, {}), None):
        click.echo("eidproxy: nothing was changed; fix the failed checks first", err=True)
        sys.exit(1)
    text = source.read_text("utf-8") if config is not None else None
    has_user = kind is services.LAUNCHD and services.has_user()
    try:
        steps = services.install_steps(kind, services.this_program(), text, has_user=has_user, root=root)
    except services.ServiceError as error:
        click.echo(f"eidproxy: {error}", err=True)
        sys.exit(1)
    _carry_out(steps, yes, root)
    click.echo(f"It runs now and starts with the machine. Its log: {kind.log}" if not root else "It is enabled.")


@service.command()
@_yes
@_root
def uninstall(yes: bool, root: str) -> None:
    """Stop and remove the service; keep settings, secrets and log."""
    from eidproxy.commands import service as services

    kind = _service_kind()
    _carry_out(services.uninstall_steps(kind, root=root), yes, root)
    click.echo(f"It is removed. These files remain: {root}{Path(kind.settings).parent}")


@service.command()
def status() -> None:
    """Show the state of the service. Exit status 0 if it runs."""
    from eidproxy.commands import service as services

    kind = _service_kind()
    is_there = Path(kind.unit).exists()
    state = services.state_of(kind)
    click.echo(f"unit      {kind.unit}{'' if is_there else ' (missing)'}")
    click.echo(f"state     {state}")
    click.echo(f"settings  {kind.settings}{'' if Path(kind.settings).exists() else ' (missing)'}")
    click.echo(f"log       {kind.log}")
    sys.exit(0 if state in ("active", "running") else 1)


def _service_kind() -> "Kind":
    from eidproxy.commands.service import ServiceError, kind_of

    try:
        return kind_of(sys.platform)
    except ServiceError as error:
        click.echo(f"eidproxy: {error}", err=True)
        sys.exit(1)


def _carry_out(steps: "Sequence[Step]", yes: bool, root: str) -> None:
    """Show the steps, ask for confirmation, and carry them out."""
    from eidproxy.commands.service import ServiceError, carry_out, describe_step, is_root

    click.echo("\nThese steps follow:" if yes else "\nThese steps are planned:")
    for step in steps:
        click.echo(f"  {describe_step(step, root)}")
    click.echo()
    if not root and not is_root():
        click.echo("eidproxy: this needs root; run it again with sudo", err=True)
        sys.exit(1)
    if not yes:
        click.confirm("Continue?", abort=True)
    try:
        for step in steps:
            carry_out(step, root)
    except (OSError, ServiceError) as error:
        click.echo(f"eidproxy: {error}", err=True)
        sys.exit(1)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that lets Tab complete commands and flags.

    Add this line to the start file of your shell:

    \b
    bash  ~/.bashrc                    eval "$(eidproxy completion bash)"
    zsh   ~/.zshrc, after compinit     eval "$(eidproxy completion zsh)"
    fish  ~/.config/fish/config.fish   eidproxy completion fish | source
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101  # click knows the three
    click.echo(kind(cli, {}, "eidproxy", "_EIDPROXY_COMPLETE").source())


@cli.command(name="schema")
def show_schema() -> None:
    """Print the JSON Schema of request, chunk, answer and error."""
    import msgspec

    from eidproxy.commands.schema import schema

    click.echo(msgspec.json.format(msgspec.json.encode(schema())))


@cli.command(name="version")
def show_version() -> None:
    """Print the version, and whether the accelerator is missing."""
    from eidproxy.app import VERSION
    from eidproxy.router.shortcut import IS_BUILT

    click.echo(VERSION if IS_BUILT else f"{VERSION} (without the accelerator)")
