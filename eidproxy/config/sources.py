"""Where settings come from: defaults < TOML file < environment < flags.

All faults are found before any is reported.
"""

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from eidproxy.config.settings import FIELDS, OWN_ENVIRONMENT_NAMES, Field, Settings, requirement
from eidproxy.config.validation import cross_check

_NAME_LIKENESS = 0.6
"""Lowest ratio (difflib) at which a known name is suggested for an unknown one."""
_ENVIRONMENT_LIKENESS = 0.85
"""The same for an environment name that may belong to another program."""

_TABLES = frozenset(field.path for field in FIELDS if field.file_only)


class SettingsError(Exception):
    """The settings cannot be used. `faults` says why, one line each; no secret is in them."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class Loaded(NamedTuple):
    """Settings and where each value came from, by path."""

    settings: Settings
    origins: dict[str, str]


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
    faults += cross_check(settings, environ)
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


def _unknown_key(path: str, known: Mapping[str, object]) -> str:
    section, dot, _ = path.partition(".")
    sections = {name.partition(".")[0] for name in known}
    if dot and section not in sections:
        near = difflib.get_close_matches(section, sections, n=1, cutoff=_NAME_LIKENESS)
        return f"unknown section [{section}]{f'; did you mean [{near[0]}]?' if near else ''}"
    return f"unknown key {path}{_suggestion(path, known)}"


def _suggestion(name: str, known: Iterable[str]) -> str:
    """Return a suggestion for an unknown name, or "". A common prefix up to a separator does not count as likeness."""
    for path, own in OWN_ENVIRONMENT_NAMES.items():
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
