"""`eidproxy schema`: the JSON Schema of requests and answers, made from the types that filter them."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from eidproxy.inbound.chat import CompletionRequest
from eidproxy.relay.chunk import Choice
from eidproxy.relay.completion import Answer

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class ProgressQueued(Struct, tag_field="state", tag="queued"):
    """The request is in the wait queue. `eta_seconds` is null while it is unknown."""

    position: int
    eta_seconds: int | None


class ProgressUpstream(Struct, tag_field="state", tag="upstream"):
    """The router has the request and has sent no event yet."""

    elapsed_seconds: int


class ProgressThinking(Struct, tag_field="state", tag="thinking"):
    """The router has sent only reasoning so far."""

    elapsed_seconds: int


class Chunk(Struct):
    """One event of a stream. `choices` is empty if `eid` reports progress."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: Literal["daily", "deep"]
    choices: list[Choice]
    eid: ProgressQueued | ProgressUpstream | ProgressThinking | UnsetType = UNSET


class ErrorDetail(Struct):
    """The error in the format of OpenAI. `code` is the reason."""

    message: str
    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "timeout_error",
        "service_unavailable",
        "server_error",
    ]
    param: str | None
    code: str


class Error(Struct):
    """An error: the body before the first byte, the last event after it."""

    error: ErrorDetail
    error_reason: str
    request_id: str


ROOTS = {"request": CompletionRequest, "chunk": Chunk, "answer": Answer, "error": Error}


def components(ref_template: str = "#/$defs/{name}") -> dict[str, Any]:
    """Return the schema of each type by its name; references between them follow `ref_template`."""
    return msgspec.json.schema_components(ROOTS.values(), ref_template=ref_template)[1]


def schema() -> dict[str, Any]:
    """Return one document with a property for each of request, chunk, answer and error."""
    properties = {name: {"$ref": f"#/$defs/{kind.__name__}"} for name, kind in ROOTS.items()}
    return {"$schema": DIALECT, "type": "object", "properties": properties, "$defs": components()}
