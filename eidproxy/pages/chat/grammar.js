// The grammar of an answer: CommonMark with GFM's tables and strike, parsed by markdown-it; bare addresses, formulas, and `**`
// as readers of Korean expect it.

import { addresses, endOf } from "./addresses.js";
import MarkdownIt from "./vendor/markdown-it.js";

// Up to here a paragraph is styled; a longer one is shown as it is. Some inline rules take time by the square of it.
const MAX_INLINE = 8 * 1024;
// A formula over several lines ends within this many, or is none.
const MAX_MATH_LINES = 60;

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

function range(/** @type {number} */ from, /** @type {number} */ to) {
  return Array.from({ length: Math.max(to - from, 0) }, (_, index) => from + index);
}

/** The tokens of `text`, whose lines end in "\n". @returns {any[]} */
export function tokensOf(/** @type {string} */ text) {
  return parser.parse(text, {});
}

/** A text without its escapes and entities. @returns {string} */
export function unescaped(/** @type {string} */ text) {
  return parser.utils.unescapeAll(text);
}
