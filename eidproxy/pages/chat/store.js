// What is kept on this device: conversations and their turns, of every person who chats here, in IndexedDB. A person is
// given what is theirs alone. Nothing of it ever leaves the device.
//
// Every turn is a record of its own and only the tab that asks writes it, so tabs that ask side by side add to one another.
// A conversation's own record is changed within one transaction, which the browser runs one after the other.

import { takenConversation, takenTurn } from "./conversation.js";

/** @typedef {import("./conversation.js").Turn} Turn */
/** @typedef {import("./conversation.js").Conversation} Conversation */
/** @typedef {import("./conversation.js").Shelf} Shelf */

/**
 * Why nothing is kept: the browser keeps nothing (a private window may), or a newer page than this one wrote it.
 * @typedef {"unavailable" | "newer"} Trouble
 */

/**
 * A turn on its way into the store: the conversation it begins there, and which of its versions is shown.
 * @typedef {{turn: Turn, begun: Conversation | null, chosen: string}} Rescue
 */

/** What other tabs are told. @typedef {{owner: string, conversation: string | null, gone?: boolean}} News */

const NAME = "eid";
const VERSION = 1;
// What the page kept before it had a list: one conversation, in localStorage.
const OLD = "eid.conversation";
const RESCUED = "eid.rescued";

/** @template T @param {IDBRequest<T>} request @returns {Promise<T>} */
function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** @param {IDBTransaction} transaction @returns {Promise<void>} */
function finished(transaction) {
  // Without it the end of a tab would undo what was written last.
  transaction.commit();
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error ?? new DOMException("aborted", "AbortError"));
  });
}

/** All records of an owner: a key is [owner, …], and a list sorts behind every string. */
function ofOwner(/** @type {string} */ owner, /** @type {string[]} */ ...more) {
  return IDBKeyRange.bound([owner, ...more], [owner, ...more, []]);
}

/** @returns {Promise<IDBDatabase>} */
function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: ["owner", "id"] });
      request.result.createObjectStore("turns", { keyPath: ["owner", "conversation", "id"] });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new DOMException("blocked", "AbortError"));
  });
}

/** Open the store; when the browser keeps nothing, one that lasts as long as the tab. */
export async function openStore() {
  try {
    return new Store(await open(), null);
  } catch (error) {
    return new Store(null, error instanceof DOMException && error.name === "VersionError" ? "newer" : "unavailable");
  }
}

/** @returns {Rescue[]} */
function rescued() {
  try {
    const found = JSON.parse(localStorage.getItem(RESCUED) ?? "[]");
    return Array.isArray(found) ? found.filter((one) => one !== null && typeof one === "object") : [];
  } catch {
    return [];
  }
}

function keepRescued(/** @type {Rescue[]} */ entries) {
  try {
    if (entries.length) localStorage.setItem(RESCUED, JSON.stringify(entries));
    else localStorage.removeItem(RESCUED);
  } catch {
    // No room there: a very long answer has what was written of it before.
  }
}

export class Store {
  /** @type {IDBDatabase | null} */
  #database;
  #channel = typeof BroadcastChannel === "undefined" ? null : new BroadcastChannel(NAME);
  // What the tab keeps when the browser does not.
  /** @type {Map<string, Conversation>} */
  #conversations = new Map();
  /** @type {Map<string, Turn>} */
  #turns = new Map();

  /** @param {IDBDatabase | null} database @param {Trouble | null} trouble */
  constructor(database, trouble) {
    this.#database = database;
    this.trouble = trouble;
    if (database === null) return;
    // Another tab has a newer page, or the browser took the storage away: what is written from now on would be lost.
    database.onversionchange = () => this.#lose("newer");
    database.onclose = () => this.#lose("unavailable");
  }

  #lose(/** @type {Trouble} */ trouble) {
    this.#database?.close();
    this.#database = null;
    this.trouble = trouble;
  }

  /**
   * The conversations of `owner`, the one used last first; with `deleted` also those that can still be had back. A record
   * that is damaged is passed over, and stays.
   */
  async conversations(/** @type {string} */ owner, deleted = false) {
    /** @type {Conversation[]} */
    let found = [...this.#conversations.values()].filter((one) => one.owner === owner);
    if (this.#database) {
      const records = await result(this.#database.transaction("conversations").objectStore("conversations").getAll(ofOwner(owner)));
      found = records.map((one) => takenConversation(one, owner)).filter((one) => one !== null);
    }
    return found.filter((one) => deleted || one.deleted === null).sort((one, other) => other.updated - one.updated);
  }

  /** @returns {Promise<Conversation | null>} */
  async conversation(/** @type {string} */ owner, /** @type {string} */ id) {
    if (!this.#database) return this.#conversations.get(id) ?? null;
    return takenConversation(await result(this.#database.transaction("conversations").objectStore("conversations").get([owner, id])), owner);
  }

  /** The turns of one conversation, or all turns of `owner`. A record that is damaged is passed over, and stays. */
  async turns(/** @type {string} */ owner, /** @type {string | null} */ conversation = null) {
    if (!this.#database) {
      const mine = [...this.#turns.values()].filter((one) => one.owner === owner);
      return mine.filter((one) => conversation === null || one.conversation === conversation);
    }
    const range = conversation === null ? ofOwner(owner) : ofOwner(owner, conversation);
    const found = await result(this.#database.transaction("turns").objectStore("turns").getAll(range));
    return found.map((one) => takenTurn(one, owner)).filter((one) => one !== null);
  }

  /**
   * The conversations of `owner` in whose turns a text occurs, in any letter case. Read one by one: all at once could be
   * more than the tab can hold.
   *
   * @param {string} owner @param {string} text @param {AbortSignal} signal ends the search
   * @returns {Promise<Set<string>>}
   */
  async search(owner, text, signal) {
    const needle = text.toLowerCase();
    /** @type {Set<string>} */
    const found = new Set();
    const look = (/** @type {Turn} */ { conversation, question, answer }) => {
      if (`${question}\n${answer}`.toLowerCase().includes(needle)) found.add(conversation);
    };
    if (!this.#database) {
      for (const turn of this.#turns.values()) if (turn.owner === owner) look(turn);
      return found;
    }
    const request = this.#database.transaction("turns").objectStore("turns").openCursor(ofOwner(owner));
    return new Promise((resolve, reject) => {
      request.onerror = () => reject(request.error);
      request.onsuccess = () => {
        const cursor = request.result;
        if (cursor === null || signal.aborted) return resolve(found);
        look(cursor.value);
        // One hit is enough: go on with the conversation after it.
        if (found.has(cursor.value.conversation)) cursor.continue([owner, cursor.value.conversation, []]);
        else cursor.continue();
      };
    });
  }

  /**
   * Keep a turn, and what changed with it in its conversation. A conversation that is not there is made of `begun`; without
   * one, it was deleted for good, and the turn goes with it.
   *
   * @param {Turn} turn
   * @param {(conversation: Conversation) => void} change
   * @param {Conversation | null} begun
   */
  async keep(turn, change, begun) {
    const kept = await this.#change(turn.owner, turn.conversation, change, begun, turn);
    if (kept) this.#tell({ owner: turn.owner, conversation: turn.conversation });
    return kept;
  }

  /** Change a conversation's own record. */
  async change(/** @type {string} */ owner, /** @type {string} */ id, /** @type {(conversation: Conversation) => void} */ change) {
    const kept = await this.#change(owner, id, change, null, null);
    this.#tell({ owner, conversation: id });
    return kept;
  }

  /**
   * @param {string} owner @param {string} id @param {(conversation: Conversation) => void} change
   * @param {Conversation | null} begun @param {Turn | null} turn
   */
  async #change(owner, id, change, begun, turn) {
    if (!this.#database) {
      const conversation = this.#conversations.get(id) ?? begun;
      if (!conversation) return false;
      change(conversation);
      this.#conversations.set(id, conversation);
      if (turn) this.#turns.set(turn.id, turn);
      return true;
    }
    const transaction = this.#database.transaction(["conversations", "turns"], "readwrite");
    const conversations = transaction.objectStore("conversations");
    /** @type {Conversation | null} */
    const conversation = takenConversation(await result(conversations.get([owner, id])), owner) ?? begun;
    if (conversation) {
      change(conversation);
      conversations.put(conversation);
      if (turn) transaction.objectStore("turns").put(turn);
    }
    await finished(transaction);
    return conversation !== null;
  }

  /** Write a turn as it is now, in one step that the end of the tab cannot cut in two. */
  async write(/** @type {Turn} */ turn) {
    if (!this.#database) {
      this.#turns.set(turn.id, turn);
      return;
    }
    const transaction = this.#database.transaction("turns", "readwrite");
    transaction.objectStore("turns").put(turn);
    await finished(transaction);
    this.#tell({ owner: turn.owner, conversation: turn.conversation });
  }

  /**
   * The tab ends. A transaction that has not begun by then never will, so what is on its way is put where it is kept at once,
   * and from there into the store when its owner is here again. The order is that of the writing.
   */
  rescue(/** @type {Rescue[]} */ entries) {
    if (this.#database && entries.length) keepRescued([...rescued(), ...entries]);
  }

  /** Take in what was rescued of `owner`. */
  async recover(/** @type {string} */ owner) {
    const all = rescued();
    for (const { turn, begun, chosen } of all) {
      const kept = turn?.owner === owner && this.#database ? takenTurn(turn, owner) : null;
      if (!kept || !this.#database) continue;
      const transaction = this.#database.transaction(["conversations", "turns"], "readwrite");
      const [conversations, turns] = [transaction.objectStore("conversations"), transaction.objectStore("turns")];
      const had = await result(turns.get([owner, kept.conversation, kept.id]));
      const stored = takenConversation(await result(conversations.get([owner, kept.conversation])), owner);
      const conversation = stored ?? takenConversation(begun, owner);
      // Another tab may have gone on with it since.
      if (conversation && !(had?.beat > kept.beat)) {
        if (!stored || !had) conversation.chosen[kept.parent ?? ""] = String(chosen);
        conversations.put(conversation);
        turns.put(kept);
      }
      await finished(transaction);
    }
    if (this.#database) keepRescued(all.filter(({ turn }) => turn?.owner !== owner));
  }

  /** Add what is not there yet; what is there is not touched. Returns how many conversations and turns were added. */
  async add(/** @type {Shelf} */ shelf) {
    let added = 0;
    const owner = shelf.conversations[0]?.owner ?? "";
    if (!this.#database) {
      for (const one of shelf.conversations) if (!this.#conversations.has(one.id)) added += Number(!!this.#conversations.set(one.id, one));
      for (const one of shelf.turns) if (!this.#turns.has(one.id)) this.#turns.set(one.id, one);
      return added;
    }
    const transaction = this.#database.transaction(["conversations", "turns"], "readwrite");
    const [conversations, turns] = [transaction.objectStore("conversations"), transaction.objectStore("turns")];
    const known = new Set((await result(conversations.getAllKeys(ofOwner(owner)))).map(String));
    for (const one of shelf.conversations) {
      if (known.has(String([one.owner, one.id]))) continue;
      conversations.put(one);
      added += 1;
    }
    const had = new Set((await result(turns.getAllKeys(ofOwner(owner)))).map(String));
    for (const one of shelf.turns) if (!had.has(String([one.owner, one.conversation, one.id]))) turns.put(one);
    await finished(transaction);
    this.#tell({ owner, conversation: null });
    return added;
  }

  /** Remove conversations and their turns for good; all of `owner` without a list. */
  async remove(/** @type {string} */ owner, /** @type {string[] | null} */ ids = null) {
    keepRescued(rescued().filter(({ turn }) => turn?.owner !== owner || !(ids?.includes(turn.conversation) ?? true)));
    const ranges = ids === null ? [ofOwner(owner)] : ids.map((id) => ofOwner(owner, id));
    for (const [id, one] of this.#turns) if (one.owner === owner && (ids?.includes(one.conversation) ?? true)) this.#turns.delete(id);
    for (const [id, one] of this.#conversations) if (one.owner === owner && (ids?.includes(id) ?? true)) this.#conversations.delete(id);
    if (this.#database) {
      const transaction = this.#database.transaction(["conversations", "turns"], "readwrite");
      for (const range of ranges) transaction.objectStore("turns").delete(range);
      if (ids === null) transaction.objectStore("conversations").delete(ofOwner(owner));
      else for (const id of ids) transaction.objectStore("conversations").delete([owner, id]);
      await finished(transaction);
    }
    this.#tell({ owner, conversation: null });
  }

  /** Take over what an earlier version of the page kept for `owner`; that of anyone else stays where it is. */
  async adopt(/** @type {string} */ owner, /** @type {(exchanges: any[]) => Shelf} */ shelve) {
    let old;
    try {
      old = JSON.parse(localStorage.getItem(OLD) ?? "null");
    } catch {
      return;
    }
    if (old?.owner !== owner || !Array.isArray(old.exchanges)) return;
    const shelf = shelve(old.exchanges);
    if (shelf.turns.length) await this.add(shelf);
    localStorage.removeItem(OLD);
  }

  /** Tell other tabs that `owner` has logged out. */
  tellGone(/** @type {string} */ owner) {
    this.#tell({ owner, conversation: null, gone: true });
  }

  #tell(/** @type {News} */ news) {
    this.#channel?.postMessage(news);
  }

  /** Call `heard` with what other tabs tell. */
  listen(/** @type {(news: News) => void} */ heard) {
    if (this.#channel) this.#channel.onmessage = ({ data }) => heard(data);
  }
}
