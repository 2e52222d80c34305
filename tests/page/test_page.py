"""What a person does on the page, and what they are told."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.lab.tools import size, until
from tests.page.conftest import Watch, answers, ask, button, notice, ready, rested, some, storage
from tests.page.stub import (
    DONE,
    UPSTREAM,
    Answer,
    Hold,
    Stub,
    failing,
    finish,
    queued,
    refusal,
    text,
    thinking,
    thought,
    whole,
)

# --- Asking ---------------------------------------------------------------------------------------------------------


def test_send_and_stream(page: Page, stub: Stub, token: str) -> None:
    """The answer is shown piece by piece; the request is the contract's, with the token in its header alone."""
    first, second = Hold(), Hold()
    stub.script(Answer([UPSTREAM, first, thought("숨은 생각"), text("안녕"), second, text("하세요"), finish(), DONE]))
    ask(page, "인사해 줘요")
    expect(page.locator("#status")).to_have_text("답변을 준비하고 있어요")
    expect(button(page, "중지")).to_be_visible()
    first.release()
    expect(page.locator(".answer .text")).to_have_text("안녕")
    expect(page.locator("#status")).to_have_text("답변을 쓰고 있어요")
    expect(page.locator("#log")).to_have_attribute("aria-busy", "true")
    second.release()
    expect(page.locator(".answer .text")).to_have_text("안녕하세요")
    expect(page.locator("#said")).to_have_text("답변이 끝났어요")
    expect(page.locator("#status")).to_have_text("")
    assert "숨은 생각" not in page.content()
    (asked,) = stub.asked
    assert asked.target == "/api/eid/chat"
    assert asked.body == {"mode": "daily", "messages": [{"role": "user", "content": "인사해 줘요"}]}
    assert asked.headers["authorization"] == f"Bearer {token}"
    assert asked.headers["content-type"] == "application/json"
    assert "cookie" not in asked.headers
    assert "referer" not in asked.headers


def test_next_turn_sends_the_history(page: Page, stub: Stub) -> None:
    """The second question goes with the first and its answer."""
    stub.script(whole("하나"), whole("둘"))
    ask(page, "첫째")
    rested(page)
    ask(page, "둘째")
    expect(page.locator(".answer .text").nth(1)).to_have_text("둘")
    assert stub.asked[1].messages == [("user", "첫째"), ("assistant", "하나"), ("user", "둘째")]


def test_mode(page: Page, stub: Stub) -> None:
    """심층 is asked for, marked at the answer, and chosen again after a reload."""
    stub.script(whole("깊은 답"))
    page.get_by_role("radio", name="심층").check()
    ask(page, "깊이 생각해 줘요")
    expect(page.locator(".badge")).to_have_text("심층")
    assert stub.asked[0].body["mode"] == "deep"
    page.reload()
    expect(page.get_by_role("radio", name="심층")).to_be_checked()


def test_pieces_arrive_byte_by_byte(page: Page, stub: Stub) -> None:
    """A stream whose bytes come one by one over the network is the same answer."""
    stream = b"".join([queued(1, 3), UPSTREAM, text("한 글자씩 👋🏽"), finish(), DONE])
    stub.script(Answer([stream[place : place + 1] for place in range(len(stream))]))
    ask(page, "천천히")
    expect(page.locator(".answer .text")).to_have_text("한 글자씩 👋🏽")
    rested(page)
    expect(page.locator(".notice")).to_have_count(0)


def test_queue(page: Page, stub: Stub) -> None:
    """The place in the queue and the estimate are shown, and fall."""
    holds = [Hold() for _ in range(4)]
    steps: list[bytes | Hold] = [
        queued(3, 90),
        holds[0],
        queued(2, 34),
        holds[1],
        queued(1, None),
        holds[2],
        UPSTREAM,
        holds[3],
    ]
    stub.script(Answer([*steps, text("답"), finish(), DONE]))
    ask(page, "줄 서기")
    status, timing = page.locator("#status"), page.locator("#timing")
    expect(status).to_have_text("차례를 기다리고 있어요앞에 질문이 3개 있어요. 차례가 되면 바로 답할게요.")
    expect(timing).to_have_text("약 2분 뒤에 시작할 것 같아요.")
    expect(button(page, "취소")).to_be_visible()
    holds[0].release()
    expect(status).to_contain_text("앞에 질문이 2개 있어요.")
    # The estimate runs down by itself.
    expect(timing).to_have_text(re.compile(r"^약 3[34]초 뒤에 시작할 것 같아요\.$"))
    expect(timing).not_to_have_text(timing.inner_text())
    expect(timing).to_have_text(re.compile(r"^약 3[0-3]초 뒤에 시작할 것 같아요\.$"))
    holds[1].release()
    expect(status).to_have_text("다음 차례예요앞 질문의 답변이 끝나면 바로 시작해요.")
    # Not knowing is no reason to guess later.
    expect(timing).to_have_text(re.compile(r"^약 [12]\d초 뒤에|^약 3[0-3]초 뒤에"))
    holds[2].release()
    expect(status).to_have_text("답변을 준비하고 있어요")
    expect(button(page, "중지")).to_be_visible()
    holds[3].release()
    expect(page.locator(".answer .text")).to_have_text("답")


# --- Stopping and leaving -------------------------------------------------------------------------------------------


def test_stop(page: Page, stub: Stub) -> None:
    """중지 ends the request at once; what came stays and can be continued, or asked for again beside it."""
    hold = Hold()
    stub.script(Answer([text("여기까지"), hold]), whole("새 답"), whole("또"))
    ask(page, "길게 써 줘요")
    expect(page.locator(".answer .text")).to_have_text("여기까지")
    hold.reached.wait(5)
    # By the clock of the browser, which is that of the server: finding the button takes the test a while.
    pressed = button(page, "중지").evaluate("(one) => { const now = Date.now(); one.click(); return now; }") / 1000
    assert hold.left.wait(5)
    print(f"stopped after {(hold.left_at - pressed) * 1000:.0f} ms")
    assert hold.left_at - pressed < 0.25
    assert notice(page) == "답변을 중지했어요\n여기까지의 답변은 남아 있어요."
    # The first button keeps what came.
    assert page.locator(".notice .row button").all_inner_texts() == ["이어서 받기", "답변 다시 받기"]
    button(page, "답변 다시 받기").click()
    expect(page.locator(".answer .text")).to_have_text("새 답")
    expect(page.locator(".versions")).to_contain_text("2 / 2")
    rested(page)
    button(page, "앞의 것 보기").click()
    expect(page.locator(".answer .text")).to_have_text("여기까지")
    button(page, "뒤의 것 보기").click()
    assert stub.asked[1].messages == [("user", "길게 써 줘요")]
    ask(page, "다음")
    expect(page.locator(".answer .text").nth(1)).to_have_text("또")


def test_stopped_part_is_sent(page: Page, stub: Stub) -> None:
    """The part of a stopped answer is part of the conversation."""
    stub.script(Answer([text("여기까지"), Hold()]), whole("둘"))
    ask(page, "하나")
    expect(page.locator(".answer .text")).to_have_text("여기까지")
    button(page, "중지").click()
    notice(page)
    ask(page, "둘?")
    expect(page.locator(".answer .text").nth(1)).to_have_text("둘")
    assert stub.asked[1].messages == [("user", "하나"), ("assistant", "여기까지"), ("user", "둘?")]


def test_stop_before_the_answer(page: Page, stub: Stub) -> None:
    """취소 in the queue leaves nothing behind that would be sent."""
    hold = Hold()
    stub.script(Answer([queued(2, 9), hold]), whole("답"))
    ask(page, "그만둘 질문")
    button(page, "취소").click()
    assert hold.left.wait(5)
    assert notice(page) == "답변을 중지했어요"
    ask(page, "다른 질문")
    expect(page.locator(".answer .text")).to_have_text("답")
    assert stub.asked[1].messages == [("user", "다른 질문")]


def test_closing_the_tab(page: Page, stub: Stub) -> None:
    """A tab that closes takes its request with it."""
    hold = Hold()
    stub.script(Answer([text("여기까지"), hold]))
    ask(page, "하나")
    assert hold.reached.wait(5)
    closed = time.time()
    page.close()
    assert hold.left.wait(5)
    print(f"left after {(hold.left_at - closed) * 1000:.0f} ms")
    assert hold.left_at - closed < 1  # most of it is the browser closing the tab


def test_new_conversation(page: Page, stub: Stub) -> None:
    """새 대화 ends what is under way, and nothing of it is sent with what is asked next."""
    hold = Hold()
    stub.script(Answer([text("여기까지"), hold]), whole("답"))
    ask(page, "하나")
    expect(page.locator(".answer .text")).to_have_text("여기까지")
    button(page, "새 대화").click()
    assert hold.left.wait(5)
    expect(page.get_by_role("heading", name="무엇이 궁금한가요?")).to_be_visible()
    ask(page, "둘")
    expect(page.locator(".answer .text")).to_have_text("답")
    assert stub.asked[1].messages == [("user", "둘")]


# --- Again, and on --------------------------------------------------------------------------------------------------


def test_answer_again(page: Page, stub: Stub) -> None:
    """답변 다시 받기 asks the same question; the old answer stays until the new one begins, and if it never does."""
    hold = Hold()
    stub.script(whole("첫 답"), Answer([UPSTREAM, hold, text("새 답"), finish(), DONE]), refusal("router_ConnectError"))
    ask(page, "질문")
    button(page, "답변 다시 받기").click()
    assert hold.reached.wait(5)
    assert answers(page) == ["첫 답"]
    hold.release()
    expect(page.locator(".answer .text")).to_have_text("새 답")
    button(page, "답변 다시 받기").click()
    assert notice(page).startswith("답변 서버에 연결하지 못했어요")
    assert answers(page) == ["새 답"]
    assert [one.messages for one in stub.asked] == [[("user", "질문")]] * 3


# What comes after the first words, and how the connection ends.
CUTS: dict[str, tuple[list[bytes], Literal["clean", "closed", "reset"]]] = {
    "a clean end with neither mark": ([finish()], "clean"),
    "closed in the middle": ([], "closed"),
    "a reset": ([], "reset"),
    "an error event": ([failing("upstream_truncated")], "clean"),
    "the router gone": ([failing("router_ReadError")], "clean"),
    "the router silent": ([failing("router_ReadTimeout")], "clean"),
    "the deadline": ([failing("stream_deadline_exceeded")], "clean"),
    "the length": ([finish("length"), DONE], "clean"),
}


@pytest.mark.parametrize("name", some(CUTS, 3))
def test_cut_and_continued(page: Page, stub: Stub, name: str) -> None:
    """An answer that broke off can be continued: the part goes with the request, and both become one answer."""
    steps, end = CUTS[name]
    hold = Hold()
    stub.script(Answer([text("자전거로 한강을 "), hold, *steps], end=end), whole("따라 달려요."), whole("끝"))
    ask(page, "어디로 달려요?")
    expect(page.locator(".answer .text")).to_have_text("자전거로 한강을")
    hold.release()
    if name in ("the deadline", "the length"):
        assert notice(page) == "답변이 길어져서 여기서 멈췄어요\n이어서 받거나 질문을 나눠서 보내 주세요."
    else:
        assert notice(page) == "답변이 중간에 끊겼어요\n여기까지의 답변은 남아 있어요."
    button(page, "이어서 받기").click()
    expect(page.locator(".answer .text")).to_have_text("자전거로 한강을 따라 달려요.")
    rested(page)
    expect(page.locator(".notice")).to_have_count(0)
    question, part, request = stub.asked[1].messages
    assert question == ("user", "어디로 달려요?")
    assert part == ("assistant", "자전거로 한강을 ")
    assert request[0] == "user"
    assert "이어서" in request[1]
    ask(page, "다음은요?")
    expect(page.locator(".answer .text").nth(1)).to_have_text("끝")
    # The request to continue was a means, not a turn.
    assert stub.asked[2].messages == [
        ("user", "어디로 달려요?"),
        ("assistant", "자전거로 한강을 따라 달려요."),
        ("user", "다음은요?"),
    ]


def test_continuation_that_fails(page: Page, stub: Stub) -> None:
    """The part stays when its continuation fails, and trying again continues it."""
    stub.script(Answer([text("자전거로 한강을 ")]), refusal("router_ConnectError"), whole("따라 달려요."))
    ask(page, "어디로 달려요?")
    button(page, "이어서 받기").click()
    expect(page.locator(".notice strong")).to_have_text("답변 서버에 연결하지 못했어요")
    expect(page.locator(".answer .text")).to_have_text("자전거로 한강을")
    button(page, "다시 시도").click()
    expect(page.locator(".answer .text")).to_have_text("자전거로 한강을 따라 달려요.")
    assert len(stub.asked[2].messages) == 3


def test_cut_before_the_answer(page: Page, stub: Stub) -> None:
    """With no part there is nothing to continue."""
    stub.script(Answer([UPSTREAM]), whole("답"))
    ask(page, "질문")
    assert notice(page) == "답변이 중간에 끊겼어요\n잠시 뒤에 다시 시도해 주세요."
    button(page, "다시 시도").click()
    expect(page.locator(".answer .text")).to_have_text("답")
    assert stub.asked[1].messages == [("user", "질문")]


# --- What went wrong ------------------------------------------------------------------------------------------------

# reason → status, title, body, buttons; the words of the table the page was given.
REASONS: dict[str, tuple[int, str, str, list[str]]] = {
    "gate_queue_full": (503, "지금 기다리는 질문이 많아요", "초 뒤에 다시 시도해 주세요.", ["다시 시도"]),
    "gate_wait_timeout": (503, "오래 기다렸지만 차례가 오지 않았어요", "잠시 뒤에 다시 시도해 주세요.", ["다시 시도"]),
    "editor_busy": (
        503,
        "지금은 다른 작업을 먼저 하고 있어요",
        "작업이 끝나면 답할 수 있어요. 잠시 뒤에 다시 시도해 주세요.",
        ["다시 시도"],
    ),
    "provider_not_configured": (
        503,
        "아직 준비되지 않은 모드예요",
        "관리자에게 이 모드를 켜 달라고 말해 주세요.",
        ["다른 모드로 물어보기"],
    ),
    "router_ConnectError": (503, "답변 서버에 연결하지 못했어요", "잠시 뒤에 다시 시도해 주세요.", ["다시 시도"]),
    "router_ConnectTimeout": (503, "답변 서버에 연결하지 못했어요", "잠시 뒤에 다시 시도해 주세요.", ["다시 시도"]),
    "router_WriteError": (503, "답변 서버에 연결하지 못했어요", "잠시 뒤에 다시 시도해 주세요.", ["다시 시도"]),
    "gate_unavailable": (503, "답변 서버에 연결하지 못했어요", "잠시 뒤에 다시 시도해 주세요.", ["다시 시도"]),
    "upstream_error": (503, "답변을 만들다가 문제가 생겼어요", "같은 질문을 다시 보내 주세요.", ["다시 시도"]),
    "upstream_502": (503, "답변을 만들다가 문제가 생겼어요", "같은 질문을 다시 보내 주세요.", ["다시 시도"]),
    "router_http_418": (503, "답변을 만들다가 문제가 생겼어요", "같은 질문을 다시 보내 주세요.", ["다시 시도"]),
    "router_ReadTimeout": (503, "답변이 시작되지 않았어요", "잠시 뒤에 다시 시도해 주세요.", ["다시 시도"]),
    "draining": (503, "서버를 다시 시작하고 있어요", "잠시 뒤에 다시 시도해 주세요.", ["다시 시도"]),
    "rules_missing": (503, "지금은 답할 수 없어요", "관리자에게 설정을 확인해 달라고 말해 주세요.", ["다시 시도"]),
    "model_not_found": (404, "쓸 수 없는 모드예요", "일상이나 심층을 골라 주세요.", []),
    "invalid_request": (400, "질문을 보내지 못했어요", "내용을 확인하고 다시 보내 주세요.", ["질문 고치기"]),
    "system_role_forbidden": (422, "질문을 보내지 못했어요", "내용을 확인하고 다시 보내 주세요.", ["질문 고치기"]),
    "message_too_long": (422, "질문이 너무 길어요", "내용을 줄여서 보내 주세요.", ["질문 고치기"]),
    "conversation_too_long": (
        422,
        "대화가 너무 길어졌어요",
        "새 대화에서 다시 물어봐 주세요.",
        ["질문 고치기", "새 대화에서 물어보기"],
    ),
    "body_too_large": (413, "질문이 너무 길어요", "내용을 줄여서 보내 주세요.", ["질문 고치기"]),
    "too_many_turns": (422, "대화가 너무 길어졌어요", "새 대화에서 다시 물어봐 주세요.", ["새 대화에서 물어보기"]),
    "internal_error": (
        500,
        "알 수 없는 문제가 생겼어요",
        "계속되면 아래 문의 번호를 알려 주세요.",
        ["다시 시도"],
    ),
    "some_new_reason": (
        503,
        "알 수 없는 문제가 생겼어요",
        "계속되면 아래 문의 번호를 알려 주세요.",
        ["다시 시도"],
    ),
    "constructor": (
        503,
        "알 수 없는 문제가 생겼어요",
        "계속되면 아래 문의 번호를 알려 주세요.",
        ["다시 시도"],
    ),
    "the_2nd_unavailable": (503, "지금은 답할 수 없어요", "잠시 뒤에 다시 시도해 주세요.", ["다시 시도"]),
}


@pytest.mark.parametrize("reason", some(REASONS, 3))
def test_reason(page: Page, stub: Stub, reason: str) -> None:
    """Every reason is told in plain words, with the next step, as a status and as an error event alike."""
    status, title, body, buttons = REASONS[reason]
    ways = [refusal(reason, status)]
    if status == 503:
        ways.append(Answer([UPSTREAM, failing(reason)]))
    stub.script(*ways)
    for number, _ in enumerate(ways):
        ask(page, f"질문 {number}")
        rested(page)
        said = notice(page).split("\n")
        assert said[0] == title
        assert said[1].endswith(body)
        expect(page.get_by_role("alert")).to_contain_text(title)
        labels = page.locator(".notice .row button").all_inner_texts()
        assert [label.split(" · ")[0] for label in labels] == buttons
        assert reason not in page.locator("body").inner_text()
    assert len(stub.asked) == len(ways)
    # What the server calls its parts is not kept either.
    assert reason not in json.dumps(storage(page))


def test_partial_answer_and_an_error(page: Page, stub: Stub) -> None:
    """After an error in the middle the part stays; it can be asked for anew or continued."""
    stub.script(Answer([text("반쯤"), failing("upstream_error")]))
    ask(page, "질문")
    assert notice(page) == "답변을 만들다가 문제가 생겼어요\n같은 질문을 다시 보내 주세요."
    assert page.locator(".notice .row button").all_inner_texts() == ["다시 시도", "이어서 받기"]
    assert answers(page) == ["반쯤"]


def test_empty_answer(page: Page, stub: Stub) -> None:
    """An answer without a word is no answer."""
    stub.script(Answer([UPSTREAM, finish(), DONE]))
    ask(page, "질문")
    assert notice(page).startswith("답변을 만들다가 문제가 생겼어요")


def test_deep_is_unavailable(page: Page, stub: Stub) -> None:
    """일상으로 물어보기 sends the same question to the other mode, which stays chosen."""
    stub.script(refusal("macbook_unavailable", retry_after=30), whole("일상 답"))
    page.get_by_role("radio", name="심층").check()
    ask(page, "질문")
    assert notice(page) == "지금은 심층 모드를 쓸 수 없어요\n심층은 잠시 쉬고 있어요. 일상으로는 답할 수 있어요."
    assert "macbook" not in page.content() + json.dumps(storage(page))
    button(page, "일상으로 물어보기").click()
    expect(page.locator(".answer .text")).to_have_text("일상 답")
    expect(page.get_by_role("radio", name="일상")).to_be_checked()
    assert [(one.body["mode"], one.messages) for one in stub.asked] == [
        ("deep", [("user", "질문")]),
        ("daily", [("user", "질문")]),
    ]


def test_mode_not_configured(page: Page, stub: Stub) -> None:
    """다른 모드로 물어보기 sends the question to the mode that was not chosen."""
    stub.script(refusal("provider_not_configured"), whole("심층 답"))
    ask(page, "질문")
    button(page, "다른 모드로 물어보기").click()
    expect(page.locator(".answer .text")).to_have_text("심층 답")
    assert [one.body["mode"] for one in stub.asked] == ["daily", "deep"]


def test_countdown(page: Page, stub: Stub) -> None:
    """Retry-After is counted down on the button, which works when it is over."""
    seconds = size(2, 3)
    stub.script(refusal("gate_queue_full", retry_after=seconds), whole("답"))
    ask(page, "질문")
    retry = page.locator("[data-action=retry]")
    expect(retry).to_be_disabled()
    expect(retry).to_have_text(f"다시 시도 · {seconds}초")
    assert notice(page) == f"지금 기다리는 질문이 많아요\n{seconds}초 뒤에 다시 시도해 주세요."
    expect(retry).to_have_text("다시 시도 · 1초")
    expect(page.get_by_role("timer")).to_have_text("1")
    expect(retry).to_be_disabled()
    assert len(stub.asked) == 1
    expect(retry).to_be_enabled()
    expect(retry).to_have_text("다시 시도")
    assert notice(page) == "지금 기다리는 질문이 많아요\n이제 다시 시도할 수 있어요."
    retry.click()
    expect(page.locator(".answer .text")).to_have_text("답")


@pytest.mark.usefixtures("own")
def test_clock(page: Page, stub: Stub) -> None:
    """While a model thinks the page says so, and for how long; the tab says that something is under way."""
    hold = Hold()
    stub.script(Answer([UPSTREAM, thinking(42), hold, text("답"), finish(), DONE]))
    page.clock.install()
    ask(page, "깊이 생각해 줘요")
    expect(page.locator("#status")).to_have_text("깊이 생각하고 있어요")
    expect(page.locator("#clock")).to_have_text(" · 42초", use_inner_text=False)
    page.clock.fast_forward(20_000)
    expect(page.locator("#clock")).to_have_text(re.compile(r"· 1분 \d초"))
    assert page.title() == "⏳ 이드 대화"
    hold.release()
    expect(page.locator(".answer .text")).to_have_text("답")
    rested(page)
    expect(page.locator("#clock")).to_have_text("")
    assert page.title() == "이드 대화"


def test_who_waits(page: Page, stub: Stub) -> None:
    """Before one asks the page says how many wait and for how long; nobody waits: it says nothing."""
    expect(page.locator("#queue")).to_have_text("")
    stub.state = {"waiting": 2, "eta_seconds": 20}
    page.reload()
    expect(page.locator("#queue")).to_have_text("지금 질문 2개가 기다리고 있어요 · 약 20초")
    stub.state = {"waiting": 0, "eta_seconds": None}
    page.reload()
    ready(page)
    expect(page.locator("#queue")).to_have_text("")


def test_online_again(page: Page, context: BrowserContext, stub: Stub) -> None:
    """When the network is back the page asks whether to send again what was not sent."""
    context.set_offline(True)
    ask(page, "질문")
    notice(page)
    context.set_offline(False)
    stub.script(whole("답"))
    button(page, "다시 보내기").click()
    expect(page.locator(".answer .text")).to_have_text("답")
    assert stub.asked[0].messages == [("user", "질문")]


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("as_event", [False, True], ids=["status", "event"])
def test_warming(page: Page, stub: Stub, as_event: bool) -> None:
    """While the model is made ready the page asks again by itself, until the answer comes."""
    cold = Answer([UPSTREAM, failing("warming")]) if as_event else refusal("warming", retry_after=1)
    hold = Hold()
    stub.script(cold, Answer([UPSTREAM, hold, text("준비됐어요"), finish(), DONE]))
    if as_event:
        # No Retry-After in an event: the page's own ten seconds, which the clock of the browser can jump over.
        page.clock.install()
    ask(page, "질문")
    said = "답할 준비를 하고 있어요처음에는 1~2분쯤 걸려요. 준비되면 질문을 자동으로 다시 보낼게요."
    expect(page.locator("#status")).to_have_text(said)
    expect(button(page, "취소")).to_be_visible()
    expect(page.locator(".notice")).to_have_count(0)
    if as_event:
        page.clock.fast_forward(5_000)
        assert len(stub.asked) == 1
        page.clock.fast_forward(5_100)
    assert hold.reached.wait(5)
    # One state, not two that take turns.
    expect(page.locator("#status")).to_have_text(said)
    hold.release()
    expect(page.locator(".answer .text")).to_have_text("준비됐어요")
    assert [one.messages for one in stub.asked] == [[("user", "질문")]] * 2


@pytest.mark.usefixtures("own")
def test_warming_cancelled(page: Page, stub: Stub) -> None:
    """취소 ends the waiting; nothing more is sent."""
    stub.script(refusal("warming", retry_after=60))
    page.clock.install()
    ask(page, "질문")
    expect(page.locator("#status")).to_contain_text("답할 준비를 하고 있어요")
    button(page, "취소").click()
    assert notice(page) == "답변을 중지했어요"
    page.clock.fast_forward(120_000)
    rested(page)
    assert len(stub.asked) == 1


@pytest.mark.usefixtures("own")
def test_warming_without_end(page: Page, stub: Stub) -> None:
    """The page gives up after five minutes, and leaves the next try to the person."""
    stub.script(*[refusal("warming", retry_after=60) for _ in range(20)])
    page.clock.install()
    ask(page, "질문")
    started = page.evaluate("Date.now()")
    expect(page.locator("#status")).to_contain_text("답할 준비를 하고 있어요")

    def given_up() -> bool:
        page.clock.run_for(5_000)
        return page.locator(".notice").count() == 1

    until(given_up, timeout=30, what="the end of the page's patience")
    waited = (page.evaluate("Date.now()") - started) / 1000
    assert 300 <= waited < 400
    assert notice(page).startswith("답할 준비를 하고 있어요\n생각보다 오래 걸리고 있어요.")
    tries = len(stub.asked)
    assert 5 <= tries <= 6
    page.clock.run_for(300_000)
    assert len(stub.asked) == tries
    expect(page.locator("[data-action=retry]")).to_be_enabled()


def test_cold(page: Page, stub: Stub) -> None:
    """A model that wakes up: the page counts down and tries again; 지금 시도 does it at once."""
    stub.script(refusal("upstream_cold", retry_after=60), refusal("upstream_cold", retry_after=1), whole("일어났어요"))
    ask(page, "질문")
    expect(page.locator("#status")).to_have_text("쉬고 있던 AI를 깨우고 있어요")
    expect(page.locator("#timing")).to_have_text(re.compile(r"^(60|59|58)초 뒤에 다시 시도할게요\.$"))
    button(page, "지금 시도").click()
    expect(page.locator(".answer .text")).to_have_text("일어났어요")
    assert len(stub.asked) == 3


def test_offline(page: Page, context: BrowserContext, stub: Stub, watch: Watch) -> None:
    """Without a network the page says so, and sends when there is one again."""
    context.set_offline(True)
    ask(page, "질문")
    assert notice(page) == "인터넷에 연결되어 있지 않아요\n연결을 확인하고 다시 시도해 주세요."
    context.set_offline(False)
    stub.script(whole("답"))
    button(page, "다시 시도").click()
    expect(page.locator(".answer .text")).to_have_text("답")


def test_something_in_between_answers(page: Page, stub: Stub) -> None:
    """A proxy's own error page, or a login page with 200, is not taken for an answer."""
    html = {"Content-Type": "text/html"}
    stub.script(Answer([b"<h1>Bad Gateway</h1>"], 502, html), Answer([b"<h1>Welcome</h1>"], 200, html))
    ask(page, "하나")
    assert notice(page).startswith("답변 서버에 연결하지 못했어요")
    ask(page, "둘")
    rested(page)
    assert notice(page) == "알 수 없는 문제가 생겼어요\n잠시 뒤에 다시 시도해 주세요."
    assert "Gateway" not in page.content()
    assert "Welcome" not in page.content()


# --- What is written ------------------------------------------------------------------------------------------------


def test_caps_of_the_server(page: Page, stub: Stub) -> None:
    """What the server allows is what the page counts by; its name is the page's."""
    stub.config |= {"title": "우리 집", "max_message_chars": 100}
    page.reload()
    expect(page.locator("#brand")).to_have_text("우리 집")
    assert page.title() == "우리 집 대화"
    page.fill("#compose", "가" * 120)
    expect(page.locator("#counter")).to_have_text("100자까지 보낼 수 있어요. 20자 줄여 주세요.")
    expect(page.locator("#send")).to_be_disabled()


def test_too_long_is_not_sent(page: Page, stub: Stub) -> None:
    """Over 8000 code points the page counts what is too much and does not send; emoji count once."""
    send = page.locator("#send")
    page.fill("#compose", "👋" * 8001)
    expect(page.locator("#counter")).to_have_text("8,000자까지 보낼 수 있어요. 1자 줄여 주세요.")
    expect(send).to_be_disabled()
    expect(page.locator("#compose")).to_have_attribute("aria-invalid", "true")
    page.press("#compose", "Enter")
    assert stub.asked == []
    stub.script(whole("답"))
    page.fill("#compose", f"  {'👋' * 8000}\n")
    expect(page.locator("#counter")).to_have_text("8,000 / 8,000자")
    page.press("#compose", "Enter")
    expect(page.locator(".answer .text")).to_have_text("답")
    assert stub.asked[0].messages == [("user", "👋" * 8000)]


def test_blank_is_not_sent(page: Page, stub: Stub) -> None:
    """Blanks are no question."""
    page.fill("#compose", " \n ")
    expect(page.locator("#send")).to_be_disabled()
    page.press("#compose", "Enter")
    assert stub.asked == []


REFUSALS = ["message_too_long", "too_many_turns", "conversation_too_long", "system_role_forbidden"]


@pytest.mark.parametrize("reason", some(REFUSALS, 4))
def test_refused_turn_is_not_sent_again(page: Page, stub: Stub, reason: str) -> None:
    """After a 422 the next question goes without the refused one, also after a reload."""
    stub.script(whole("하나"), refusal(reason, 422), whole("셋"), whole("넷"))
    ask(page, "첫째")
    rested(page)
    ask(page, "거절될 질문")
    notice(page)
    ask(page, "셋째")
    expect(page.locator(".answer .text").nth(1)).to_have_text("셋")
    page.reload()
    ask(page, "넷째")
    expect(page.locator(".answer .text").nth(2)).to_have_text("넷")
    good = [("user", "첫째"), ("assistant", "하나")]
    assert stub.asked[2].messages == [*good, ("user", "셋째")]
    assert stub.asked[3].messages == [*good, ("user", "셋째"), ("assistant", "셋"), ("user", "넷째")]
    # It is still shown.
    expect(page.get_by_text("거절될 질문")).to_be_visible()


def test_edit_a_refused_question(page: Page, stub: Stub) -> None:
    """질문 고치기 gives the text back to be changed; what was being written comes back afterwards."""
    stub.script(refusal("message_too_long", 422), whole("답"))
    ask(page, "너무 긴 질문")
    page.fill("#compose", "초안")
    button(page, "질문 고치기").click()
    expect(page.locator("#compose")).to_have_value("너무 긴 질문")
    expect(page.locator("#editing")).to_be_visible()
    ask(page, "짧은 질문")
    expect(page.locator(".answer .text")).to_have_text("답")
    assert stub.asked[1].messages == [("user", "짧은 질문")]
    expect(page.locator("#compose")).to_have_value("초안")
    # The refused one is still there, beside it.
    expect(page.locator(".exchange")).to_have_count(1)
    button(page, "앞의 것 보기").click()
    expect(page.locator(".question")).to_have_text("너무 긴 질문")


def test_too_many_turns_in_a_new_conversation(page: Page, stub: Stub) -> None:
    """새 대화에서 물어보기 sends the question alone."""
    stub.script(whole("하나"), refusal("too_many_turns", 422), whole("둘"))
    ask(page, "첫째")
    rested(page)
    ask(page, "둘째")
    button(page, "새 대화에서 물어보기").click()
    expect(page.locator(".answer .text")).to_have_text("둘")
    assert stub.asked[2].messages == [("user", "둘째")]


def test_long_conversation(page: Page, stub: Stub) -> None:
    """What no longer fits is not sent any more, but is still shown."""
    exchanges = [{"question": f"질문 {number}", "answer": f"답 {number}", "mode": "daily"} for number in range(50)]
    remember(page, exchanges)
    page.reload()
    expect(page.locator(".exchange")).to_have_count(50)
    stub.script(whole("끝"))
    ask(page, "마지막")
    expect(page.locator(".answer .text").last).to_have_text("끝")
    expect(page.locator(".exchange")).to_have_count(51)
    messages = stub.asked[0].messages
    assert len(messages) == 39
    assert messages[0] == ("user", "질문 31")
    assert messages[-1] == ("user", "마지막")


def test_beginning_is_forgotten(page: Page, stub: Stub) -> None:
    """Where the beginning is no longer sent, the page says so."""
    said = "앞부분은 더 이상 기억하지 못해요. 중요한 내용은 다시 적어 주세요."
    remember(page, [{"question": f"질문 {number}", "answer": f"답 {number}"} for number in range(25)])
    page.reload()
    expect(page.get_by_text(said)).to_have_count(1)
    # The next question goes with 19 turns before it: 39 messages.
    before = page.locator(".forgotten").evaluate("(one) => one.previousElementSibling.textContent")
    assert "답 5" in before
    stub.script(whole("끝"))
    ask(page, "더")
    rested(page)
    assert stub.asked[0].messages[0] == ("user", "질문 6")


def remember(page: Page, exchanges: list[dict[str, Any]], subject: str = "mina") -> None:
    """Put a conversation where the page kept it before it had a list; it takes it over."""
    kept = json.dumps({"owner": json.dumps([None, subject], separators=(",", ":")), "exchanges": exchanges})
    page.evaluate("(kept) => localStorage.setItem('eid.conversation', kept)", kept)


PRESSES: dict[str, tuple[dict[str, Any], bool]] = {
    "Enter": ({}, True),
    "Enter of an input method": ({"isComposing": True}, False),
    "Enter of an input method, by its code": ({"keyCode": 229}, False),
    "Shift+Enter": ({"shiftKey": True}, False),
    "Alt+Enter": ({"altKey": True}, False),
    "Ctrl+Enter": ({"ctrlKey": True}, True),
    "Ctrl+Enter of an input method": ({"ctrlKey": True, "isComposing": True}, False),
}


@pytest.mark.parametrize("name", PRESSES)
def test_enter(page: Page, stub: Stub, name: str) -> None:
    """Enter sends, but not while an input method composes, and not for a new line."""
    init, sends = PRESSES[name]
    stub.script(whole("답"))
    page.fill("#compose", "한글")
    prevented = page.evaluate(
        """(init) => !document.getElementById("compose").dispatchEvent(
             new KeyboardEvent("keydown", {key: "Enter", keyCode: 13, bubbles: true, cancelable: true, ...init}))""",
        init,
    )
    assert prevented is sends
    if sends:
        expect(page.locator(".answer .text")).to_have_text("답")
    else:
        assert page.input_value("#compose") == "한글"
    assert len(stub.asked) == (1 if sends else 0)


def test_enter_on_a_touch_keyboard(browser: Browser, watch: Watch, base_url: str, stub: Stub, token: str) -> None:
    """On a phone Enter starts a new line, and the button sends."""
    stub.script(whole("답"))
    context = browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    watch.over(context)
    page = context.new_page()
    page.goto(f"{base_url}/chat#token={token}")
    page.locator("#compose").tap()
    page.keyboard.type("첫 줄")
    page.keyboard.press("Enter")
    page.keyboard.type("둘째 줄")
    assert stub.asked == []
    page.locator("#send").tap()
    expect(page.locator(".answer .text")).to_have_text("답")
    assert stub.asked[0].messages == [("user", "첫 줄\n둘째 줄")]
    context.close()


def test_real_composition(page: Page, context: BrowserContext, stub: Stub) -> None:
    """With a real composition in the field the key goes to it; once it is committed Enter sends it all, once."""
    stub.script(whole("답"))
    page.focus("#compose")
    input_method = context.new_cdp_session(page)
    input_method.send("Input.imeSetComposition", {"text": "한글", "selectionStart": 2, "selectionEnd": 2})
    key = {"type": "rawKeyDown", "key": "Process", "code": "Enter", "windowsVirtualKeyCode": 229}
    input_method.send("Input.dispatchKeyEvent", key)
    assert page.input_value("#compose") == "한글"
    assert stub.asked == []
    input_method.send("Input.insertText", {"text": "한글"})
    page.keyboard.press("Enter")
    expect(page.locator(".answer .text")).to_have_text("답")
    assert [one.messages for one in stub.asked] == [[("user", "한글")]]
    assert page.input_value("#compose") == ""


def test_keyboard_alone(page: Page, stub: Stub) -> None:
    """A whole turn without a mouse: mode, question, new line, stop, answer again."""
    hold = Hold()
    stub.script(Answer([text("여기"), hold]), whole("답"))
    page.get_by_role("radio", name="일상").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="심층")).to_be_checked()
    page.focus("#compose")
    page.keyboard.type("첫 줄")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("둘째 줄")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .text")).to_have_text("여기")
    assert stub.asked[0].body == {"mode": "deep", "messages": [{"role": "user", "content": "첫 줄\n둘째 줄"}]}
    button(page, "중지").focus()
    page.keyboard.press("Space")
    notice(page)
    expect(page.locator("#compose")).to_be_focused()
    button(page, "답변 다시 받기").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".answer .text")).to_have_text("답")
    expect(page.locator("#compose")).to_be_focused()


def test_writing_while_an_answer_comes(page: Page, stub: Stub) -> None:
    """The next question can be written meanwhile; Enter does not send it early, nor lose it."""
    hold = Hold()
    stub.script(Answer([text("하나"), hold, finish(), DONE]), whole("둘"))
    ask(page, "첫째")
    expect(page.locator(".answer .text")).to_have_text("하나")
    page.fill("#compose", "둘째")
    page.press("#compose", "Enter")
    assert page.input_value("#compose") == "둘째"
    assert len(stub.asked) == 1
    hold.release()
    rested(page)
    page.press("#compose", "Enter")
    expect(page.locator(".answer .text").nth(1)).to_have_text("둘")


def test_copy(page: Page, context: BrowserContext, stub: Stub) -> None:
    """복사 copies the answer as it came."""
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    stub.script(whole("**굵게**\n\n`코드`"))
    ask(page, "질문")
    button(page, "복사").click()
    expect(button(page, "복사했어요")).to_be_visible()
    expect(page.locator("#said")).to_have_text("복사했어요")
    assert page.evaluate("() => navigator.clipboard.readText()") == "**굵게**\n\n`코드`"


def test_copy_without_the_clipboard_interface(page: Page, stub: Stub) -> None:
    """Where the browser withholds it (plain HTTP from another machine) copying works too."""
    page.evaluate("() => Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    stub.script(whole("**굵게**\n\n`코드`"))
    ask(page, "질문")
    button(page, "복사").click()
    expect(button(page, "복사했어요")).to_be_visible()
    page.focus("#compose")
    page.keyboard.press("Control+V")
    assert page.input_value("#compose") == "**굵게**\n\n`코드`"


def test_policy_is_in_force(page: Page, watch: Watch) -> None:
    """The tests run under the policy of the server: a string is refused as markup, another host as a destination."""
    assert watch.faults == []
    script = """async () => {
      const results = [];
      try { document.body.innerHTML = "<b>x</b>"; results.push("taken"); } catch (error) { results.push(error.name); }
      try { await fetch("http://127.0.0.1:9/"); results.push("sent"); } catch (error) { results.push(error.name); }
      return results;
    }"""
    assert page.evaluate(script) == ["TypeError", "TypeError"]
    # Messages of the browser are only taken in while a call to it runs.
    until(lambda: page.evaluate("true") and len(watch.faults) >= 2, what="the browser's complaints")
    assert all("Content Security Policy" in one or "TrustedHTML" in one for one in watch.faults)
    # They were provoked.
    watch.faults.clear()
    watch.requested = [url for url in watch.requested if "127.0.0.1:9/" not in url]


def test_text_never_becomes_markup(page: Page, stub: Stub) -> None:
    """Markup in a question or an answer is shown as the text it is."""
    attack = '<img src=x onerror="document.title=1"><script>document.title=1</script>'
    stub.script(whole(attack))
    ask(page, attack)
    expect(page.locator(".answer .text")).to_have_text(attack)
    expect(page.locator(".question")).to_have_text(attack)
    assert page.locator("#log img, #log script").count() == 0
    assert page.title() == "이드 대화"


# --- The second language, the view ----------------------------------------------------------------------------------


def test_english(page: Page, stub: Stub) -> None:
    """The page changes its language at once, also of what is already there, and remembers it."""
    stub.script(refusal("gate_wait_timeout"), whole("Hello"))
    ask(page, "질문")
    notice(page)
    button(page, "English").click()
    assert notice(page) == "Your turn did not come in time\nPlease try again in a moment."
    assert page.evaluate("() => document.documentElement.lang") == "en"
    assert page.title() == "eid chat"
    expect(page.get_by_placeholder("Ask anything")).to_be_visible()
    button(page, "Try again").click()
    expect(page.locator(".answer .text")).to_have_text("Hello")
    korean = re.compile("[가-힣]")
    page.reload()
    ready(page)
    expect(page.get_by_placeholder("Ask anything")).to_be_visible()
    shown = page.locator("body").inner_text().replace("한국어", "").replace("질문", "")
    assert korean.search(shown) is None
    button(page, "한국어").click()
    expect(button(page, "로그아웃")).to_be_visible()


def test_view_follows_the_answer(page: Page, stub: Stub) -> None:
    """The page follows a growing answer, unless the person has scrolled away; a button leads back."""
    holds = [Hold() for _ in range(3)]
    lines = "\n\n".join(["한 줄"] * 40)
    stub.script(Answer([text(lines), holds[0], text(lines), holds[1], text(lines), holds[2], finish(), DONE]))
    ask(page, "길게")
    bottom: Callable[[], bool] = lambda: page.evaluate(  # noqa: E731
        "() => document.documentElement.scrollHeight - innerHeight - scrollY < 2 && scrollY > 100"
    )
    until(bottom, what="the end in view")
    page.evaluate("() => scrollTo(0, 0)")
    to_end = button(page, "맨 아래로")
    expect(to_end).to_be_visible()
    holds[0].release()
    expect(page.locator(".answer .text > p")).to_have_count(79)
    assert page.evaluate("() => scrollY") == 0
    to_end.click()
    until(bottom, what="the end in view again")
    expect(to_end).to_be_hidden()
    holds[1].release()
    expect(page.locator(".answer .text > p")).to_have_count(118)
    until(bottom, what="the end still in view")
    holds[2].release()
    rested(page)
    until(bottom, what="the end in view at the end")
