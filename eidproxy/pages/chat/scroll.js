// The page follows the answer as long as its end is in view; a button leads back.

import { $ } from "./dom.js";

const NEAR_PX = 64;

export class Scroll {
  #following = true;

  constructor() {
    addEventListener("scroll", () => this.#look(), { passive: true });
    $("to-end").addEventListener("click", () => this.follow(true));
  }

  /** Go to the end if it was in view, or because the person wants it. */
  follow(force = false) {
    if (force) this.#following = true;
    if (this.#following) scrollTo(0, document.documentElement.scrollHeight);
    else this.#look();
  }

  #look() {
    const page = document.documentElement;
    this.#following = page.scrollHeight - innerHeight - scrollY < NEAR_PX;
    $("to-end").hidden = this.#following;
  }
}
