"""One Enter for Hangul, none for a proposal: compositions played by the browser itself, and event orders as reported.

The orders: openai/chatkit-js#213 (macOS, Chrome), nesquena/hermes-webui#7348 (Windows), mckaywrigley/chatbot-ui#718
(Safari: the end of the composition comes before its Enter). No input method runs here.
"""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, CDPSession, Page, expect

from tests.page.conftest import Watch, button, rested
from tests.page.stub import Stub, whole

ENTER = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229}


@pytest.fixture
def keys(page: Page, context: BrowserContext) -> CDPSession:
    """The keyboard below the page."""
    return context.new_cdp_session(page)


def compose(keys: CDPSession, *steps: str) -> None:
    """What an input method shows while it composes."""
    for text in steps:
        keys.send("Input.imeSetComposition", {"text": text, "selectionStart": len(text), "selectionEnd": len(text)})


def press(keys: CDPSession, **given: Any) -> None:
    """A key that the input method takes."""
    keys.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **ENTER, **given})


def release(keys: CDPSession, **given: Any) -> None:
    """The end of the press."""
    keys.send("Input.dispatchKeyEvent", {"type": "keyUp", **ENTER, **given})


def test_hangul_takes_one_enter(page: Page, keys: CDPSession, stub: Stub) -> None:
    """The last syllable is still being composed when Enter is pressed: it is sent, once, with that syllable."""
    stub.script(whole("답"), whole("둘"))
    page.focus("#compose")
    keys.send("Input.insertText", {"text": "음악 바꿔"})
    compose(keys, "ㅈ", "주", "줘")
    press(keys)
    keys.send("Input.insertText", {"text": "줘"})
    release(keys)
    expect(page.locator(".answer .text")).to_have_text("답")
    rested(page)
    assert [one.messages for one in stub.asked] == [[("user", "음악 바꿔줘")]]
    assert page.input_value("#compose") == ""


@pytest.mark.parametrize(
    ("shown", "taken"),
    [
        (["か", "かん", "かんじ", "漢字"], "漢字"),
        (["n", "ni", "ni h", "ni hao"], "你好"),
        (["한"], "韓"),
        (["한"], ""),
    ],
    ids=["Japanese", "Chinese", "Hanja", "taken back"],
)
def test_a_proposal_is_not_sent(page: Page, keys: CDPSession, stub: Stub, shown: list[str], taken: str) -> None:
    """Enter takes what an input method proposes; the one after it sends."""
    stub.script(whole("답"))
    page.focus("#compose")
    keys.send("Input.insertText", {"text": "a "})
    compose(keys, *shown)
    press(keys)
    keys.send("Input.insertText", {"text": taken})
    release(keys)
    assert page.input_value("#compose") == f"a {taken}"
    page.wait_for_timeout(50)
    assert stub.asked == []
    page.keyboard.press("Enter")
    expect(page.locator(".answer .text")).to_have_text("답")
    assert stub.asked[0].messages == [("user", f"a {taken}".strip())]


def test_shift_enter_in_hangul(page: Page, keys: CDPSession, stub: Stub) -> None:
    """Shift+Enter ends the syllable and begins a line."""
    page.focus("#compose")
    compose(keys, "가")
    press(keys, modifiers=8)
    keys.send("Input.insertText", {"text": "가"})
    release(keys, modifiers=8)
    page.keyboard.press("Shift+Enter")
    assert page.input_value("#compose") == "가\n"
    assert stub.asked == []


def test_writing_on_does_not_send(page: Page, keys: CDPSession, stub: Stub) -> None:
    """An Enter that ended nothing is forgotten when the person writes on."""
    page.focus("#compose")
    compose(keys, "가")
    press(keys)
    compose(keys, "각")
    keys.send("Input.insertText", {"text": "각"})
    page.wait_for_timeout(50)
    assert page.input_value("#compose") == "각"
    assert stub.asked == []


# (event, what it says), as the browser of a system fires them for one press of Enter; the field has the text by then.
KEY, END = "keydown", "compositionend"
IME_ENTER = {"key": "Enter", "code": "Enter", "keyCode": 229}
ORDERS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "macOS, Chrome": [(KEY, {**IME_ENTER, "isComposing": True}), (END, {"data": "줘"}), ("break", {})],
    "macOS, Safari": [(END, {"data": "줘"}), (KEY, {**IME_ENTER, "isComposing": False})],
    "Windows, Chrome": [
        (KEY, {"key": "Process", "code": "Enter", "keyCode": 229, "isComposing": True}),
        (END, {"data": "줘"}),
        (KEY, {"key": "Enter", "code": "Enter", "keyCode": 13, "isComposing": False}),
    ],
    "Windows, ended before": [
        (END, {"data": "줘"}),
        (KEY, {"key": "Enter", "code": "Enter", "keyCode": 13, "isComposing": False}),
    ],
    "Linux, Firefox": [(KEY, {**IME_ENTER, "isComposing": True}), (END, {"data": "줘"})],
    # A keyboard of its own at a tablet: the input method of the screen stays in between.
    "Android, with a keyboard": [
        (KEY, {"key": "Unidentified", "code": "Enter", "keyCode": 229, "isComposing": True}),
        (END, {"data": "줘"}),
        ("break", {}),
    ],
}

PLAY = """
async ([order, composed]) => {
  const field = document.getElementById("compose");
  field.focus();
  const fire = (event) => field.dispatchEvent(event);
  const all = {bubbles: true, cancelable: true};
  fire(new CompositionEvent("compositionstart", {...all, data: ""}));
  field.value = `음악 바꿔${composed}`;
  fire(new CompositionEvent("compositionupdate", {...all, data: composed}));
  fire(new InputEvent("input", {...all, data: composed, inputType: "insertCompositionText"}));
  for (const [kind, given] of order) {
    if (kind === "break") {
      if (fire(new InputEvent("beforeinput", {...all, inputType: "insertLineBreak"}))) field.value += "\\n";
    } else if (kind === "compositionend") {
      fire(new CompositionEvent(kind, {...all, ...given}));
    } else {
      const free = fire(new KeyboardEvent(kind, {...all, ...given}));
      if (free && given.keyCode === 13) field.value += "\\n";
    }
    // Each event of a browser is a task of its own.
    await new Promise((resolve) => setTimeout(resolve));
  }
  fire(new KeyboardEvent("keyup", {...all, key: "Enter", code: "Enter"}));
}
"""


@pytest.mark.parametrize("name", ORDERS)
def test_orders_of_other_systems(page: Page, stub: Stub, name: str) -> None:
    """However a system orders its events, one Enter sends a Korean question once, whole, and leaves no line behind."""
    stub.script(whole("답"))
    page.evaluate(PLAY, [ORDERS[name], "줘"])
    expect(page.locator(".answer .text")).to_have_text("답")
    rested(page)
    assert [one.messages for one in stub.asked] == [[("user", "음악 바꿔줘")]]
    assert page.input_value("#compose") == ""


@pytest.mark.parametrize("name", [name for name in ORDERS if name != "Windows, ended before"])
@pytest.mark.parametrize(
    ("composed", "taken"),
    [("かんじ", "漢字"), ("かな", "かな"), ("nihao", "你好"), ("ㄋㄧˇ", "你"), ("nihao", "nihao")],
    ids=["kanji", "kana", "pinyin", "zhuyin", "pinyin as it is"],
)
def test_orders_of_a_proposal(page: Page, stub: Stub, name: str, composed: str, taken: str) -> None:
    """In the same orders the Enter that takes a proposal sends nothing, unless a real one follows it."""
    order = [
        (kind, {**given, "data": taken} if kind == END else given)
        for kind, given in ORDERS[name]
        if kind != "break" and given.get("keyCode") != 13
    ]
    page.evaluate(PLAY, [order, composed])
    page.wait_for_timeout(50)
    assert stub.asked == []


@pytest.mark.parametrize(("shown", "taken"), [("줘", "줘"), ("かんじ", "かんじ"), ("nihao", "nihao")])
def test_button_of_a_touch_screen(
    browser: Browser, watch: Watch, base_url: str, stub: Stub, token: str, shown: str, taken: str
) -> None:
    """On a phone the word that is being composed goes with the question, whatever it is, when the button is tapped."""
    stub.script(whole("답"))
    context = browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    watch.over(context)
    page = context.new_page()
    page.goto(f"{base_url}/chat#token={token}")
    button(page, "로그아웃").wait_for()
    page.locator("#compose").tap()
    keys = context.new_cdp_session(page)
    keys.send("Input.insertText", {"text": "음악 "})
    compose(keys, shown)
    page.locator("#send").tap()
    expect(page.locator(".answer .text")).to_have_text("답")
    rested(page)
    assert [one.messages for one in stub.asked] == [[("user", f"음악 {taken}")]]
    assert page.input_value("#compose") == ""
    context.close()
