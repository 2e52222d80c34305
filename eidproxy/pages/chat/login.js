// Logging in and out: a token is taken only after the server has taken it, and nobody's place is taken unasked.

import { $, fill } from "./dom.js";
import { readState } from "./server.js";
import { devicePerson, keepPreference, personOf, preference } from "./session.js";

/** @typedef {import("./session.js").Person} Person */
/** @typedef {typeof import("./strings.ko.js").default} Words */

const dialog = /** @type {HTMLDialogElement} */ ($("login"));
const field = /** @type {HTMLTextAreaElement} */ ($("token"));
const stay = /** @type {HTMLInputElement} */ ($("login-stay"));
const problem = $("login-error");

export class Login {
  #busy = false;

  /**
   * @param {() => Words} words
   * @param {() => Person | null} here who is on the page now
   * @param {(person: Person, stay: boolean) => Promise<void>} enter
   */
  constructor(words, here, enter) {
    this.words = words;
    this.here = here;
    this.enter = enter;
    stay.checked = preference("stay", ["yes"]) === "yes";
    $("login-close").addEventListener("click", () => dialog.close());
    $("login-form").addEventListener("submit", async (event) => {
      event.preventDefault();
      keepPreference("stay", stay.checked ? "yes" : "no");
      await this.#try(field.value.trim(), stay.checked);
    });
    addEventListener("hashchange", () => this.takeFragment());
  }

  open() {
    field.value = "";
    problem.textContent = "";
    dialog.showModal();
  }

  /**
   * A token in the fragment of the address, which is taken out of the address (and of the history entry) at once. With a
   * problem the dialog opens and has it in its field, to be tried again.
   */
  async takeFragment() {
    const found = /^#token=(.+)$/.exec(location.hash);
    if (!found) return;
    history.replaceState(null, "", location.pathname + location.search);
    await this.#try(found[1], preference("stay", ["yes"]) === "yes");
  }

  async #try(/** @type {string} */ token, /** @type {boolean} */ staying) {
    if (this.#busy) return;
    this.#busy = true;
    try {
      const { page } = this.words();
      const person = personOf(token);
      problem.textContent = person ? page.login_checking : page.login_bad;
      const said = person ? await readState(token) : "bad";
      if (person === null || typeof said === "string") {
        if (!dialog.open) dialog.showModal();
        if (said === "unknown") field.value = token;
        problem.textContent = { bad: page.login_bad, refused: page.login_refused, unknown: page.login_unknown }[/** @type {"bad"} */ (said)];
        return;
      }
      const others = [this.here(), staying ? devicePerson() : null].filter((one) => one !== null && one.owner !== person.owner);
      if (others[0] && !(await this.#askedFor(person, others[0]))) {
        problem.textContent = "";
        return;
      }
      field.value = "";
      problem.textContent = "";
      dialog.close();
      await this.enter(person, staying);
    } finally {
      this.#busy = false;
    }
  }

  /** Whether `person` may take the place of `now`. */
  #askedFor(/** @type {Person} */ person, /** @type {Person} */ now) {
    const { page } = this.words();
    return choose(page.other_title, page.other_body, { name: person.name, now: now.name }, [
      { value: true, label: page.other_yes, main: true },
      { value: false, label: page.other_no },
    ]).then((answer) => answer === true);
  }
}

const question = /** @type {HTMLDialogElement} */ ($("choose"));

/**
 * Ask the person to choose; null when they leave it.
 *
 * @template T
 * @param {string} title @param {string} body @param {Record<string, string>} values
 * @param {Array<{value: T, label: string, main?: boolean}>} choices
 * @returns {Promise<T | null>}
 */
export function choose(title, body, values, choices) {
  return new Promise((resolve) => {
    $("choose-title").textContent = fill(title, values);
    $("choose-body").textContent = fill(body, values);
    /** @type {T | null} */
    let chosen = null;
    $("choose-row").replaceChildren(
      ...choices.map(({ value, label, main }) => {
        const made = document.createElement("button");
        made.type = "button";
        made.className = main ? "main" : "second";
        made.textContent = label;
        made.addEventListener("click", () => {
          chosen = value;
          question.close();
        });
        return made;
      }),
    );
    question.addEventListener("close", () => resolve(chosen), { once: true });
    question.showModal();
  });
}
