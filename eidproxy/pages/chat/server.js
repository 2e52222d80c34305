// What the server tells the page, beside answers: its caps and its name, whether it takes a token, how many questions wait.

import { CAPS } from "./conversation.js";

/** @typedef {{title: string | null, caps: import("./conversation.js").Caps}} Config */

const PATIENCE_MS = 15_000;

function get(/** @type {string} */ path, /** @type {Record<string, string>} */ headers = {}) {
  return fetch(path, { headers: { Accept: "application/json", ...headers }, redirect: "error", signal: AbortSignal.timeout(PATIENCE_MS) });
}

/** The configuration of the server; what it does not tell is as it was when the page was written. */
export async function readConfig() {
  /** @type {any} */
  let told = null;
  try {
    const response = await get("/chat/config");
    told = response.ok ? await response.json() : null;
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

/** @typedef {{waiting: number, seconds: number | null}} Waiting */

/**
 * Whether the server takes a token, and if so what waits: how many questions, and for about how many seconds a new one
 * would. "unknown" when the server could not be asked.
 *
 * @param {string} token
 * @returns {Promise<Waiting | "refused" | "unknown">}
 */
export async function readState(token) {
  try {
    const response = await get("/chat/state", { Authorization: `Bearer ${token}` });
    if (response.status === 401) return "refused";
    if (!response.ok) return "unknown";
    const { waiting, eta_seconds: eta } = await response.json();
    return { waiting: Number.isInteger(waiting) ? waiting : 0, seconds: Number.isFinite(eta) ? eta : null };
  } catch {
    return "unknown";
  }
}
