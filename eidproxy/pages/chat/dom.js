// Small help to build elements. Text is only ever set as text.

/** The element with an id; the page is written so that it is there. */
export function $(/** @type {string} */ id) {
  return /** @type {HTMLElement} */ (document.getElementById(id));
}

/**
 * An element; `className`, `text` and `data` aside, what is given is set as properties.
 *
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {{className?: string, text?: string, data?: Record<string, string>} & Partial<Omit<HTMLElementTagNameMap[T], "className">>} [given]
 * @param {...(globalThis.Node | string)} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function element(tag, { className, text, data, ...rest } = {}, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  Object.assign(made.dataset, data);
  Object.assign(made, rest);
  made.append(...children);
  return made;
}

/** A button that calls `press`. */
export function button(
  /** @type {string} */ className,
  /** @type {string} */ text,
  /** @type {(event: MouseEvent) => void} */ press,
  /** @type {string | null} */ label = null,
) {
  const made = element("button", { type: "button", className, text });
  if (label !== null) made.setAttribute("aria-label", label);
  made.addEventListener("click", press);
  return made;
}

/** A line drawing of 20 by 20. */
export function icon(/** @type {string} */ drawing) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", drawing);
  svg.append(path);
  return svg;
}

/** Fill the places of a sentence: "{n} left" with {n: 3}. */
export function fill(/** @type {string} */ sentence, /** @type {Record<string, string | number>} */ values) {
  return sentence.replace(/\{(\w+)\}/g, (place, name) => String(values[name] ?? place));
}

/** Give the person a file. */
export function download(/** @type {string} */ name, /** @type {string} */ type, /** @type {string} */ text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
