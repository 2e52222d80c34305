// The page follows the answer as long as its end is in view; a button leads back.

import { $ } from "./dom.js";

const NEAR_PX = 64;

export class Scroll {
  #following = true;
  // Where the page stood when it was looked at last.
  #at = 0;

  constructor() {
    // A conversation opens at its end. The browser would bring back the place of the last visit when all is loaded, and
    // on a slow machine that is later.
    history.scrollRestoration = "manual";
    addEventListener("scroll", () => this.#look(), { passive: true });
    $("to-end").addEventListener("click", () => this.toEnd());
    // Whatever makes the page longer: a piece of an answer, a text that is drawn over several frames, a long question.
    new ResizeObserver(() => this.#follow()).observe(/** @type {HTMLElement} */ ($("log").parentElement));
  }

  /** Go to the end, and stay there. */
  toEnd() {
    this.#following = true;
    this.#follow();
  }

  #follow() {
    if (this.#following) scrollTo(0, document.documentElement.scrollHeight);
    this.#look();
  }

  #look() {
    const page = document.documentElement;
    // The end moves away from a page that stands still; a person moves the page.
    if (page.scrollHeight - innerHeight - scrollY < NEAR_PX) this.#following = true;
    else if (scrollY < this.#at) this.#following = false;
    this.#at = scrollY;
    $("to-end").hidden = this.#following;
  }
}
