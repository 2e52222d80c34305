// What is said while an answer is awaited: one line, or a card while it waits for its turn; with a clock beside it.

import { $, element, fill } from "./dom.js";

/** @typedef {import("./run.js").Run} Run */
/** @typedef {typeof import("./strings.ko.js").default} Words */

const TICK_MS = 500;
// A clock that has only just begun says nothing.
const CLOCK_FROM_SECONDS = 3;

export class Progress {
  /** @type {Run | null} */
  #run = null;

  /** @param {() => Words} words */
  constructor(words) {
    this.words = words;
    $("now").addEventListener("click", () => this.#run?.now());
    setInterval(() => this.#tick(), TICK_MS);
  }

  draw(/** @type {Run | null} */ run) {
    this.#run = run;
    const words = this.words();
    const waiting = run?.waiting ?? false;
    $("progress").className = `progress${run ? " shown" : ""}${waiting ? " waiting" : ""}`;
    $("stop").textContent = waiting ? words.page.cancel : words.page.stop;
    $("now").hidden = !(run?.phase === "cold" && run.retryAt);
    const status = $("status");
    if (run === null) {
      status.replaceChildren();
      delete status.dataset.shown;
    } else {
      const { title, body } = words.states[run.phase === "cold" && !run.retryAt ? "cold_now" : run.phase];
      // Seconds that run down are not part of what is read out: they stand beside it.
      const read = body.includes("{s}") ? "" : fill(body, { n: run.position ?? "" });
      const shown = `${title}\n${read}`;
      if (status.dataset.shown !== shown) {
        status.replaceChildren(element("b", { text: title }), read);
        status.dataset.shown = shown;
      }
    }
    this.#tick();
  }

  #tick() {
    put($("timing"), this.#timing());
    put($("clock"), this.#clock());
  }

  /** When it will begin, or ask again. */
  #timing() {
    const run = this.#run;
    const { eta, states } = this.words();
    const left = (/** @type {number} */ time) => Math.ceil((time - Date.now()) / 1000);
    if (run?.phase === "cold" && run.retryAt) return fill(states.cold.body, { s: Math.max(left(run.retryAt), 1) });
    if ((run?.phase !== "queued" && run?.phase !== "next") || run.startsAt === null) return "";
    const seconds = left(run.startsAt);
    if (seconds < 2) return eta.soon;
    if (seconds < 60) return fill(eta.seconds, { n: seconds });
    return fill(eta.minutes, { n: Math.ceil(seconds / 60) });
  }

  /** For how long it is being thought about. */
  #clock() {
    const run = this.#run;
    if ((run?.phase !== "thinking" && run?.phase !== "reasoning") || run.since === null) return "";
    const seconds = Math.floor((Date.now() - run.since) / 1000);
    const { page } = this.words();
    if (seconds < CLOCK_FROM_SECONDS) return "";
    if (seconds < 60) return fill(page.clock, { n: seconds });
    return fill(page.clock_minutes, { m: Math.floor(seconds / 60), n: seconds % 60 });
  }
}

function put(/** @type {HTMLElement} */ where, /** @type {string} */ text) {
  if (where.textContent !== text) where.textContent = text;
}
