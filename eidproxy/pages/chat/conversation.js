// The conversation as values: a tree of turns, the way through it that is shown, what is sent of it, what is written into
// a file. Nothing here touches the document, the network or the storage.

/**
 * How a turn ended, when it did not end well: a notice of the page (notices.js).
 * @typedef {{kind: string, requestId: string | null, resume?: boolean, again?: boolean}} Ending
 */

/**
 * One question and its answer. Turns with the same parent are versions of one another: of the question, when it was
 * edited, or of the answer, when it was asked for again.
 *
 * @typedef {object} Turn
 * @property {string} id
 * @property {string} conversation
 * @property {string} owner
 * @property {string | null} parent the turn before it; null for the first
 * @property {number} at when it was asked, in ms since 1970
 * @property {"daily" | "deep"} mode
 * @property {string} question
 * @property {string} answer
 * @property {boolean} refused whether the server refused the question, which is then not sent again
 * @property {Ending | null} notice
 * @property {string | null} tab the tab that is asking now
 * @property {number} beat when that tab last wrote, in ms since 1970
 */

/**
 * @typedef {object} Conversation
 * @property {string} id
 * @property {string} owner
 * @property {string} title given by the person; "" means the first question
 * @property {string} first the beginning of the first question
 * @property {number} created in ms since 1970
 * @property {number} updated in ms since 1970
 * @property {Record<string, string>} chosen of several versions the one that is shown: parent (or "") → turn
 * @property {number | null} deleted when it was deleted; it can be had back for a while
 */

/** @typedef {{message: number, messages: number, total: number}} Caps in Unicode code points, and a number */
/** @typedef {{role: "user" | "assistant", content: string}} Message */

/** The caps of a server that does not tell its own. @type {Caps} */
export const CAPS = { message: 8000, messages: 40, total: 32000 };

export const ALIVE_MS = 6000;
const TITLE_CHARS = 80;

/** A name nobody else has. (randomUUID is there on HTTPS and on this very machine only.) */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @returns {Turn} */
export function newTurn(/** @type {Pick<Turn, "conversation" | "owner" | "parent" | "mode" | "question">} */ begun) {
  return { id: newId(), at: Date.now(), answer: "", refused: false, notice: null, tab: null, beat: 0, ...begun };
}

/** @returns {Conversation} */
export function newConversation(/** @type {string} */ owner) {
  const now = Date.now();
  return { id: newId(), owner, title: "", first: "", created: now, updated: now, chosen: {}, deleted: null };
}

export function titleOf(/** @type {Conversation} */ conversation) {
  return conversation.title || conversation.first;
}

/** The beginning of a question, as a title: one line. */
export function firstWords(/** @type {string} */ question) {
  const line = question.replace(/\s+/g, " ").trim();
  const points = Array.from(line.slice(0, 2 * TITLE_CHARS));
  return points.length <= TITLE_CHARS ? points.join("") : `${points.slice(0, TITLE_CHARS).join("")}…`;
}

/** The versions beside (and with) a turn, the oldest first. */
export function versions(/** @type {Turn[]} */ turns, /** @type {Turn} */ turn) {
  const known = new Set(turns.map(({ id }) => id));
  const place = (/** @type {string | null} */ parent) => (parent !== null && known.has(parent) ? parent : "");
  return turns.filter(({ parent }) => place(parent) === place(turn.parent)).sort(byAge);
}

function byAge(/** @type {Turn} */ one, /** @type {Turn} */ other) {
  return one.at - other.at || (one.id < other.id ? -1 : 1);
}

/** The turns that are shown: from the first on, of several versions the chosen one, else the newest. */
export function path(/** @type {Turn[]} */ turns, /** @type {Record<string, string>} */ chosen) {
  /** @type {Map<string, Turn[]>} */
  const children = new Map();
  const known = new Set(turns.map(({ id }) => id));
  for (const turn of turns.toSorted(byAge)) {
    // One whose parent is lost stands at the beginning: it can be reached, as a version of what does.
    const key = turn.parent !== null && known.has(turn.parent) ? turn.parent : "";
    children.set(key, [...(children.get(key) ?? []), turn]);
  }
  /** @type {Turn[]} */
  const shown = [];
  for (let key = ""; ; ) {
    const here = children.get(key);
    // A turn that is its own forefather, in a file from elsewhere, is met once.
    if (!here || shown.length >= turns.length) return shown;
    const turn = here.find(({ id }) => id === chosen[key]) ?? /** @type {Turn} */ (here.at(-1));
    shown.push(turn);
    key = turn.id;
  }
}

/** The length of `text` in Unicode code points (`length` counts UTF-16 units, so an emoji twice). */
export function codePoints(/** @type {string} */ text) {
  let count = text.length;
  for (let at = 0; at < text.length - 1; at += 1) {
    if ((text.charCodeAt(at) & 0xfc00) === 0xd800 && (text.charCodeAt(at + 1) & 0xfc00) === 0xdc00) count -= 1;
  }
  return count;
}

/** What is left of a text when it is sent: no blanks at its ends, no half of a surrogate pair (JSON has none). */
export function cleaned(/** @type {string} */ text) {
  const trimmed = text.trim();
  return trimmed.toWellFormed ? trimmed.toWellFormed() : trimmed;
}

/** The last `limit` code points. The end of a long answer is what the next turn builds on. */
function tail(/** @type {string} */ text, /** @type {number} */ limit) {
  if (text.length <= limit) return text;
  // Two units are enough for any code point: the rest need not be looked at.
  const points = Array.from(text.slice(-2 * limit));
  return points.length <= limit && text.length <= 2 * limit ? text : `…${points.slice(points.length - limit + 1).join("")}`;
}

/**
 * How many of the earlier turns go with a request that has `messages` already: the newest that fit under the caps, as the
 * index of the first of them. One without an answer or that was refused is no part of what is sent.
 */
function firstSent(/** @type {Turn[]} */ earlier, /** @type {Message[]} */ messages, /** @type {Caps} */ caps) {
  let count = messages.length;
  let total = messages.reduce((sum, { content }) => sum + codePoints(content), 0);
  let first = earlier.length;
  for (let index = earlier.length - 1; index >= 0; index -= 1) {
    const { question, answer } = earlier[index];
    if (!isSent(earlier[index])) continue;
    count += 2;
    total += codePoints(question) + codePoints(tail(answer, caps.message));
    // The first that does not fit ends the list: a conversation with a hole in it would mislead.
    if (count > caps.messages || total > caps.total) break;
    first = index;
  }
  return first;
}

function isSent(/** @type {Turn} */ { refused, answer }) {
  return !refused && answer.trim() !== "";
}

/**
 * The messages of one request: the newest earlier turns that fit under the caps, then the question of `current`; for a
 * continuation also the part of the answer that is there and `request`, which asks for the rest. The roles alternate.
 *
 * @param {Turn[]} earlier
 * @param {Turn} current
 * @param {string | null} request
 * @param {Caps} caps
 */
export function outgoing(earlier, current, request = null, caps = CAPS) {
  /** @type {Message[]} */
  const messages = [{ role: "user", content: current.question }];
  if (request !== null) {
    messages.push({ role: "assistant", content: tail(current.answer, caps.message) });
    messages.push({ role: "user", content: request });
  }
  const sent = earlier.slice(firstSent(earlier, messages, caps)).filter(isSent);
  return [
    ...sent.flatMap(({ question, answer }) => [
      /** @type {Message} */ ({ role: "user", content: question }),
      /** @type {Message} */ ({ role: "assistant", content: tail(answer, caps.message) }),
    ]),
    ...messages,
  ];
}

/** How many turns at the beginning will not go with the next question, even if that is short. */
export function forgotten(/** @type {Turn[]} */ turns, /** @type {Caps} */ caps = CAPS) {
  const first = firstSent(turns, [{ role: "user", content: "" }], caps);
  // What is left out for another reason is no sign of a limit.
  return turns.slice(0, first).some(isSent) ? first : 0;
}

const SHORTEST_OVERLAP = 10;
const LONGEST_OVERLAP = 240;

/** A cut answer and its continuation as one text. Some continuations begin by repeating the last words; once is enough. */
export function joined(/** @type {string} */ part, /** @type {string} */ more) {
  for (let size = Math.min(part.length, more.length, LONGEST_OVERLAP); size >= SHORTEST_OVERLAP; size -= 1) {
    if (part.endsWith(more.slice(0, size))) return part + more.slice(size);
  }
  return part + more;
}

/** What is shown of a conversation, as a Markdown document. */
export function markdownOf(
  /** @type {string} */ title,
  /** @type {Turn[]} */ shown,
  /** @type {{question: string, answer: string}} */ words,
) {
  const blocks = shown.flatMap(({ question, answer }) => {
    const quoted = question.split("\n").map((line) => `> ${line}`.trimEnd());
    return [`**${words.question}**`, quoted.join("\n"), ...(answer ? [`**${words.answer}**`, answer.trim()] : [])];
  });
  return `${[`# ${title}`, ...blocks].join("\n\n")}\n`;
}

/** @typedef {{conversations: Conversation[], turns: Turn[]}} Shelf everything of one person */

const FORMAT = "eid-conversations";

/** Everything of one person as the text of a file. */
export function exported(/** @type {Shelf} */ shelf) {
  const bare = (/** @type {{owner: string}} */ { owner, ...rest }) => rest;
  const turns = shelf.turns.map(({ tab, beat, ...turn }) => bare(turn));
  return JSON.stringify({ format: FORMAT, version: 1, conversations: shelf.conversations.map(bare), turns });
}

/**
 * What such a file holds, for `owner`; null when it is none. Every field is taken by its type and no other field at all:
 * the file comes from anywhere. A conversation or turn that is damaged is left out, and counted.
 *
 * @param {string} text
 * @param {string} owner
 * @returns {(Shelf & {damaged: number}) | null}
 */
export function imported(text, owner) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    return null;
  }
  if (file?.format !== FORMAT || file.version !== 1 || !Array.isArray(file.conversations) || !Array.isArray(file.turns)) return null;
  /** @type {Shelf & {damaged: number}} */
  const found = { conversations: [], turns: [], damaged: 0 };
  for (const one of file.conversations) {
    const conversation = takenConversation(one, owner);
    if (conversation) found.conversations.push({ ...conversation, deleted: null });
    else found.damaged += 1;
  }
  const known = new Set(found.conversations.map(({ id }) => id));
  for (const one of file.turns) {
    const turn = takenTurn(one, owner);
    if (turn && known.has(turn.conversation)) found.turns.push(turn);
    else found.damaged += 1;
  }
  return found;
}

const isId = (/** @type {unknown} */ value) => typeof value === "string" && /^[a-z0-9-]{1,64}$/.test(value);
const textOf = (/** @type {unknown} */ value) => (typeof value === "string" ? value : "");
/** A time that has been; one in the future would stand before all others for ever. */
const timeOf = (/** @type {any} */ value) => (Number.isFinite(value) && value >= 0 ? Math.min(value, Date.now()) : Date.now());

/** A conversation out of a file, or out of a storage somebody may have changed. @returns {Conversation | null} */
export function takenConversation(/** @type {any} */ one, /** @type {string} */ owner) {
  if (!isId(one?.id)) return null;
  const pairs = Object.entries(one.chosen ?? {}).filter(([key, id]) => (key === "" || isId(key)) && isId(id));
  return {
    id: one.id,
    owner,
    title: textOf(one.title).slice(0, 200),
    first: textOf(one.first).slice(0, 200),
    created: timeOf(one.created),
    updated: timeOf(one.updated),
    chosen: Object.fromEntries(/** @type {Array<[string, string]>} */ (pairs)),
    deleted: Number.isFinite(one.deleted) ? one.deleted : null,
  };
}

/** A turn out of a file, or out of a storage somebody may have changed. @returns {Turn | null} */
export function takenTurn(/** @type {any} */ one, /** @type {string} */ owner) {
  if (!isId(one?.id) || !isId(one.conversation) || !(one.parent === null || isId(one.parent))) return null;
  if (typeof one.question !== "string" || typeof one.answer !== "string") return null;
  const ending = typeof one.notice?.kind === "string" ? one.notice : null;
  return {
    id: one.id,
    conversation: one.conversation,
    owner,
    parent: one.parent,
    at: timeOf(one.at),
    mode: one.mode === "deep" ? "deep" : "daily",
    question: one.question,
    answer: one.answer,
    refused: one.refused === true,
    notice: ending && { kind: ending.kind, requestId: typeof ending.requestId === "string" ? ending.requestId : null, resume: ending.resume === true },
    tab: typeof one.tab === "string" ? one.tab : null,
    beat: Number.isFinite(one.beat) ? one.beat : 0,
  };
}
