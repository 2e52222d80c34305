// Writes what is said into the store, and knows what found no room there.

/** @typedef {import("./conversation.js").Turn} Turn */
/** @typedef {import("./conversation.js").Conversation} Conversation */

export class Keeper {
  /** @type {"full" | null} */
  trouble = null;
  /** Conversations that are in the store. @type {Set<string>} */
  #known = new Set();
  /** Turns the device had no room for, with their conversations. @type {Map<Turn, Conversation>} */
  #unkept = new Map();
  /** Turns that are on their way into the store. @type {Set<import("./store.js").Rescue>} */
  #pending = new Set();
  /** @type {string | null} whose conversations may be begun */
  #owner = null;

  /**
   * @param {import("./store.js").Store} store
   * @param {{tried: () => void, begun: () => void}} told something was tried; a conversation is new in the store
   */
  constructor(store, told) {
    this.store = store;
    this.told = told;
  }

  /** Somebody is here, with these conversations; or nobody. */
  settleIn(/** @type {string | null} */ owner, /** @type {Conversation[]} */ conversations) {
    this.#owner = owner;
    this.#known = new Set(conversations.map(({ id }) => id));
    this.#unkept.clear();
  }

  has(/** @type {string} */ id) {
    return this.#known.has(id);
  }

  /**
   * Do something with the store; null when it failed. When the device has no room, that is noted.
   *
   * @template T
   * @param {() => Promise<T>} work
   * @returns {Promise<T | null>}
   */
  async keep(work) {
    try {
      const done = await work();
      this.trouble = null;
      return done;
    } catch (error) {
      if (error instanceof DOMException && error.name === "QuotaExceededError") this.trouble = "full";
      return null;
    } finally {
      this.told.tried();
    }
  }

  /** Keep a turn and its place in its conversation. Before a login there is nobody to keep it for. */
  async keepTurn(/** @type {Turn} */ turn, /** @type {Conversation} */ conversation) {
    if (turn.owner === "") return;
    const { id, chosen, first } = conversation;
    const key = turn.parent ?? "";
    const change = (/** @type {Conversation} */ one) => {
      one.first ||= first;
      one.updated = Date.now();
      one.chosen[key] = chosen[key] ?? turn.id;
    };
    // It is written as it is now, not as it will be when the store comes to it.
    const now = structuredClone(turn);
    // Whoever has logged out and removed everything gets nothing of it back by an answer that was still coming.
    const begun = this.#known.has(id) || turn.owner !== this.#owner ? null : structuredClone(conversation);
    if (begun) this.#known.add(id);
    const pending = { turn: now, begun, chosen: chosen[key] ?? turn.id };
    this.#pending.add(pending);
    const kept = await this.keep(() => this.store.keep(now, change, begun));
    this.#pending.delete(pending);
    // The device had no room for it: it is tried again when something else finds room.
    if (kept === null) {
      this.#unkept.set(turn, conversation);
      if (begun) this.#known.delete(id);
      return;
    }
    this.#unkept.delete(turn);
    if (begun) this.told.begun();
    const [next] = this.#unkept;
    if (next) await this.keepTurn(...next);
  }

  /** The page ends: what the device has not written by now it would forget, and also what has come of `running` turns. */
  rescue(/** @type {Turn[]} */ running) {
    const now = running.filter(({ owner }) => owner !== "").map((turn) => ({ turn: { ...turn, beat: Date.now() }, begun: null, chosen: turn.id }));
    this.store.rescue([...this.#pending, ...now]);
  }

  /** Write what has come of a turn, and that its tab is alive. */
  write(/** @type {Turn} */ turn) {
    if (turn.owner === "") return;
    turn.beat = Date.now();
    this.keep(() => this.store.write(turn));
  }
}
