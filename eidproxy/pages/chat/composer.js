// The question field: what is written, how long it may be, which key sends it.

import { cleaned, codePoints } from "./conversation.js";
import { $, fill } from "./dom.js";
import { keepPreference, preference } from "./session.js";

/** @typedef {typeof import("./strings.ko.js").default} Words */

// The counter appears when a question comes near the cap.
const COUNTER_FROM = 0.8;
// An Enter that ends a composition and the end of that composition are one press within this time.
const ONE_PRESS_MS = 1000;
const HANGUL = /^[\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff]+$/;

const field = /** @type {HTMLTextAreaElement} */ ($("compose"));
const modes = /** @type {HTMLInputElement[]} */ (Array.from(document.querySelectorAll("input[name=mode]")));
const finePointer = matchMedia("(pointer: fine)").matches;

export class Composer {
  // A question that was being written when another one was taken up for editing.
  #aside = "";
  /** @type {string | null} */
  editing = null;
  limit = 8000;

  /**
   * @param {() => Words} words
   * @param {{send: (question: string) => void, stop: () => boolean, editLast: () => void, changed: () => void}} does
   */
  constructor(words, does) {
    this.words = words;
    this.does = does;
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    field.addEventListener("input", () => this.changed());
    field.addEventListener("keydown", (event) => this.#onKey(event));
    this.#watchHangul();
    $("edit-cancel").addEventListener("click", () => this.endEditing(true));
    for (const one of modes) one.addEventListener("change", () => keepPreference("mode", one.value));
    this.mode = preference("mode", ["daily", "deep"]) === "deep" ? "deep" : "daily";
  }

  /** @returns {"daily" | "deep"} */
  get mode() {
    return modes.find((one) => one.checked)?.value === "deep" ? "deep" : "daily";
  }

  set mode(mode) {
    for (const one of modes) one.checked = one.value === mode;
    keepPreference("mode", mode);
  }

  get text() {
    return field.value;
  }

  set text(text) {
    field.value = text;
    this.changed();
  }

  /** On a touch screen the keyboard would cover what there is to read. */
  focus() {
    if (finePointer) field.focus();
  }

  /** Take up a question that was sent; what is being written is put aside. */
  edit(/** @type {string} */ id, /** @type {string} */ question) {
    if (this.editing === null) this.#aside = field.value;
    this.editing = id;
    this.text = question;
    this.does.changed();
    field.focus();
    field.setSelectionRange(question.length, question.length);
  }

  /** Edit no longer; with `focus` because the person said so. */
  endEditing(focus = false) {
    if (this.editing === null) return;
    this.editing = null;
    this.text = this.#aside;
    this.#aside = "";
    this.does.changed();
    if (focus) this.focus();
  }

  /** Forget everything that is being written. */
  clear() {
    this.#aside = "";
    this.endEditing();
    this.text = "";
  }

  send() {
    const question = cleaned(field.value);
    if (question === "" || codePoints(question) > this.limit) return;
    this.does.send(question);
  }

  /** What was written has changed: its length, and whether it can be sent. */
  changed() {
    const { page, language } = this.words();
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight}px`;
    const count = codePoints(cleaned(field.value));
    const over = count > this.limit;
    const digits = (/** @type {number} */ n) => n.toLocaleString(language);
    let text = "";
    if (over) text = fill(page.over, { n: digits(count - this.limit), max: digits(this.limit) });
    else if (count >= this.limit * COUNTER_FROM) text = fill(page.counter, { n: digits(count), max: digits(this.limit) });
    const counter = $("counter");
    if (counter.textContent !== text) counter.textContent = text;
    counter.classList.toggle("over", over);
    field.setAttribute("aria-invalid", String(over));
    /** @type {HTMLButtonElement} */ ($("send")).disabled = count === 0 || over;
    this.does.changed();
  }

  /** Whether Enter sends: on a touch keyboard it is the only way to a new line, and the button sends. */
  #sends(/** @type {KeyboardEvent} */ event) {
    if (event.shiftKey || event.altKey) return false;
    return !matchMedia("(pointer: coarse)").matches || event.ctrlKey || event.metaKey;
  }

  #onKey(/** @type {KeyboardEvent} */ event) {
    // While an input method composes, its keys are its own. Some browsers say so only by the key code 229.
    if (event.isComposing || event.keyCode === 229) return;
    if (event.key === "Enter" && this.#sends(event)) {
      event.preventDefault();
      this.send();
    } else if (event.key === "ArrowUp" && field.value === "" && !event.shiftKey && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      this.does.editLast();
    } else if (event.key === "Escape" && (this.does.stop() || this.editing !== null)) {
      event.preventDefault();
      this.endEditing(true);
    }
  }

  /**
   * One Enter for Hangul. The last syllable of a Korean question is always still being composed, so its Enter comes as one
   * of the input method (key code 229), and a page that takes no such Enter needs two of them. Of Japanese and Chinese that
   * Enter takes a proposal and must not send. So an Enter during a composition of nothing but Hangul is remembered, and the
   * end of that composition sends. The orders in which it comes:
   *
   * - Chromium, Firefox: keydown 229 composing → compositionend [→ keydown 13, or a line break, of the same press].
   * - Safari: compositionend → keydown 229, no longer composing.
   */
  #watchHangul() {
    let composed = "";
    let endedAt = -Infinity;
    let pressedAt = -Infinity;
    let sentAt = -Infinity;

    field.addEventListener("compositionstart", () => {
      composed = "";
      pressedAt = -Infinity;
    });
    field.addEventListener("compositionupdate", ({ data }) => {
      if (data && data !== composed) pressedAt = -Infinity;
      composed = data || composed;
    });
    field.addEventListener("compositionend", ({ data, timeStamp }) => {
      endedAt = timeStamp;
      composed = data;
      const pressed = timeStamp - pressedAt < ONE_PRESS_MS;
      pressedAt = -Infinity;
      // What it ends with may be another text: Hanja, or nothing.
      if (!pressed || !HANGUL.test(data)) return;
      sentAt = timeStamp;
      // The field has the whole text when the event has been dealt with, in every browser.
      queueMicrotask(() => this.send());
    });
    field.addEventListener("keydown", (event) => {
      if (event.keyCode !== 229 && !event.isComposing) return;
      // On Windows the key is "Process"; the code of the key is what it is everywhere.
      const enter = event.key === "Enter" || ["Enter", "NumpadEnter"].includes(event.code);
      if (!enter || !HANGUL.test(composed) || !this.#sends(event)) {
        pressedAt = -Infinity;
        return;
      }
      event.preventDefault();
      if (event.isComposing) {
        pressedAt = event.timeStamp;
      } else if (event.timeStamp - endedAt < ONE_PRESS_MS && !event.repeat) {
        endedAt = -Infinity;
        sentAt = event.timeStamp;
        this.send();
      }
    });
    field.addEventListener("beforeinput", (event) => {
      // The line break of the press that has sent.
      const breaks = event.inputType === "insertLineBreak" || event.inputType === "insertParagraph";
      if (breaks && (event.timeStamp - sentAt < ONE_PRESS_MS || event.timeStamp - pressedAt < ONE_PRESS_MS)) event.preventDefault();
    });
    field.addEventListener("keyup", () => {
      sentAt = -Infinity;
    });
  }
}
