// What the server tells the page, beside answers: its caps and its name, and how many questions wait.

import { CAPS } from "./conversation.js";

/** @typedef {{title: string | null, caps: import("./conversation.js").Caps}} Config */

async function get(/** @type {string} */ path) {
  const response = await fetch(path, { headers: { Accept: "application/json" }, redirect: "error" });
  return response.ok ? await response.json() : null;
}

/** The configuration of the server; what it does not tell is as it was when the page was written. */
export async function readConfig() {
  /** @type {any} */
  let told = null;
  try {
    told = await get("/chat/config");
  } catch {
    // Offline, or an older server.
  }
  const cap = (/** @type {unknown} */ value, /** @type {number} */ otherwise) =>
    Number.isInteger(value) && /** @type {number} */ (value) > 0 ? /** @type {number} */ (value) : otherwise;
  /** @type {Config} */
  const config = {
    title: typeof told?.title === "string" && told.title ? told.title : null,
    caps: {
      message: cap(told?.max_message_chars, CAPS.message),
      messages: cap(told?.max_messages, CAPS.messages),
      total: cap(told?.max_total_chars, CAPS.total),
    },
  };
  return config;
}

/** How many questions wait, and for about how many seconds a new one would; null when that is not told. */
export async function readWaiting() {
  try {
    const told = await get("/chat/state");
    if (!Number.isInteger(told?.waiting) || told.waiting < 0) return null;
    return { waiting: /** @type {number} */ (told.waiting), seconds: Number.isFinite(told.eta_seconds) ? /** @type {number} */ (told.eta_seconds) : null };
  } catch {
    return null;
  }
}
