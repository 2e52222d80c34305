"""Settings: what can be set, where each value comes from, and what is wrong with it."""

from eidproxy.config.settings import (
    FIELDS,
    ChatSettings,
    Field,
    LogSettings,
    RouterSettings,
    ServerSettings,
    Settings,
    refusal_text,
    requirement,
)
from eidproxy.config.sources import Loaded, SettingsError, describe_settings, load
from eidproxy.config.validation import contradictions

__all__ = [
    "FIELDS",
    "ChatSettings",
    "Field",
    "Loaded",
    "LogSettings",
    "RouterSettings",
    "ServerSettings",
    "Settings",
    "SettingsError",
    "contradictions",
    "describe_settings",
    "load",
    "refusal_text",
    "requirement",
]
