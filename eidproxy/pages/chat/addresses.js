// Bare addresses in a text: GFM 6.9, for readers of Korean. https://…, http://…, www.… and mailboxes are links; a word with
// a dot in it ("index.js") is none. Each pattern takes time by the length of the text alone.

/** @typedef {{start: number, end: number, href: string}} Address where it stands, and where it leads */

// An address ends at a blank, at <, and at a mark of another script: 「…/a」.
const REST = /[^\s<\u2010-\u201f\u2026\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]+/y;
const HOST = /(?:[\p{L}\p{N}_-]+\.)*[\p{L}\p{N}_-]+/uy;
const MARKS = /[?!.,:;*_~"']+$/;
// A particle follows without a blank: …/a에서, (…/a)을. Hangul after a / or = belongs to the address.
const PARTICLE = /(?<=[A-Za-z0-9)\]"'!?,;:*~])[\uac00-\ud7a3]+$/;
const ENTITY = /&[A-Za-z0-9]+;$/;
const FOUND = /(?<![A-Za-z0-9.@/_-])www\.|(?<![A-Za-z0-9.+_-])[A-Za-z0-9.+_-]+@[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)+/gi;

/** Where an address ends whose host begins at `start`; null when no host is there. A short host has no dot. */
export function endOf(/** @type {string} */ text, /** @type {number} */ start, short = true) {
  const host = matched(HOST, text, start) ?? "";
  const named = host.replace(PARTICLE, "");
  const labels = named.split(".");
  if (named === "" || (labels.length < 2 && !short) || labels.slice(-2).some((label) => label.includes("_"))) return null;
  if (!/[/?#:@]/.test(text[start + host.length] ?? "")) return start + named.length;
  return start + trimmed(matched(REST, text, start) ?? "").length;
}

/** Addresses that are not begun by a scheme. @returns {Address[]} */
export function addresses(/** @type {string} */ text) {
  /** @type {Address[]} */
  const found = [];
  let last = 0;
  for (const { 0: word, index } of text.matchAll(FOUND)) {
    if (index < last) continue;
    const end = word.includes("@") ? endOfMailbox(word, index) : endOf(text, index, false);
    if (end === null) continue;
    const address = text.slice(index, end);
    found.push({ start: index, end, href: word.includes("@") ? `mailto:${address}` : `http://${address}` });
    last = end;
  }
  return found;
}

function matched(/** @type {RegExp} */ pattern, /** @type {string} */ text, /** @type {number} */ at) {
  pattern.lastIndex = at;
  return pattern.exec(text)?.[0] ?? null;
}

/** A dot at the end is that of the sentence; with - or _ at its end it is no mailbox. */
function endOfMailbox(/** @type {string} */ word, /** @type {number} */ start) {
  return /[-_]$/.test(word) ? null : start + word.length;
}

/** Without what belongs to the sentence: marks, a bracket that was opened before, a particle. */
function trimmed(/** @type {string} */ address) {
  let end = address;
  let unopened = count(end, ")") - count(end, "(");
  for (;;) {
    const before = end;
    if (end.endsWith(")")) {
      if (unopened <= 0) return end;
      end = end.slice(0, -1);
      unopened -= 1;
    } else {
      end = end.replace(end.endsWith(";") && ENTITY.test(end) ? ENTITY : MARKS, "").replace(PARTICLE, "");
    }
    if (end === before) return end;
  }
}

function count(/** @type {string} */ text, /** @type {string} */ mark) {
  return text.split(mark).length - 1;
}
