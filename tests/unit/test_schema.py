"""schema: what is printed is what is checked and sent, and deploy/openapi.yaml says the same."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from eidproxy.cli import cli
from eidproxy.commands.schema import Chunk, Error, components, schema
from eidproxy.errors import RULES, Refusal
from tests.lab.client import CHAT, ask, chat
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.script import CORPUS, stream
from tests.lab.tools import ROOT

OPENAPI = yaml.safe_load((ROOT / "deploy" / "openapi.yaml").read_text("utf-8"))
REQUESTS = {path.stem: json.loads(path.read_bytes()) for path in sorted(CORPUS.glob("requests/*.json"))}


def validator(name: str) -> Draft202012Validator:
    """Of request, chunk, answer or error."""
    document = schema()
    return Draft202012Validator({**document["properties"][name], "$defs": document["$defs"]})


def test_the_command_prints_a_valid_schema() -> None:
    printed = CliRunner().invoke(cli, ["schema"]).output
    assert json.loads(printed) == schema()
    Draft202012Validator.check_schema(schema())
    assert set(schema()["properties"]) == {"request", "chunk", "answer", "error"}


def test_openapi_has_these_schemas() -> None:
    """To write them anew: the output of `components("#/components/schemas/{name}")` as YAML."""
    written = dict(OPENAPI["components"]["schemas"])
    assert set(written.pop("Model")["properties"]) == {"id", "object", "created", "owned_by"}
    assert written == json.loads(json.dumps(components("#/components/schemas/{name}")))


def _references(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_references, value))
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(_references, value.values()))
    return set()


def test_openapi_refers_to_what_it_has() -> None:
    for reference in _references(OPENAPI):
        found = OPENAPI
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]


@pytest.mark.parametrize("name", REQUESTS)
def test_what_clients_send_fits_the_schema(name: str) -> None:
    """A null in a field that is not known is beyond JSON Schema, and is left out here."""
    known = REQUESTS[name]
    names = components()["CompletionRequest"]["properties"]
    body = {key: value for key, value in known["body"].items() if key in names or value is not None}
    assert validator("request").is_valid(body) is ("refused" not in known)


@pytest.mark.parametrize("reason", RULES)
def test_a_refusal_fits_the_schema(reason: str) -> None:
    for param in (None, "field"):
        body = Refusal(reason, param).body("id")
        validator("error").validate(json.loads(body))
        assert json.loads(msgspec.json.encode(msgspec.json.decode(body, type=Error))) == json.loads(body)


def test_answers_fit_the_schema(router: Router) -> None:
    """Each of them whole: nothing is sent that the types do not name."""
    router.script = stream(["one", " two"])
    with Proxy(router) as proxy:
        whole = ask(proxy, "POST", CHAT, chat(stream=False)).json()
        validator("answer").validate(whole)
        answer = ask(proxy, "POST", CHAT, chat(), {"X-Eid-Progress": "1"})
        chunks = [event.json() for event in answer.events()[:-1]]
        assert any("eid" in chunk for chunk in chunks)
        for chunk in chunks:
            validator("chunk").validate(chunk)
            typed = msgspec.json.decode(json.dumps(chunk), type=Chunk)
            assert json.loads(msgspec.json.encode(typed)) == chunk
        for path, item in OPENAPI["paths"].items():
            for method, operation in item.items():
                found = ask(proxy, method.upper(), path.replace("{id}", "deep"), chat() if method == "post" else None)
                assert str(found.status) in operation["responses"]
                assert found.status == 200
