// A short word on what was just done, with the way back.

import { $, button, element } from "./dom.js";

const SHOWN_MS = 12_000;

const box = $("toast");
/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer;

/** Show `text`, with a button that does something about it. */
export function toast(/** @type {string} */ text, /** @type {{label: string, press: () => void} | null} */ way = null) {
  clearTimeout(timer);
  const end = () => {
    // Whoever is about to press it has the time to.
    if (box.matches(":hover, :focus-within")) timer = setTimeout(end, 2000);
    else hideToast();
  };
  box.replaceChildren(element("span", { text }));
  if (way) {
    box.append(
      button("plain", way.label, () => {
        hideToast();
        way.press();
      }),
    );
  }
  box.hidden = false;
  // Beside an open dialog nothing can be pressed: the word stands in it, and above everything else.
  const dialog = [...document.querySelectorAll("dialog[open]")].at(-1);
  const place = dialog ?? document.body;
  if (box.parentElement !== place) place.append(box);
  if (box.showPopover && !box.matches(":popover-open")) box.showPopover();
  timer = setTimeout(end, SHOWN_MS);
}

export function hideToast() {
  clearTimeout(timer);
  if (box.hidePopover && box.matches(":popover-open")) box.hidePopover();
  box.hidden = true;
  box.replaceChildren();
}

/** Say something to a screen reader alone. */
export function say(/** @type {string} */ text) {
  $("said").textContent = text;
}
