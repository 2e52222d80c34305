"""How the page looks, light and dark, wide and narrow: axe-core, nothing sideways, screenshots for the eye.

EIDPROXY_SCREENSHOTS=folder keeps the screenshots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.lab.tools import size
from tests.page.conftest import PATIENCE_MS, Watch, ask, token_of
from tests.page.stub import UPSTREAM, Answer, Hold, Stub, queued, refusal, text, thought, whole

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")

LONG = """자전거로 한강을 따라 달린다면 **반포에서 뚝섬까지** 가는 길이 가장 편해요. 중간에 쉬어 갈 곳도 많아요.

## 준비하면 좋은 것

- 물 한 병과 얇은 바람막이
- 자전거 자물쇠
- 휴대전화 거치대: 길을 볼 때 `지도` 앱이 필요해요

1. 반포 한강공원에서 출발해요.
2. 동호대교 아래에서 잠깐 쉬어요.

```python
def distance(start, end):
    # 대략 9km, 천천히 달리면 40분이에요. 이 줄은 일부러 길게 썼어요: 옆으로 넘어가야 해요.
    return abs(end - start)
```

| 구간 | 거리 | 걸리는 시간 | 쉬어 갈 곳 |
|---|---:|:---:|---|
| 반포에서 동호 | 4.2 km | 20분 | 서래섬, 세빛섬, 잠수교 앞 너른 잔디밭 |
| 동호에서 뚝섬 | 4.8 km | 25분 | [자벌레](https://parks.example.kr/ttukseom) |

> 주말 저녁에는 **천천히** 달려 주세요.
> > 걷는 사람이 많아요.

- [x] 바퀴 바람 넣기
- [ ] 전조등 충전하기
  1. 앞
     - 흰 불
  2. 뒤

속력은 \\(v = s / t\\), 자세한 길은 https://map.example.kr/한강 에 있어요. ![지도](https://map.example.kr/a.png)

$$
t = \\frac{9}{13.5}
$$

---

바람이 강한 날에는 거꾸로 달리는 편이 나아요. aVeryLongWordWithoutAnyPlaceToBreakWhichMustNotWidenThePage"""

SIZES = {"desktop": (1280, 800), "phone": (390, 844), "side": (844, 390), "small": (320, 568)}


LOOKS = [
    "phone-light",
    "desktop-dark",
    "desktop-light",
    "desktop-forced",
    "phone-dark",
    "side-light",
    "small-light",
][: size(2, 7)]


@pytest.fixture(params=LOOKS)
def look(request: pytest.FixtureRequest) -> str:
    """A size and a theme."""
    return str(request.param)


@pytest.fixture
def page(browser: Browser, watch: Watch, base_url: str, look: str) -> Iterator[Page]:
    """The page in one look, not logged in."""
    size, theme = look.split("-")
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        locale="ko-KR",
        color_scheme="dark" if theme in ("dark", "forced") else "light",
        forced_colors="active" if theme == "forced" else "none",
        has_touch=size != "desktop",
        is_mobile=size != "desktop",
        device_scale_factor=1 if size == "desktop" else 2,
        reduced_motion="reduce",
    )
    context.set_default_timeout(PATIENCE_MS)
    watch.over(context)
    page = context.new_page()
    page.goto(f"{base_url}/chat")
    yield page
    context.close()


def judged(page: Page) -> list[str]:
    """What axe-core finds, every rule but the experimental, and what stands out of the page sideways."""
    page.evaluate(AXE)
    found: dict[str, Any] = page.evaluate(
        """() => {
          // Forced colours are the person's own pairs, which axe does not see.
          const enabled = !matchMedia("(forced-colors: active)").matches;
          return axe.run(document, {resultTypes: ["violations"], rules: {"color-contrast": {enabled}}});
        }"""
    )
    faults = [
        f"{rule['id']}: {node['target']} {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]
    assert found["passes"]
    faults += page.evaluate(
        """() => {
          const faults = [];
          const width = document.documentElement.clientWidth;
          if (document.documentElement.scrollWidth > width) faults.push("the page scrolls sideways");
          for (const one of document.querySelectorAll("header *, main *, dialog[open] *")) {
            const box = one.getBoundingClientRect();
            if (box.width && !one.closest("pre, .table, .toast") && (box.left < -1 || box.right > width + 1)) {
              faults.push(`${one.localName}.${one.className} stands out: ${box.left} to ${box.right}`);
            }
          }
          for (const one of document.querySelectorAll("button, .modes label, summary")) {
            const box = one.getBoundingClientRect();
            if (box.height && box.height < 44) faults.push(`${one.localName}.${one.className} is ${box.height} high`);
          }
          return faults;
        }"""
    )
    return faults


def test_looks(page: Page, stub: Stub, look: str, looks: Path | None) -> None:
    """Every state of the page, in one look: no fault that a program can find, and a picture for those it cannot."""
    taken: list[str] = []
    faults: list[str] = []

    def picture(name: str) -> None:
        taken.append(name)
        faults.extend(f"{name}: {fault}" for fault in judged(page))
        if looks:
            page.screenshot(path=looks / f"{look}-{len(taken):02}-{name}.png")

    end_in_view: Callable[[str], None] = lambda what: expect(page.locator(what)).to_be_in_viewport(ratio=1)  # noqa: E731

    picture("logged-out")
    page.locator("#account").click()
    page.fill("#token", "x")
    page.locator("#login-form [type=submit]").click()
    picture("login")
    page.fill("#token", token_of("mina"))
    page.locator("#login-form [type=submit]").click()
    page.get_by_role("button", name="로그아웃").wait_for()
    stub.state = {"waiting": 2, "eta_seconds": 20}
    picture("welcome")

    stub.script(whole(LONG))
    ask(page, "한강에서 자전거 타기 좋은 길을 알려 줘요")
    page.get_by_role("button", name="답변 다시 받기").wait_for()
    picture("answer")

    stub.script(whole("다른 길도 있어요. **잠수교**를 건너면 남산까지 갈 수 있어요."))
    page.get_by_role("button", name="답변 다시 받기").click()
    page.locator(".versions").wait_for()
    picture("versions")

    holds = [Hold() for _ in range(4)]
    steps: list[bytes | Hold] = [queued(2, 34), holds[0], queued(1, 12), holds[1], UPSTREAM, thought("…"), holds[2]]
    stub.script(Answer([*steps, text("비 오는 날에는 실내가 좋아요. 먼저 국립중앙박물관은"), holds[3]]))
    page.get_by_role("radio", name="심층").check()
    ask(page, "그럼 비 오는 날에는 어디가 좋아요?\n지하철로 갈 수 있으면 더 좋아요.")
    states = ["queued", "next", "thinking", "streaming"]
    said = ["앞에 질문이 2개", "다음 차례예요", "생각하고 있어요", "쓰고 있어요"]
    for state, words, hold in zip(states, said, holds, strict=True):
        expect(page.locator("#status")).to_contain_text(words)
        end_in_view("#progress")
        picture(state)
        hold.release() if state != "streaming" else page.click("#stop")
    expect(page.locator(".notice")).to_contain_text("중지했어요")
    end_in_view(".notice")
    picture("stopped")

    for name, answer in {
        "deep-unavailable": refusal("macbook_unavailable", retry_after=30),
        "countdown": refusal("gate_queue_full", retry_after=9),
        "unknown": refusal("something_new"),
        "refused": refusal("message_too_long", 422),
        "cut": Answer([text("자전거로 한강을")]),
    }.items():
        stub.script(answer)
        ask(page, "이건 어때요?")
        page.locator("#log[aria-busy=false] .notice").wait_for()
        end_in_view(".notice")
        picture(name)

    for name, reason in {"warming": "warming", "cold": "upstream_cold"}.items():
        stub.script(refusal(reason, retry_after=30))
        ask(page, "깨어 있어요?")
        page.locator(".progress.waiting").wait_for()
        end_in_view("#progress")
        picture(name)
        page.click("#stop")

    page.fill("#compose", "가" * 8123)
    picture("too-long")
    page.fill("#compose", "가" * 7000)
    picture("counter")
    page.fill("#compose", "")
    page.evaluate("() => scrollTo(0, 0)")
    page.locator("#to-end").wait_for()
    picture("scrolled-up")
    page.click("#language")
    stub.script(whole("Hello"), refusal("gate_queue_full", retry_after=9))
    ask(page, "Hi")
    page.get_by_role("button", name="Answer again").wait_for()
    ask(page, "Hi?")
    page.locator("#log[aria-busy=false] .notice").wait_for()
    picture("english")
    page.click("#language")
    page.locator(".edit").last.click()
    picture("editing")
    page.keyboard.press("Escape")
    page.click("#fresh")
    page.get_by_role("button", name="되돌리기").wait_for()
    picture("new")
    page.click("#menu")
    page.get_by_role("button", name="이름 바꾸기").wait_for()
    picture("list")
    page.get_by_role("button", name="이름 바꾸기").click()
    picture("rename")
    page.keyboard.press("Escape")
    page.click("#keys-open")
    picture("keys")
    page.click("#keys-close")
    page.click("#account")
    picture("logout")
    assert faults == []
    assert len(taken) == 27


@pytest.mark.parametrize("look", ["desktop-light"], indirect=True)
def test_print(page: Page, stub: Stub, look: str, looks: Path | None) -> None:
    """On paper there is the conversation alone, and the whole of a long line of code."""
    page.goto(f"{stub.base_url}/chat#token={token_of('mina')}")
    page.get_by_role("button", name="로그아웃").wait_for()
    stub.script(whole(LONG))
    ask(page, "질문")
    page.get_by_role("button", name="답변 다시 받기").wait_for()
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 990})
    seen = page.evaluate(
        """() => Array.from(document.querySelectorAll("header, form, dialog, .toast, .skip, button"))
             .filter((one) => one.getClientRects().length).map((one) => one.id || one.className)"""
    )
    assert seen == []
    pre = page.locator(".code pre")
    assert pre.evaluate("(one) => one.scrollWidth <= one.clientWidth")
    if looks:
        page.screenshot(path=looks / "print.png", full_page=True)


@pytest.mark.parametrize("look", ["small-light"], indirect=True)
def test_zoom(page: Page, stub: Stub, look: str, looks: Path | None) -> None:
    """At 400 % of 1280 by 1024 nothing that sticks takes the room of the text, and nothing goes sideways."""
    page.set_viewport_size({"width": 320, "height": 256})
    page.goto(f"{stub.base_url}/chat#token={token_of('mina')}")
    page.get_by_role("button", name="로그아웃").wait_for()
    stub.script(whole(LONG))
    ask(page, "질문")
    page.get_by_role("button", name="답변 다시 받기").wait_for()
    page.evaluate("() => document.querySelector('.answer h3').scrollIntoView()")
    covered = page.evaluate(
        """() => Array.from({length: 25}, (_, n) => document.elementFromPoint(40, 6 + n * 10))
             .filter((one) => one?.closest("header, form")).length"""
    )
    assert covered == 0
    assert judged(page) == []
    if looks:
        page.screenshot(path=looks / "zoom.png")


@pytest.mark.parametrize("look", ["phone-light"], indirect=True)
def test_a_fault_is_found(page: Page, look: str) -> None:
    """The judge is awake: a page with faults of each kind is judged faulty."""
    page.evaluate(
        """() => {
          const wide = document.createElement("button");
          wide.className = "plain";
          wide.style.cssText = "width: 3000px; min-height: 10px; height: 10px; color: #999; background: #aaa";
          document.querySelector("main").append(wide);
        }"""
    )
    found = "\n".join(judged(page))
    assert "button-name" in found
    assert "sideways" in found
    assert "stands out" in found
    assert "10 high" in found
