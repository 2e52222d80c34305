// What the page says about an ending: the server's reason → a notice of the page, and what its buttons do.

/** @typedef {{buttons: string[], refused?: boolean, seconds?: number, again?: boolean, quiet?: boolean}} Notice */

/**
 * Every notice: `buttons` name actions of the page (the first is the main one), `refused` keeps the exchange out of
 * what is sent later, `seconds` is the wait when the server gave none, `again` means that the page tries again itself.
 * The words are in the dictionaries, under the same names.
 *
 * @type {Record<string, Notice>}
 */
export const NOTICES = {
  queue_full: { buttons: ["retry"], seconds: 10 },
  wait_timeout: { buttons: ["retry"] },
  overloaded: { buttons: ["retry"], seconds: 5 },
  busy: { buttons: ["retry"] },
  deep_unavailable: { buttons: ["daily", "retry"] },
  unavailable: { buttons: ["retry"] },
  warming: { buttons: ["retry"], seconds: 10, again: true },
  cold: { buttons: ["retry"], seconds: 15, again: true },
  not_configured: { buttons: ["other"] },
  connect: { buttons: ["retry"] },
  answer_failed: { buttons: ["retry"] },
  not_started: { buttons: ["retry"] },
  wedged: { buttons: ["retry"], seconds: 30 },
  cut: { buttons: ["resume"] },
  cut_empty: { buttons: ["retry"] },
  too_slow: { buttons: ["resume"] },
  restarting: { buttons: ["retry"] },
  unknown_mode: { buttons: [], refused: true },
  invalid: { buttons: ["edit"], refused: true },
  too_long: { buttons: ["edit"], refused: true },
  too_long_in_all: { buttons: ["edit", "fresh"], refused: true },
  too_many: { buttons: ["fresh"], refused: true },
  context_too_long: { buttons: ["edit", "fresh"], refused: true },
  cross_site: { buttons: [] },
  login: { buttons: ["login"] },
  login_expired: { buttons: ["login"] },
  offline: { buttons: ["retry"] },
  unready: { buttons: ["retry"] },
  unknown: { buttons: ["retry"] },
  stopped: { buttons: ["resume", "again"], quiet: true },
};

/** @type {Record<string, string>} */
const KINDS = {
  gate_queue_full: "queue_full",
  gate_wait_timeout: "wait_timeout",
  gate_unavailable: "connect",
  overloaded: "overloaded",
  editor_busy: "busy",
  warming: "warming",
  upstream_cold: "cold",
  provider_not_configured: "not_configured",
  unreachable: "connect",
  request_timeout: "connect",
  router_ConnectError: "connect",
  router_ConnectTimeout: "connect",
  router_ReadError: "connect",
  router_WriteError: "connect",
  router_WriteTimeout: "connect",
  router_RemoteProtocolError: "connect",
  router_ReadTimeout: "not_started",
  upstream_silent: "not_started",
  upstream_wedged: "wedged",
  upstream_error: "answer_failed",
  upstream_protocol_error: "answer_failed",
  upstream_502: "answer_failed",
  router_503: "answer_failed",
  router_error: "answer_failed",
  upstream_truncated: "cut",
  stream_deadline_exceeded: "too_slow",
  draining: "restarting",
  model_not_found: "unknown_mode",
  invalid_request: "invalid",
  invalid_json: "invalid",
  unsupported_field: "invalid",
  unsupported_content: "invalid",
  unsupported_media_type: "invalid",
  headers_too_large: "invalid",
  system_role_forbidden: "invalid",
  message_too_long: "too_long",
  conversation_too_long: "too_long_in_all",
  body_too_large: "too_long",
  prompt_too_long: "too_long_in_all",
  context_too_long: "context_too_long",
  too_many_turns: "too_many",
  cross_site: "cross_site",
  host_not_allowed: "cross_site",
  unauthorized: "login",
  rules_missing: "unready",
  router_rejected: "unready",
  egress_blocked: "unready",
  offline: "offline",
};

// Something between the page and the server answered in its place, without a reason of ours.
/** @type {Record<number, string>} */
const BY_STATUS = { 400: "invalid", 401: "login", 413: "too_long", 422: "invalid", 502: "connect", 503: "connect", 504: "connect" };

/**
 * The notice for an outcome of `ask`, or null for a whole answer. `mode` is what was asked, `hasText` says whether some
 * of the answer came, `resume` whether it was to continue a part that is there, `wasAccepted` whether the server took the
 * token before.
 *
 * @param {import("./answer.js").Outcome} outcome
 * @param {{mode: string, hasText: boolean, resume: boolean, wasAccepted: boolean}} asked
 * @returns {string | null}
 */
export function noticeOf(outcome, { mode, hasText, resume, wasAccepted }) {
  const hasPart = hasText || resume;
  if (outcome.end === "stopped") return "stopped";
  if (outcome.end === "cut") return hasPart ? "cut" : navigator.onLine ? "cut_empty" : "offline";
  if (outcome.end === "done") {
    if (outcome.finish === "length" && hasText) return "too_slow";
    return hasPart ? null : "answer_failed";
  }
  const { reason, status } = outcome;
  let kind = Object.hasOwn(KINDS, reason ?? "") ? KINDS[reason ?? ""] : null;
  // The machine behind a mode has a name of its own in the reason; it is no business of this page.
  if (kind === null && /^[a-z0-9_]+_unavailable$/.test(reason ?? "")) kind = mode === "deep" ? "deep_unavailable" : "unavailable";
  // What the router refused so is refused again, until the operator has mended it.
  if (kind === null && /^router_http_(?:401|403|404|405|413|415|422)$/.test(reason ?? "")) kind = "unready";
  if (kind === null && /^router_http_\d+$/.test(reason ?? "")) kind = "answer_failed";
  if (kind === null && reason === null) kind = BY_STATUS[status] ?? null;
  kind ??= "unknown";
  if (kind === "login" && wasAccepted) return "login_expired";
  if (hasText && ["connect", "not_started", "wedged"].includes(kind)) return "cut";
  if (!hasPart && (kind === "cut" || kind === "too_slow")) return "cut_empty";
  return kind;
}
