"""Every example of CommonMark and of GFM's extensions: text and structure are right, but for what the page refuses.

What is refused is named here, with the numbers of all its examples. A number that is missing, or one too much, fails.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.page.stub import PAGE, Stub

# Each kind that the page refuses or does otherwise, and the examples that show it.
ELSEWHERE = "an address of another kind, or of a place on this server, is no link: what was written stays text"
COMMONMARK = {
    "raw HTML stays text": "21 31 148-191 201 308-309 344 475-477 491 494 524 536 613-617 623 625-631 642-643",
    ELSEWHERE: (
        "22-23 32-33 192-196 198 202-208 210 214-218 317 404 419 422 433 473-474 482-483 489 492 495-496 498-507 "
        "509-510 512 514-522 527-535 537-545 549-550 553-566 568-589 591-593 596 598-599 601"
    ),
    "a link that leads nowhere is its text": "200 485-487 567",
    "a link without a text shows its address": "484",
    "a bare address is a link, as in GFM": "602 608 611-612",
}
GFM = {"raw HTML stays text": "653", "an address of FTP is no link: browsers open none": "628"}

EVERY_ADDRESS = "parser.validateLink = () => true;"

JUDGE = r"""
async (examples) => {
  const {blocks} = await import("/chat/markdown.js");
  const labels = {copy: "", done: "done", todo: "todo", table: ""};
  const name = (tag) => /^h[1-6]$/.test(tag) ? "h" : tag;

  // The page's tree, without what it adds: head lines of code, where a link leads, the place of a heading in the page.
  const ours = (node) => {
    if (typeof node === "string") return node;
    const {tag, attrs, kids} = node;
    if (attrs.class === "code") {
      return ["pre", {language: kids[0].kids[0].kids[0]}, ["code", {}, ...kids[1].kids[0].kids.map(ours)]];
    }
    if (attrs.class === "table") return ours(kids[0]);
    if (attrs.class === "where") return "";
    if (attrs.role === "img") return ["input", {checked: attrs["aria-label"] === "done"}];
    const told = {};
    for (const one of ["href", "start"]) if (attrs[one] !== undefined) told[one] = attrs[one];
    if ((tag === "td" || tag === "th") && attrs.class) told.align = attrs.class;
    return [name(tag), told, ...kids.map(ours)];
  };

  // The specification's, with a picture as the link that it is here; within a link it is that link's text.
  const theirs = (node) => {
    if (node.nodeType === Node.TEXT_NODE) return node.data;
    if (node.nodeType !== Node.ELEMENT_NODE) return `<!${node.nodeType}>`;
    const {localName: tag} = node;
    const kids = Array.from(node.childNodes, theirs);
    if (tag === "input") return ["input", {checked: node.hasAttribute("checked")}];
    if (tag === "img" && node.closest("a")) return node.alt;
    if (tag === "img") return ["a", {href: node.getAttribute("src")}, node.alt || node.getAttribute("src")];
    if (tag === "del") return ["s", {}, ...kids];
    if (tag === "pre" && node.firstChild?.localName === "code") {
      const language = /(?:^| )language-(\S+)/.exec(node.firstChild.className)?.[1] ?? "";
      return ["pre", {language}, ["code", {}, node.textContent.replace(/\n$/, "")]];
    }
    const told = {};
    for (const one of ["href", "start", "align"]) if (node.hasAttribute(one)) told[one] = node.getAttribute(one);
    return [name(tag), told, ...kids];
  };

  // Blanks count as in HTML: in code each one does, elsewhere a run is one, and at the ends of a block there is none.
  const BLOCKS = new Set("root p h ul ol li blockquote pre table thead tbody tr th td hr br".split(" "));
  const tidy = ([tag, attrs, ...kids], inCode = false) => {
    const merged = [];
    for (const kid of kids) {
      if (typeof kid === "string" && typeof merged.at(-1) === "string") merged[merged.length - 1] += kid;
      else if (kid !== "") merged.push(kid);
    }
    const exact = inCode || tag === "code" || tag === "pre";
    const ends = (kid) => kid === undefined ? BLOCKS.has(tag) : BLOCKS.has(kid[0]);
    const told = merged.map((kid, at) => {
      if (typeof kid !== "string") return tidy(kid, exact);
      if (exact) return kid;
      const text = kid.replace(/[ \t\n]+/g, " ");
      const begun = ends(merged[at - 1]) ? text.trimStart() : text;
      return ends(merged[at + 1]) ? begun.trimEnd() : begun;
    });
    return [tag, attrs, ...told.filter((kid) => kid !== "")];
  };

  // All that a reader would miss: every letter and digit; of a link where it leads, too.
  const signs = (text) => text.replace(/[^\p{L}\p{N}]/gu, "");
  const textOf = (tree) => {
    if (typeof tree === "string") return tree;
    const text = (tree[1].language ?? "") + tree.slice(2).map(textOf).join("");
    const href = decodeURI((tree[1].href ?? "").replace("mailto:", ""));
    return signs(text).includes(signs(href)) ? text : text + href;
  };
  const decoded = (text) => new DOMParser().parseFromString(text.replaceAll("<", "&lt;"), "text/html").body.textContent;
  return examples.map(({markdown, html}) => {
    const mine = tidy(["root", {}, ...blocks(markdown, labels).map(({node}) => ours(node))]);
    const body = new DOMParser().parseFromString(`<body>${html}`, "text/html").body;
    const other = tidy(["root", {}, ...Array.from(body.childNodes, theirs)]);
    return {same: JSON.stringify(mine) === JSON.stringify(other), ours: mine, theirs: other,
      written: signs(decoded(markdown)), read: signs(textOf(mine))};
  });
}
"""


def examples(text: str) -> list[dict[str, Any]]:
    """The examples of a specification, each with its number: its own, or else its place."""
    fence = "`" * 32
    found: list[dict[str, Any]] = []
    for match in re.finditer(rf"^{fence} example ?(\d*)\n(.*?)^\.\n(.*?)^{fence}$", text, re.MULTILINE | re.DOTALL):
        markdown, html = (part.replace("→", "\t") for part in match.group(2, 3))
        found.append({"number": int(match[1] or len(found) + 1), "markdown": markdown, "html": html})
    return found


def numbers(*lists: str) -> set[int]:
    """The numbers that "1 3-5" names."""
    spans = [span.partition("-") for one in lists for span in one.split()]
    return {number for first, _, last in spans for number in range(int(first), int(last or first) + 1)}


def judged(browser: Browser, given: list[dict[str, Any]], *, every_address: bool = False) -> dict[int, dict[str, Any]]:
    """What the page makes of the examples; with `every_address` a page that takes any address for a link."""
    with Stub() as stub, browser.new_context(bypass_csp=True) as context:
        page: Page = context.new_page()
        if every_address:
            source = (PAGE / "grammar.js").read_text("utf-8")
            changed, count = re.subn(r"^parser\.validateLink = .*;$", EVERY_ADDRESS, source, flags=re.MULTILINE)
            assert count == 1
            page.route("**/grammar.js", lambda route: route.fulfill(body=changed, content_type="text/javascript"))
        page.goto(f"{stub.base_url}/chat")
        results = page.evaluate(JUDGE, given)
    return {example["number"]: {**example, **result} for example, result in zip(given, results, strict=True)}


def differing(found: dict[int, dict[str, Any]], named: set[int]) -> list[Any]:
    """Examples that differ without being named, and those that are named and do not differ."""
    wrong = [one for number, one in found.items() if one["same"] == (number in named)]
    return [[one[key] for key in ("number", "markdown", "ours", "theirs")] for one in wrong]


def lost(found: dict[int, dict[str, Any]], named: set[int]) -> list[Any]:
    """Examples of which something that was written is not to be read."""
    told = [(number, one["written"], one["read"]) for number, one in found.items() if number in named]
    return [(number, written, read) for number, written, read in told if written != read]


@pytest.fixture(scope="module")
def commonmark(packages: Path) -> list[dict[str, Any]]:
    """CommonMark 0.31.2, all of it."""
    found = examples((packages / "node_modules" / "commonmark-spec" / "spec.txt").read_text("utf-8"))
    assert len(found) == 652
    return found


@pytest.fixture(scope="module")
def gfm() -> list[dict[str, Any]]:
    """The examples of GFM's extensions."""
    found = examples((Path(__file__).parent / "gfm.txt").read_text("utf-8"))
    assert len(found) == 24
    return found


def test_commonmark(browser: Browser, commonmark: list[dict[str, Any]]) -> None:
    """Every example of CommonMark is right in text and structure, but for those of the kinds that are named."""
    found = judged(browser, commonmark)
    named = numbers(*COMMONMARK.values())
    assert differing(found, named) == []
    # What is refused is not lost: all of it is there to be read.
    assert lost(found, named) == []
    print(f"CommonMark: {len(found) - len(named)} of {len(found)} as they stand, {len(named)} named:")
    for kind, which in COMMONMARK.items():
        print(f"  {len(numbers(which))}: {kind} ({which})")


def test_commonmark_of_every_address(browser: Browser, commonmark: list[dict[str, Any]]) -> None:
    """The examples with addresses that the page refuses are right too, where such an address is let pass."""
    found = judged(browser, commonmark, every_address=True)
    named = numbers(*(which for kind, which in COMMONMARK.items() if kind != ELSEWHERE))
    assert differing(found, named) == []


def test_extensions_of_gfm(browser: Browser, gfm: list[dict[str, Any]]) -> None:
    """Tables, task lists, strikethrough and bare addresses are GFM's; of disallowed HTML nothing is markup."""
    found = judged(browser, gfm)
    named = numbers(*GFM.values())
    assert differing(found, named) == []
    assert lost(found, named) == []
    print(f"GFM's extensions: {len(found) - len(named)} of {len(found)} as they stand; named: {GFM}")
