// Text of a model → a tree of still elements. The grammar is CommonMark with GFM's tables and strike, parsed by
// markdown-it; what becomes of each token is decided here, and nothing else can come out: no markup of the text's own, no
// picture, no address that is loaded. Nothing here touches the document.

import { addresses, endOf } from "./addresses.js";
import { formula } from "./math.js";
import MarkdownIt from "./vendor/markdown-it.js";

/**
 * One element to be: its name, its attributes, its children.
 * @typedef {{tag: string, attrs: Record<string, string>, kids: Array<Node | string>}} Node
 */

/**
 * One block of a text: from where it was made, as offsets in UTF-16 units, and its element.
 * @typedef {{start: number, end: number, node: Node}} Block
 */

/**
 * What the headings before a place say about those after it: the level of the first, and the last level drawn.
 * @typedef {{base: number, last: number}} Outline
 */

/** The words the elements themselves need. @typedef {{copy: string, done: string, todo: string, table: string}} Labels */

// Up to here a paragraph is styled; a longer one is shown as it is. Some inline rules take time by the square of it.
const MAX_INLINE = 8 * 1024;
// A block with more tokens than this (about 500 rows of a list) is shown as it is: each becomes an element or two.
const MAX_TOKENS = 4000;
// Text that is shown as it is, and code, is cut into parts of about this size, so that those out of view cost no layout.
const PART = 4 * 1024;
// A formula over several lines ends within this many, or is none.
const MAX_MATH_LINES = 60;

const { unescapeAll: unescaped } = /** @type {any} */ (new /** @type {any} */ (MarkdownIt)()).utils;
/** @type {any} its tokens and states have no types of their own */
const parser = new /** @type {any} */ (MarkdownIt)({ html: false, maxNesting: 40 });
// Everything else (javascript:, data:, file:, a path on this very server) stays text.
parser.validateLink = (/** @type {string} */ url) => /^(?:https?:\/\/|mailto:)/i.test(url);

// Han, kana and Hangul stand without blanks beside what belongs to them.
const UNSPACED = /[\u1100-\u11ff\u2e80-\u303f\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef]/;

/**
 * CommonMark 6.2 wants a blank or a mark outside a `**` that has a mark inside, and so leaves the stars of `**"인용"**를` as
 * they are: Korean particles follow without a blank. Here an unspaced letter counts as one outside.
 */
parser.inline.State = class extends parser.inline.State {
  scanDelims(/** @type {number} */ start, /** @type {boolean} */ canSplitWord) {
    const found = super.scanDelims(start, canSplitWord);
    if (!canSplitWord || (found.can_open && found.can_close)) return found;
    const before = this.src[start - 1] ?? " ";
    const after = this.src[start + found.length] ?? " ";
    if (UNSPACED.test(before) && !/\s/.test(after)) found.can_open = true;
    if (UNSPACED.test(after) && !/\s/.test(before)) found.can_close = true;
    return found;
  }
};

/** `<br>` is the one piece of HTML that models use and that says something: a new line, in the cell of a table. */
parser.inline.ruler.before("autolink", "br", (/** @type {any} */ state, /** @type {boolean} */ silent) => {
  if (state.src[state.pos] !== "<") return false;
  const found = /^<br\s{0,8}\/?>/i.exec(state.src.slice(state.pos, state.pos + 14));
  if (!found) return false;
  if (!silent) state.push("hardbreak", "br", 0);
  state.pos += found[0].length;
  return true;
});

// Signs alone are no formula, but escaped ones.
const SAYS_SOMETHING = /[\p{L}\p{N}]/u;

/**
 * Formulas: `\(…\)`, `\[…\]`, `$$…$$` and `$…$`. Between dollars there must be something only a formula has, and no
 * blank inside the signs, for there are prices too.
 */
parser.inline.ruler.before("escape", "math", (/** @type {any} */ state, /** @type {boolean} */ silent) => {
  const { src, pos } = state;
  let open = src.slice(pos, pos + 2);
  if (open[0] === "$" && open !== "$$") open = "$";
  const close = /** @type {Record<string, string>} */ ({ "\\(": "\\)", "\\[": "\\]", $$: "$$", $: "$" })[open];
  if (!close) return false;
  const begin = pos + open.length;
  // Once there is no end, there is none for any that begins later: looked for each time it would take the square.
  state.endless ??= new Set();
  const end = state.endless.has(close) ? -1 : src.indexOf(close, begin);
  if (end < 0) state.endless.add(close);
  if (end <= begin || end > state.posMax - close.length) return false;
  const content = src.slice(begin, end);
  if (!SAYS_SOMETHING.test(content)) return false;
  if (open === "$" && (/^\s|\s$|\n/.test(content) || !/[\\^_{}=]|^[A-Za-z]$/.test(content) || /\d/.test(src[end + 1] ?? ""))) {
    return false;
  }
  if (!silent) state.push("math_inline", "code", 0).content = content.trim();
  state.pos = end + close.length;
  return true;
});

/** @param {(type: string, tag: string, nesting: number) => any} push @param {string} address @param {string} text */
function pushAddress(push, address, text) {
  const open = push("link_open", "a", 1);
  open.attrs = [["href", parser.normalizeLink(address)]];
  open.info = "auto";
  push("text", "", 0).content = text;
  push("link_close", "a", -1);
}

/** A bare address with its scheme; here, so that no mark in it is taken for emphasis. */
parser.inline.ruler.after("text", "address", (/** @type {any} */ state, /** @type {boolean} */ silent) => {
  const { src, pos, posMax, pending } = state;
  if (state.linkLevel > 0 || !src.startsWith("://", pos)) return false;
  const scheme = /(?<![A-Za-z0-9])https?$/i.exec(pending.slice(-6))?.[0];
  const end = scheme ? endOf(src.slice(0, posMax), pos + 3) : null;
  if (!scheme || end === null) return false;
  if (!silent) {
    const address = src.slice(pos - scheme.length, end);
    state.pending = pending.slice(0, -scheme.length);
    pushAddress((type, tag, nesting) => state.push(type, tag, nesting), address, address);
  }
  state.pos = end;
  return true;
});

/** Bare addresses without one: www.… and mailboxes. */
parser.core.ruler.after("inline", "address", (/** @type {any} */ state) => {
  for (const { type, content, children } of state.tokens) {
    if (type !== "inline" || !/www\.|@/i.test(content)) continue;
    /** @type {any[]} */
    const tokens = [];
    let links = 0;
    for (const token of children) {
      links += token.type === "link_open" ? 1 : token.type === "link_close" ? -1 : 0;
      tokens.push(...(token.type === "text" && links === 0 ? withAddresses(state.Token, token.content) : [token]));
    }
    children.splice(0, Infinity, ...tokens);
  }
});

function withAddresses(/** @type {any} */ Token, /** @type {string} */ content) {
  /** @type {any[]} */
  const tokens = [];
  const push = (/** @type {string} */ type, /** @type {string} */ tag, /** @type {number} */ nesting) => {
    const made = new Token(type, tag, nesting);
    tokens.push(made);
    return made;
  };
  let at = 0;
  for (const { start, end, href } of addresses(content)) {
    push("text", "", 0).content = content.slice(at, start);
    pushAddress(push, href, content.slice(start, end));
    at = end;
  }
  push("text", "", 0).content = content.slice(at);
  return tokens;
}

/** A formula that begins a line and ends one. */
parser.block.ruler.before(
  "fence",
  "math",
  (/** @type {any} */ state, /** @type {number} */ startLine, /** @type {number} */ endLine, /** @type {boolean} */ silent) => {
    const at = (/** @type {number} */ line) =>
      state.src.slice(state.bMarks[line] + state.tShift[line], state.eMarks[line]).trimEnd();
    if (state.sCount[startLine] - state.blkIndent >= 4) return false;
    const first = at(startLine);
    const close = first.startsWith("$$") ? "$$" : first.startsWith("\\[") ? "\\]" : null;
    if (close === null) return false;
    let line = startLine;
    const rest = (/** @type {number} */ here) => (here === startLine ? first.slice(2) : at(here));
    // Every line is looked at once for all formulas before it.
    const ends = (state.env.ends ??= {});
    const known = ends[close];
    if (known && known.from <= startLine && startLine < known.line) line = known.line;
    else while (line < state.lineMax && !rest(line).endsWith(close)) line += 1;
    ends[close] = { from: startLine, line };
    if (line >= endLine || line - startLine > MAX_MATH_LINES) return false;
    if (range(startLine + 1, line + 1).some((here) => state.sCount[here] < state.blkIndent)) return false;
    // Something else stands between two formulas of one line.
    if (line === startLine && first.slice(2, -2).includes(close)) return false;
    const body = line === startLine ? [first.slice(2)] : [first.slice(2), ...range(startLine + 1, line + 1).map(at)];
    const content = body.join("\n").slice(0, -2).trim();
    if (!SAYS_SOMETHING.test(content)) return false;
    if (silent) return true;
    const token = state.push("math_block", "code", 0);
    token.content = content;
    token.map = [startLine, line + 1];
    state.line = line + 1;
    return true;
  },
  { alt: ["paragraph", "reference", "blockquote", "list"] },
);

/** Paragraphs over the cap go past the inline rules. */
parser.core.ruler.after("block", "cap", (/** @type {any} */ state) => {
  for (const token of state.tokens) {
    if (token.type !== "inline" || token.content.length <= MAX_INLINE) continue;
    token.type = "plain";
  }
});

/**
 * The blocks of `text`, whose lines end in "\n". With `outline` its headings are placed after those of an earlier part,
 * and it is changed to what the part after this one needs.
 *
 * @param {string} text
 * @param {Labels} labels
 * @param {Outline} [outline]
 * @returns {Block[]}
 */
export function blocks(text, labels, outline = { base: 0, last: 2 }) {
  const tokens = parser.parse(text, {});
  const starts = lineStarts(text);
  /** @type {Block[]} */
  const found = [];
  for (let at = 0; at < tokens.length; ) {
    let end = at + 1;
    // A block of several tokens ends where one closes it on the level of its first.
    if (tokens[at].nesting === 1) while (tokens[end++].nesting !== -1 || tokens[end - 1].level !== tokens[at].level);
    const [from, to] = tokens[at].map;
    const start = starts[from];
    const stop = starts[to] ?? text.length;
    const group = tokens.slice(at, end);
    at = end;
    if (count(group) > MAX_TOKENS) {
      for (const part of parts(text.slice(start, stop))) found.push({ start, end: stop, node: plain(part) });
    } else {
      for (const node of build(group, labels, outline)) found.push({ start, end: stop, node });
    }
  }
  return found;
}

function count(/** @type {any[]} */ tokens) {
  return tokens.reduce((sum, token) => sum + 1 + (token.children?.length ?? 0), 0);
}

/** Text that is shown as it is. */
export function plain(/** @type {string} */ text) {
  return element("p", { dir: "auto", class: "as-is" }, [text]);
}

/** A long text in pieces of about `PART`, cut at a line's end where there is one. */
export function parts(/** @type {string} */ text) {
  const found = [];
  for (let at = 0; at < text.length; ) {
    let end = Math.min(at + PART, text.length);
    if (end < text.length) {
      const line = text.lastIndexOf("\n", end - 1) + 1;
      if (line > at) end = line;
      else if (/[\ud800-\udbff]/.test(text[end - 1])) end -= 1;
    }
    found.push(text.slice(at, end));
    at = end;
  }
  return found;
}

function lineStarts(/** @type {string} */ text) {
  const starts = [0];
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) starts.push(at + 1);
  return starts;
}

function range(/** @type {number} */ from, /** @type {number} */ to) {
  return Array.from({ length: Math.max(to - from, 0) }, (_, index) => from + index);
}

/** @returns {Node} */
function element(/** @type {string} */ tag, /** @type {Record<string, string>} */ attrs = {}, /** @type {Array<Node | string>} */ kids = []) {
  return { tag, attrs, kids };
}

// The elements of tokens that have a beginning and an end.
/** @type {Record<string, (token: any) => Node>} */
const PAIRS = {
  paragraph: () => element("p", { dir: "auto" }),
  blockquote: () => element("blockquote", { dir: "auto" }),
  bullet_list: () => element("ul"),
  ordered_list: (token) => element("ol", startOf(token)),
  list_item: () => element("li", { dir: "auto" }),
  table: () => element("table"),
  thead: () => element("thead"),
  tbody: () => element("tbody"),
  tr: () => element("tr"),
  th: (token) => element("th", { scope: "col", dir: "auto", ...sideOf(token) }),
  td: (token) => element("td", { dir: "auto", ...sideOf(token) }),
  em: () => element("em"),
  strong: () => element("strong"),
  s: () => element("s"),
};

function startOf(/** @type {any} */ token) {
  const start = token.attrGet("start");
  /** @type {Record<string, string>} */
  const attrs = start === null ? {} : { start: String(start) };
  return attrs;
}

function sideOf(/** @type {any} */ token) {
  const side = /text-align:(left|center|right)/.exec(token.attrGet("style") ?? "")?.[1];
  /** @type {Record<string, string>} */
  const attrs = side ? { class: side } : {};
  return attrs;
}

/** The elements of one block. */
function build(/** @type {any[]} */ tokens, /** @type {Labels} */ labels, /** @type {Outline} */ outline) {
  const root = element("root");
  /** @type {Node[]} */
  const open = [root];
  const top = () => open[open.length - 1];
  const put = (/** @type {Node | string} */ one) => {
    const { kids } = top();
    if (typeof one === "string" && typeof kids.at(-1) === "string") kids[kids.length - 1] += one;
    else if (one !== "") kids.push(one);
  };

  function walk(/** @type {any[]} */ list) {
    for (let at = 0; at < list.length; at += 1) {
      const token = list[at];
      const [, name, side] = /^(.*?)(?:_(open|close))?$/.exec(token.type) ?? [];
      if (side === "close") {
        if (token.hidden) continue;
        const closed = open.pop();
        if (closed === undefined) continue;
        if (name === "link") finishLink(closed);
        put(name === "table" ? element("div", { class: "table", role: "group", tabindex: "0", "aria-label": labels.table }, [closed]) : closed);
      } else if (side === "open") {
        if (token.hidden) {
          // A tight list has its text in the item itself, apart from a paragraph before it.
          if (list[at - 1]?.type !== "list_item_open") put("\n");
          continue;
        }
        if (name === "heading") open.push(heading(token, outline));
        else if (name === "link") open.push(link(token.attrGet("href"), token.info === "auto"));
        else open.push((PAIRS[name] ?? (() => element("span")))(token));
        if (name === "list_item") task(list, at);
      } else if (token.type === "inline") {
        walk(token.children);
      } else {
        leaf(token);
      }
    }
  }

  /** GFM 5.3: a paragraph that begins an item and itself begins with `[ ]` or `[x]`. */
  function task(/** @type {any[]} */ list, /** @type {number} */ at) {
    const first = list[at + 1]?.type === "paragraph_open" ? list[at + 2]?.children?.[0] : null;
    const found = first?.type === "text" ? /^\[([ xX])\](?:\s+|$)/.exec(first.content) : null;
    if (!found) return;
    first.content = first.content.slice(found[0].length);
    const done = found[1] !== " ";
    top().attrs.class = "task";
    put(element("span", { role: "img", "aria-label": done ? labels.done : labels.todo }, [done ? "☑" : "☐"]));
    put(" ");
  }

  function leaf(/** @type {any} */ token) {
    switch (token.type) {
      case "softbreak":
        return put("\n");
      case "hardbreak":
        return put(element("br"));
      case "hr":
        return put(element("hr"));
      case "code_inline":
        return put(element("code", { dir: "auto" }, [token.content]));
      case "math_inline":
        return put(formula(token.content, false) ?? element("code", { class: "math", dir: "ltr" }, [token.content]));
      case "math_block":
        return put(mathBlock(token.content));
      case "fence":
      case "code_block":
        return put(code(token, labels));
      case "image":
        // One within a link is the label of that link.
        return put(open.some(({ tag }) => tag === "a") ? alternative(token) : picture(token));
      case "plain":
        return parts(token.content).forEach((part) => put(element("span", { class: "as-is" }, [part])));
      default:
        return put(token.content);
    }
  }

  walk(tokens);
  return /** @type {Node[]} */ (root.kids.map((one) => (typeof one === "string" ? element("p", { dir: "auto" }, [one]) : one)));
}

/**
 * Headings stand below those of the page itself (h1, h2) and skip no level, wherever the model begins to count; how large
 * one is drawn goes by the model's own level.
 */
function heading(/** @type {any} */ token, /** @type {Outline} */ outline) {
  const level = Number(token.tag[1]);
  outline.base ||= level;
  const wanted = Math.max(3, 3 + level - outline.base);
  outline.last = Math.min(wanted, outline.last + 1, 6);
  return element(`h${outline.last}`, { dir: "auto", class: `level-${level}` });
}

/** A fenced or an indented block. */
function code(/** @type {any} */ token, /** @type {Labels} */ labels) {
  const language = unescaped(token.info.trim().split(/\s+/)[0]).slice(0, 40);
  const text = token.content.replace(/\n$/, "");
  const pieces = text.length > PART ? parts(text).map((part) => element("span", { class: "part" }, [part])) : [text];
  return element("div", { class: "code" }, [
    element("div", { class: "head" }, [
      element("span", { class: "language" }, [language]),
      element("button", { type: "button", class: "plain", "data-copy": "code" }, [labels.copy]),
    ]),
    element("pre", { dir: "ltr", tabindex: "0" }, [element("code", {}, pieces)]),
  ]);
}

/** A formula by itself, which may be wider than the page. */
function mathBlock(/** @type {string} */ content) {
  const drawn = formula(content, true);
  if (drawn) return element("div", { class: "formula", dir: "ltr", tabindex: "0" }, [drawn]);
  return element("pre", { class: "math", dir: "ltr", tabindex: "0" }, [element("code", {}, [content])]);
}

/** A link is opened by hand alone, tells the other side nothing, and says where it leads. */
function link(/** @type {string} */ href, /** @type {boolean} */ auto) {
  // `[a]()` leads nowhere.
  if (!href) return element("span");
  /** @type {Record<string, string>} */
  const attrs = { href, target: "_blank", rel: "noreferrer noopener nofollow", title: href };
  if (auto) attrs.class = "bare";
  return element("a", attrs);
}

function finishLink(/** @type {Node} */ node) {
  if (node.tag !== "a") return;
  const where = destination(node.attrs.href);
  const label = textOf(node).trim();
  if (label === "") node.kids = [node.attrs.href];
  // A label that begins with the place, as a bare address does, says it already.
  const said = (label || node.attrs.href).replace(/^(?:https?:\/\/|mailto:)/i, "").toLowerCase();
  if (said === where || (said.startsWith(where) && /^[/?#:]/.test(said.slice(where.length)))) return;
  node.kids.push(element("bdi", { class: "where", dir: "ltr" }, [` (${where})`]));
}

/** No picture is ever fetched: it is a link to where it would be. */
function picture(/** @type {any} */ token) {
  const node = link(token.attrGet("src"), false);
  if (node.tag === "a") node.attrs.class = "picture";
  node.kids = [alternative(token) || token.attrGet("src")];
  finishLink(node);
  return node;
}

/** What stands for a picture: the text of its label. @returns {string} */
function alternative(/** @type {any} */ { children }) {
  return children.map((/** @type {any} */ one) => {
    if (one.type === "image") return alternative(one);
    return one.type === "softbreak" || one.type === "hardbreak" ? " " : one.content;
  }).join("");
}

function textOf(/** @type {Node} */ node) {
  /** @type {string} */
  let text = "";
  for (const one of node.kids) text += typeof one === "string" ? one : textOf(one);
  return text;
}

/** The host of an address as the browser will ask for it, so that no name in front of an @ and no look-alike is believed. */
function destination(/** @type {string} */ href) {
  try {
    const url = new URL(href);
    return url.protocol === "mailto:" ? decodeURI(url.pathname) : url.host;
  } catch {
    return href;
  }
}
