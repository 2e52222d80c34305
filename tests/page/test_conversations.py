"""Who is logged in, and what is kept on the device: nothing is lost, and nobody sees what is another's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Error, Page, expect

from tests.lab.tools import until
from tests.page.conftest import answers, ask, button, notice, ready, rested, storage, token_of
from tests.page.stub import DONE, Answer, Hold, Stub, finish, queued, refusal, text, whole
from tests.page.test_page import remember

MINA = json.dumps([None, "mina"], separators=(",", ":"))


def login_with(page: Page, token: str) -> None:
    """Open the page anew with another token, as a link would."""
    page.evaluate("(token) => { location.hash = `token=${token}`; }", token)
    page.wait_for_function("() => location.hash === ''")


def choose(page: Page, name: str) -> None:
    """Answer the question of the page."""
    page.locator("#choose").get_by_role("button", name=name).click()
    expect(page.locator("#choose")).to_be_hidden()


def titles(page: Page) -> list[str]:
    """The conversations in the list."""
    button(page, "대화 목록").click()
    expect(page.locator("#list")).to_be_visible()
    found = page.locator("#list .title span").all_text_contents()
    button(page, "닫기").click()
    return found


def kept_text(page: Page) -> str:
    """All that is on the device, as one text."""
    return json.dumps(storage(page), ensure_ascii=False)


# --- Logging in -----------------------------------------------------------------------------------------------------


def test_fragment(page: Page, base_url: str, token: str) -> None:
    """A token in the fragment is taken out of the address, and lives in the tab's storage alone."""
    assert page.url == f"{base_url}/chat"
    kept = storage(page)
    assert kept["session"]["eid.token"] == token
    assert token not in json.dumps(kept["local"])
    assert token not in page.content()
    assert page.evaluate("() => document.cookie") == ""


def test_stay_logged_in(context: BrowserContext, base_url: str, stub: Stub, token: str) -> None:
    """With 이 기기에서 로그인 유지 a new tab is logged in; after 로그아웃 no tab is."""
    page = context.new_page()
    page.goto(f"{base_url}/chat")
    button(page, "로그인").first.click()
    page.get_by_label("로그인 코드").fill(token)
    page.get_by_label("이 기기에서 로그인 유지").check()
    page.get_by_role("dialog").get_by_role("button", name="로그인").click()
    button(page, "로그아웃").wait_for()
    other = context.new_page()
    other.goto(f"{base_url}/chat")
    button(other, "로그아웃").click()
    expect(page.get_by_text("먼저 로그인해 주세요.")).to_be_visible()
    assert token not in kept_text(page)
    third = context.new_page()
    third.goto(f"{base_url}/chat")
    ready(third)
    expect(third.get_by_text("먼저 로그인해 주세요.")).to_be_visible()


BAD_TOKENS = {
    "a wrong signature": (token_of("junho").replace("c2lnbmF0dXJl", "d3Jvbmc"), "쓸 수 없는 로그인 코드예요."),
    "no token": ("x.y", "로그인 코드가 맞지 않아요."),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_bad_link_changes_nothing(page: Page, stub: Stub, token: str, name: str) -> None:
    """A link whose token the server does not take leaves the person, the conversation and the draft as they were."""
    stub.bad_signatures.add("d3Jvbmc")
    stub.script(whole("답"))
    ask(page, "질문")
    rested(page)
    page.fill("#compose", "초안")
    before = storage(page)
    bad, said = BAD_TOKENS[name]
    login_with(page, bad)
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text(said)
    assert storage(page) == before
    page.keyboard.press("Escape")
    assert answers(page) == ["답"]
    assert page.input_value("#compose") == "초안"
    expect(button(page, "로그아웃")).to_be_visible()
    page.reload()
    assert answers(page) == ["답"]


def test_unsigned_link_shows_nothing(context: BrowserContext, page: Page, base_url: str, stub: Stub) -> None:
    """A made-up token does not show what the person it names has written here."""
    stub.script(whole("비밀 답"))
    ask(page, "비밀 질문")
    rested(page)
    page.close()
    stub.bad_signatures.add("d3Jvbmc")
    other = context.new_page()
    other.goto(f"{base_url}/chat#token={token_of('mina').replace('c2lnbmF0dXJl', 'd3Jvbmc')}")
    expect(other.get_by_role("dialog").get_by_role("alert")).to_contain_text("쓸 수 없는 로그인 코드예요.")
    assert "비밀" not in other.content()
    # What is there is still there.
    stub.bad_signatures.clear()
    login_with(other, token_of("mina"))
    expect(other.locator(".answer .text")).to_have_text("비밀 답")


def test_login_without_the_server(page: Page, stub: Stub) -> None:
    """When a token cannot be checked nothing changes, and it is still in the field to be tried again."""
    stub.state_fails = True
    login_with(page, token_of("junho"))
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("확인하지 못했어요")
    assert page.get_by_label("로그인 코드").input_value() == token_of("junho")
    assert storage(page)["session"]["eid.token"] == token_of("mina")


def test_another_person(page: Page, stub: Stub) -> None:
    """Another person is asked about before their place is taken; the first one's conversations are hidden, and kept."""
    hold = Hold()
    stub.script(Answer([text("비밀 답"), hold]), whole("답"))
    ask(page, "비밀 질문")
    expect(page.locator(".answer .text")).to_have_text("비밀 답")
    login_with(page, token_of("junho"))
    expect(page.locator("#choose")).to_contain_text("junho님으로 바꿀까요?")
    choose(page, "그대로 두기")
    assert answers(page) == ["비밀 답"]
    assert not hold.left.is_set()
    page.fill("#compose", "비밀 초안")
    login_with(page, token_of("junho"))
    choose(page, "바꾸기")
    assert hold.left.wait(5)
    expect(page.locator(".exchange")).to_have_count(0)
    assert "비밀" not in page.content() + page.input_value("#compose")
    assert titles(page) == []
    ask(page, "질문")
    expect(page.locator(".answer .text")).to_have_text("답")
    assert stub.asked[1].messages == [("user", "질문")]
    rested(page)
    login_with(page, token_of("mina", 1))
    choose(page, "바꾸기")
    expect(page.locator(".answer .text")).to_have_text("비밀 답")
    expect(page.locator(".notice")).to_contain_text("이어서 받기")
    assert titles(page) == ["비밀 질문"]


def test_paste_a_token(context: BrowserContext, base_url: str, stub: Stub, token: str) -> None:
    """A question asked before the login is sent after it; what is no token is refused at once."""
    stub.script(whole("답"))
    page = context.new_page()
    page.goto(f"{base_url}/chat")
    ask(page, "미리 쓴 질문")
    assert notice(page) == "로그인이 필요해요"
    assert stub.asked == []
    page.locator(".notice").get_by_role("button", name="로그인").click()
    field = page.get_by_label("로그인 코드")
    for wrong in ("x", "a.b.c", "가.나.다", token + "가", f"{token}.x", "a." + "A" * 5000 + ".c"):
        field.fill(wrong)
        page.get_by_role("dialog").get_by_role("button", name="로그인").click()
        expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("로그인 코드가 맞지 않아요.")
    field.fill(f" {token}\n")
    page.get_by_role("dialog").get_by_role("button", name="로그인").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator(".answer .text")).to_have_text("답")
    assert stub.asked[0].messages == [("user", "미리 쓴 질문")]


def test_new_token_of_the_same_person(page: Page, stub: Stub) -> None:
    """A fresh token keeps the conversation."""
    stub.script(whole("하나"), whole("둘"))
    ask(page, "첫째")
    rested(page)
    fresh = token_of("mina", 1)
    login_with(page, fresh)
    until(lambda: storage(page)["session"]["eid.token"] == fresh, what="the new token")
    assert answers(page) == ["하나"]
    ask(page, "둘째")
    expect(page.locator(".answer .text").nth(1)).to_have_text("둘")
    assert stub.asked[1].headers["authorization"] == f"Bearer {fresh}"
    assert len(stub.asked[1].messages) == 3


def test_token_runs_out(page: Page, stub: Stub, token: str) -> None:
    """After a login that worked, 401 says that its time is over; the question is sent after the next login."""
    stub.script(whole("하나"), refusal("unauthorized", 401), whole("둘"))
    ask(page, "첫째")
    rested(page)
    ask(page, "둘째")
    assert notice(page) == "로그인이 만료됐어요\n다시 로그인해 주세요. 쓰던 질문은 남아 있어요."
    page.fill("#compose", "쓰던 질문")
    assert token not in kept_text(page)
    page.locator(".notice").get_by_role("button", name="로그인").click()
    page.get_by_label("로그인 코드").fill(token_of("mina", 1))
    page.get_by_role("dialog").get_by_role("button", name="로그인").click()
    expect(page.locator(".answer .text").nth(1)).to_have_text("둘")
    assert page.input_value("#compose") == "쓰던 질문"
    assert stub.asked[2].messages == [("user", "첫째"), ("assistant", "하나"), ("user", "둘째")]


# --- What is kept ---------------------------------------------------------------------------------------------------


def test_reload_keeps_the_conversation(page: Page, stub: Stub) -> None:
    """The conversation is there after a reload, and goes on."""
    stub.script(whole("하나"), whole("둘"))
    ask(page, "첫째")
    rested(page)
    page.reload()
    assert answers(page) == ["하나"]
    ask(page, "둘째")
    expect(page.locator(".answer .text").nth(1)).to_have_text("둘")
    assert len(stub.asked[1].messages) == 3


def test_reload_in_the_middle(page: Page, stub: Stub) -> None:
    """What had come when the page was left is kept, and can be continued."""
    stub.script(Answer([text("여기까지 "), Hold()]), whole("그리고 끝"))
    ask(page, "첫째")
    expect(page.locator(".answer .text")).to_have_text("여기까지")
    page.reload()
    assert notice(page) == "답변이 중간에 끊겼어요\n여기까지의 답변은 남아 있어요."
    # It is not news any more.
    expect(page.locator(".notice [role=alert]")).to_have_count(0)
    button(page, "이어서 받기").click()
    expect(page.locator(".answer .text")).to_have_text("여기까지 그리고 끝")


BUSY = """
() => new Promise((resolve) => {
  const request = indexedDB.open("eid");
  request.onsuccess = () => {
    const work = request.result.transaction(["conversations", "turns"], "readwrite");
    const again = () => {
      if (window.over) request.result.close();
      else work.objectStore("turns").get(["", "", ""]).onsuccess = again;
    };
    again();
    resolve();
  };
})
"""


def test_reload_of_a_slow_device(page: Page, context: BrowserContext, base_url: str, stub: Stub) -> None:
    """What the device has not written yet when the page ends is written all the same."""
    stub.script(whole("하나"), whole("둘"))
    other = context.new_page()
    other.goto(f"{base_url}/chat")
    # Another tab holds the storage, so that nothing of this one can be written.
    other.evaluate(BUSY)
    for question in ("첫째", "둘째"):
        ask(page, question)
        rested(page)
    assert page.locator(".answer .text").all_text_contents() == ["하나", "둘"]
    page.goto("about:blank")
    other.evaluate("() => { window.over = true; }")
    page.goto(f"{base_url}/chat")
    assert answers(page) == ["하나", "둘"]
    assert "eid.rescued" not in storage(page)["local"]
    page.reload()
    assert answers(page) == ["하나", "둘"]


def test_logout_keeps(page: Page, stub: Stub, token: str) -> None:
    """로그아웃 asks; what is kept is not shown to anyone until the person logs in again."""
    stub.script(whole("비밀 답"))
    ask(page, "비밀 질문")
    rested(page)
    button(page, "로그아웃").click()
    choose(page, "취소")
    assert answers(page) == ["비밀 답"]
    button(page, "로그아웃").click()
    choose(page, "대화를 남기고 로그아웃")
    expect(page.get_by_text("먼저 로그인해 주세요.")).to_be_visible()
    assert "비밀" not in page.content()
    assert token not in kept_text(page)
    login_with(page, token)
    expect(page.locator(".answer .text")).to_have_text("비밀 답")


def test_logout_removes(page: Page, stub: Stub, token: str) -> None:
    """With 지우고 the request ends and nothing of the person is left behind."""
    hold = Hold()
    stub.script(whole("비밀 답"), Answer([text("비밀 둘"), hold]))
    ask(page, "비밀 질문")
    rested(page)
    ask(page, "비밀 질문 둘")
    expect(page.locator(".answer .text").nth(1)).to_have_text("비밀 둘")
    page.fill("#compose", "비밀 초안")
    button(page, "로그아웃").click()
    choose(page, "대화를 지우고 로그아웃")
    assert hold.left.wait(5)
    expect(page.get_by_text("먼저 로그인해 주세요.")).to_be_visible()

    def gone() -> bool:
        left = kept_text(page) + page.content() + page.input_value("#compose")
        return not any(word in left for word in ("비밀", "mina", token))

    until(gone, what="nothing left")
    page.reload()
    ready(page)
    assert gone()
    expect(page.locator(".exchange")).to_have_count(0)


def test_logout_in_another_tab(page: Page, context: BrowserContext, base_url: str, stub: Stub, token: str) -> None:
    """Logging out holds for all tabs of the browser."""
    stub.script(whole("비밀 답"))
    ask(page, "비밀 질문")
    rested(page)
    other = context.new_page()
    other.goto(f"{base_url}/chat#token={token}")
    expect(other.locator(".answer .text")).to_have_text("비밀 답")
    button(other, "로그아웃").click()
    choose(other, "대화를 지우고 로그아웃")
    expect(page.get_by_text("먼저 로그인해 주세요.")).to_be_visible()
    until(lambda: "비밀" not in page.content() + kept_text(page), what="nothing left")


def test_new_conversation_can_be_undone(page: Page, stub: Stub) -> None:
    """새 대화 keeps the old one: the way back is offered, and the list has it."""
    stub.script(whole("하나"), whole("둘"))
    ask(page, "첫째 질문")
    rested(page)
    button(page, "새 대화").click()
    expect(page.locator(".exchange")).to_have_count(0)
    button(page, "되돌리기").click()
    expect(page.locator(".answer .text")).to_have_text("하나")
    button(page, "새 대화").click()
    ask(page, "둘째 질문")
    rested(page)
    assert titles(page) == ["둘째 질문", "첫째 질문"]
    button(page, "대화 목록").click()
    page.locator("#list .title", has_text="첫째").click()
    expect(page.locator(".answer .text")).to_have_text(["하나"])
    page.reload()
    assert answers(page) == ["하나"]


def test_list(page: Page, stub: Stub) -> None:
    """A conversation is found by what was said in it, gets another name, is deleted, and comes back."""
    stub.script(whole("고래는 포유류예요"), whole("둘"))
    ask(page, "바다 이야기")
    rested(page)
    button(page, "새 대화").click()
    ask(page, "둘째 질문")
    rested(page)
    button(page, "대화 목록").click()
    expect(page.locator("#list .title")).to_have_count(2)
    page.fill("#list-search", "포유류")
    expect(page.locator("#list .title")).to_have_count(1)
    expect(page.locator("#list .title span")).to_have_text("바다 이야기")
    page.fill("#list-search", "")
    button(page, "이름 바꾸기: 바다 이야기").click()
    page.get_by_label("대화 이름").fill("고래")
    page.keyboard.press("Enter")
    expect(page.locator("#list .title span")).to_have_text(["둘째 질문", "고래"])
    button(page, "지우기: 고래").click()
    expect(page.locator("#list .title")).to_have_count(1)
    button(page, "되돌리기").click()
    expect(page.locator("#list .title span")).to_have_text(["둘째 질문", "고래"])
    button(page, "지우기: 둘째 질문").click()
    button(page, "닫기").click()
    # It was the one that was open.
    expect(page.locator(".exchange")).to_have_count(0)
    until(lambda: sum(bool(one["deleted"]) for one in storage(page)["conversations"]) == 1, what="that is kept")
    page.reload()
    assert titles(page) == ["고래"]


@pytest.mark.usefixtures("own")
def test_deleted_for_good(page: Page, stub: Stub) -> None:
    """What was deleted is gone from the device once it cannot be had back any more."""
    stub.script(whole("비밀 답"))
    page.clock.install()
    ask(page, "비밀 질문")
    rested(page)
    button(page, "대화 목록").click()
    button(page, "지우기: 비밀 질문").click()
    expect(page.locator("#list .title")).to_have_count(0)
    assert "비밀" in kept_text(page)
    page.clock.fast_forward(16_000)
    until(lambda: "비밀" not in kept_text(page), what="nothing left")


def test_save_as_file(page: Page, stub: Stub, tmp_path: Path) -> None:
    """A conversation is saved as Markdown: what is shown of it."""
    stub.script(whole("**굵게**\n\n- 하나"))
    ask(page, "첫 줄\n둘째 줄")
    rested(page)
    button(page, "대화 목록").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="파일로 저장").click()
    assert download.value.suggested_filename == "첫 줄 둘째 줄.md"
    download.value.save_as(tmp_path / "saved.md")
    assert (tmp_path / "saved.md").read_text("utf-8") == (
        "# 첫 줄 둘째 줄\n\n**내 질문**\n\n> 첫 줄\n> 둘째 줄\n\n**답변**\n\n**굵게**\n\n- 하나\n"
    )


def test_export_and_import(page: Page, stub: Stub, tmp_path: Path) -> None:
    """Everything goes into one file, which brings it back, to another person too, and adds nothing twice."""
    stub.script(whole("하나"), whole("또 하나"), whole("둘"))
    ask(page, "첫째")
    rested(page)
    button(page, "답변 다시 받기").click()
    rested(page)
    button(page, "새 대화").click()
    ask(page, "둘째")
    rested(page)
    button(page, "대화 목록").click()
    with page.expect_download() as download:
        button(page, "모두 내보내기").click()
    file = tmp_path / "all.json"
    download.value.save_as(file)
    assert "mina" not in file.read_text("utf-8")
    page.set_input_files("#list-file", file)
    expect(page.get_by_text("대화 0개를 가져왔어요")).to_be_visible()
    button(page, "닫기").click()
    login_with(page, token_of("junho"))
    choose(page, "바꾸기")
    button(page, "대화 목록").click()
    page.set_input_files("#list-file", file)
    expect(page.get_by_text("대화 2개를 가져왔어요")).to_be_visible()
    page.locator("#list .title", has_text="첫째").click()
    expect(page.locator(".answer .text")).to_have_text("또 하나")
    button(page, "앞의 것 보기").click()
    expect(page.locator(".answer .text")).to_have_text("하나")


GOOD = {"id": "a1", "title": "", "first": "가져온 것", "created": 1, "updated": 1, "chosen": {}}
TURN = {"id": "t1", "conversation": "a1", "parent": None, "at": 1, "question": "질문", "answer": "답"}


def shelf(conversations: Any, turns: Any) -> str:
    """A file of the page."""
    return json.dumps({"format": "eid-conversations", "version": 1, "conversations": conversations, "turns": turns})


BROKEN = {
    "no JSON": ("{", "이 페이지에서 내보낸 파일이 아니에요."),
    "another format": ('{"format": "x"}', "이 페이지에서 내보낸 파일이 아니에요."),
    "of a later version": (
        json.dumps({"format": "eid-conversations", "version": 2, "conversations": [], "turns": []}),
        "이 페이지에서 내보낸 파일이 아니에요.",
    ),
    "damaged in part": (
        shelf([GOOD, {"id": 5}, None], [TURN, {**TURN, "id": "t2", "answer": 5}, {**TURN, "conversation": "zz"}]),
        "대화 1개를 가져왔어요. 읽을 수 없는 4개는 빼 두었어요.",
    ),
    "a question that never ends": (shelf([GOOD], [{**TURN, "question": "가" * 2_000_000}]), "대화 1개를 가져왔어요"),
    "of times to come": (shelf([{**GOOD, "updated": 1e300}], [{**TURN, "at": 1e300}]), "대화 1개를 가져왔어요"),
    "its own forefather": (shelf([GOOD], [TURN, {**TURN, "id": "t2", "parent": "t2"}]), "대화 1개를 가져왔어요"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_import(page: Page, stub: Stub, tmp_path: Path, name: str) -> None:
    """A file that is none, or is damaged, is told of, and what is there stays."""
    stub.script(whole("하나"))
    ask(page, "첫째")
    rested(page)
    content, said = BROKEN[name]
    file = tmp_path / "file.json"
    file.write_text(content, "utf-8")
    button(page, "대화 목록").click()
    page.set_input_files("#list-file", file)
    expect(page.locator("#toast")).to_contain_text(said)
    button(page, "닫기").click()
    assert answers(page) == ["하나"]
    assert "첫째" in titles(page)


def test_two_tabs(page: Page, context: BrowserContext, base_url: str, stub: Stub, token: str) -> None:
    """Two tabs of one person ask side by side, each sees what the other asks, and nothing is lost."""
    first, second = Hold(), Hold()
    stub.script(
        Answer([text("하나"), first, finish(), DONE]), Answer([queued(1, 5), second, text("둘"), finish(), DONE])
    )
    ask(page, "첫째")
    expect(page.locator(".answer .text")).to_have_text("하나")
    other = context.new_page()
    other.goto(f"{base_url}/chat#token={token}")
    expect(other.get_by_text("다른 창에서 답변을 받고 있어요")).to_be_visible()
    ask(other, "둘째")
    expect(other.locator("#status")).to_contain_text("다음 차례예요")
    expect(page.locator(".exchange")).to_have_count(2)
    first.release()
    second.release()
    expect(other.locator(".answer .text").last).to_have_text("둘")
    rested(page)
    for tab in (page, other):
        expect(tab.locator(".answer .text")).to_have_text(["하나", "둘"])
        tab.reload()
        assert answers(tab) == ["하나", "둘"]


def test_three_people(page: Page, base_url: str, stub: Stub) -> None:
    """Three people on one browser, with a reload and a crossing of tabs: each finds what is theirs, and no more."""
    names = ("mina", "junho", "sora")
    stub.script(*[whole(f"{name}의 답 {n}") for n in range(2) for name in names])
    other = page.context.new_page()
    for serial in range(2):
        for name in names:
            login_with(page, token_of(name, serial))
            if (serial, name) != (0, "mina"):
                choose(page, "바꾸기")
            expect(page.locator("#toast")).to_contain_text(f"{name}님")
            ask(page, f"{name}의 질문 {serial}")
            rested(page)
            page.reload()
    for name in names:
        other.goto(f"{base_url}/chat#token={token_of(name, 2)}")
        if name != "mina":
            choose(other, "바꾸기")
        expect(other.locator(".answer .text")).to_have_text([f"{name}의 답 0", f"{name}의 답 1"])
        assert titles(other) == [f"{name}의 질문 0"]
        shown = other.locator("main").inner_html() + other.locator("#list").inner_html()
        assert not any(stranger in shown for stranger in names if stranger != name)
    assert len(storage(other)["turns"]) == 6


def test_answer_of_4_mib(page: Page, stub: Stub) -> None:
    """An answer of 4 MiB holds nothing up while it comes, and all of it is there after a reload."""
    piece = "글자 " * 5461 + "끝\n"
    stub.script(Answer([*[text(piece)] * 256, finish(), DONE]), whole("둘"))
    ask(page, "길게")
    page.wait_for_function("() => document.getElementById('log').ariaBusy === 'false'", polling=50, timeout=60_000)
    page.reload()
    ready(page)
    (turn,) = storage(page)["turns"]
    assert turn["answer"] == piece * 256
    assert len(turn["answer"]) > 4 * 1024 * 1024
    ask(page, "다음")
    expect(page.locator(".answer .text").last).to_have_text("둘")
    assert len(stub.asked[1].messages) == 3


def test_long_words(page: Page, stub: Stub) -> None:
    """A word of 600 letters, an address of 400, in every place: nothing goes sideways on a phone."""
    page.set_viewport_size({"width": 390, "height": 844})
    word, address = "긴" * 300 + "a" * 300, "https://a.kr/" + "b" * 400
    table = f"|a|b|\n|-|-|\n|{word}|{address}|"
    stub.script(whole("\n\n".join([word, f"## {word}", f"- {word}", f"> {address}", table, f"`{word}`"])))
    ask(page, word)
    rested(page)
    button(page, "대화 목록").click()
    page.get_by_role("button", name="이름 바꾸기").wait_for()
    widths = page.evaluate("() => [document.documentElement.scrollWidth, document.getElementById('list').scrollWidth]")
    assert max(widths) <= 390


@pytest.mark.usefixtures("own")
def test_tab_that_crashes(page: Page, context: BrowserContext, base_url: str, stub: Stub, token: str) -> None:
    """What had come when a tab died is there in another one, and can be continued."""
    hold = Hold()
    stub.script(Answer([text("여기까지 "), text("왔어요"), hold]))
    ask(page, "질문")
    expect(page.locator(".answer .text")).to_have_text("여기까지 왔어요")
    until(
        lambda: [one["answer"] for one in storage(page)["turns"]] == ["여기까지 왔어요"], what="the turn on the device"
    )
    other = context.new_page()
    with pytest.raises(Error, match="crash"):
        page.goto("chrome://crash")
    assert hold.left.wait(5)
    other.goto(f"{base_url}/chat#token={token}")
    expect(other.locator(".answer .text")).to_have_text("여기까지 왔어요")
    expect(other.locator(".notice")).to_contain_text("답변이 중간에 끊겼어요", timeout=15_000)


def test_damaged_storage(page: Page, stub: Stub, token: str) -> None:
    """Whatever stands in the storage of the page before this one, the page works."""
    for kept in (
        "{",
        "null",
        "[]",
        json.dumps({"owner": MINA, "exchanges": 5}),
        json.dumps({"owner": MINA, "exchanges": [None, 1, {"question": 5, "answer": []}]}),
    ):
        page.evaluate("(kept) => localStorage.setItem('eid.conversation', kept)", kept)
        page.reload()
        ready(page)
        expect(page.locator(".exchange")).to_have_count(0)
    odd = {"question": "질문", "answer": "답", "mode": "other", "notice": {"kind": "constructor"}}
    remember(page, [odd])
    page.reload()
    assert answers(page) == ["답"]
    stub.script(whole("둘"))
    ask(page, "둘째")
    expect(page.locator(".answer .text").nth(1)).to_have_text("둘")


def test_damaged_records(page: Page, stub: Stub) -> None:
    """A record in the storage that is not what it should be is passed over or read as far as it goes, and stays."""
    stub.script(whole("하나"), whole("둘"))
    ask(page, "첫째")
    rested(page)
    change = """(owner) => new Promise((resolve, reject) => {
      const request = indexedDB.open("eid");
      request.onsuccess = () => {
        const work = request.result.transaction(["conversations", "turns"], "readwrite");
        work.objectStore("conversations").openCursor().onsuccess = ({target}) => {
          const {owner, id} = target.result.value;
          target.result.update({owner, id, title: 5, chosen: null, updated: "x"});
        };
        work.objectStore("conversations").put({owner, id: 7});
        work.objectStore("turns").put({owner, conversation: "x", id: 8});
        work.oncomplete = () => { request.result.close(); resolve(); };
        work.onerror = reject;
      };
    })"""
    page.evaluate(change, MINA)
    page.reload()
    assert answers(page) == ["하나"]
    ask(page, "둘째")
    rested(page)
    page.reload()
    assert answers(page) == ["하나", "둘"]
    assert titles(page) == ["둘째"]
    assert len(storage(page)["conversations"]) == 2
    assert len(storage(page)["turns"]) == 3


def test_storage_of_another_version(page: Page, stub: Stub) -> None:
    """A storage that a newer page has made is left alone; the person is told that nothing is kept, and can go on."""
    page.evaluate(
        """() => new Promise((resolve, reject) => {
             const request = indexedDB.deleteDatabase("eid");
             request.onblocked = () => {};
             request.onsuccess = () => {
               const other = indexedDB.open("eid", 99);
               other.onsuccess = () => { other.result.close(); resolve(); };
               other.onerror = reject;
             };
           })"""
    )
    page.reload()
    expect(page.locator("#trouble")).to_contain_text("새로고침")
    stub.script(whole("답"))
    ask(page, "질문")
    expect(page.locator(".answer .text")).to_have_text("답")


def test_no_storage(context: BrowserContext, base_url: str, stub: Stub, token: str) -> None:
    """Where the browser keeps nothing the person is told so, and can go on."""
    page = context.new_page()
    page.add_init_script(
        "Object.defineProperty(window, 'indexedDB', {value: {open() { throw new DOMException('no'); }}})"
    )
    page.goto(f"{base_url}/chat#token={token}")
    expect(page.locator("#trouble")).to_have_text("이 창에서는 대화를 저장할 수 없어요. 창을 닫으면 사라져요.")
    stub.script(whole("하나"), whole("둘"))
    ask(page, "첫째")
    rested(page)
    button(page, "새 대화").click()
    button(page, "되돌리기").click()
    assert answers(page) == ["하나"]


FILL = """
async () => {
  const database = await new Promise((resolve, reject) => {
    const request = indexedDB.open("filler", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("filler", {autoIncrement: true});
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  // What repeats itself would be packed: random bytes take the room they say.
  const put = (size) => new Promise((resolve, reject) => {
    const bytes = new Uint8Array(size);
    for (let at = 0; at < size; at += 65536) crypto.getRandomValues(bytes.subarray(at, at + 65536));
    const work = database.transaction("filler", "readwrite");
    work.objectStore("filler").put(bytes);
    work.oncomplete = resolve;
    work.onabort = () => reject(work.error);
  });
  const refused = [];
  for (let size = 1 << 20; size >= 1024; ) {
    try { await put(size); } catch ({name}) { refused.push(name); size /= 4; }
  }
  database.close();
  return [refused, (await navigator.storage.estimate()).usage];
}
"""


@pytest.mark.usefixtures("own")
def test_full_storage(page: Page, context: BrowserContext, base_url: str, stub: Stub) -> None:
    """A device without room: the person is told, nothing that was kept is removed, and the page goes on.

    The room is filled for real, under a quota of 8 MB, until the browser refuses a kilobyte.
    """
    session = context.new_cdp_session(page)

    def quota(size: int) -> None:
        session.send("Storage.overrideQuotaForOrigin", {"origin": base_url, "quotaSize": size})

    # It is set before anything is written: the browser remembers for a while how much room there was.
    quota(8_000_000)
    stub.script(*[whole(word) for word in ("하나", "둘", "셋", "넷")])
    ask(page, "첫째")
    rested(page)
    refused, used = page.evaluate(FILL)
    assert set(refused) == {"QuotaExceededError"}
    assert 4_000_000 < used < 20_000_000
    # The browser tidies up behind what it has refused, and would find room again.
    quota(2_000_000)
    for question in ("둘째", "셋째"):
        ask(page, question)
        expect(page.locator("#trouble")).to_contain_text("저장할 공간이 부족해서")
        rested(page)
    assert answers(page) == ["하나", "둘", "셋"]
    assert "첫째" in kept_text(page)
    assert "둘째" not in kept_text(page)
    # With room again what follows is kept, and what found none before.
    quota(1_000_000_000)
    ask(page, "넷째")
    rested(page)
    expect(page.locator("#trouble")).to_have_text("")
    page.reload()
    assert answers(page) == ["하나", "둘", "셋", "넷"]


def test_many_conversations(page: Page, stub: Stub) -> None:
    """Ten thousand conversations are listed and searched, and the one used last is open."""
    page.evaluate(
        """(owner) => new Promise((resolve, reject) => {
             const request = indexedDB.open("eid");
             request.onsuccess = () => {
               const work = request.result.transaction(["conversations", "turns"], "readwrite");
               for (let n = 0; n < 10_000; n += 1) {
                 const id = `c${n}`;
                 work.objectStore("conversations").put(
                   {id, owner, title: "", first: `질문 ${n}`, created: n, updated: n, chosen: {}, deleted: null});
                 work.objectStore("turns").put(
                   {id: `t${n}`, conversation: id, owner, parent: null, at: n, mode: "daily", question: `질문 ${n}`,
                    answer: `답 ${n} 바늘${n}`, refused: false, notice: null, tab: null, beat: 0});
               }
               work.oncomplete = () => { request.result.close(); resolve(); };
               work.onerror = reject;
             };
           })""",
        MINA,
    )
    page.reload()
    assert answers(page) == ["답 9999 바늘9999"]
    button(page, "대화 목록").click()
    expect(page.locator("#list .title")).to_have_count(60)
    button(page, "더 보기").click()
    expect(page.locator("#list .title")).to_have_count(120)
    page.fill("#list-search", "바늘1234")
    expect(page.locator("#list .title span")).to_have_text(["질문 1234"])


def chosen(page: Page) -> str | None:
    """Which first question the device remembers as the one that is shown."""
    found = re.search(r'"chosen": \{"": "([^"]+)"', kept_text(page))
    return found[1] if found else None


# --- Versions -------------------------------------------------------------------------------------------------------


def test_edit_a_question(page: Page, stub: Stub) -> None:
    """An edited question begins another way through the conversation; the older one stays, with all that followed."""
    stub.script(whole("하나"), whole("둘"), whole("다른 하나"))
    ask(page, "첫째")
    rested(page)
    ask(page, "둘째")
    rested(page)
    page.locator(".exchange").first.get_by_role("button", name="이 질문 고치기").click()
    expect(page.locator("#compose")).to_have_value("첫째")
    ask(page, "다른 첫째")
    expect(page.locator(".answer .text")).to_have_text(["다른 하나"])
    assert stub.asked[2].messages == [("user", "다른 첫째")]
    rested(page)
    newer = until(lambda: chosen(page), what="the new one is kept")
    button(page, "앞의 것 보기").click()
    assert answers(page) == ["하나", "둘"]
    until(lambda: chosen(page) != newer, what="the choice is kept")
    page.reload()
    assert answers(page) == ["하나", "둘"]
    button(page, "뒤의 것 보기").click()
    assert answers(page) == ["다른 하나"]


def test_keys(page: Page, stub: Stub) -> None:
    """↑ takes up the last question, Esc leaves it, and stops an answer; the shortcuts are listed."""
    hold = Hold()
    stub.script(whole("하나"), Answer([text("둘"), hold]))
    ask(page, "첫째")
    rested(page)
    page.focus("#compose")
    page.keyboard.press("ArrowUp")
    expect(page.locator("#compose")).to_have_value("첫째")
    expect(page.locator("#editing")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#compose")).to_have_value("")
    expect(page.locator("#editing")).to_be_hidden()
    ask(page, "둘째")
    expect(page.locator(".answer .text").nth(1)).to_have_text("둘")
    page.focus("#compose")
    page.keyboard.press("Escape")
    assert hold.left.wait(5)
    expect(page.locator(".notice")).to_contain_text("답변을 중지했어요")
    page.keyboard.press("Control+/")
    expect(page.get_by_role("dialog", name="단축키")).to_contain_text("마지막 질문 고치기")
    page.keyboard.press("Escape")
    page.keyboard.press("Control+K")
    expect(page.get_by_role("dialog", name="대화 목록")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Control+Shift+O")
    expect(page.locator(".exchange")).to_have_count(0)


def test_an_answer_goes_on_behind(page: Page, stub: Stub) -> None:
    """Looking at another conversation does not end the answer of this one."""
    hold = Hold()
    stub.script(whole("하나"), Answer([text("둘"), hold, text(" 끝"), finish(), DONE]))
    ask(page, "첫째")
    rested(page)
    button(page, "새 대화").click()
    ask(page, "둘째")
    expect(page.locator(".answer .text")).to_have_text("둘")
    button(page, "대화 목록").click()
    page.locator("#list .title", has_text="첫째").click()
    expect(page.locator(".answer .text")).to_have_text(["하나"])
    assert not hold.left.is_set()
    hold.release()
    button(page, "대화 목록").click()
    page.locator("#list .title", has_text="둘째").click()
    expect(page.locator(".answer .text")).to_have_text("둘 끝")
    expect(page.locator(".notice")).to_have_count(0)
