// What stands round the conversation: the fixed words, the title of the tab, what waits, what is wrong with the storage.

import { $, fill } from "./dom.js";

/** @typedef {typeof import("./strings.ko.js").default} Words */

function put(/** @type {string} */ id, /** @type {string} */ text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

/** Set every fixed text of the page. */
export function drawWords(/** @type {Words} */ { page, buttons, language }, /** @type {string | null} */ title) {
  const words = /** @type {Record<string, string>} */ (page);
  const all = (/** @type {string} */ kind) => /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(`[data-${kind}]`));
  document.documentElement.lang = language;
  put("brand", title ?? page.name);
  for (const one of all("text")) one.textContent = words[one.dataset.text ?? ""];
  for (const one of all("button")) one.textContent = /** @type {Record<string, string>} */ (buttons)[one.dataset.button ?? ""];
  for (const one of all("label")) one.setAttribute("aria-label", words[one.dataset.label ?? ""]);
  for (const one of all("hint")) /** @type {HTMLInputElement} */ (one).placeholder = words[one.dataset.hint ?? ""];
  $("language").lang = language === "ko" ? "en" : "ko";
}

/** What the tab says to someone who has gone elsewhere. */
export function drawTitle(/** @type {Words} */ { page }, /** @type {string | null} */ title, /** @type {"⏳ " | "✓ " | ""} */ mark) {
  document.title = mark + fill(page.title, { name: title ?? page.name });
}

/** Who is here, and whether there is a conversation. */
export function drawHead(
  /** @type {Words} */ { page },
  /** @type {{name: string | null, loggedIn: boolean, empty: boolean}} */ { name, loggedIn, empty },
) {
  $("welcome").hidden = !empty;
  $("fresh").hidden = empty;
  $("welcome-login").hidden = loggedIn;
  put("account", loggedIn ? page.logout : page.login);
  $("account").title = loggedIn ? (name ?? "") : "";
  $("menu").hidden = name === null;
}

/** Why nothing is kept. */
export function drawTrouble(/** @type {Words} */ { page }, /** @type {"unavailable" | "newer" | "full" | null} */ trouble) {
  const told = { unavailable: page.kept_not, newer: page.kept_newer, full: page.kept_full };
  put("trouble", trouble ? told[trouble] : "");
  put("kept", trouble ? "" : page.kept_here);
}

/** How many wait, and how long it would take, before one asks. */
export function drawWaiting(/** @type {Words} */ { page }, /** @type {import("./server.js").Waiting | null} */ state) {
  const { waiting, seconds } = state ?? { waiting: 0, seconds: null };
  let text = "";
  if (waiting || (seconds ?? 0) >= 1) {
    text = waiting ? fill(page.waiting, { n: waiting }) : page.waiting_none;
    if (seconds !== null && seconds < 60) text += fill(page.waiting_seconds, { n: Math.max(1, Math.ceil(seconds)) });
    else if (seconds !== null) text += fill(page.waiting_minutes, { n: Math.ceil(seconds / 60) });
  }
  put("queue", text);
}
