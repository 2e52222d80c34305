"""The text of an answer as elements: what Markdown becomes, what nothing becomes, and how long it takes."""

from __future__ import annotations

import bisect
import json
import random
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.lab.tools import size
from tests.page.conftest import Watch, ask, button, rested, some
from tests.page.stub import DONE, Answer, Stub, finish, text, whole

DRAW = """
async (texts) => {
  const {Painting, loadMarkdown} = await import("/chat/paint.js");
  await loadMarkdown();
  const labels = {copy: "복사", done: "한 일", todo: "할 일", table: "표"};
  const skip = new Set(["dir", "rel", "target", "title", "scope", "tabindex", "type", "role", "data-copy"]);
  const tree = (node) => {
    if (node.nodeType === 3) return node.data;
    const told = Array.from(node.attributes).filter(({name}) => !skip.has(name));
    const attrs = told.map(({name, value}) => `${name}=${value}`);
    return [[node.localName, ...attrs].join(" "), ...Array.from(node.childNodes, tree)];
  };
  return texts.map((text) => {
    const box = document.createElement("div");
    const painting = new Painting(box, labels);
    painting.show(text, true);
    // The time of this frame may be used up; a step is drawn all the same.
    painting.draw();
    return Array.from(box.childNodes, tree);
  });
}
"""


def code(language: str, content: str) -> list[Any]:
    """A block of code, with its head line."""
    head = ["div class=head", ["span class=language", language], ["button class=plain", "복사"]]
    return ["div class=code", head, ["pre", ["code", content]]]


def link(href: str, *label: Any, where: str) -> list[Any]:
    """A link, with where it leads."""
    return [f"a href={href}", *label, ["bdi class=where", f" ({where})"]]


TEXTS: dict[str, tuple[str, list[Any]]] = {
    "paragraphs": ("하나\n둘\n\n\n셋", [["p", "하나\n둘"], ["p", "셋"]]),
    "headings skip no level": (
        "### 셋\n# 하나 #\n##### 다섯\n글\n===",
        [
            ["h3 class=level-3", "셋"],
            ["h3 class=level-1", "하나"],
            ["h4 class=level-5", "다섯"],
            ["h3 class=level-1", "글"],
        ],
    ),
    "emphasis": (
        "**굵게** *별* _밑줄_ ***둘*** ~~취소~~ \\*",
        [
            [
                "p",
                ["strong", "굵게"],
                " ",
                ["em", "별"],
                " ",
                ["em", "밑줄"],
                " ",
                ["em", ["strong", "둘"]],
                " ",
                ["s", "취소"],
                " *",
            ]
        ],
    ),
    "bold before a particle": (
        '**"인용"**를 **중요:**내용 **(주)**은 「**말**」 *(예)*는',
        [
            [
                "p",
                ["strong", '"인용"'],
                "를 ",
                ["strong", "중요:"],
                "내용 ",
                ["strong", "(주)"],
                "은 「",
                ["strong", "말"],
                "」 ",
                ["em", "(예)"],
                "는",
            ]
        ],
    ),
    "stars that are none": ("2 * 3 * 4 ** 5", [["p", "2 * 3 * 4 ** 5"]]),
    "code": ("앞\n```py x\na = '**x**'\n\n```\n뒤", [["p", "앞"], code("py", "a = '**x**'\n"), ["p", "뒤"]]),
    "open fence": ("```\n<b>", [code("", "<b>")]),
    "longer fence": ("````\n```\nx\n````", [code("", "```\nx")]),
    "nested lists": (
        "- a\n  - b\n    1. c\n- d\n\n  e",
        [["ul", ["li", ["p", "a"], ["ul", ["li", "b", ["ol", ["li", "c"]]]]], ["li", ["p", "d"], ["p", "e"]]]],
    ),
    "code in a list": (
        "3. a\n\n   ```\n   x\n   ```\n4. b",
        [["ol start=3", ["li", ["p", "a"], code("", "x")], ["li", ["p", "b"]]]],
    ),
    "tasks": (
        "- [x] a\n- [ ] b",
        [
            [
                "ul",
                ["li class=task", ["span aria-label=한 일", "☑"], " a"],
                ["li class=task", ["span aria-label=할 일", "☐"], " b"],
            ]
        ],
    ),
    "table": (
        "| a | b |\n|---|---:|\n| 1<br>2 | **3** |",
        [
            [
                "div class=table aria-label=표",
                [
                    "table",
                    ["thead", ["tr", ["th", "a"], ["th class=right", "b"]]],
                    ["tbody", ["tr", ["td", "1", ["br"], "2"], ["td class=right", ["strong", "3"]]]],
                ],
            ]
        ],
    ),
    "quote": ("> 인용\n> > 둘", [["blockquote", ["p", "인용"], ["blockquote", ["p", "둘"]]]]),
    "rule": ("a\n\n---\n\nb", [["p", "a"], ["hr"], ["p", "b"]]),
    "links": (
        "[글](https://a.kr/x) <https://b.kr> https://c.kr/?d=1 [d@e.f](mailto:d@e.f)",
        [
            [
                "p",
                link("https://a.kr/x", "글", where="a.kr"),
                " ",
                ["a href=https://b.kr class=bare", "https://b.kr"],
                " ",
                ["a href=https://c.kr/?d=1 class=bare", "https://c.kr/?d=1"],
                " ",
                ["a href=mailto:d@e.f", "d@e.f"],
            ]
        ],
    ),
    "a link says where it leads": (
        "[https://bank.kr](https://bank.kr@evil.com/) [n](https://네이버.com/)",
        [
            [
                "p",
                link("https://bank.kr@evil.com/", "https://bank.kr", where="evil.com"),
                " ",
                link("https://xn--950bt9s8xi.com/", "n", where="xn--950bt9s8xi.com"),
            ]
        ],
    ),
    "bare addresses before a particle": (
        "https://a.kr에서, (https://b.kr/x_(y))을 https://c.kr/가나에 www.d.kr/z는 e@f.kr로 https://g.kr,h index.js",
        [
            [
                "p",
                ["a href=https://a.kr class=bare", "https://a.kr"],
                "에서, (",
                ["a href=https://b.kr/x_(y) class=bare", "https://b.kr/x_(y)"],
                ")을 ",
                ["a href=https://c.kr/%EA%B0%80%EB%82%98%EC%97%90 class=bare", "https://c.kr/가나에"],
                " ",
                ["a href=http://www.d.kr/z class=bare", "www.d.kr/z"],
                "는 ",
                ["a href=mailto:e@f.kr class=bare", "e@f.kr"],
                "로 ",
                ["a href=https://g.kr class=bare", "https://g.kr"],
                ",h index.js",
            ]
        ],
    ),
    "a bare address that looks like another": (
        "https://bank.kr@evil.com/ 「https://\u0430\u0440\u0440\u04cf\u0435.com」",
        [
            [
                "p",
                [
                    "a href=https://bank.kr@evil.com/ class=bare",
                    "https://bank.kr@evil.com/",
                    ["bdi class=where", " (evil.com)"],
                ],
                " 「",
                [
                    "a href=https://xn--80ak6aa92e.com class=bare",
                    "https://\u0430\u0440\u0440\u04cf\u0435.com",
                    ["bdi class=where", " (xn--80ak6aa92e.com)"],
                ],
                "」",
            ]
        ],
    ),
    "a picture within a link": (
        "[![상태](https://a.kr/b.svg)](https://c.kr)",
        [["p", link("https://c.kr", "상태", where="c.kr")]],
    ),
    "escaped brackets are no formula": ("\\[\\\\\\]", [["p", "[\\]"]]),
    "links of other kinds stay text": (
        "[a](javascript:alert(1)) [b](data:text/html,x) [c](/chat) [d](//e.f) [g](JAVASCRIPT:1) ![h](x:1)",
        [
            [
                "p",
                "[a](javascript:alert(1)) [b](data:text/html,x) [c](/chat) [d](//e.f) [g](JAVASCRIPT:1) ![h](x:1)",
            ]
        ],
    ),
    "pictures are links": (
        "![그림](https://a.kr/b.png)",
        [["p", ["a href=https://a.kr/b.png class=picture", "그림", ["bdi class=where", " (a.kr)"]]]],
    ),
    "formulas": (
        "\\(E=mc^2\\) $x_1$ $5, $6 값은 $7 \\(\\foo{x}\\)\n\n$$\na\n= b\n$$\n\n\\[ \\foo \\]",
        [
            [
                "p",
                ["math", ["mrow", ["mi", "E"], ["mo", "="], ["mi", "m"], ["msup", ["mi", "c"], ["mn", "2"]]]],
                " ",
                ["math", ["mrow", ["msub", ["mi", "x"], ["mn", "1"]]]],
                " $5, $6 값은 $7 ",
                ["code class=math", "\\foo{x}"],
            ],
            ["div class=formula", ["math display=block", ["mrow", ["mi", "a"], ["mo", "="], ["mi", "b"]]]],
            ["pre class=math", ["code", "\\foo"]],
        ],
    ),
    "no list": ("-1은 수예요\n1.5도", [["p", "-1은 수예요\n1.5도"]]),
    "markup stays text": (
        '<img src=x onerror="alert(1)"> <script>alert(1)</script>\n\n<div>\n**b**\n</div>',
        [
            ["p", '<img src=x onerror="alert(1)"> <script>alert(1)</script>'],
            ["p", "<div>\n", ["strong", "b"], "\n</div>"],
        ],
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_markdown(bare: Page, name: str) -> None:
    """What models write becomes what they mean."""
    source, expected = TEXTS[name]
    (found,) = bare.evaluate(DRAW, [source])
    assert found == expected


def test_piece_by_piece(bare: Page) -> None:
    """A text that grows ends as the same elements as when it is shown at once, and early blocks keep theirs."""
    source = "\n\n".join(one for one, _ in TEXTS.values())
    script = """
    async (text) => {
      const {Painting, loadMarkdown} = await import("/chat/paint.js");
  await loadMarkdown();
      const labels = {copy: "c", done: "d", todo: "t", table: "b"};
      const [slow, fast] = [document.createElement("div"), document.createElement("div")];
      const painting = new Painting(slow, labels);
      const drawn = () => new Promise(requestAnimationFrame);
      let first = null;
      for (let end = 1; end <= text.length; end += 1) {
        painting.show(text.slice(0, end), false);
        if (end % 40 === 0) await drawn();
        if (end === 100) first = slow.firstChild;
      }
      await drawn();
      const grown = slow.cloneNode(true);
      painting.show(text, true);
      new Painting(fast, labels).show(text, true);
      for (let n = 0; n < 30; n += 1) await drawn();
      return [slow.isEqualNode(fast), grown.isEqualNode(fast), slow.firstChild === first, fast.children.length];
    }
    """
    whole_same, grown_same, kept, count = bare.evaluate(script, source)
    assert whole_same
    assert grown_same
    assert kept
    assert count > 30


N = 64 * 1024
HOSTILE: dict[str, str] = {
    **{f"{mark!r}": mark * (N // len(mark)) for mark in "# \t*_[(`>|~<&\\-+=!$:/."},
    **{
        name: piece * (N // len(piece))
        for name, piece in {
            "list markers": "- ",
            "numbers": "1. ",
            "quotes and lists": "> - ",
            "open emphasis": "**a *b ",
            "open strike": "~~a",
            "mixed": "*~~_",
            "open links": "[a](",
            "empty links": "[](",
            "pictures": "![",
            "pairs": "[]",
            "ticks": "`a``b",
            "tags": "<a ",
            "addresses": "http://a",
            "two addresses": "http://a.b ",
            "mail": "a@b.",
            "mailboxes": "a.b@c.d ",
            "unfinished mailboxes": "a.",
            "hosts": "www.",
            "brackets after addresses": "http://a)",
            "marks after an address": "http://a.b/?",
            "formulas": "\\(",
            "short formulas": "$x_1$ ",
            "roots": "\\(" + "\\sqrt" * 300 + "\\)",
            "matrices": "$$\\begin{matrix}" + "a&" * 200 + "\\end{matrix}$$\n",
            "dollars": "$a_ ",
            "titles": "a\n===\n",
            "fences": "```\n",
            "formula fences": "\\[\n",
            "definitions": "[a]: b\n",
            "rows": "|a|b\n|-|-\n|c|d\n\n",
            "items": "- a\n",
            "bold Hangul": '**"가"**를',
            "breaks": "<br>",
            "lines": "\n",
            "quoted lines": ">\n",
        }.items()
    },
    "a heading of blanks": "# " + " " * N + "x",
    "deep lists": "\n".join(" " * depth + "- a" for depth in range(360)),
    "ticks of each length": "a".join("`" * count for count in range(1, 362)),
    "a wide table": "|a" * (N // 4) + "\n" + "|-" * (N // 4),
    "a long word": "가" * N,
}

FRAMES = """
async (texts) => {
  const {Painting, loadMarkdown} = await import("/chat/paint.js");
  await loadMarkdown();
  const labels = {copy: "c", done: "d", todo: "t", table: "b"};
  const frames = async (count) => {
    for (let n = 0; n < count; n += 1) await new Promise(requestAnimationFrame);
  };
  for (const text of texts) {
    const box = document.createElement("div");
    box.className = "text";
    document.getElementById("log").replaceChildren(box);
    await frames(2);
    performance.mark("begun");
    // The task of the mark began before it.
    await frames(1);
    // It comes in pieces, as a model sends it, and is whole then.
    const painting = new Painting(box, labels);
    for (let n = 1; n <= 8; n += 1) {
      painting.show(text.slice(0, (text.length * n) / 8), false);
      await frames(1);
    }
    painting.show(text, true);
    await frames(16);
  }
  performance.mark("begun");
  document.getElementById("log").replaceChildren();
}
"""


def slowest_frames(browser: Browser, page: Page, texts: list[str]) -> list[float]:
    """For each text the longest task of the page's thread while it is drawn, in ms of the processor.

    A frame with all that belongs to it (script, style, layout, paint) is one task. Its time by the clock would be that
    of whatever else the machine does.
    """
    browser.start_tracing(page=page, categories=["toplevel", "blink.user_timing"])
    page.evaluate(FRAMES, texts)
    events = json.loads(browser.stop_tracing())["traceEvents"]
    marks = [event for event in events if event["name"] == "begun" and event["cat"] == "blink.user_timing"]
    thread = marks[0]["pid"], marks[0]["tid"]
    begun = sorted(event["ts"] for event in marks)
    slowest = [0.0] * len(texts)
    for event in events:
        if event["ph"] == "X" and (event["pid"], event["tid"]) == thread and begun[0] <= event["ts"] < begun[-1]:
            at = bisect.bisect(begun, event["ts"]) - 1
            slowest[at] = max(slowest[at], event.get("tdur", 0) / 1000)
    return slowest


def test_no_text_holds_the_tab(browser: Browser, bare: Page) -> None:
    """64 KiB of any marker are drawn in short steps. (A pattern that backtracks took 11 s for one of them.)"""
    names = some(HOSTILE, 4)
    slowest = slowest_frames(browser, bare, [HOSTILE[name] for name in names])
    by_time = sorted(zip(slowest, names, strict=True), reverse=True)
    print(f"slowest frames of {len(names)} texts:", ", ".join(f"{name} {ms:.0f} ms" for ms, name in by_time[:8]))
    # 100 ms is what a person does not feel.
    assert 0 < by_time[0][0] < 100


def test_a_long_word_is_all_there(bare: Page) -> None:
    """What is no mark is shown, however long it is."""
    script = """
    async (text) => {
      const {Painting, loadMarkdown} = await import("/chat/paint.js");
      await loadMarkdown();
      const box = document.createElement("div");
      new Painting(box, {copy: "c", done: "d", todo: "t", table: "b"}).show(text, true);
      for (let n = 0; n < 100 && box.textContent !== text; n += 1) await new Promise(requestAnimationFrame);
      return box.textContent === text;
    }
    """
    assert bare.evaluate(script, HOSTILE["a long word"])


# Elements of an answer, and the attributes they may have.
ELEMENTS = {
    "a",
    "bdi",
    "blockquote",
    "br",
    "button",
    "code",
    "div",
    "em",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "li",
    "ol",
    "p",
}
ELEMENTS |= {"math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msqrt", "mroot", "mtable", "mtr", "mtd"}
ELEMENTS |= {"msub", "msup", "msubsup", "munder", "mover", "munderover"}
ELEMENTS |= {"pre", "s", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"}
ATTRIBUTES = {"aria-label", "class", "data-copy", "dir", "href", "rel", "role", "scope", "start", "tabindex"}
ATTRIBUTES |= {"target", "title", "type", "accent", "display", "linethickness", "lspace", "rspace", "stretchy", "width"}

LIVE = """
async ([count, seed, pieces]) => {
  const {Painting, loadMarkdown} = await import("/chat/paint.js");
  await loadMarkdown();
  const labels = {copy: "c", done: "d", todo: "t", table: "b"};
  let state = seed;
  const below = (n) => { state = (Math.imul(state, 1664525) + 1013904223) >>> 0; return state % n; };
  const seen = new Set();
  const addresses = new Set();
  const lost = [];
  for (let n = 0; n < count; n += 1) {
    let text = "";
    for (let left = 1 + below(24); left; left -= 1) text += pieces[below(pieces.length)];
    const box = document.createElement("div");
    document.getElementById("log").replaceChildren(box);
    try {
      const painting = new Painting(box, labels);
      painting.show(text, true);
      painting.draw();
    } catch (error) {
      lost.push([text, String(error)]);
    }
    for (const one of box.querySelectorAll("*")) {
      seen.add(one.localName);
      for (const {name, value} of one.attributes) {
        seen.add(`@${name}`);
        if (name === "href") addresses.add(value.split(":")[0].toLowerCase());
      }
    }
    if (n % 200 === 0) await new Promise(requestAnimationFrame);
  }
  document.getElementById("log").replaceChildren();
  return {seen: [...seen], addresses: [...addresses], lost};
}
"""

PIECES = [
    *"#*_~`>|-+=![]()<>\"'\\&;:/.$ \n\t1a가",
    *[
        "\n\n",
        "    ",
        "```",
        "**",
        "~~",
        "- ",
        "1. ",
        "- [x] ",
        "> ",
        "| a | b |\n|---|---|\n",
        "<br>",
        "</p>",
        "<!--",
        "-->",
    ],
    *[
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<a href=javascript:alert(1)>",
        "<svg onload=alert(1)>",
    ],
    *[
        "[a](javascript:alert(1))",
        "[a](https://a.kr)",
        "![a](https://a.kr/x.png)",
        "https://b.kr",
        "https://b.kr@c.kr",
        "www.d.kr",
        "e@f.kr",
        "javascript:alert(1)",
    ],
    *[
        "[x]: https://c.kr\n",
        "[x]",
        "&#106;avascript:",
        "data:text/html,x",
        "\\(",
        "\\)",
        "$$",
        "\u202e",
        "\x00",
        "\r",
        "😀",
    ],
    *[
        "\\frac",
        "{",
        "}",
        "^",
        "\\left(",
        "\\right)",
        "\\text{<b>}",
        "\\href{javascript:1}",
        "\\sqrt[",
        "\\begin{cases}",
    ],
    *["\\end{cases}", "\\\\", "\\unknown", "x_1"],
    *['" onclick="alert(1)', "' style='x", "{{x}}", "${x}"],
]


@pytest.mark.timeout(size(120, 7200))
def test_nothing_live_comes_out(bare: Page) -> None:
    """Whatever is written, only the page's own still elements come out, and links lead to the web or to a mailbox."""
    count = size(4_000, 1_000_000)
    found = bare.evaluate(LIVE, [count, random.Random().randrange(2**32), PIECES])
    assert found["lost"] == []
    elements = {one for one in found["seen"] if not one.startswith("@")}
    assert elements <= ELEMENTS
    assert {one[1:] for one in found["seen"] if one.startswith("@")} <= ATTRIBUTES
    assert set(found["addresses"]) <= {"http", "https", "mailto"}
    # It wrote something worth judging.
    assert elements >= {"a", "code", "li", "strong", "table"}
    assert "https" in found["addresses"]


# --- On the page ----------------------------------------------------------------------------------------------------


def test_copy_code(page: Page, context: BrowserContext, stub: Stub) -> None:
    """The button of a block of code copies that block, as it came."""
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    stub.script(whole("```sh\nls -l\ncd\n```\n\n```\n둘\n```"))
    ask(page, "질문")
    rested(page)
    page.locator(".code").first.get_by_role("button", name="복사").click()
    expect(page.locator(".code").first.get_by_role("button")).to_have_text("복사했어요")
    assert page.evaluate("() => navigator.clipboard.readText()") == "ls -l\ncd"


def test_link_is_opened_by_hand(page: Page, stub: Stub, watch: Watch) -> None:
    """Nothing of an answer is loaded; a link opens another tab, which does not know where it was opened."""
    # A page with an icon of its own: for any other Chromium asks for /favicon.ico, now or a moment later.
    address = f"{stub.base_url}/chat"
    loaded = watch.requested.count(address)
    stub.script(whole(f"[여기]({address}) ![그림](http://127.0.0.1:9/x.png)"))
    ask(page, "질문")
    rested(page)
    assert not any(":9/" in url for url in watch.requested)
    assert watch.requested.count(address) == loaded
    assert len(page.context.pages) == 1
    assert page.locator(".answer img").count() == 0
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="여기").click()
    opened.value.wait_for_load_state()
    assert opened.value.evaluate("() => [window.opener, document.referrer]") == [None, ""]
    opened.value.close()


def test_tree_for_a_screen_reader(page: Page, stub: Stub) -> None:
    """A nested list is a tree, a table has heads, headings stand below those of the page."""
    stub.script(whole("### 제목\n\n- 하나\n  - 안\n- 둘\n\n| 이름 | 값 |\n|---|---|\n| a | 1 |\n\n- [x] 다 했어요"))
    ask(page, "질문")
    rested(page)
    expect(page.locator(".answer")).to_match_aria_snapshot(
        """
        - heading "답변" [level=2]
        - heading "제목" [level=3]
        - list:
          - listitem:
            - text: 하나
            - list:
              - listitem: 안
          - listitem: 둘
        - group "표":
          - table:
            - rowgroup:
              - row:
                - columnheader "이름"
                - columnheader "값"
            - rowgroup:
              - row:
                - cell "a"
                - cell "1"
        - list:
          - listitem:
            - img "한 일"
            - text: 다 했어요
        """
    )


def test_hostile_answer_while_it_streams(page: Page, stub: Stub) -> None:
    """A line of 64 KiB leaves the page alive: it can be stopped and written in while it comes, and after a reload."""
    pieces = [text("#" * 4096) for _ in range(8)] + [text(" " * 4096) for _ in range(8)]
    stub.script(Answer([*pieces, finish(), DONE]), whole("답"))
    ask(page, "질문")
    rested(page)
    page.reload()
    ask(page, "다음")
    expect(page.locator(".answer .text").nth(1)).to_have_text("답")
    expect(button(page, "보내기")).to_be_visible()
    assert len(stub.asked[1].messages) == 3
