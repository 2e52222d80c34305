"""Settings: defaults < TOML file < environment < flags. All faults are found before any is reported.

The structs below are the one list of settings: names, types, bounds and defaults. Environment names, flags, `check`
and the nearest-name advice follow from them.
"""

import difflib
import importlib.util
import ssl
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec
from msgspec import Meta, Struct

from eidproxy.egress import EgressPolicy, Verdict, is_name, literal, narrowed
from eidproxy.vocabulary import Mode

_WEEK = 7 * 86400.0
Seconds = Annotated[float, Meta(gt=0, le=_WEEK)]
SecondsOrNever = Annotated[float, Meta(ge=0, le=_WEEK)]
Count = Annotated[int, Meta(ge=1, le=10_000_000)]
Word = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"\A[!-~]+\Z")]
Secret = Annotated[str, Meta(min_length=1, extra={"secret": True})]
Title = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"\A\S(?:[^\x00-\x1f\x7f]*\S)?\Z")]
Key = Annotated[str, Meta(min_length=1, pattern=r"\A[!-~]+\Z", extra={"secret": True})]  # it stands in a header


class RouterSettings(Struct, frozen=True, kw_only=True):
    """The one place that requests go to."""

    url: str = ""
    allowed_networks: tuple[str, ...] = ()
    ca_file: str | None = None
    api_key: Key | None = None
    connect_timeout_seconds: Seconds = 5.0
    read_timeout_seconds: Seconds = 120.0
    write_timeout_seconds: Seconds = 30.0
    ask_usage: bool = False


class DailySettings(Struct, frozen=True, kw_only=True):
    """The model behind `daily`."""

    alias: Word = "mac-mini-default"


class DeepSettings(Struct, frozen=True, kw_only=True):
    """The model behind `deep`."""

    alias: Word = "qwen-macbook"


class ModelSettings(Struct, frozen=True, kw_only=True):
    """What the router is asked for."""

    daily: DailySettings = DailySettings()
    deep: DeepSettings = DeepSettings()
    max_tokens: Count = 2048
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.4


class GateSettings(Struct, frozen=True, kw_only=True):
    """The gate before `daily`."""

    capacity: Count = 1
    max_waiting: Annotated[int, Meta(ge=0, le=10_000_000)] = 64
    wait_timeout_seconds: Seconds = 300.0
    aging_seconds: SecondsOrNever = 60.0
    url: Secret | None = None
    lease_seconds: Annotated[float, Meta(ge=0.5, le=3600)] = 15.0


class StreamSettings(Struct, frozen=True, kw_only=True):
    """One answer on its way."""

    deadline_seconds: Seconds = 300.0
    keepalive_seconds: Seconds = 15.0
    buffer_bytes: Annotated[int, Meta(ge=1, le=67_108_864)] = 1_048_576


class ServerSettings(Struct, frozen=True, kw_only=True):
    """The listener."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8790
    uds: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    api_key: Key | None = None
    max_body_bytes: Annotated[int, Meta(ge=1, le=67_108_864)] = 1_048_576
    drain_seconds: SecondsOrNever = 60.0


class LogSettings(Struct, frozen=True, kw_only=True):
    """What is written down."""

    level: Annotated[str, Meta(pattern=r"\A(debug|info|warning|error|critical)\Z")] = "info"
    format: Annotated[str, Meta(pattern=r"\A(auto|json|console)\Z")] = "auto"


class ChatSettings(Struct, frozen=True, kw_only=True):
    """The chat surface."""

    jwt_secret: Secret | None = None
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    jwt_leeway_seconds: SecondsOrNever = 0.0
    persona_file: str | None = None
    rules_file: str | None = None
    title: Title = "이드"
    max_message_chars: Count = 8000
    max_messages: Count = 40
    max_total_chars: Count = 32000

    @property
    def enabled(self) -> bool:
        """Whether the surface is there at all."""
        return self.jwt_secret is not None and self.rules_file is not None


class Settings(Struct, frozen=True, kw_only=True):
    """Everything that can be set, by section."""

    router: RouterSettings = RouterSettings()
    models: ModelSettings = ModelSettings()
    gate: GateSettings = GateSettings()
    stream: StreamSettings = StreamSettings()
    server: ServerSettings = ServerSettings()
    log: LogSettings = LogSettings()
    chat: ChatSettings = ChatSettings()

    def alias(self, mode: Mode) -> str:
        """The router's name for a mode."""
        return self.models.daily.alias if mode is Mode.DAILY else self.models.deep.alias

    @property
    def router_address(self) -> tuple[str, int, bool]:
        """Host, port and whether TLS is spoken, of `router.url`."""
        parts = urlsplit(self.router.url)
        secure = parts.scheme == "https"
        return (parts.hostname or "").lower(), parts.port or (443 if secure else 80), secure

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """The names that may stand in `Host`, without port, lower case."""
        given = self.server.allowed_hosts
        if given:
            return frozenset(host.lower() for host in given)
        host = self.server.host.lower()
        return frozenset({"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host})

    @property
    def egress(self) -> EgressPolicy:
        """The addresses that the router may have."""
        address = literal(self.router_address[0])
        if address is not None:
            return EgressPolicy(narrowed([str(address)]))
        return EgressPolicy(narrowed(self.router.allowed_networks)) if self.router.allowed_networks else EgressPolicy()


@dataclass(frozen=True, repr=False)
class GateAddress:
    """Where the store of a shared gate is, and how to log in. It has no repr, since it holds a password."""

    host: str = ""
    port: int = 6379
    path: str | None = None
    """A Unix socket, instead of host and port."""
    database: int = 0
    username: str | None = None
    password: str | None = None
    secure: bool = False
    ca_file: str | None = None
    """The authorities for TLS; None is the system's store."""

    @property
    def egress(self) -> EgressPolicy:
        """The addresses that the store may have: one that is given as an address, that alone."""
        address = literal(self.host)
        return EgressPolicy() if address is None else EgressPolicy(narrowed([str(address)]))


def gate_address(url: str) -> GateAddress:
    """Read `gate.url`: `redis[s]://[user][:password]@host[:port][/database][?ssl_ca_certs=file]` or
    `unix://[user][:password]@/path[?db=number]`. Raises ValueError, which does not repeat the URL.
    """
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        port = parts.port
    except ValueError:
        raise ValueError("is not a URL") from None
    known = {"redis": set(), "rediss": {"ssl_ca_certs"}, "unix": {"db"}}.get(parts.scheme)
    if known is None or not url.isascii() or parts.fragment:
        raise ValueError("must be redis://, rediss:// or unix://")
    if set(options) - known or len(options) != len(parse_qsl(parts.query, keep_blank_values=True)):
        raise ValueError("has an option that is not known: rediss:// takes ssl_ca_certs, unix:// takes db")
    database = options.get("db", "") if parts.scheme == "unix" else parts.path.removeprefix("/")
    if database and not (database.isdecimal() and len(database) <= 4):
        raise ValueError("names a database that is not a number")
    login: dict[str, Any] = {
        "database": int(database or 0),
        "username": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password) if parts.password else None,
    }
    if parts.scheme == "unix":
        if parts.hostname or port is not None or len(parts.path) < 2:
            raise ValueError("must name the socket by its absolute path")
        return GateAddress(path=unquote(parts.path), **login)
    return _network_gate(parts, port, options.get("ssl_ca_certs"), login)


def _network_gate(parts: SplitResult, port: int | None, ca_file: str | None, login: dict[str, Any]) -> GateAddress:
    host = (parts.hostname or "").lower()
    if port == 0 or parts.netloc.endswith(":"):
        raise ValueError("has no valid port")
    address = literal(host)
    if address is None and not is_name(host):
        raise ValueError("the host must be an address in its usual spelling or a DNS name")
    if address is not None and not (decision := EgressPolicy().decide(str(address))).permitted:
        raise ValueError(f"egress_blocked: the address is not permitted ({decision.verdict})")
    if ca_file is not None and not Path(ca_file).is_file():
        raise ValueError("ssl_ca_certs: there is no such file")
    return GateAddress(host=host, port=port or 6379, secure=parts.scheme == "rediss", ca_file=ca_file, **login)


class Field(NamedTuple):
    """One setting as the outside knows it."""

    path: str
    env: str
    kind: Any
    default: Any
    secret: bool

    @property
    def flag(self) -> str:
        """Its command line option. A secret has none: command lines are visible to every user of a machine."""
        return "--" + self.path.replace(".", "-").replace("_", "-")

    @property
    def is_list(self) -> bool:
        """Whether an environment value is split at commas."""
        return isinstance(self.default, tuple)


class SettingsError(Exception):
    """The settings cannot be used. `faults` says why, one line each; no secret is in them."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class Loaded(NamedTuple):
    """Settings and where each value came from, by path."""

    settings: Settings
    origins: dict[str, str]


def fields(kind: type[Struct] = Settings, prefix: str = "") -> Iterator[Field]:
    """Every setting, in the order of the structs."""
    for field in msgspec.structs.fields(kind):
        path = prefix + field.name
        if isinstance(field.type, type) and issubclass(field.type, Struct):
            yield from fields(field.type, path + ".")
        else:
            env = "LLM_ROUTER_URL" if path == "router.url" else "EIDPROXY_" + path.replace(".", "_").upper()
            yield Field(path, env, field.type, field.default, "secret" in repr(field.type))


FIELDS = tuple(fields())


def load(config: Path | None, environ: Mapping[str, str], flags: Mapping[str, str]) -> Loaded:
    """Gather, check and freeze the settings. `flags` maps paths to words. Raises SettingsError with every fault."""
    faults: list[str] = []
    values: dict[str, Any] = {}
    origins = {field.path: "default" for field in FIELDS}
    known = {field.path: field for field in FIELDS}

    def take(field: Field, value: Any, origin: str, strict: bool) -> None:
        if isinstance(value, str) and field.is_list:
            value = [word.strip() for word in value.split(",") if word.strip()]
        try:
            values[field.path] = msgspec.convert(value, field.kind, strict=strict)
        except msgspec.ValidationError as error:
            # The text of the error may repeat the value, which must not happen for a secret.
            faults.append(f"{origin}: {field.path}: {'not a valid secret' if field.secret else error}")
        else:
            origins[field.path] = origin

    for path, value in _from_file(config, faults):
        if path in known:
            take(known[path], value, f"file {config}", strict=True)
        else:
            faults.append(f"file {config}: unknown key {path}{_nearest(path, known)}")
    for field, name, word in _from_environment(environ, faults):
        take(field, word, f"environment {name}", strict=False)
    for path, word in flags.items():
        take(known[path], word, f"flag {known[path].flag}", strict=False)
    settings = _built(values)
    faults += _cross_checked(settings, environ)
    if faults:
        raise SettingsError(faults)
    return Loaded(settings, origins)


def shown(loaded: Loaded) -> Iterator[tuple[str, str, str]]:
    """Path, value and origin of every setting, secrets masked."""
    for field in FIELDS:
        value: Any = loaded.settings
        for name in field.path.split("."):
            value = getattr(value, name)
        if field.secret and value is not None:
            text = "********"
        elif isinstance(value, tuple):
            text = ", ".join(value)
        else:
            text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        yield field.path, text, loaded.origins[field.path]


def _from_file(config: Path | None, faults: list[str]) -> Iterator[tuple[str, Any]]:
    if config is None:
        return
    try:
        with config.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        faults.append(f"file {config}: cannot be read: {error.strerror}")
    except ValueError as error:
        faults.append(f"file {config}: not valid TOML: {error}")
    else:
        yield from _flat(table)


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _from_environment(environ: Mapping[str, str], faults: list[str]) -> Iterator[tuple[Field, str, str]]:
    known = {field.env for field in FIELDS} | {f"{field.env}_FILE" for field in FIELDS if field.secret}
    faults += [
        f"environment: unknown name {name}{_nearest(name, known)}"
        for name in environ
        if name.startswith("EIDPROXY_") and name not in known
    ]
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    for field in FIELDS:
        if not field.secret:
            if field.env in environ:
                yield field, field.env, environ[field.env]
            continue
        sources = [name for name in (field.env, f"{field.env}_FILE") if name in environ]
        credential = Path(credentials, field.env.lower()) if credentials else None
        if credential is not None and credential.exists():
            sources.append("CREDENTIALS_DIRECTORY")
        if len(sources) > 1:
            faults.append(f"environment: {field.path} is given more than once: {', '.join(sources)}")
        elif sources == [field.env]:
            yield field, field.env, environ[field.env]
        elif sources:
            path = credential if sources == ["CREDENTIALS_DIRECTORY"] else Path(environ[sources[0]])
            try:
                yield field, sources[0], path.read_text("utf-8").rstrip("\r\n")  # type: ignore[union-attr]
            except OSError as error:
                faults.append(f"environment {sources[0]}: the file cannot be read: {error.strerror}")
            except UnicodeDecodeError:
                faults.append(f"environment {sources[0]}: the file is not UTF-8")


def _nearest(name: str, known: Mapping[str, object] | set[str]) -> str:
    if name == "EIDPROXY_ROUTER_URL":  # the one setting whose name does not follow from its path
        return "; did you mean LLM_ROUTER_URL?"
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _built(values: Mapping[str, Any]) -> Settings:
    def build(kind: type[Struct], prefix: str) -> Any:
        given = {}
        for field in msgspec.structs.fields(kind):
            path = prefix + field.name
            if isinstance(field.type, type) and issubclass(field.type, Struct):
                given[field.name] = build(field.type, path + ".")
            elif path in values:
                given[field.name] = values[path]
        return kind(**given)

    settings: Settings = build(Settings, "")
    return settings


def _cross_checked(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    """What a type cannot say."""
    yield from _router_faults(settings)
    host = settings.server.host
    address = literal(host)
    is_loopback = host == "localhost" or (address is not None and address.is_loopback)
    if address is None and not is_name(host):
        yield "server.host: not an address or a name"
    if not is_loopback and settings.server.uds is None and settings.server.api_key is None:
        yield "server.host: is not loopback, so server.api_key is required"
    yield from _gate_faults(settings)
    if settings.gate.url is None and environ.get("WEB_CONCURRENCY", "1") not in ("", "1"):
        yield "environment WEB_CONCURRENCY: one process has the gate, so more than one worker is refused; see gate.url"
    chat = settings.chat
    if (chat.jwt_secret is None) != (chat.rules_file is None):
        missing = "chat.jwt_secret" if chat.jwt_secret is None else "chat.rules_file"
        yield f"{missing}: the chat surface needs both chat.jwt_secret and chat.rules_file"
    if chat.jwt_secret is not None and len(chat.jwt_secret.encode()) < 32:
        yield "chat.jwt_secret: must have at least 32 bytes"


def _gate_faults(settings: Settings) -> Iterator[str]:
    if settings.gate.url is None:
        return
    try:
        gate_address(settings.gate.url)
    except ValueError as error:
        yield f"gate.url: {error}"
    if importlib.util.find_spec("redis") is None:
        yield "gate.url: needs redis-py: install eidproxy[redis]"


def _router_faults(settings: Settings) -> Iterator[str]:
    url = settings.router.url
    if not url:
        yield "router.url: is required: set LLM_ROUTER_URL, for example http://127.0.0.1:4000"
        return
    try:
        networks = narrowed(settings.router.allowed_networks)
    except ValueError:
        yield "router.allowed_networks: each must be a network inside the permitted ones; nothing can be added"
        return
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        plain = f"{parts.scheme}://{parts.netloc}" == url and "@" not in parts.netloc and port != 0
    except ValueError:
        plain, host, parts = False, "", urlsplit("")
    address = literal(host)
    if not plain or parts.scheme not in ("http", "https") or not url.isascii() or parts.netloc.endswith(":"):
        yield "router.url: must be http:// or https://, a host and a port, and nothing more"
    elif address is None and not is_name(host):
        yield "router.url: the host must be an address in its usual spelling or a DNS name"
    elif address is not None:
        decision = EgressPolicy(networks or EgressPolicy().networks).decide(str(address))
        if not decision.permitted:
            yield f"router.url: egress_blocked: the address is not permitted ({decision.verdict})"
        elif literal(settings.server.host) == address and settings.router_address[1] == settings.server.port:
            yield f"router.url: egress_blocked: this is eidproxy's own address ({Verdict.LOOP})"
    if settings.router.ca_file is not None:
        try:
            ssl.create_default_context(cafile=settings.router.ca_file)
        except (OSError, ValueError):  # ssl.SSLError is an OSError
            yield "router.ca_file: there are no certificates in it that can be read"
