// One question under way: asking, waiting, asking again while something is made ready, until there is an answer or a
// reason why not. It knows nothing of the page; whoever starts it is told of every change.

import { ask } from "./answer.js";
import { NOTICES, noticeOf } from "./notices.js";

/** @typedef {import("./conversation.js").Turn} Turn */
/** @typedef {import("./answer.js").Outcome} Outcome */
/** @typedef {"thinking" | "queued" | "next" | "reasoning" | "streaming" | "warming" | "cold"} Phase */

// How long it goes on asking again by itself while a model is being made ready.
const PATIENCE_MS = 5 * 60_000;

export class Run {
  /** @type {Phase} */
  phase = "thinking";
  text = "";
  /** @type {number | null} how many are before it, itself counted */
  position = null;
  /** @type {number | null} when it will begin, as it is guessed: in ms since 1970; it is never guessed later again */
  startsAt = null;
  /** @type {number | null} since when it is thought about: in ms since 1970 */
  since = null;
  /** @type {number | null} when it asks again */
  retryAt = null;
  /** @type {(() => void) | null} */
  #wake = null;
  #controller = new AbortController();

  /**
   * @param {Turn} turn whose question is asked
   * @param {{mode: "daily" | "deep", resume: boolean, again: boolean}} way to ask for the rest; to ask once more
   * @param {{change: () => void, text: () => void}} told
   */
  constructor(turn, way, told) {
    this.turn = turn;
    this.way = way;
    this.told = told;
  }

  get waiting() {
    return ["queued", "next", "warming", "cold"].includes(this.phase);
  }

  stop() {
    this.#controller.abort();
  }

  /** Ask again now, without waiting longer. */
  now() {
    this.#wake?.();
  }

  /**
   * @param {string} token
   * @param {Array<{role: string, content: string}>} messages
   * @returns {Promise<{kind: string | null, outcome: Outcome}>} the notice to show, or null for a whole answer
   */
  async answer(token, messages) {
    const patienceEnds = Date.now() + PATIENCE_MS;
    for (;;) {
      const outcome = await ask({
        token,
        mode: this.way.mode,
        messages,
        signal: this.#controller.signal,
        progress: (news) => this.#hear(news),
        text: (piece) => this.#read(piece),
      });
      const hasText = this.text !== "";
      const kind = noticeOf(outcome, { mode: this.way.mode, hasText, resume: this.way.resume, wasAccepted: true });
      const notice = kind === null ? null : NOTICES[kind];
      if (kind === null || !notice?.again || hasText || Date.now() > patienceEnds) return { kind, outcome };
      this.phase = /** @type {Phase} */ (kind);
      const seconds = outcome.end === "failed" ? outcome.retrySeconds : null;
      if (!(await this.#pause(seconds ?? notice.seconds ?? 10))) return { kind: "stopped", outcome: { end: "stopped" } };
    }
  }

  /** @param {import("./answer.js").Progress} news */
  #hear({ state, position, eta_seconds: eta, elapsed_seconds: elapsed }) {
    if (this.text !== "") return;
    const since = Date.now() - (typeof elapsed === "number" && elapsed > 0 ? elapsed * 1000 : 0);
    if (state === "queued") {
      this.position = Number.isInteger(position) ? /** @type {number} */ (position) : null;
      this.phase = this.position !== null && this.position > 1 ? "queued" : "next";
      const starts = typeof eta === "number" && Number.isFinite(eta) ? Date.now() + eta * 1000 : null;
      if (starts !== null) this.startsAt = Math.min(starts, this.startsAt ?? Infinity);
    } else if (state === "upstream" || state === "thinking") {
      // While something is made ready, the answer that it is not ready yet also begins so.
      if (this.phase === "warming" || this.phase === "cold") return;
      if (state === "thinking" && this.phase === "reasoning" && elapsed === undefined) return;
      this.phase = state === "thinking" || this.phase === "reasoning" ? "reasoning" : "thinking";
      this.since = Math.min(since, this.since ?? Infinity);
    }
    this.told.change();
  }

  #read(/** @type {string} */ piece) {
    this.text += piece;
    const first = this.phase !== "streaming";
    this.phase = "streaming";
    this.told.text();
    if (first) this.told.change();
  }

  /** Wait before asking again; false when the person stopped it. */
  #pause(/** @type {number} */ seconds) {
    const { signal } = this.#controller;
    if (signal.aborted) return Promise.resolve(false);
    this.retryAt = Date.now() + seconds * 1000;
    this.told.change();
    return new Promise((/** @type {(goOn: boolean) => void} */ resolve) => {
      const end = (/** @type {boolean} */ goOn) => {
        clearTimeout(timer);
        this.retryAt = null;
        this.#wake = null;
        this.told.change();
        resolve(goOn);
      };
      const timer = setTimeout(() => end(true), seconds * 1000);
      this.#wake = () => end(true);
      signal.addEventListener("abort", () => end(false), { once: true });
    });
  }
}
