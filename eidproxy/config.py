"""Settings: defaults < TOML file < environment < flags. All faults are found before any is reported.

The structs below are the one list of settings: names, types, bounds and defaults. Environment names, flags, `check`
and the nearest-name advice follow from them.
"""

import difflib
import math
import re
import ssl
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct

from eidproxy.egress import (
    VERDICTS,
    EgressPolicy,
    Verdict,
    host_and_port,
    is_loopback,
    is_name,
    parse_allowed_networks,
    parse_literal,
)
from eidproxy.errors import MAX_RETRY_SECONDS
from eidproxy.gate.choice import url_faults
from eidproxy.inbound.chat import REQUEST_FIELDS
from eidproxy.vocabulary import AfterLeave, Mode

_WEEK = 7 * 86400.0
"""Upper limit of every duration: a longer one has the wrong unit."""
_NAME_LIKENESS = 0.6
"""Lowest ratio (difflib) at which a known name is suggested for an unknown one."""
_ENVIRONMENT_LIKENESS = 0.85
"""The same for an environment name that may belong to another program."""
Seconds = Annotated[float, Meta(gt=0, le=_WEEK)]
SecondsOrNever = Annotated[float, Meta(ge=0, le=_WEEK)]
Count = Annotated[int, Meta(ge=1, le=10_000_000)]
_VISIBLE = r"\A[!-~]+\Z"
Word = Annotated[str, Meta(min_length=1, max_length=256, pattern=_VISIBLE)]
Secret = Annotated[str, Meta(min_length=1, extra={"secret": True})]
Title = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"\A\S(?:[^\x00-\x1f\x7f]*\S)?\Z")]
Key = Annotated[str, Meta(min_length=1, pattern=_VISIBLE, extra={"secret": True})]  # it is sent in a header


class RouterSettings(Struct, frozen=True, kw_only=True):
    """The one place that requests go to."""

    url: str = ""
    allowed_networks: tuple[str, ...] = ()
    ca_file: str | None = None
    api_key: Key | None = None
    connect_timeout_seconds: Seconds = 5.0
    read_timeout_seconds: Seconds = 120.0
    write_timeout_seconds: Seconds = 30.0
    first_event_seconds: Seconds = 90.0
    first_event_seconds_per_kib: Annotated[float, Meta(ge=0, le=3600)] = 4.0
    wedge_after: Annotated[int, Meta(ge=0, le=1000)] = 2
    """0 switches the wedge guard off."""
    wedge_retry_seconds: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    ask_usage: bool = False
    keep_idle_seconds: Annotated[float, Meta(ge=0, le=60)] = 1.0
    """How long a connection waits for the next request; 0: none does. Only to an `http` router given as an address."""


Temperature = Annotated[float, Meta(ge=0, le=2)]
Params = dict[str, Any]
"""Constants for every request of a mode: a table of the file, with no environment name and no flag."""


class DailySettings(Struct, frozen=True, kw_only=True):
    """The model behind `daily`."""

    alias: Word = "mac-mini-default"
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    params: Params = {}


class DeepSettings(Struct, frozen=True, kw_only=True):
    """The model behind `deep`."""

    alias: Word = "qwen-macbook"
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    params: Params = {}


class ModelSettings(Struct, frozen=True, kw_only=True):
    """What the router is asked for."""

    daily: DailySettings = DailySettings()
    deep: DeepSettings = DeepSettings()
    max_tokens: Count = 2048
    temperature: Temperature = 0.4
    max_prompt_bytes: Annotated[int, Meta(ge=0, le=67_108_864)] = 0


class GateSettings(Struct, frozen=True, kw_only=True):
    """The gate before `daily`."""

    capacity: Count = 1
    max_waiting: Annotated[int, Meta(ge=0, le=10_000_000)] = 64
    wait_timeout_seconds: Seconds = 300.0
    aging_seconds: SecondsOrNever = 60.0
    after_leave: AfterLeave = AfterLeave.RELEASE
    settle_seconds: Annotated[float, Meta(gt=0, le=3600)] = 20.0
    url: Secret | None = None
    lease_seconds: Annotated[float, Meta(ge=0.5, le=3600)] = 15.0


class StreamSettings(Struct, frozen=True, kw_only=True):
    """One answer on its way."""

    deadline_seconds: Seconds = 300.0
    keepalive_seconds: Seconds = 15.0
    buffer_bytes: Annotated[int, Meta(ge=1, le=67_108_864)] = 1_048_576
    accelerator: Annotated[str, Meta(pattern=r"\A(on|off)\Z")] = "on"


class ServerSettings(Struct, frozen=True, kw_only=True):
    """The listener."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8790
    uds: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    api_key: Key | None = None
    background_api_key: Key | None = None
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
        """Whether the chat surface is served."""
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
        """Return the router's name for a mode."""
        return self.models.daily.alias if mode is Mode.DAILY else self.models.deep.alias

    @property
    def router_address(self) -> tuple[str, int, bool]:
        """The host and port of `router.url`, and whether it uses TLS."""
        return router_address(self.router.url)

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """The names accepted in `Host`, without port, in lower case."""
        given = self.server.allowed_hosts
        if given:
            return frozenset(host.lower() for host in given)
        host = self.server.host.lower()
        return frozenset({"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host})

    @property
    def egress(self) -> EgressPolicy:
        """The addresses that the router may have."""
        address = parse_literal(self.router_address[0])
        if address is not None:
            return EgressPolicy(parse_allowed_networks([str(address)]))
        return (
            EgressPolicy(parse_allowed_networks(self.router.allowed_networks))
            if self.router.allowed_networks
            else EgressPolicy()
        )


def refusal_text(settings: Settings, verdict: Verdict) -> str:
    """Return why an address of the router is refused."""
    narrowed_by = settings.router.allowed_networks and verdict is Verdict.OUTSIDE
    return VERDICTS[verdict] + (", narrowed by router.allowed_networks" if narrowed_by else "")


_ROUTER_URL = "must be http:// or https:// with a host and optionally a port, and no path but /v1"


def router_address(url: str) -> tuple[str, int, bool]:
    """Return host, port and whether TLS is used, of `http[s]://host[:port]`, with or without `/` or `/v1` at the end.

    Raises ValueError for anything else.
    """
    scheme, _, rest = url.partition("://")
    authority = rest.removesuffix("/").removesuffix("/v1")  # `/v1` as in OPENAI_BASE_URL
    if scheme not in ("http", "https") or not authority or not url.isascii() or set("/?#@") & set(authority):
        raise ValueError(_ROUTER_URL)
    host, port = host_and_port(authority)
    return host, port or (443 if scheme == "https" else 80), scheme == "https"


class Field(NamedTuple):
    """One setting: its path, environment name, type and default."""

    path: str
    env: str
    kind: Any
    default: Any
    secret: bool

    @property
    def flag(self) -> str:
        """The command line option. A secret gets none: command lines are visible to every user of a machine."""
        return "--" + self.path.replace(".", "-").replace("_", "-")

    @property
    def file_only(self) -> bool:
        """Whether the setting is a table of the file, with neither an environment name (`env` is empty) nor a flag."""
        return not self.env

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


_OWN_ENVIRONMENT_NAMES = {"router.url": "LLM_ROUTER_URL", "stream.accelerator": "EIDPROXY_ACCELERATOR"}
"""The settings whose name in the environment does not follow from their path."""


def fields(kind: type[Struct] = Settings, prefix: str = "") -> Iterator[Field]:
    """Yield every setting, in the order of the structs."""
    for field in msgspec.structs.fields(kind):
        path = prefix + field.name
        if isinstance(field.type, type) and issubclass(field.type, Struct):
            yield from fields(field.type, path + ".")
        else:
            env = _OWN_ENVIRONMENT_NAMES.get(path) or "EIDPROXY_" + path.replace(".", "_").upper()
            if field.type == Params:
                yield Field(path, "", field.type, {}, secret=False)
            else:
                yield Field(path, env, field.type, field.default, "secret" in repr(field.type))


FIELDS = tuple(fields())
_TABLES = frozenset(field.path for field in FIELDS if field.file_only)


def load(config: Path | None, environ: Mapping[str, str], flags: Mapping[str, str]) -> Loaded:
    """Gather, check and freeze the settings. `flags` maps paths to words. Raises SettingsError with every fault."""
    faults: list[str] = []
    values: dict[str, Any] = {}
    origins = {field.path: "default" for field in FIELDS}
    known = {field.path: field for field in FIELDS}

    def set_value(field: Field, value: Any, origin: str, strict: bool) -> None:
        if isinstance(value, str) and field.is_list:
            value = [word.strip() for word in value.split(",") if word.strip()]
        try:
            values[field.path] = msgspec.convert(value, field.kind, strict=strict)
        except msgspec.ValidationError:
            # msgspec's own words are for programmers, and may repeat the value.
            faults.append(f"{origin}: {field.path}: {requirement(field.kind)}")
        else:
            origins[field.path] = origin

    for path, value in _from_file(config, faults):
        if path in known:
            set_value(known[path], value, f"file {config}", strict=True)
        elif (fault := f"file {config}: {_unknown_key(path, known)}") not in faults:
            faults.append(fault)
    for field, name, text in _from_environment(environ, faults):
        set_value(field, text, f"environment {name}", strict=False)
    for path, text in flags.items():
        set_value(known[path], text, f"flag {known[path].flag}", strict=False)
    settings = _build_settings(values)
    faults += _cross_check(settings, environ)
    if not settings.router.url:
        faults += _misspelt_router_url(environ)
    if faults:
        raise SettingsError(faults)
    return Loaded(settings, origins)


def describe_settings(loaded: Loaded, *, everything: bool) -> Iterator[tuple[str, str, str]]:
    """Yield path, value and origin of each setting that differs from its default, or of every one; secrets masked."""
    for field in FIELDS:
        value: Any = loaded.settings
        for name in field.path.split("."):
            value = getattr(value, name)
        if value == field.default and not everything:
            continue
        if field.secret and value is not None:
            text = "********"
        elif isinstance(value, tuple) and value:
            text = ", ".join(value)
        elif isinstance(value, dict) and value:
            text = msgspec.json.encode(value).decode()
        else:
            text = "none" if value in (None, (), {}) else str(value).lower() if isinstance(value, bool) else str(value)
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
        yield from _flatten(table)


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict) and prefix + name not in _TABLES:
            yield from _flatten(value, f"{prefix}{name}.")
            if not value:
                yield f"{prefix}{name}.", None
        else:
            yield prefix + name, value


def _from_environment(environ: Mapping[str, str], faults: list[str]) -> Iterator[tuple[Field, str, str]]:
    known = {field.env for field in FIELDS if field.env}
    known |= {f"{field.env}_FILE" for field in FIELDS if field.secret}
    faults += [
        f"environment: unknown name {name}{_suggestion(name, known)}"
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


def requirement(kind: Any) -> str:
    """Return what a setting of this type must be, in words: "must be a whole number from 0 to 65535"."""
    known = msgspec.inspect.type_info(kind)
    if isinstance(known, msgspec.inspect.UnionType):  # None stands for a missing setting; no user writes it
        known = next(one for one in known.types if not isinstance(one, msgspec.inspect.NoneType))
    if isinstance(known, msgspec.inspect.Metadata):
        known = known.type
    if isinstance(known, msgspec.inspect.BoolType):
        return "must be true or false"
    if isinstance(known, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        noun = "a whole number" if isinstance(known, msgspec.inspect.IntType) else "a number"
        low, to = (f"above {known.gt or 0:.15g}", ", at most") if known.ge is None else (f"from {known.ge:.15g}", " to")
        return f"must be {noun} {low}" + ("" if known.le is None else f"{to} {known.le:.15g}")
    if isinstance(known, msgspec.inspect.VarTupleType):
        return "must be a list of strings"
    if isinstance(known, msgspec.inspect.StrType) and known.pattern is not None:
        choice = re.fullmatch(r"\\A\(([a-z|]+)\)\\Z", known.pattern)
        if choice is not None:
            *others, last = choice[1].split("|")
            return f"must be {', '.join(others)} or {last}"
        count = f"1 to {known.max_length}" if known.max_length is not None else "one or more"
        what = "visible ASCII characters" if known.pattern == _VISIBLE else "characters"
        return f"must be {count} {what}, without spaces{'' if known.pattern == _VISIBLE else ' at either end'}"
    return "must be a string" if getattr(known, "min_length", None) is None else "must be a non-empty string"


def _unknown_key(path: str, known: Mapping[str, object]) -> str:
    section, dot, _ = path.partition(".")
    sections = {name.partition(".")[0] for name in known}
    if dot and section not in sections:
        near = difflib.get_close_matches(section, sections, n=1, cutoff=_NAME_LIKENESS)
        return f"unknown section [{section}]{f'; did you mean [{near[0]}]?' if near else ''}"
    return f"unknown key {path}{_suggestion(path, known)}"


def _suggestion(name: str, known: Iterable[str]) -> str:
    """Return a suggestion for an unknown name, or "". A common prefix up to a separator does not count as likeness."""
    for path, own in _OWN_ENVIRONMENT_NAMES.items():
        if name == "EIDPROXY_" + path.replace(".", "_").upper():
            return f"; did you mean {own}?"

    def likeness(one: str, other: str) -> float:
        return difflib.SequenceMatcher(None, one.lower(), other.lower()).ratio()

    def is_near(candidate: str) -> bool:
        start = _common_prefix_end(name, candidate)
        return likeness(name[start:], candidate[start:]) >= _NAME_LIKENESS

    near = [candidate for candidate in known if is_near(candidate)]
    return f"; did you mean {max(near, key=lambda candidate: likeness(name, candidate))}?" if near else ""


def _common_prefix_end(one: str, other: str) -> int:
    """Return the index after the last separator before two names differ."""
    start = 0
    for at, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            break
        if left in "._":
            start = at + 1
    return start


def _misspelt_router_url(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a fault for each name like LLM_ROUTER_URL. Only for when that is missing: others may own such names."""
    for name in environ:
        if len(name) > 3 and difflib.SequenceMatcher(None, name, "LLM_ROUTER_URL").ratio() >= _ENVIRONMENT_LIKENESS:
            yield f"environment: {name} is set; did you mean LLM_ROUTER_URL?"


def _build_settings(values: Mapping[str, Any]) -> Settings:
    """Build the settings from a flat map of paths ("gate.capacity") to values; what is left out has its default."""

    def build_section(kind: type[Struct], prefix: str) -> Any:
        given = {}
        for field in msgspec.structs.fields(kind):
            path = prefix + field.name
            if isinstance(field.type, type) and issubclass(field.type, Struct):
                given[field.name] = build_section(field.type, path + ".")
            elif path in values:
                given[field.name] = values[path]
        return kind(**given)

    settings: Settings = build_section(Settings, "")
    return settings


def contradictions(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield, by path, settings that contradict each other but are valid: `check` reports them, `serve` accepts them."""
    router, gate, deadline_seconds = settings.router, settings.gate, settings.stream.deadline_seconds
    clocks = [("router.read_timeout_seconds", router.read_timeout_seconds)]
    clocks.append(("router.first_event_seconds", router.first_event_seconds))
    if gate.after_leave is not AfterLeave.RELEASE:
        clocks.append(("gate.settle_seconds", gate.settle_seconds))
    for name, seconds in clocks:
        if seconds > deadline_seconds:
            limit = f"stream.deadline_seconds ({deadline_seconds:g} s)"
            yield name, f"{seconds:g} s is longer than {limit}, which ends the request first"
    if router.wedge_after and router.wedge_retry_seconds > MAX_RETRY_SECONDS:
        told = f"longer than the largest Retry-After ({MAX_RETRY_SECONDS} s), so some callers come back too early"
        yield "router.wedge_retry_seconds", f"{router.wedge_retry_seconds:g} s is {told}"


def _cross_check(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the faults that types cannot express."""
    yield from _router_faults(settings)
    host = settings.server.host
    address = parse_literal(host.partition("%")[0])  # a listener may have an address with the name of an interface
    if address is None and not is_name(host):
        yield "server.host: must be an IP address or a host name"
    is_local = host == "localhost" or (address is not None and is_loopback(address))
    if not is_local and settings.server.uds is None and settings.server.api_key is None:
        yield "server.host: is not loopback, so server.api_key is required"
    background = settings.server.background_api_key
    if background is not None and background == settings.server.api_key:
        yield "server.background_api_key: must differ from server.api_key"
    if background is not None and settings.server.api_key is None:
        yield "server.background_api_key: needs server.api_key; without it every caller is foreground"
    yield from _params_faults(settings)
    if settings.gate.url is not None:
        yield from (f"gate.url: {fault}" for fault in url_faults(settings.gate.url))
    elif environ.get("WEB_CONCURRENCY", "1") not in ("", "1"):
        yield "environment WEB_CONCURRENCY: must be 1; for more processes, run replicas with gate.url"
    chat = settings.chat
    if (chat.jwt_secret is None) != (chat.rules_file is None):
        missing = "chat.jwt_secret" if chat.jwt_secret is None else "chat.rules_file"
        yield f"{missing}: the chat surface needs both chat.jwt_secret and chat.rules_file"
    if chat.jwt_secret is not None and len(chat.jwt_secret.encode()) < 32:
        yield "chat.jwt_secret: must have at least 32 bytes"


_FORBIDDEN_WORDS = (
    # These lead to another machine, or around what the operator set there.
    *("api", "base", "url", "uri", "endpoint", "host", "server", "proxy", "proxies", "http", "ssl", "header", "extra"),
    *("transfer", "bootstrap", "mcp", "plugin", "search", "file", "path", "image", "audio"),
    # These choose another model or provider, or foreign code.
    *("model", "deploy", "provider", "region", "location", "project", "rout", "fallback", "adapter", "processor"),
    *("custom", "litellm", "azure", "aws", "vertex", "bedrock", "watson", "sagemaker", "retries", "retry"),
    # These add a key or an identity.
    *("key", "secret", "password", "auth", "credential", "organization", "tenant", "user", "team"),
    # These show a request to others, or keep a copy of it.
    *("callback", "hook", "logger", "logging", "metadata", "tags", "trace", "caching", "mock", "guardrail"),
)
_RESERVED_NAMES = REQUEST_FIELDS | {"function_call", "prompt", "input", "cache", "ttl", "engine"}


def _params_faults(settings: Settings) -> Iterator[str]:
    """Yield a fault for each of the operator's constants that could lead a request elsewhere or undo what was checked.

    Refused are the names that a request may have itself, and names with a word of `_FORBIDDEN_WORDS` anywhere in them:
    nobody can list each parameter of each router that sets a place, a key or a listener (LiteLLM has some two hundred).
    """
    for mode, params in (("daily", settings.models.daily.params), ("deep", settings.models.deep.params)):
        for name, value in params.items():
            path = f"models.{mode}.params.{name}"
            if name in _RESERVED_NAMES:
                yield f"{path}: is a field of the request, which eidproxy checks and sets itself"
            elif not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,63}", name):
                yield f"{path}: must be a name of at most 64 ASCII letters, digits and underscores"
            elif any(word in name.lower() for word in _FORBIDDEN_WORDS):
                yield f"{path}: is not permitted, since it could redirect or expose a request"
            elif not _is_json(value):
                yield f"{path}: has a value that JSON cannot hold: a date, an infinity or too large a number"


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_json, value.values()))
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    return isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))


def _router_faults(settings: Settings) -> Iterator[str]:
    url = settings.router.url
    if not url:
        yield "router.url: is required; set LLM_ROUTER_URL, for example http://127.0.0.1:4000"
        return
    try:
        networks = parse_allowed_networks(settings.router.allowed_networks)
    except ValueError:
        yield (
            "router.allowed_networks: each must be a network within the permitted ones, such as 192.168.1.0/24 or"
            " fd00:1::/64; the setting can only narrow them"
        )
        return
    if settings.router.ca_file is not None:
        try:
            ssl.create_default_context(cafile=settings.router.ca_file)
        except (OSError, ValueError):  # ssl.SSLError is an OSError
            yield "router.ca_file: cannot be read, or contains no certificates"
    try:
        host, port, _ = router_address(url)
    except ValueError:
        yield f"router.url: {_ROUTER_URL}"
        return
    address = parse_literal(host)
    if address is None and not is_name(host):
        yield "router.url: the host must be an IP address in standard notation or a DNS name"
    elif address is not None:
        decision = EgressPolicy(networks or EgressPolicy().networks).decide(str(address))
        if not decision.permitted:
            yield f"router.url: egress_blocked: {address} {refusal_text(settings, decision.verdict)}"
        elif parse_literal(settings.server.host) == address and port == settings.server.port:
            yield f"router.url: egress_blocked: {address} port {port} {VERDICTS[Verdict.LOOP]}"
