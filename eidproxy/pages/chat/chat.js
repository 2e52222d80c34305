// The page: who is here, which conversation is open, what is under way, and what every button does.

import { copyText } from "./clipboard.js";
import { Composer } from "./composer.js";
import * as values from "./conversation.js";
import { $, fill } from "./dom.js";
import { exportAll, importFrom, saveAsFile } from "./files.js";
import * as frame from "./frame.js";
import { Keeper } from "./keeper.js";
import { List } from "./list.js";
import { Log } from "./log.js";
import { Login, choose } from "./login.js";
import { NOTICES } from "./notices.js";
import { loadMarkdown } from "./paint.js";
import { Progress } from "./progress.js";
import { Run } from "./run.js";
import { Scroll } from "./scroll.js";
import { readConfig, readState } from "./server.js";
import * as session from "./session.js";
import { openStore } from "./store.js";
import english from "./strings.en.js";
import korean from "./strings.ko.js";
import { hideToast, say, toast } from "./toast.js";

/** @typedef {import("./conversation.js").Turn} Turn */
/** @typedef {import("./conversation.js").Conversation} Conversation */
/** @typedef {import("./session.js").Person} Person */

// How often an answer that is coming is kept: what a tab that crashes can lose.
const KEEP_MS = 300;
// How often a tab says that it is still getting an answer.
const BEAT_MS = 2000;
const WAITING_MS = 20_000;
// Until then what was deleted can be had back.
const UNDO_MS = 15_000;

class Chat {
  words = session.preference("language", ["ko", "en"]) === "en" ? english : korean;
  /** @type {import("./server.js").Config} */
  config = { title: null, caps: values.CAPS };
  /** @type {Person | null} whose conversations are shown, also after their token has run out */
  person = null;
  /** @type {string | null} what is sent; null without a login, and after it has run out */
  token = null;
  /** @type {Conversation} the one that is open; kept from its first question on */
  conversation = values.newConversation("");
  /** @type {Turn[]} */
  turns = [];
  /** @type {Map<string, Run>} what is under way, by conversation */
  runs = new Map();
  /** @type {import("./log.js").Event | null} */
  event = null;
  finished = false;
  tab = session.tabName(values.newId);

  /** @param {import("./store.js").Store} store */
  constructor(store) {
    this.store = store;
    const words = () => this.words;
    this.keeper = new Keeper(store, { tried: () => this.drawTrouble(), begun: () => this.list.changed() });
    this.scroll = new Scroll();
    this.progress = new Progress(words);
    this.log = new Log($("log"), {
      act: (name, turn) => this.act(name, turn),
      copy: (text, pressed) => this.copy(text, pressed),
      show: (turn) => this.choose(turn),
    });
    this.composer = new Composer(words, {
      send: (question) => this.send(question),
      stop: () => this.stop(),
      editLast: () => this.editLast(),
      changed: () => this.drawComposer(),
    });
    this.login = new Login(words, () => this.person, (person, stay) => this.enter(person, stay));
    this.list = new List({
      words,
      open: () => (this.turns.length ? this.conversation.id : null),
      load: async () => (this.person ? this.store.conversations(this.person.owner) : []),
      search: (text, signal) => this.store.search(this.person?.owner ?? "", text, signal),
      show: (id) => this.open(id),
      rename: (id, title) => this.keeper.keep(() => this.store.change(this.person?.owner ?? "", id, (one) => { one.title = title; })),
      save: (conversation) => saveAsFile(this.store, conversation, this.words),
      remove: (conversation) => this.remove(conversation),
      exportAll: () => this.person && exportAll(this.store, this.person.owner),
      importFrom: async (file) => {
        if (this.person) await importFrom(this.keeper, file, this.person.owner, this.words);
        await this.list.changed();
      },
    });
    this.#listen();
  }

  #listen() {
    $("stop").addEventListener("click", () => this.stop());
    $("fresh").addEventListener("click", () => this.fresh());
    $("list-fresh").addEventListener("click", () => {
      this.list.close();
      this.fresh();
    });
    $("menu").addEventListener("click", () => this.list.open());
    $("account").addEventListener("click", () => (this.token === null ? this.login.open() : this.logout()));
    $("welcome-button").addEventListener("click", () => this.login.open());
    $("language").addEventListener("click", () => this.setLanguage(this.words === korean ? english : korean));
    $("keys-open").addEventListener("click", () => this.showKeys());
    $("keys-close").addEventListener("click", () => /** @type {HTMLDialogElement} */ ($("keys")).close());
    addEventListener("keydown", (event) => this.#onKey(event));
    addEventListener("online", () => this.online());
    addEventListener("pagehide", () => {
      const running = [...this.runs.values()].map(({ turn }) => turn);
      this.keeper.rescue(running);
      for (const turn of running) this.keeper.write(turn);
    });
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) return;
      this.finished = false;
      this.drawTitle();
      this.readWaiting();
    });
    this.store.listen((news) => this.#heard(news));
    setInterval(() => this.#beat(), BEAT_MS);
    setInterval(() => this.readWaiting(), WAITING_MS);
  }

  async start() {
    this.person = session.storedPerson();
    this.token = this.person?.token ?? null;
    this.drawWords();
    const config = readConfig();
    if (this.person) await this.#settleIn(this.person, session.openConversation());
    this.draw();
    this.scroll.toEnd();
    $("log").setAttribute("aria-busy", "false");
    document.body.classList.remove("starting");
    this.config = await config;
    this.composer.limit = this.config.caps.message;
    this.drawWords();
    this.draw();
    this.composer.changed();
    loadMarkdown();
    await this.login.takeFragment();
    await this.readWaiting();
  }

  // --- Asking -------------------------------------------------------------------------------------------------------

  /** @returns {Run | null} what is under way in the conversation that is open */
  get run() {
    return this.runs.get(this.conversation.id) ?? null;
  }

  get path() {
    return values.path(this.turns, this.conversation.chosen);
  }

  send(/** @type {string} */ question) {
    if (this.run !== null) return;
    const edited = this.turns.find(({ id }) => id === this.composer.editing);
    const parent = edited ? edited.parent : (this.path.at(-1)?.id ?? null);
    if (edited) this.composer.endEditing();
    else this.composer.text = "";
    const turn = this.#begin(parent, question, this.composer.mode);
    this.answer(turn);
  }

  /** Put a new turn into the conversation, as the one that is shown. */
  #begin(/** @type {string | null} */ parent, /** @type {string} */ question, /** @type {Turn["mode"]} */ mode) {
    const { id: conversation, owner } = this.conversation;
    const turn = values.newTurn({ conversation, owner, parent, mode, question });
    this.turns.push(turn);
    this.conversation.chosen[parent ?? ""] = turn.id;
    this.conversation.first ||= values.firstWords(question);
    session.keepOpenConversation(conversation);
    return turn;
  }

  /**
   * Ask for the answer of `turn`; with `resume` for the rest of it. An answer that is there stays, beside the new one,
   * and is shown until the new one begins.
   *
   * @param {Turn} turn
   * @param {{mode?: Turn["mode"], resume?: boolean}} [way]
   */
  async answer(turn, { mode = turn.mode, resume = false } = {}) {
    if (this.run !== null) return;
    const again = turn.answer !== "" && !resume;
    hideToast();
    if (this.token === null) {
      this.#settle(turn, { kind: this.person ? "login_expired" : "login", resume });
      return;
    }
    if (!again) Object.assign(turn, { mode, notice: null, refused: false });
    const before = resume ? turn.answer : "";
    const { token, conversation } = this;
    const path = this.path;
    const messages = values.outgoing(path.slice(0, path.indexOf(turn)), turn, resume ? this.words.resume_request : null, this.config.caps);
    const run = new Run(turn, { mode, resume, again }, {
      change: () => this.#onRun(run),
      text: () => {
        if (again && run.turn === turn) this.#takeOver(run, turn, conversation);
        run.turn.answer = values.joined(before, run.text);
        this.#onText(run);
      },
    });
    this.runs.set(conversation.id, run);
    this.event = null;
    Object.assign(run.turn, { tab: this.tab, beat: Date.now() });
    this.keeper.keepTurn(run.turn, conversation);
    this.draw();
    this.scroll.toEnd();

    const { kind, outcome } = await run.answer(token, messages);
    // A new run of the same conversation may have begun, after this one was left.
    if (this.runs.get(conversation.id) === run) this.runs.delete(conversation.id);
    run.turn.tab = null;
    turn.tab = null;
    if (outcome.end === "failed" && outcome.status === 401 && this.token === token) {
      this.token = null;
      session.dropToken(turn.owner);
    }
    const failed = outcome.end === "failed" ? outcome : null;
    this.#settle(run.turn, { kind, resume, requestId: failed?.requestId, seconds: failed?.retrySeconds }, conversation);
  }

  /** The new answer begins: it becomes a turn of its own beside the one that it was asked for. */
  #takeOver(/** @type {Run} */ run, /** @type {Turn} */ turn, /** @type {Conversation} */ conversation) {
    const { owner, parent, question } = turn;
    const fresh = values.newTurn({ conversation: conversation.id, owner, parent, question, mode: run.way.mode });
    turn.tab = null;
    this.keeper.keepTurn(turn, conversation);
    Object.assign(fresh, { tab: this.tab, beat: Date.now() });
    conversation.chosen[parent ?? ""] = fresh.id;
    if (this.conversation === conversation) this.turns.push(fresh);
    run.turn = fresh;
    this.keeper.keepTurn(fresh, conversation);
    this.draw();
  }

  /**
   * Write down how a turn ended, and say so.
   *
   * @param {Turn} turn
   * @param {{kind: string | null, resume?: boolean, requestId?: string | null, seconds?: number | null}} how
   * @param {Conversation} conversation
   */
  #settle(turn, { kind, resume = false, requestId = null, seconds = null }, conversation = this.conversation) {
    if (kind === null) {
      turn.notice = null;
    } else {
      const wait = seconds ?? NOTICES[kind].seconds ?? null;
      const counts = wait !== null && NOTICES[kind].buttons.includes("retry");
      turn.notice = { kind, requestId, resume };
      this.event = { turn: turn.id, seconds: wait, readyAt: counts ? Date.now() + wait * 1000 : null };
      // A continuation that was refused says nothing against the turn it should have continued.
      turn.refused = NOTICES[kind].refused === true && !resume;
    }
    this.keeper.keepTurn(turn, conversation);
    this.finished = document.hidden;
    this.drawTitle();
    if (this.conversation !== conversation) return;
    this.draw();
    say(kind === null ? this.words.page.finished : "");
  }

  #onRun(/** @type {Run} */ run) {
    if (this.run !== run) return;
    this.progress.draw(run);
    // The first word makes another picture of the turn.
    if (run.phase === "streaming") this.draw();
  }

  #frame = 0;
  /** @type {WeakMap<Run, number>} */
  #keptAt = new WeakMap();

  #onText(/** @type {Run} */ run) {
    const now = Date.now();
    // A very long answer is not written as a whole three times a second.
    if (now - (this.#keptAt.get(run) ?? 0) > Math.max(KEEP_MS, run.turn.answer.length / 500)) {
      this.#keptAt.set(run, now);
      this.keeper.write(run.turn);
    }
    if (this.run !== run) return;
    // Many pieces may come within one frame; a hidden tab gets no frames and draws when it is shown again.
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      if (this.run !== run) return;
      this.log.write(run.turn);
    });
  }

  // --- Actions of the buttons ---------------------------------------------------------------------------------------

  act(/** @type {string} */ name, /** @type {Turn} */ turn) {
    const resume = turn.notice?.resume;
    const inMode = (/** @type {Turn["mode"]} */ mode) => {
      this.composer.mode = mode;
      return this.answer(turn, { mode, resume });
    };
    /** @type {Record<string, () => void>} */
    const actions = {
      retry: () => this.answer(turn, { resume }),
      again: () => this.answer(turn),
      resume: () => this.answer(turn, { resume: true }),
      daily: () => inMode("daily"),
      other: () => inMode(turn.mode === "deep" ? "daily" : "deep"),
      login: () => this.login.open(),
      edit: () => this.composer.edit(turn.id, turn.question),
      fresh: () => this.#askAfresh(turn),
    };
    actions[name]?.();
    // The button that was pressed is gone by now; the keyboard goes on at the question field.
    if (name !== "login") this.composer.focus();
  }

  #askAfresh(/** @type {Turn} */ { question, mode }) {
    this.#turnPage();
    this.answer(this.#begin(null, question, mode));
  }

  /** Show another version. */
  choose(/** @type {Turn} */ turn) {
    const key = turn.parent ?? "";
    this.conversation.chosen[key] = turn.id;
    this.draw();
    const { id, owner } = this.conversation;
    this.keeper.keep(() => this.store.change(owner, id, (one) => { one.chosen[key] = turn.id; }));
  }

  editLast() {
    const last = this.path.at(-1);
    if (last && this.run === null) this.composer.edit(last.id, last.question);
  }

  /** Stop what is under way here; whether there was something. */
  stop() {
    const { run } = this;
    run?.stop();
    this.composer.focus();
    return run !== null;
  }

  async copy(/** @type {string} */ text, /** @type {HTMLElement} */ pressed) {
    const { page } = this.words;
    let label = page.copied;
    try {
      await copyText(text);
    } catch {
      label = page.copy_failed;
    }
    say(label);
    pressed.textContent = label;
    setTimeout(() => {
      pressed.textContent = page.copy;
    }, 2000);
  }

  online() {
    const last = this.path.at(-1);
    if (!last?.notice || !["offline", "connect", "cut", "cut_empty"].includes(last.notice.kind) || this.run) return;
    const resume = last.answer !== "";
    toast(this.words.page.online, { label: this.words.page.send_again, press: () => this.answer(last, { resume }) });
  }

  #onKey(/** @type {KeyboardEvent} */ event) {
    if (event.isComposing || document.querySelector("dialog[open]")) return;
    const command = (event.ctrlKey || event.metaKey) && !event.altKey;
    if (event.key === "Escape" && !event.defaultPrevented) this.stop();
    else if (command && !event.shiftKey && event.code === "KeyK") this.list.open();
    else if (command && event.shiftKey && event.code === "KeyO") this.fresh();
    else if (command && event.code === "Slash") this.showKeys();
    else return;
    event.preventDefault();
  }

  showKeys() {
    /** @type {HTMLDialogElement} */ ($("list")).close();
    /** @type {HTMLDialogElement} */ ($("keys")).showModal();
  }

  // --- Conversations ------------------------------------------------------------------------------------------------

  /** A new conversation. What is under way in this one stops; the way back is offered. */
  fresh() {
    if (this.turns.length === 0) return;
    const left = this.conversation.id;
    this.run?.stop();
    this.#turnPage();
    this.draw();
    this.composer.focus();
    const { page } = this.words;
    toast(page.started, this.person ? { label: page.undo, press: () => this.open(left) } : null);
  }

  #turnPage() {
    this.composer.endEditing();
    this.conversation = values.newConversation(this.person?.owner ?? "");
    this.turns = [];
    this.event = null;
    session.keepOpenConversation(null);
  }

  /** Open a conversation of the list. */
  async open(/** @type {string} */ id) {
    if (!this.person) return;
    this.list.close();
    this.composer.endEditing();
    await this.#load(this.person.owner, id);
    this.draw();
    this.scroll.toEnd();
    this.composer.focus();
  }

  /** Take a conversation from the store onto the page; one that is gone leaves an empty page. */
  async #load(/** @type {string} */ owner, /** @type {string | null} */ id) {
    const found = id === null ? null : await this.store.conversation(owner, id);
    if (!found || found.deleted !== null) {
      this.#turnPage();
      return;
    }
    const turns = await this.store.turns(owner, found.id);
    const run = this.runs.get(found.id);
    // What is under way is newer than what is kept of it.
    this.turns = turns.map((turn) => (turn.id === run?.turn.id ? run.turn : turn));
    this.conversation = found;
    this.event = null;
    session.keepOpenConversation(found.id);
    this.#findDead();
  }

  /** Deleted, but for a while it can be had back. */
  async remove(/** @type {Conversation} */ { id, owner }) {
    await this.keeper.keep(() => this.store.change(owner, id, (one) => { one.deleted = Date.now(); }));
    this.runs.get(id)?.stop();
    const open = this.conversation.id === id;
    if (open) this.#turnPage();
    this.draw();
    await this.list.changed();
    const timer = setTimeout(() => this.#purge(owner), UNDO_MS);
    toast(this.words.page.deleted, {
      label: this.words.page.undo,
      press: async () => {
        clearTimeout(timer);
        await this.keeper.keep(() => this.store.change(owner, id, (one) => { one.deleted = null; }));
        if (open) await this.open(id);
        await this.list.changed();
      },
    });
  }

  /** Remove for good what was deleted long enough ago. */
  async #purge(/** @type {string} */ owner) {
    const all = await this.store.conversations(owner, true);
    const due = all.filter(({ deleted }) => deleted !== null && Date.now() - deleted >= UNDO_MS);
    if (due.length) await this.keeper.keep(() => this.store.remove(owner, due.map(({ id }) => id)));
  }

  // --- Keeping ------------------------------------------------------------------------------------------------------

  /** Another tab has written something, or this person has logged out there. */
  #heard(/** @type {import("./store.js").News} */ { owner, conversation, gone }) {
    if (owner !== this.person?.owner) return;
    if (gone) {
      this.#forget();
      this.draw();
      return;
    }
    this.list.changed();
    if (conversation !== null && conversation !== this.conversation.id) return;
    clearTimeout(this.#merging);
    this.#merging = setTimeout(() => this.#merge(), 60);
  }

  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #merging;

  /** Take in what other tabs have added to the conversation that is open. */
  async #merge() {
    const { id, owner } = this.conversation;
    const stored = await this.store.conversation(owner, id);
    if (this.conversation.id !== id || (!stored && !this.keeper.has(id))) return;
    if (stored?.deleted !== null) {
      this.runs.get(id)?.stop();
      this.#turnPage();
      this.draw();
      return;
    }
    const turns = await this.store.turns(owner, id);
    if (this.conversation.id !== id) return;
    const mine = new Map(this.turns.map((turn) => [turn.id, turn]));
    for (const turn of turns) {
      const had = mine.get(turn.id);
      // The tab that asks knows better than the store.
      if (had && (had === this.run?.turn || JSON.stringify(had) === JSON.stringify(turn))) continue;
      if (turn.id === this.run?.turn.id) continue;
      mine.set(turn.id, turn);
    }
    this.turns = [...mine.values()];
    // Which version is shown is the tab's own, but for what it has not seen.
    this.conversation.chosen = { ...stored.chosen, ...this.conversation.chosen };
    this.conversation.title = stored.title;
    this.#findDead();
    this.draw();
  }

  /** Whether another tab is getting the answer of a turn. */
  elsewhere = (/** @type {Turn} */ { tab, beat }) => tab !== null && tab !== this.tab && Date.now() - beat < values.ALIVE_MS;

  /** Turns whose tab is gone: what came is kept, and they say so. Returns whether there were any. */
  #findDead() {
    let found = false;
    for (const turn of this.turns) {
      if (turn.tab === null || turn === this.run?.turn || this.elsewhere(turn)) continue;
      turn.tab = null;
      turn.notice ??= { kind: turn.answer ? "cut" : "cut_empty", requestId: null };
      found = true;
    }
    return found;
  }

  #beat() {
    for (const run of this.runs.values()) this.keeper.write(run.turn);
    if (this.#findDead()) this.draw();
  }

  // --- Logging in and out -------------------------------------------------------------------------------------------

  /** Somebody whose token the server has taken comes in. */
  async enter(/** @type {Person} */ person, /** @type {boolean} */ stay) {
    const same = this.person?.owner === person.owner;
    const waiting = this.path.at(-1);
    const early = this.person === null && this.turns.length > 0 ? { conversation: this.conversation, turns: this.turns } : null;
    if (this.person !== null && !same) this.#forget();
    this.person = person;
    this.token = person.token;
    session.keepToken(person.token, stay);
    if (stay) navigator.storage?.persist?.();
    if (early) {
      // What was asked before the login belongs to the person who now logs in.
      early.conversation.owner = person.owner;
      for (const turn of early.turns) turn.owner = person.owner;
      await this.#settleIn(person, null);
      Object.assign(this, early);
      session.keepOpenConversation(early.conversation.id);
      for (const turn of early.turns) this.keeper.keepTurn(turn, early.conversation);
    } else if (!same) {
      await this.#settleIn(person, null);
    }
    this.draw();
    this.scroll.toEnd();
    const { page } = this.words;
    const name = fill(page.logged_in, { name: person.name });
    const staying = () => {
      session.keepToken(person.token, true);
      session.keepPreference("stay", "yes");
      navigator.storage?.persist?.();
      toast(page.login_stays);
    };
    toast(name, stay ? null : { label: page.login_stay, press: staying });
    this.composer.focus();
    if ((same || early) && waiting?.notice?.kind.startsWith("login")) this.answer(waiting, { resume: waiting.notice.resume });
    this.readWaiting();
  }

  /** Take the person's conversation `id`, or else the one used last, onto the page. */
  async #settleIn(/** @type {Person} */ { owner }, /** @type {string | null} */ id) {
    this.keeper.settleIn(owner, []);
    try {
      await this.store.adopt(owner, (exchanges) => shelved(owner, exchanges));
      await this.store.recover(owner);
      await this.#purge(owner);
      const all = await this.store.conversations(owner);
      this.keeper.settleIn(owner, all);
      const open = all.find((one) => one.id === id) ?? all[0];
      await this.#load(owner, open?.id ?? null);
    } catch {
      // A storage that fails is told of when something is to be kept.
      this.#turnPage();
    }
  }

  async logout() {
    const { person } = this;
    if (!person) return;
    const { page } = this.words;
    let keep = true;
    if ((await this.store.conversations(person.owner)).length) {
      const chosen = await choose(page.logout_title, page.logout_body, {}, [
        { value: "keep", label: page.logout_keep, main: true },
        { value: "remove", label: page.logout_remove },
        { value: null, label: page.cancelled },
      ]);
      if (chosen === null) return;
      keep = chosen === "keep";
    }
    this.#forget();
    session.dropToken(person.owner);
    if (!keep) await this.keeper.keep(() => this.store.remove(person.owner));
    this.store.tellGone(person.owner);
    this.draw();
  }

  /** Take everything of the person off the page; what is kept on the device stays there. */
  #forget() {
    for (const run of this.runs.values()) run.stop();
    this.runs.clear();
    this.keeper.settleIn(null, []);
    if (this.person) session.dropToken(this.person.owner);
    this.person = null;
    this.token = null;
    this.list.close();
    hideToast();
    this.#turnPage();
    this.composer.clear();
  }

  // --- Drawing ------------------------------------------------------------------------------------------------------

  draw() {
    const { path, turns, run, event, words } = this;
    this.log.draw({
      path,
      turns,
      run,
      event,
      words,
      edited: this.composer.editing,
      forgotten: values.forgotten(path, this.config.caps),
      elsewhere: this.elsewhere,
      of: counted(turns),
    });
    $("log").setAttribute("aria-busy", String(run !== null));
    this.progress.draw(run);
    frame.drawHead(words, { name: this.person?.name ?? null, loggedIn: this.token !== null, empty: path.length === 0 });
    this.drawComposer();
    this.drawTitle();
    this.drawTrouble();
  }

  drawComposer() {
    const { run } = this;
    $("send").hidden = run !== null;
    $("stop").hidden = run === null;
    $("editing").hidden = this.composer.editing === null;
    this.drawWaiting();
  }

  drawTitle() {
    frame.drawTitle(this.words, this.config.title, this.runs.size ? "⏳ " : this.finished ? "✓ " : "");
  }

  drawTrouble() {
    frame.drawTrouble(this.words, this.person && (this.store.trouble ?? this.keeper.trouble));
  }

  drawWaiting() {
    frame.drawWaiting(this.words, this.run === null && this.token !== null ? this.#waiting : null);
  }

  drawWords() {
    frame.drawWords(this.words, this.config.title);
  }

  /** @type {import("./server.js").Waiting | null} */
  #waiting = null;

  async readWaiting() {
    if (document.hidden || this.run || this.token === null) return;
    const told = await readState(this.token);
    this.#waiting = typeof told === "string" ? null : told;
    this.drawWaiting();
  }

  setLanguage(/** @type {typeof korean} */ words) {
    this.words = words;
    session.keepPreference("language", words.language);
    this.drawWords();
    this.draw();
    this.composer.changed();
  }
}

/** How many versions each of the turns has. */
function counted(/** @type {Turn[]} */ turns) {
  /** @type {Map<string | null, number>} */
  const counts = new Map();
  for (const { parent } of turns) counts.set(parent, (counts.get(parent) ?? 0) + 1);
  return (/** @type {Turn} */ { parent }) => counts.get(parent) ?? 1;
}

/** What the page kept before it had a list, as a conversation. */
function shelved(/** @type {string} */ owner, /** @type {any[]} */ exchanges) {
  const conversation = values.newConversation(owner);
  /** @type {Turn[]} */
  const turns = [];
  for (const [index, one] of exchanges.entries()) {
    const parent = turns.at(-1)?.id ?? null;
    const turn = values.takenTurn(
      { ...one, id: values.newId(), conversation: conversation.id, parent, at: conversation.created + index, tab: one?.running ? "gone" : null, beat: 0 },
      owner,
    );
    if (turn) turns.push(turn);
  }
  conversation.first = values.firstWords(turns[0]?.question ?? "");
  return { conversations: [conversation], turns };
}

await new Chat(await openStore()).start();
