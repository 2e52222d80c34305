"""What a long conversation costs: the work and the frames while an answer comes, and where the page stands."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, Route

from tests.lab.tools import size
from tests.page.conftest import ready
from tests.page.stub import DONE, UPSTREAM, Answer, Stub, finish, text

# An answer as models write it: it has one of everything.
ANSWER = """## 김치찌개 끓이는 법

재료는 **네 사람** 기준이에요. [자세히](https://example.kr/kimchi) 보면 더 있어요.

1. 김치를 *잘게* 썰어요.
   - 신 김치가 좋아요
   - `300 g`이면 충분해요
2. 돼지고기를 볶아요.

| 재료 | 양 | 비고 |
|---|---:|---|
| 김치 | 300 g | 신 것 |
| 두부 | 1모 | |

```python
def cook(kimchi, pork):
    return [kimchi, pork]
```

> 오래 끓일수록 맛이 깊어져요.

- [x] 장보기
- [ ] 끓이기

"""
TOKENS = re.findall(r"\S{1,4}|\s+", ANSWER)
EVENTS_PER_SECOND = 100


class Paced(list[Any]):
    """The steps of an answer of so many tokens, at the pace of a fast model."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def __iter__(self) -> Iterator[bytes]:
        yield UPSTREAM
        begun = time.monotonic()
        for index in range(self._count):
            time.sleep(max(0.0, begun + index / EVENTS_PER_SECOND - time.monotonic()))
            yield text(TOKENS[index % len(TOKENS)])
        yield finish()
        yield DONE


SEED = """
async ([owner, count, answer]) => {
  const {newConversation, newTurn} = await import("/chat/conversation.js");
  const {openStore} = await import("/chat/store.js");
  const conversation = {...newConversation(owner), first: "긴 대화"};
  const turns = [];
  for (let at = 0; at < count; at += 1) {
    const begun = {conversation: conversation.id, owner, parent: turns.at(-1)?.id ?? null};
    turns.push({...newTurn({...begun, mode: "daily", question: `질문 ${at}`}), at, answer});
  }
  await (await openStore()).add({conversations: [conversation], turns});
  sessionStorage.setItem("eid.open", conversation.id);
}
"""

WATCH = """
() => {
  window.frames_ = [];
  let last = performance.now();
  const look = () => {
    const now = performance.now();
    window.frames_.push(now - last);
    last = now;
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}
"""


def seed(page: Page, count: int) -> None:
    """Make the conversation that opens with the page one of `count` turns."""
    page.evaluate(SEED, [json.dumps([None, "mina"], separators=(",", ":")), count, ANSWER])


def converse(page: Page, count: int) -> None:
    """Make the conversation that is open one of `count` turns."""
    seed(page, count)
    page.reload()
    ready(page)


def cost(page: Page, stub: Stub, events: int) -> tuple[float, list[float]]:
    """What an event of a streamed answer costs in ms of the page's processor, and the times between frames."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def spent() -> float:
        told = session.send("Performance.getMetrics")["metrics"]
        return float(next(one["value"] for one in told if one["name"] == "TaskDuration")) * 1000

    page.evaluate(WATCH)
    stub.script(Answer(Paced(events)))
    before = spent()
    page.fill("#compose", "질문")
    page.click("#send")
    page.wait_for_function(
        "() => document.getElementById('log').ariaBusy === 'false'", polling=500, timeout=events * 40 + 20_000
    )
    return (spent() - before) / events, sorted(page.evaluate("() => window.frames_"))


@pytest.mark.timeout(size(120, 600))
def test_an_event_costs_the_same_in_a_long_conversation(page: Page, stub: Stub) -> None:
    """A token of an answer is as cheap after 200 turns as after one."""
    few = size(200, 1000)
    converse(page, 1)
    short, _ = cost(page, stub, few)
    converse(page, 200)
    events = size(few, 4096)
    long, frames = cost(page, stub, events)
    at = {share: frames[int(len(frames) * share)] for share in (0.5, 0.95, 0.99)}
    told = ", ".join(f"p{share * 100:.0f} {ms:.1f} ms" for share, ms in at.items())
    print(f"{events} events into 200 turns: {told}, slowest {frames[-1]:.1f} ms")
    print(f"processor per event: {short:.2f} ms after one turn, {long:.2f} ms after 200")
    assert page.locator("article").count() == 201
    assert long < 2 * short


def drawn(page: Page) -> None:
    """Wait until the texts of 60 turns are drawn."""
    page.wait_for_function("() => document.querySelectorAll('article table').length === 60", polling=20)
    two_frames(page)


def two_frames(page: Page) -> None:
    """Wait until the browser has shown what it has now."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def left(page: Page) -> float:
    """How far the end is below what is in view."""
    return float(page.evaluate("() => document.documentElement.scrollHeight - innerHeight - scrollY"))


def test_opens_at_its_end(page: Page) -> None:
    """A long conversation is opened where it ends, and stays there while its texts are drawn."""
    converse(page, 60)
    drawn(page)
    assert left(page) < 2


def test_opens_at_its_end_before_all_is_loaded(page: Page) -> None:
    """On a busy machine the texts are drawn first: the browser does not bring back the place of the last visit then."""
    seed(page, 60)
    held: list[Route] = []
    page.route("**/offline.js", lambda route: held.append(route), times=1)
    with page.expect_request("**/offline.js"):
        page.reload(wait_until="commit")
    drawn(page)
    assert page.evaluate("() => document.readyState") == "interactive"
    for route in held:
        route.continue_()
    page.wait_for_load_state()
    two_frames(page)
    assert left(page) < 2


def test_leaves_a_reader_alone(page: Page) -> None:
    """Who reads at the beginning is left there while the texts are drawn."""
    seed(page, 60)
    held: list[Route] = []
    page.route("**/markdown.js", lambda route: held.append(route), times=1)
    with page.expect_request("**/markdown.js"):
        page.reload()
        ready(page)
    page.evaluate("() => scrollTo(0, 0)")
    # The page has noted that the end is left.
    page.wait_for_function("() => !document.getElementById('to-end').hidden", polling=20)
    for route in held:
        route.continue_()
    drawn(page)
    assert page.evaluate("() => scrollY") < 200
