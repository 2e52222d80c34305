// Who is logged in, and the conversation kept on this device.
//
// The token lives in sessionStorage: it goes when the tab goes. The conversation lives in localStorage beside the `iss`
// and `sub` of its token, and is only ever given back to a token with the same two.

const TOKEN = "eid.token";
const ACCEPTED = "eid.accepted";
const CONVERSATION = "eid.conversation";
const JWT = /^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$/;

/** Whose token it is, as one comparable string, or null when it is no JWT with a `sub`. Only the server can verify it. */
export function ownerOf(token) {
  if (!JWT.test(token) || token.length > 4096) return null;
  try {
    const raw = atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"));
    const claims = JSON.parse(new TextDecoder().decode(Uint8Array.from(raw, (byte) => byte.charCodeAt(0))));
    return typeof claims.sub === "string" && claims.sub ? JSON.stringify([claims.iss ?? null, claims.sub]) : null;
  } catch {
    return null;
  }
}

export function storedToken() {
  return sessionStorage.getItem(TOKEN);
}

export function keepToken(token) {
  sessionStorage.setItem(TOKEN, token);
  sessionStorage.removeItem(ACCEPTED);
}

/** Drop the token. That the server once took one is remembered when it has merely run out. */
export function dropToken({ expired = false } = {}) {
  sessionStorage.removeItem(TOKEN);
  if (!expired) sessionStorage.removeItem(ACCEPTED);
}

export function wasAccepted() {
  return sessionStorage.getItem(ACCEPTED) === "1";
}

export function markAccepted() {
  sessionStorage.setItem(ACCEPTED, "1");
}

/** The exchanges kept for `owner`; those of anyone else are removed. */
export function loadExchanges(owner) {
  let kept = null;
  try {
    kept = JSON.parse(localStorage.getItem(CONVERSATION));
  } catch {
    // Not ours, or damaged: as good as none.
  }
  if (kept?.owner !== owner || !Array.isArray(kept.exchanges)) {
    localStorage.removeItem(CONVERSATION);
    return [];
  }
  return kept.exchanges.filter((one) => typeof one?.question === "string" && typeof one.answer === "string");
}

/** Keep the exchanges. When the device has no room, the oldest are not kept. */
export function saveExchanges(owner, exchanges) {
  for (let kept = exchanges; ; kept = kept.slice(Math.ceil(kept.length / 2))) {
    try {
      localStorage.setItem(CONVERSATION, JSON.stringify({ owner, exchanges: kept }));
      return;
    } catch {
      if (kept.length === 0) return;
    }
  }
}

export function removeExchanges() {
  localStorage.removeItem(CONVERSATION);
}

/** Call `gone` when another tab logged out or belongs to somebody else now. */
export function watchOtherTabs(owner, gone) {
  addEventListener("storage", ({ key, newValue }) => {
    if (key !== CONVERSATION && key !== null) return;
    let other = null;
    try {
      other = JSON.parse(newValue)?.owner ?? null;
    } catch {
      // Damaged: treated like removed.
    }
    if (owner() !== null && other !== owner()) gone();
  });
}

/** A choice that is no secret and outlives a logout: the language, the mode. */
export function preference(name, allowed) {
  const value = localStorage.getItem(`eid.${name}`);
  return allowed.includes(value) ? value : null;
}

export function keepPreference(name, value) {
  try {
    localStorage.setItem(`eid.${name}`, value);
  } catch {
    // No room: then it is chosen again next time.
  }
}
