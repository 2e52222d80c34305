// One question to the server and its answer: fetch, the event stream, and how it ended.

import { createParser } from "./vendor/eventsource-parser.js";

const MAX_EVENT_CHARS = 2 * 1024 * 1024;
const REQUEST_ID = /^[A-Za-z0-9._-]{1,128}$/;

/**
 * @typedef {{end: "done", finish: string | null} | {end: "cut"} | {end: "stopped"} | Failure} Outcome
 * @typedef {{end: "failed", reason: string | null, status: number, retrySeconds: number | null, requestId: string | null}} Failure
 * @typedef {{state?: unknown, position?: unknown, eta_seconds?: unknown, elapsed_seconds?: unknown}} Progress
 */

/**
 * Ask, and resolve (never reject) with how it ended:
 *
 * - `{end: "done", finish}`: whole; `finish` is the finish reason.
 * - `{end: "cut"}`: the stream broke off, or ended with neither `[DONE]` nor an error event.
 * - `{end: "stopped"}`: `signal` was aborted.
 * - `{end: "failed", reason, status, retrySeconds, requestId}`: refused, or an error event.
 *
 * `progress({state, position, eta_seconds, elapsed_seconds})` and `text(piece)` are called as they come.
 *
 * @param {{token: string, mode: string, messages: Array<{role: string, content: string}>, signal: AbortSignal,
 *   progress: (news: Progress) => void, text: (piece: string) => void}} request
 * @returns {Promise<Outcome>}
 */
export async function ask({ token, mode, messages, signal, progress, text }) {
  let response;
  try {
    response = await fetch("/api/eid/chat", {
      method: "POST",
      headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json", Accept: "text/event-stream" },
      body: JSON.stringify({ mode, messages }),
      cache: "no-store",
      redirect: "error",
      signal,
    });
  } catch {
    return signal.aborted ? { end: "stopped" } : unreachable();
  }
  const type = response.headers.get("Content-Type") ?? "";
  if (response.ok && response.body && type.startsWith("text/event-stream")) return read(response.body, { signal, progress, text });
  return refusal(response, signal);
}

/**
 * Read an event stream (a ReadableStream of bytes, cut anywhere) to its end; resolves as `ask` does.
 *
 * @param {ReadableStream<Uint8Array>} body
 * @param {{signal?: AbortSignal, progress: (news: Progress) => void, text: (piece: string) => void}} to
 * @returns {Promise<Outcome>}
 */
export async function read(body, { signal, progress, text }) {
  /** @type {string | null} */
  let finish = null;
  /** @type {Outcome | null} */
  let outcome = null;

  /** @returns {Outcome | null} */
  function take(/** @type {{event?: string, data: string}} */ { event, data }) {
    if (data === "[DONE]") return { end: "done", finish };
    let payload;
    try {
      payload = JSON.parse(data);
    } catch {
      // The server sends no such event; it is the piece of one that the end of a broken stream left behind.
      return null;
    }
    if (payload === null || typeof payload !== "object") return null;
    if (event === "error" || payload.error) return failure(payload, { status: 200, retry: null, id: null });
    if (payload.eid && typeof payload.eid === "object") progress(payload.eid);
    const choice = Array.isArray(payload.choices) ? payload.choices[0] : null;
    const delta = choice?.delta ?? {};
    // What a model thinks before it answers is not part of the answer: neither shown nor kept. That it thinks is news.
    if (typeof delta.reasoning_content === "string" && delta.reasoning_content) progress({ state: "thinking" });
    for (const piece of [delta.content, delta.refusal]) if (typeof piece === "string" && piece) text(piece);
    if (typeof choice?.finish_reason === "string") finish = choice.finish_reason;
    return null;
  }

  const decoder = new TextDecoder();
  const parser = createParser({
    maxBufferSize: MAX_EVENT_CHARS,
    onEvent: (/** @type {{event?: string, data: string}} */ event) => {
      outcome ??= take(event);
    },
  });
  const reader = body.getReader();
  try {
    while (outcome === null) {
      const { done, value } = await reader.read();
      parser.feed(decoder.decode(value, { stream: !done }));
      if (!done) continue;
      // Flush: a last event whose blank line never came still counts when it is whole.
      parser.feed("\n\n");
      return outcome ?? { end: "cut" };
    }
    drain(reader);
    return outcome;
  } catch {
    reader.cancel().catch(() => {});
    return signal?.aborted ? { end: "stopped" } : { end: "cut" };
  }
}

/** The answer is whole, but the body has not ended yet: read it out, so that the server sees a caller that stayed. */
async function drain(/** @type {ReadableStreamDefaultReader} */ reader) {
  try {
    while (!(await reader.read()).done);
  } catch {
    // Nothing that happens after the end matters.
  }
}

/** An answer that is not an event stream. The body is ours, or that of something in between. */
async function refusal(/** @type {Response} */ response, /** @type {AbortSignal} */ signal) {
  let payload = null;
  try {
    payload = await response.json();
  } catch {
    if (signal.aborted) return /** @type {const} */ ({ end: "stopped" });
  }
  return failure(payload, {
    status: response.status,
    retry: response.headers.get("Retry-After"),
    id: response.headers.get("X-Request-Id"),
  });
}

/** @param {any} payload @param {{status: number, retry: string | null, id: string | null}} head @returns {Failure} */
function failure(payload, { status, retry, id }) {
  const requestId = [payload?.request_id, id].find((word) => typeof word === "string" && REQUEST_ID.test(word));
  const seconds = retry !== null && /^\d{1,4}$/.test(retry) ? Math.min(Number(retry), 60) : null;
  const reason = typeof payload?.error_reason === "string" ? payload.error_reason : (payload?.error?.code ?? null);
  return { end: "failed", reason, status, retrySeconds: seconds, requestId: requestId ?? null };
}

/** @returns {Failure} */
function unreachable() {
  const reason = navigator.onLine ? "unreachable" : "offline";
  return { end: "failed", reason, status: 0, retrySeconds: null, requestId: null };
}
