// Copying, also where the browser withholds its interface for it.

import { element } from "./dom.js";

/** Copy `text`. Raises what the browser raises when it refuses. */
export async function copyText(/** @type {string} */ text) {
  // It is there on HTTPS and on this very machine only.
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = element("textarea", { className: "unseen", value: text });
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  if (!copied) throw new Error("not copied");
}
