"""The structs of the settings: the one list of their names, types, bounds and defaults.

Environment names, flags, `check` and the nearest-name advice follow from them.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct

from eidproxy.egress import (
    VERDICTS,
    EgressPolicy,
    Verdict,
    host_and_port,
    parse_allowed_networks,
    parse_literal,
)
from eidproxy.vocabulary import AfterLeave, Mode

_WEEK = 7 * 86400.0
"""Upper limit of every duration: a longer one has the wrong unit."""
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
    """How long a connection waits for the next request; 0: none does. Only to a router given as an address."""


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
        """The names accepted in `Host`: those of the setting alone, else those of this machine and of the listener."""
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


ROUTER_URL_FORM = "must be http:// or https:// with a host and optionally a port, and no path but /v1"


def router_address(url: str) -> tuple[str, int, bool]:
    """Return host, port and whether TLS is used, of `http[s]://host[:port]`, with or without `/` or `/v1` at the end.

    Raises ValueError for anything else.
    """
    scheme, _, rest = url.partition("://")
    authority = rest.removesuffix("/").removesuffix("/v1")  # `/v1` as in OPENAI_BASE_URL
    if scheme not in ("http", "https") or not authority or not url.isascii() or set("/?#@") & set(authority):
        raise ValueError(ROUTER_URL_FORM)
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


OWN_ENVIRONMENT_NAMES = {"router.url": "LLM_ROUTER_URL", "stream.accelerator": "EIDPROXY_ACCELERATOR"}
"""The settings whose name in the environment does not follow from their path."""


def fields(kind: type[Struct] = Settings, prefix: str = "") -> Iterator[Field]:
    """Yield every setting of a struct and of those inside it, in the order of their fields."""
    for field in msgspec.structs.fields(kind):
        path = prefix + field.name
        if isinstance(field.type, type) and issubclass(field.type, Struct):
            yield from fields(field.type, path + ".")
        else:
            env = OWN_ENVIRONMENT_NAMES.get(path) or "EIDPROXY_" + path.replace(".", "_").upper()
            if field.type == Params:  # a table of its own, which only the file can hold
                yield Field(path, "", field.type, {}, secret=False)
            else:
                yield Field(path, env, field.type, field.default, secret=_is_secret(field.type))


def _is_secret(kind: Any) -> bool:
    """Return whether a type is `Secret` or contains it, as in `Secret | None`."""
    return "'secret': True" in repr(kind)


FIELDS = tuple(fields())


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
