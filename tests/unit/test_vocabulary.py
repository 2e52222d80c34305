"""The closed sets, spelled out a second time: a word that is added or changed is a change of the contract."""

from __future__ import annotations

from enum import StrEnum
from typing import get_args, get_type_hints

import pytest

from eidproxy import vocabulary
from eidproxy.inbound import chat
from eidproxy.vocabulary import RESPONSE_CODES

SETS: dict[str, str] = {
    "Mode": "daily deep",
    "Priority": "foreground background",
    "Surface": "proxy chat",
    "Outcome": "ok error client_gone",
    "Phase": "queued upstream streaming",
    "WaitOutcome": "granted full expired cancelled draining",
    "Deadline": "queue connect read write total",
    "StreamEnd": "done no_done truncated upstream_error deadline client_gone draining",
    "Dropped": "not_json not_object empty too_large",
    "Stripped": "model usage other",
    "TokenKind": "prompt completion",
    "UpstreamState": "live suspect wedged",
    "AfterLeave": "release settle first_event",
    "SettleEnd": "first_event elapsed deadline draining",
}


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_the_words_of_the_contract(name: str) -> None:
    words: type[StrEnum] = getattr(vocabulary, name)
    assert [str(word) for word in words] == SETS[name].split()


def test_no_set_is_left_out() -> None:
    found = {name for name, value in vars(vocabulary).items() if isinstance(value, type) and value is not StrEnum}
    assert found == set(SETS)


def test_other_words() -> None:
    assert vocabulary.NO_MODE == "none"
    assert RESPONSE_CODES == ("2xx", "3xx", "4xx", "5xx", "none")


def test_the_decoder_of_model_knows_the_modes() -> None:
    assert get_args(get_type_hints(chat._ModelOnly)["model"]) == tuple(map(str, vocabulary.Mode))
