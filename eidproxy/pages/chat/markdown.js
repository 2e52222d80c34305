// Text of a model → a tree of still elements. What becomes of each token of the grammar is decided here, and nothing else
// can come out: no markup of the text's own, no picture, no address that is loaded. Nothing here touches the document.

import { tokensOf, unescaped } from "./grammar.js";
import { formula } from "./math.js";

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

// A block with more tokens than this (about 500 rows of a list) is shown as it is: each becomes an element or two.
const MAX_TOKENS = 4000;
// So many formulas of a block are drawn; each is several elements.
const MAX_FORMULAS = 200;
// Text that is shown as it is, and code, is cut into parts of about this size, so that those out of view cost no layout.
const PART = 4 * 1024;

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
  const tokens = tokensOf(text);
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
  let formulas = 0;
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
        formulas += 1;
        return put((formulas <= MAX_FORMULAS && formula(token.content, false)) || element("code", { class: "math", dir: "ltr" }, [token.content]));
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
