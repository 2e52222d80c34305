"""The modules below the page, in the browser that runs them: streams however cut, what is sent, markup."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.lab.tools import size
from tests.page.stub import DONE, PAGE, UPSTREAM, chunk, event, failing, finish, queued, text

WORDS = ["안녕하세요, ", "반가워요 👋🏽", "\nline\r\n", "끝"]


@pytest.fixture
def page(bare: Page) -> Page:
    """The page of the file."""
    return bare


READ = """
async ({streams}) => {
  const {read} = await import("/chat/answer.js");
  const results = [];
  for (const pieces of streams) {
    const seen = {text: "", progress: []};
    const body = new ReadableStream({
      start(controller) {
        for (const piece of pieces) {
          controller.enqueue(Uint8Array.from(atob(piece), (one) => one.charCodeAt(0)));
        }
        controller.close();
      },
    });
    seen.outcome = await read(body, {
      text: (piece) => { seen.text += piece; },
      progress: ({state, position}) => seen.progress.push([state, position ?? null]),
    });
    results.push(seen);
  }
  return results;
}
"""


def read(page: Page, streams: list[list[bytes]]) -> list[dict[str, Any]]:
    """What the page makes of streams, each given as the pieces in which it arrives."""
    encoded = [[base64.b64encode(piece).decode() for piece in pieces] for pieces in streams]
    results = page.evaluate(READ, {"streams": encoded})
    assert isinstance(results, list)
    return results


def cuts(stream: bytes, step: int = 1) -> list[list[bytes]]:
    """The stream in two pieces, for each place or for each so many, and byte by byte."""
    halves = [[stream[:place], stream[place:]] for place in range(0, len(stream) + 1, step)]
    return [*halves, [stream[place : place + 1] for place in range(len(stream))]]


GOOD = b"".join([b": keepalive\n\n", queued(2, 14), UPSTREAM, *map(text, WORDS), finish(), DONE])
GOOD_RESULT = {
    "text": "".join(WORDS),
    "progress": [["queued", 2], ["upstream", None]],
    "outcome": {"end": "done", "finish": "stop"},
}
FAILED_RESULT = {
    "text": WORDS[0],
    "progress": [],
    "outcome": {
        "end": "failed",
        "reason": "upstream_truncated",
        "status": 200,
        "retrySeconds": None,
        "requestId": "req-0123456789",
    },
}
CUT_RESULT = {"text": WORDS[0], "progress": [], "outcome": {"end": "cut"}}

STREAMS = {
    "done": (GOOD, GOOD_RESULT),
    "done, CRLF": (GOOD.replace(b"\n", b"\r\n"), GOOD_RESULT),
    "done, CR": (GOOD.replace(b"\n", b"\r"), GOOD_RESULT),
    "done, a byte order mark": (b"\xef\xbb\xbf" + GOOD, GOOD_RESULT),
    "done, no blank line at the end": (GOOD.rstrip(b"\n"), GOOD_RESULT),
    "an error event": (text(WORDS[0]) + failing("upstream_truncated"), FAILED_RESULT),
    "an error event, no blank line at the end": (
        text(WORDS[0]) + failing("upstream_truncated").rstrip(b"\n"),
        FAILED_RESULT,
    ),
    "an error without its event name": (
        text(WORDS[0]) + failing("upstream_truncated").removeprefix(b"event: error\n"),
        FAILED_RESULT,
    ),
    "something after the end": (GOOD + text("not this") + failing("late"), GOOD_RESULT),
    "neither end nor error": (text(WORDS[0]), CUT_RESULT),
    "a finish reason, but no end": (text(WORDS[0]) + finish(), CUT_RESULT),
    "nothing at all": (b"", {**CUT_RESULT, "text": ""}),
    "strange events": (
        b"data\n\ndata: 1\n\ndata: null\n\ndata: []\n\ndata: {\n\nretry: x\n\nid: 1\n\n"
        + event({"choices": "no"})
        + event({"eid": 1})
        + chunk([{"index": 0, "delta": {"content": 5, "reasoning_content": "hidden"}}])
        + text(WORDS[0]),
        {**CUT_RESULT, "progress": [["thinking", None]]},
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_stream_however_it_is_cut(page: Page, name: str) -> None:
    """Every stream gives the same for every cut of its bytes, within characters too."""
    stream, expected = STREAMS[name]
    # Every cut of the first; of the others, which differ in their line ends and their last event, one in eleven.
    step = 1 if name == "done" else size(11, 1)
    results = read(page, cuts(stream, step))
    assert len(results) == len(stream) // step + 2
    assert [one for one in results if one != expected] == []


def test_a_naive_reader_fails() -> None:
    """The cuts are cruel enough: a reader that decodes and splits piece by piece is wrong for most of them."""

    def naive(pieces: list[bytes]) -> str:
        said = ""
        for piece in pieces:
            for block in piece.decode("utf-8", "replace").split("\n\n"):
                with contextlib.suppress(ValueError, LookupError, TypeError):
                    said += json.loads(block.removeprefix("data: "))["choices"][0]["delta"]["content"]
        return said

    results = [naive(pieces) for pieces in cuts(GOOD)]
    assert results[0] == "".join(WORDS)
    assert sum(one != "".join(WORDS) for one in results) > 100


def test_stream_that_ends_at_each_byte(page: Page) -> None:
    """A stream that breaks off anywhere before its end mark is cut, and gives whole pieces of the answer only."""
    last = GOOD.index(b"[DONE]") + len(b"[DONE]")
    results = read(page, [[GOOD[:place]] for place in range(last + 1)])
    prefixes = {"".join(WORDS[:count]) for count in range(len(WORDS) + 1)}
    assert results[-1] == GOOD_RESULT
    for result in results[:-1]:
        assert result["outcome"] == {"end": "cut"}
        assert result["text"] in prefixes


def test_event_without_end_is_bounded(page: Page) -> None:
    """An event that never ends is given up at the cap, not gathered for ever."""
    (result,) = read(page, [[text("A"), b"data: " + b"x" * (3 << 20), DONE]])
    assert result["outcome"] == {"end": "cut"}
    assert result["text"] == "A"


SENT = """
async ({earlier, current, request}) => {
  const {outgoing, codePoints} = await import("/chat/conversation.js");
  const messages = outgoing(earlier, current, request);
  return {messages, sizes: messages.map((one) => codePoints(one.content))};
}
"""


def exchange(question: str, answer: str, refused: bool = False) -> dict[str, Any]:
    return {"question": question, "answer": answer, "refused": refused}


@pytest.mark.parametrize("request_text", [None, "계속"])
@pytest.mark.parametrize(
    ("question", "answer", "count"),
    [
        ("짧은 질문", "짧은 답", 60),
        ("👋" * 100, "🌊" * 900, 60),
        ("가" * 8000, "나" * 20000, 5),
        ("a" * 8000, "b" * 8000, 3),
    ],
)
def test_sent_stays_under_the_caps(
    page: Page, question: str, answer: str, count: int, request_text: str | None
) -> None:
    """At most 40 messages, 8000 code points in each, 32000 in all; the newest are sent, and the roles alternate."""
    earlier = [exchange(f"{number} {question}"[:8000], answer) for number in range(count)]
    current = exchange(question, answer)
    sent = page.evaluate(SENT, {"earlier": earlier, "current": current, "request": request_text})
    sizes, messages = sent["sizes"], sent["messages"]
    assert len(messages) <= 40
    assert max(sizes) <= 8000
    assert sum(sizes) <= 32000
    # One more exchange would not have fitted.
    pair = len(earlier[-1]["question"]) + min(len(answer), 8000)
    assert len(messages) + 2 > 40 or sum(sizes) + pair > 32000
    assert [one["role"] for one in messages] == ["user", "assistant"] * (len(messages) // 2) + ["user"]
    assert messages[-1]["content"] == (request_text or question)
    pairs = len(messages) // 2 - (0 if request_text is None else 1)
    assert [one["content"] for one in messages[: 2 * pairs : 2]] == [
        one["question"] for one in earlier[count - pairs :]
    ]


def test_sent_leaves_out(page: Page) -> None:
    """What was refused and what has no answer is not sent."""
    earlier = [
        exchange("a", "A"),
        exchange("b", ""),
        exchange("c", "C", refused=True),
        exchange("d", " \n"),
        exchange("e", "E"),
    ]
    sent = page.evaluate(SENT, {"earlier": earlier, "current": exchange("f", ""), "request": None})
    assert [one["content"] for one in sent["messages"]] == ["a", "A", "e", "E", "f"]


def test_long_answer_keeps_its_end(page: Page) -> None:
    """Of an answer over the cap the end is sent, since that is what comes next to the question."""
    sent = page.evaluate(
        SENT, {"earlier": [exchange("q", "👋" * 9000 + "끝")], "current": exchange("f", ""), "request": None}
    )
    assert sent["sizes"][1] == 8000
    assert sent["messages"][1]["content"] == "…" + "👋" * 7998 + "끝"


@pytest.mark.parametrize(
    ("part", "more", "expected"),
    [
        ("한강은 ", "서울에 있어요.", "한강은 서울에 있어요."),
        (
            "바람이 강한 날에는 거꾸로 달리는 편이",
            "날에는 거꾸로 달리는 편이 나아요.",
            "바람이 강한 날에는 거꾸로 달리는 편이 나아요.",
        ),
        ("a b", "b c", "a bb c"),
        ("", "x" * 300, "x" * 300),
    ],
)
def test_joined(page: Page, part: str, more: str, expected: str) -> None:
    """A continuation follows the part at once; a repetition of its last words is taken out."""
    script = 'async ([part, more]) => (await import("/chat/conversation.js")).joined(part, more)'
    assert page.evaluate(script, [part, more]) == expected


def test_code_points(page: Page) -> None:
    """Characters are counted as Python counts them."""
    script = 'async (texts) => { const m = await import("/chat/conversation.js"); return texts.map(m.codePoints); }'
    texts = ["", "가나다", "👋🏽", "👨‍👩‍👧", "é", "각"]
    assert page.evaluate(script, texts) == [len(one) for one in texts]


def test_half_a_surrogate_pair_is_not_sent(page: Page) -> None:
    """A lone surrogate, which no UTF-8 can carry, becomes the replacement character."""
    script = """async () => {
      const {cleaned} = await import("/chat/conversation.js");
      return [" a\\ud83d ", "\\udc4bb", "\\ud83d\\udc4b"].map(cleaned);
    }"""
    assert page.evaluate(script) == ["a\ufffd", "\ufffdb", "👋"]


def test_dictionaries_have_the_same_keys(page: Page) -> None:
    """Every text exists in both languages, with the same places to fill in, and every notice has its words."""
    script = """
    async () => {
      const [{default: ko}, {default: en}, {NOTICES}] = await Promise.all(
        ["strings.ko.js", "strings.en.js", "notices.js"].map((name) => import(`/chat/${name}`)));
      return {ko, en, notices: Object.entries(NOTICES).map(([kind, {buttons}]) => [kind, buttons])};
    }
    """
    found = page.evaluate(script)

    def flat(value: Any, path: str = "") -> dict[str, str]:
        if isinstance(value, str):
            return {path: value}
        return {key: one for name, inner in value.items() for key, one in flat(inner, f"{path}.{name}").items()}

    korean, english = flat(found["ko"]), flat(found["en"])
    assert set(korean) == set(english)
    for key, sentence in korean.items():
        places = {part.split("}")[0] for part in sentence.split("{")[1:]}
        assert places == {part.split("}")[0] for part in english[key].split("{")[1:]}, key
        assert bool(sentence) == bool(english[key]), key
    for kind, buttons in found["notices"]:
        assert f".notices.{kind}.title" in korean
        for button in buttons:
            assert f".buttons.{button}" in korean


# What the page must never say, in any file it is made of.
FORBIDDEN = [
    "macbook",
    "mac-mini",
    "macmini",
    "mac mini",
    "qwen",
    "llama",
    "router.",
    "litellm",
    "openai",
]


def test_sources_name_nothing() -> None:
    """No file of the page names a model, a machine or a host (a name space of XML is no host anybody asks)."""
    files = [one for one in PAGE.rglob("*") if one.is_file()]
    assert len(files) >= 12
    for file in files:
        source = file.read_bytes().decode("utf-8", "replace").lower()
        source = re.sub(r"http://www\.w3\.org/(?:2000/svg|1998/math/mathml)", "", source)
        assert [word for word in FORBIDDEN if word in source] == [], file.name
        # Licences name their authors' pages, which nothing reads.
        assert file.suffix == ".txt" or re.findall(r"https?://[\w.-]+", source) == [], file.name


def test_sources_stay_within_the_policy() -> None:
    """No inline script or style, no string that becomes markup or code."""
    for file in PAGE.rglob("*.js"):
        source = file.read_text("utf-8")
        for sink in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "srcdoc",
        ):
            assert sink not in source, (file.name, sink)
    page = (PAGE / "chat.html").read_text("utf-8")
    assert " style=" not in page
    assert "<style" not in page
    assert page.count("<script") == page.count('<script type="module" src="/chat/') == 2
    assert not any(f" on{name}=" in page for name in ("click", "load", "error", "submit", "input"))
