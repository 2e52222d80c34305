"""The chat surface: `POST /api/eid/chat` puts the persona and rules of the assistant before a conversation.

A request is checked in a fixed order (token, JSON, fields, roles, number, length of each, total). The system message
is composed here from files that are read for each request, and from nothing that a caller sends. Without the rules
nothing is sent to the router.
"""

import os
import stat
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta

from eidproxy.config import ChatSettings
from eidproxy.errors import Refusal
from eidproxy.inbound.chat import ChatRequest, Closed, Model, convert, parse_object, upstream_body
from eidproxy.inbound.http1 import RequestHead
from eidproxy.tokens import Tokens, bearer_token
from eidproxy.vocabulary import Mode

_FORBIDDEN_ROLES = frozenset({"system", "developer", "tool"})
_MAX_FILE_BYTES = 256 * 1024
"""The longest persona or rules file that is read: a longer one is the wrong file."""
_MAX_READS = 3
"""How many times a file that changes during the read is read. An editor writes once."""


class Caps(NamedTuple):
    """How much a caller may send, in Unicode code points."""

    message_chars: int
    messages: int
    total_chars: int

    @property
    def body_bytes(self) -> int:
        """An upper bound, in bytes, of the bodies that are within the caps.

        A code point takes at most 12 bytes, as two `\\uXXXX` escapes; a message has some names and blanks around it.
        """
        return self.total_chars * 12 + (self.messages + 8) * 512


class Message(Closed):
    """A message of the chat page. Its role is checked after its fields (contract, 9)."""

    role: str
    content: str


class Conversation(Closed):
    """The body of `POST /api/eid/chat`."""

    mode: Literal["daily", "deep"]
    messages: Annotated[list[Message], Meta(min_length=1)]


class ChatSurface:
    """The check of a chat page's request, and its conversion into a `ChatRequest` for the relay."""

    def __init__(self, settings: ChatSettings, models: Mapping[Mode, Model]) -> None:
        assert settings.jwt_secret is not None and settings.rules_file is not None  # noqa: S101, PT018  # enabled
        self.tokens = Tokens(
            settings.jwt_secret, settings.jwt_audience, settings.jwt_issuer, settings.jwt_leeway_seconds
        )
        self.caps = Caps(settings.max_message_chars, settings.max_messages, settings.max_total_chars)
        self._models = models
        # The persona says who speaks. The rules come last, so that they have the last word.
        self._files = [name for name in (settings.persona_file, settings.rules_file) if name is not None]

    def authorize(self, head: RequestHead) -> None:
        """Raise Refusal `unauthorized` unless there is one valid bearer token."""
        self.tokens.check(bearer_token(head))

    def request(self, body: bytes) -> ChatRequest:
        """Validate a body and return the request for the relay. Raises Refusal."""
        conversation = convert(parse_object(body), Conversation)
        mode = Mode(conversation.mode)
        check_messages(conversation.messages, self.caps)
        messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
        system = {"role": "system", "content": self.compose()}
        return ChatRequest(mode, True, upstream_body(self._models[mode], [system, *messages], {}))

    def compose(self) -> str:
        """Read the files and return the system message. Raises Refusal `rules_missing`."""
        return "\n\n".join(read_text(name) for name in self._files)


def check_messages(messages: list[Message], caps: Caps) -> None:
    """Raise Refusal if a role or a cap is violated; the checks are made in the order of (contract, 9)."""
    for at, message in enumerate(messages):
        if message.role in _FORBIDDEN_ROLES:
            raise Refusal("system_role_forbidden", f"messages[{at}].role")
        if message.role not in ("user", "assistant"):
            raise Refusal("invalid_request", f"messages[{at}].role")
    if len(messages) > caps.messages:
        raise Refusal("too_many_turns", "messages")
    for at, message in enumerate(messages):
        if len(message.content) > caps.message_chars:
            raise Refusal("message_too_long", f"messages[{at}].content")
    if sum(len(message.content) for message in messages) > caps.total_chars:
        raise Refusal("conversation_too_long", "messages")


def unreadable_files(chat: ChatSettings) -> list[str]:
    """Return the names of the settings whose file cannot be read now; none when the surface is off."""
    faults = []
    for name, path in (("chat.persona_file", chat.persona_file), ("chat.rules_file", chat.rules_file)):
        try:
            if chat.enabled and path is not None:
                read_text(path)
        except Refusal:
            faults.append(name)
    return faults


def read_text(path: str) -> str:
    """Read a small text file. Raises Refusal `rules_missing` when it is missing, too long, not UTF-8 or blank.

    A file that changes during the read is read again, so that old and new text never mix.
    """
    try:
        for _ in range(_MAX_READS):
            # Not blocking, so that a pipe in the file's place cannot hold the loop.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                before = os.fstat(descriptor)
                if not stat.S_ISREG(before.st_mode) or before.st_size > _MAX_FILE_BYTES:
                    break
                data = os.read(descriptor, _MAX_FILE_BYTES + 1)
                after = os.fstat(descriptor)
            finally:
                os.close(descriptor)
            if (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size) and len(
                data
            ) == after.st_size:
                text = data.decode("utf-8-sig").strip()
                if text:
                    return text
                break
    except (OSError, ValueError):
        pass
    raise Refusal("rules_missing")
