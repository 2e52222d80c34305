"""Settings as flags: an option for each setting but the secrets, and a `--help` in groups, with defaults and units."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from eidproxy.config import FIELDS, Field

GROUPS = {
    "router": "Router",
    "models": "Models",
    "gate": "Gate (before daily)",
    "stream": "An answer on its way",
    "server": "Listener",
    "log": "Log",
    "chat": "Chat",
}
"""The heading of each section."""

TEXTS = {
    "router.url": "where the router is: http://127.0.0.1:4000",
    "router.allowed_networks": "networks its address may be in, with commas; they narrow the private ones",
    "router.ca_file": "certificates that an https router is checked against",
    "router.connect_timeout_seconds": "how long connecting may take",
    "router.read_timeout_seconds": "how long the router may be silent in an answer",
    "router.write_timeout_seconds": "how long the router may take to read the request",
    "router.first_event_seconds": "how long the first event may take",
    "router.first_event_seconds_per_kib": "and how much longer for each KiB of the request",
    "router.wedge_after": "silent ends in a row until a model counts as stuck; 0 is never",
    "router.wedge_retry_seconds": "how often a stuck model is tried again",
    "router.keep_idle_seconds": "how long a connection waits for the next request; 0: none does",
    "router.ask_usage": "ask the router for token counts, for the metrics",
    "models.daily.alias": "the router's name for daily",
    "models.deep.alias": "the router's name for deep",
    "models.max_tokens": "the longest answer",
    "models.temperature": "the temperature when a request names none",
    "models.daily.max_tokens": "the longest answer of daily",
    "models.daily.temperature": "the temperature of daily when a request names none",
    "models.deep.max_tokens": "the longest answer of deep",
    "models.deep.temperature": "the temperature of deep when a request names none",
    "models.max_prompt_bytes": "the longest request to the router; 0 is no bound",
    "gate.capacity": "requests of daily at the router at once",
    "gate.max_waiting": "requests that may wait; more are refused at once",
    "gate.wait_timeout_seconds": "the longest wait",
    "gate.aging_seconds": "how long until background counts as foreground; 0 is never",
    "gate.lease_seconds": "how long a replica holds a shared slot without a renewal",
    "gate.after_leave": "the slot of a caller that left: release, settle or first_event",
    "gate.settle_seconds": "how long settling takes at most",
    "stream.deadline_seconds": "the longest an answer may take",
    "stream.keepalive_seconds": "how long a stream is silent before a comment is sent",
    "stream.buffer_bytes": "how much is kept for a caller that reads slowly",
    "stream.accelerator": "on or off: whether events that are all alike may go past the interpreter",
    "server.host": "the address to listen on; one beyond loopback needs an API key",
    "server.port": "the port; 0 is any free one",
    "server.uds": "a Unix socket to listen on, instead of host and port",
    "server.allowed_hosts": "names that may stand in Host, with commas",
    "server.max_body_bytes": "the longest body of a request",
    "server.drain_seconds": "how long running answers may go on after a signal to stop",
    "log.level": "debug, info, warning, error or critical",
    "log.format": "auto, json or console; auto is console on a terminal",
    "chat.jwt_audience": "the aud that tokens must have",
    "chat.jwt_issuer": "the iss that tokens must have",
    "chat.jwt_leeway_seconds": "how much later than exp a token is still taken",
    "chat.persona_file": "a text that says who the assistant is",
    "chat.rules_file": "a text with the assistant's rules; with a secret it switches the chat on",
    "chat.title": "what the page calls itself",
    "chat.max_message_chars": "the longest message",
    "chat.max_messages": "the most messages of a conversation",
    "chat.max_total_chars": "the longest conversation",
}
"""The help text of each setting, by its path; the placeholder shows the unit."""

_DEFAULTS = {
    "router.url": "required",
    "router.allowed_networks": "the private ones",
    "server.allowed_hosts": "localhost, 127.0.0.1, [::1] and the host",
    "chat.title": "이드",
}

_PLACEHOLDERS = {
    "seconds": "SECONDS",
    "kib": "SECONDS",
    "bytes": "BYTES",
    "chars": "CHARS",
    "tokens": "TOKENS",
    "file": "FILE",
    "url": "URL",
    "uds": "FILE",
}


def setting_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--config` and a flag for each setting; its parameters are paths with `__` for the dot."""
    for field in reversed([field for field in FIELDS if not (field.secret or field.file_only)]):
        command = click.option(
            field.flag, field.path.replace(".", "__"), metavar=_placeholder(field), help=_help_text(field)
        )(command)
    return click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="settings in TOML")(command)


class SettingsCommand(click.Command):
    """A command whose `--help` shows its own options, then the settings in groups or a pointer to them."""

    def __init__(self, *args: Any, shows_settings: bool = True, **options: Any) -> None:
        super().__init__(*args, **options)
        self._shows_settings = shows_settings

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See `click.Command.format_options`."""
        groups: dict[str, list[tuple[str, str]]] = {section: [] for section in ("", *GROUPS)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                section, is_setting, _ = (parameter.name or "").partition("__")
                groups.setdefault(section if is_setting else "", []).append(record)
        if not self._shows_settings:
            groups = {"": groups[""]}
        for section, records in groups.items():
            if records:
                with formatter.section(GROUPS.get(section, section) or "Options"):
                    formatter.write_dl(records)
        formatter.write_paragraph()
        if not self._shows_settings:
            formatter.write_text("Every setting is a flag here as well: eidproxy serve --help shows them.")
            formatter.write_paragraph()
        formatter.write_text(
            "A setting comes from its default, the file, the environment and the flag; the last one counts. The "
            "environment has the flag's name: EIDPROXY_GATE_CAPACITY for --gate-capacity. Two have their own: "
            "LLM_ROUTER_URL for --router-url and EIDPROXY_ACCELERATOR for --stream-accelerator. Secrets have no flag, "
            "since everybody on a machine can read those: EIDPROXY_SERVER_API_KEY, or EIDPROXY_SERVER_API_KEY_FILE, "
            "and the like."
        )


def _placeholder(field: Field) -> str:
    if isinstance(field.default, bool):
        return "true|false"
    return _PLACEHOLDERS.get(field.path.rpartition(".")[2].rpartition("_")[2], _placeholder_of_type(field.default))


def _placeholder_of_type(default: Any) -> str:
    if isinstance(default, int | float):
        return "NUMBER"
    return "NAMES" if isinstance(default, tuple) else "NAME"


def _help_text(field: Field) -> str:
    return f"{TEXTS.get(field.path, field.path)} [{_DEFAULTS.get(field.path) or _default_text(field.default)}]"


def _default_text(default: Any) -> str:
    if default is None or default == ():
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:.15g}" if isinstance(default, int | float) else str(default)
