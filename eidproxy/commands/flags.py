"""Settings as flags: an option for each setting but the secrets, and a `--help` in groups, with defaults and units."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from eidproxy.config import FIELDS, Field

GROUPS = {
    "router": "Router",
    "models": "Models",
    "gate": "Gate (the queue before daily)",
    "stream": "Answers",
    "server": "Listener",
    "log": "Log",
    "chat": "Chat",
}
"""The heading of each section."""

TEXTS = {
    "router.url": "URL of the router, for example http://127.0.0.1:4000",
    "router.allowed_networks": "networks the router may be in, comma-separated; narrows the default",
    "router.ca_file": "CA certificates that verify an https router",
    "router.connect_timeout_seconds": "timeout for connecting to the router",
    "router.read_timeout_seconds": "timeout while the router sends nothing in an answer",
    "router.write_timeout_seconds": "timeout for sending the request to the router",
    "router.first_event_seconds": "timeout for the first event of an answer",
    "router.first_event_seconds_per_kib": "added to that timeout for each KiB of the request",
    "router.wedge_after": "unanswered requests in a row that mark a model as wedged; 0 = never",
    "router.wedge_retry_seconds": "seconds between two trial requests to a wedged model",
    "router.keep_idle_seconds": "timeout of idle router connections; 0 = a new one for each request",
    "router.ask_usage": "ask the router for token counts, for the metrics",
    "models.daily.alias": "model name of daily at the router",
    "models.deep.alias": "model name of deep at the router",
    "models.max_tokens": "maximum length of an answer",
    "models.temperature": "temperature if the request has none",
    "models.daily.max_tokens": "maximum length of an answer from daily",
    "models.daily.temperature": "temperature of daily if the request has none",
    "models.deep.max_tokens": "maximum length of an answer from deep",
    "models.deep.temperature": "temperature of deep if the request has none",
    "models.max_prompt_bytes": "maximum size of a request body to the router; 0 = no limit",
    "gate.capacity": "maximum concurrent daily requests at the router",
    "gate.max_waiting": "maximum length of the wait queue; more requests are refused",
    "gate.wait_timeout_seconds": "timeout for waiting in the queue",
    "gate.aging_seconds": "wait after which background counts as foreground; 0 = never",
    "gate.lease_seconds": "lease of a slot in a shared gate; the replica renews it",
    "gate.after_leave": "policy for the slot of a caller that left: release, settle, first_event",
    "gate.settle_seconds": "maximum time that settle and first_event keep a slot",
    "stream.deadline_seconds": "time limit of an answer; the wait in the queue does not count",
    "stream.keepalive_seconds": "silence after which a stream sends a keep-alive comment",
    "stream.buffer_bytes": "buffer for a caller that reads slowly; when full, reading pauses",
    "stream.accelerator": "on or off: pass uniform events without the Python interpreter",
    "server.host": "address to listen on; any but loopback needs an API key",
    "server.port": "port to listen on; 0 = any free port",
    "server.uds": "Unix socket to listen on, instead of host and port",
    "server.allowed_hosts": "names accepted in the Host header, comma-separated",
    "server.max_body_bytes": "maximum size of a request body",
    "server.drain_seconds": "timeout for running answers after a stop signal",
    "log.level": "lowest level to log: debug, info, warning, error or critical",
    "log.format": "auto, json or console; auto = console on a terminal, else json",
    "chat.jwt_audience": "required audience (aud) of tokens",
    "chat.jwt_issuer": "required issuer (iss) of tokens",
    "chat.jwt_leeway_seconds": "leeway for the times in tokens (exp, nbf, iat)",
    "chat.persona_file": "text file that says who the assistant is",
    "chat.rules_file": "text file with the assistant's rules; with a secret, enables the chat",
    "chat.title": "title of the chat page",
    "chat.max_message_chars": "maximum length of a message",
    "chat.max_messages": "maximum number of messages in a conversation",
    "chat.max_total_chars": "maximum length of a conversation",
}
"""The help text of each setting, by its path; the placeholder shows the unit."""

_DEFAULTS = {
    "router.url": "required",
    "router.allowed_networks": "private networks",
    "router.ca_file": "the system's store",
    "models.daily.max_tokens": "models.max_tokens",
    "models.daily.temperature": "models.temperature",
    "models.deep.max_tokens": "models.max_tokens",
    "models.deep.temperature": "models.temperature",
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
    return click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="settings file, TOML")(
        command
    )


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
            formatter.write_text("Every setting is also a flag of this command: see eidproxy serve --help.")
            formatter.write_paragraph()
        formatter.write_text(
            "A flag overrides the environment, the environment overrides the file, and the file overrides the default. "
            "The environment variable has the name of the flag: EIDPROXY_GATE_CAPACITY for --gate-capacity. Two "
            "differ: LLM_ROUTER_URL for --router-url and EIDPROXY_ACCELERATOR for --stream-accelerator. Secrets have "
            "no flag, since every user of a machine can read command lines: set EIDPROXY_SERVER_API_KEY, "
            "EIDPROXY_SERVER_API_KEY_FILE and the like."
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
