// Who is logged in. A token lives in the tab's storage and goes when the tab goes, or on the device when the person wants
// to stay logged in there. One is only ever put there after the server has taken it.

const TOKEN = "eid.token";
const JWT = /^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$/;

/** @typedef {{token: string, owner: string, name: string}} Person owner: iss and sub, as one comparable string */

/** Whose token it is by its own word, or null when it is no JWT with a `sub`. Only the server can verify it. */
export function personOf(/** @type {string} */ token) {
  if (!JWT.test(token) || token.length > 4096) return null;
  try {
    const raw = atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"));
    const claims = JSON.parse(new TextDecoder().decode(Uint8Array.from(raw, (byte) => byte.charCodeAt(0))));
    if (typeof claims.sub !== "string" || !claims.sub) return null;
    return { token, owner: JSON.stringify([claims.iss ?? null, claims.sub]), name: claims.sub };
  } catch {
    return null;
  }
}

/** A storage that is not there, or refuses, is as good as an empty one. */
function read(/** @type {"localStorage" | "sessionStorage"} */ where, /** @type {string} */ key) {
  try {
    return window[where].getItem(key);
  } catch {
    return null;
  }
}

function write(/** @type {"localStorage" | "sessionStorage"} */ where, /** @type {string} */ key, /** @type {string | null} */ value) {
  try {
    if (value === null) window[where].removeItem(key);
    else window[where].setItem(key, value);
  } catch {
    // No room, or no storage: then it is gone with the page.
  }
}

/** The person of this tab, or the one who stays logged in on this device. */
export function storedPerson() {
  for (const where of /** @type {const} */ (["sessionStorage", "localStorage"])) {
    const person = personOf(read(where, TOKEN) ?? "");
    if (person) return person;
  }
  return null;
}

/** Who stays logged in on this device. */
export function devicePerson() {
  return personOf(read("localStorage", TOKEN) ?? "");
}

/** Keep an accepted token: in this tab, and with `stay` on the device. */
export function keepToken(/** @type {string} */ token, /** @type {boolean} */ stay) {
  write("sessionStorage", TOKEN, token);
  if (stay) write("localStorage", TOKEN, token);
}

/** Drop the token of `owner`, wherever it is kept. */
export function dropToken(/** @type {string} */ owner) {
  write("sessionStorage", TOKEN, null);
  if (devicePerson()?.owner === owner) write("localStorage", TOKEN, null);
}

/** The tab's own name, which outlives a reload: by it a tab knows what it was doing. */
export function tabName(/** @type {() => string} */ newName) {
  const name = read("sessionStorage", "eid.tab") ?? newName();
  write("sessionStorage", "eid.tab", name);
  return name;
}

/** The conversation this tab showed last. */
export function openConversation() {
  return read("sessionStorage", "eid.open");
}

export function keepOpenConversation(/** @type {string | null} */ id) {
  write("sessionStorage", "eid.open", id);
}

/** A choice that is no secret and outlives a logout: the language, the mode. */
export function preference(/** @type {string} */ name, /** @type {string[]} */ allowed) {
  const value = read("localStorage", `eid.${name}`);
  return value !== null && allowed.includes(value) ? value : null;
}

export function keepPreference(/** @type {string} */ name, /** @type {string} */ value) {
  write("localStorage", `eid.${name}`, value);
}
