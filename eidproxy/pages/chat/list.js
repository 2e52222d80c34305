// The list of conversations: search, rename, save, delete, export and import.

import { titleOf } from "./conversation.js";
import { $, button, element, fill, icon } from "./dom.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */
/** @typedef {typeof import("./strings.ko.js").default} Words */

// So many are drawn; the others come with a button.
const STEP = 60;
const SEARCH_AFTER_MS = 200;
const PEN = "M4 16l.6-3.2L13.4 4l2.6 2.6-8.8 8.8z";
const DOWN = "M10 3.5v9m-3.8-3.6L10 12.7l3.8-3.8M4 16.5h12";
const BIN = "M4.5 6h11M8 6V4h4v2m-6 0 .6 10.5h6.8L14 6";

const dialog = /** @type {HTMLDialogElement} */ ($("list"));
const field = /** @type {HTMLInputElement} */ ($("list-search"));
const file = /** @type {HTMLInputElement} */ ($("list-file"));

export class List {
  #shown = STEP;
  /** @type {Conversation[]} */
  #all = [];
  /** @type {Set<string> | null} what the search in the turns found */
  #found = null;
  #search = new AbortController();
  /** @type {string | null} */
  #renamed = null;

  /**
   * @param {object} does
   * @param {() => Words} does.words
   * @param {() => string | null} does.open the conversation on the page
   * @param {() => Promise<Conversation[]>} does.load
   * @param {(text: string, signal: AbortSignal) => Promise<Set<string>>} does.search
   * @param {(id: string) => void} does.show
   * @param {(id: string, title: string) => Promise<unknown>} does.rename
   * @param {(conversation: Conversation) => void} does.save
   * @param {(conversation: Conversation) => void} does.remove
   * @param {() => void} does.exportAll
   * @param {(file: File) => void} does.importFrom
   */
  constructor(does) {
    this.does = does;
    $("list-close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => {
      // A press beside the list: on the dialog itself, which its content fills.
      if (event.target === dialog) dialog.close();
    });
    $("list-export").addEventListener("click", does.exportAll);
    $("list-import").addEventListener("click", () => file.click());
    file.addEventListener("change", () => {
      if (file.files?.[0]) does.importFrom(file.files[0]);
      file.value = "";
    });
    let timer = 0;
    field.addEventListener("input", () => {
      clearTimeout(timer);
      this.#shown = STEP;
      this.#found = null;
      this.#draw();
      timer = setTimeout(() => this.#searchTurns(), SEARCH_AFTER_MS);
    });
  }

  /** Open it, with the search field ready. */
  async open() {
    field.value = "";
    this.#found = null;
    this.#shown = STEP;
    this.#renamed = null;
    await this.refresh();
    if (!dialog.open) dialog.showModal();
    if (matchMedia("(pointer: fine)").matches) field.focus();
  }

  close() {
    dialog.close();
  }

  /** Read the conversations again. */
  async refresh() {
    this.#all = await this.does.load();
    this.#draw();
  }

  /** Draw it anew if it is to be seen. */
  async changed() {
    if (dialog.open) await this.refresh();
  }

  async #searchTurns() {
    this.#search.abort();
    this.#search = new AbortController();
    const { signal } = this.#search;
    const text = field.value.trim();
    if (text === "") return;
    const found = await this.does.search(text, signal);
    if (signal.aborted) return;
    this.#found = found;
    this.#draw();
  }

  #draw() {
    const { page } = this.does.words();
    const text = field.value.trim().toLowerCase();
    const shown = text
      ? this.#all.filter((one) => titleOf(one).toLowerCase().includes(text) || this.#found?.has(one.id))
      : this.#all;
    $("list-items").replaceChildren(...shown.slice(0, this.#shown).map((one) => this.#item(one)));
    $("list-empty").textContent = shown.length ? "" : this.#all.length ? page.found_none : page.list_empty;
    const more = $("list-more");
    more.hidden = shown.length <= this.#shown;
    more.onclick = () => {
      this.#shown += STEP;
      this.#draw();
    };
    $("list-rename")?.focus();
  }

  #item(/** @type {Conversation} */ conversation) {
    const { page, language } = this.does.words();
    const title = titleOf(conversation) || page.untitled;
    const item = element("li");
    if (this.#renamed === conversation.id) {
      item.append(this.#form(conversation, title));
      return item;
    }
    const open = button("title", "", () => this.does.show(conversation.id));
    open.append(element("span", { text: title, dir: "auto" }), element("time", { text: dayOf(conversation.updated, page.today, language) }));
    if (conversation.id === this.does.open()) open.setAttribute("aria-current", "true");
    const small = (/** @type {string} */ drawing, /** @type {string} */ what, /** @type {() => void} */ press) => {
      const made = button("plain small", "", press, fill(page.of_this, { what, title }));
      made.title = what;
      made.append(icon(drawing));
      return made;
    };
    item.append(
      open,
      small(PEN, page.rename, () => {
        this.#renamed = conversation.id;
        this.#draw();
      }),
      small(DOWN, page.save_md, () => this.does.save(conversation)),
      small(BIN, page.delete, () => this.does.remove(conversation)),
    );
    return item;
  }

  #form(/** @type {Conversation} */ conversation, /** @type {string} */ title) {
    const { page } = this.does.words();
    const input = element("input", { id: "list-rename", value: title, maxLength: 200 });
    input.setAttribute("aria-label", page.rename_field);
    const form = element("form", { className: "rename" }, input, element("button", { type: "submit", className: "second", text: page.rename_save }));
    const end = () => {
      this.#renamed = null;
      this.#draw();
    };
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      this.#renamed = null;
      await this.does.rename(conversation.id, input.value.trim());
      await this.refresh();
    });
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.isComposing) return;
      // Escape leaves the name, not the list.
      event.preventDefault();
      event.stopPropagation();
      end();
    });
    return form;
  }
}

function dayOf(/** @type {number} */ time, /** @type {string} */ today, /** @type {string} */ language) {
  const day = new Date(time);
  if (day.toDateString() === new Date().toDateString()) return today;
  const year = day.getFullYear() === new Date().getFullYear() ? undefined : "numeric";
  return day.toLocaleDateString(language, { year, month: "short", day: "numeric" });
}
