// The text of an answer on the page. While it grows only its last block is made anew, and of that only what differs is
// touched, so a selection elsewhere survives; a long text is drawn over several frames, so no text holds the tab.

/** @typedef {import("./markdown.js").Node} Node */
/** @typedef {import("./markdown.js").Labels} Labels */
/** @typedef {import("./markdown.js").Outline} Outline */

// How much text is parsed in one step (at least two of the parts that are shown as they are), and how many elements one
// makes, a single block aside.
const STEP = 8 * 1024;
const STEP_ELEMENTS = 300;
// Up to here a text that is whole is read as one.
const WHOLE = 16 * 1024;
// A block longer than this is shown as it is, unless it is code, which is cheap.
const MAX_BLOCK = 32 * 1024;
// What comes after this much of a text, or after so many elements, is shown as it is.
const MAX_STYLED = 128 * 1024;
const MAX_ELEMENTS = 12_000;
// How long drawing may take of one frame. What it leaves to the browser counts: to lay out an element, a character, a line.
const BUDGET_MS = 10;
const ELEMENT_MS = 0.015;
const CHARACTER_MS = 0.0005;
const LINE_MS = 0.003;

const MATHML = "http://www.w3.org/1998/Math/MathML";

/** @type {typeof import("./markdown.js") | null} */
let markdown = null;
/** @type {Promise<void> | null} */
let loading = null;

/** Load the grammar. It is a third of the page, and one can ask before it is there; until then text is shown as it is. */
export function loadMarkdown() {
  // All in one round, though the first alone asks for the others.
  loading ??= Promise.all([
    import("./markdown.js"),
    import("./grammar.js"),
    import("./math.js"),
    import("./addresses.js"),
    import("./vendor/markdown-it.js"),
  ]).then(
    ([loaded]) => {
      markdown = loaded;
      nextFrame();
    },
    () => {
      // No network: it is tried again with the next text.
      loading = null;
    },
  );
  return loading;
}

/** Paintings with something left to draw. @type {Set<Painting>} */
const unfinished = new Set();
/** What was spent of this frame's budget, in ms. */
let spent = 0;
let frame = 0;

function nextFrame() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    spent = 0;
    // The newest first: at its end a conversation is read on.
    for (const painting of [...unfinished].reverse()) {
      if (spent >= BUDGET_MS) break;
      painting.draw();
    }
    if (unfinished.size) nextFrame();
  });
}

/** One answer's text in one element, which is its alone. */
export class Painting {
  #text = "";
  // Up to here the blocks can change no more, whatever is added: in the text, and among the children of the element.
  #settled = { text: 0, children: 0, elements: 0 };
  /** @type {Outline} */
  #outline = { base: 0, last: 2 };
  /** @type {Node[]} */
  #nodes = [];
  #whole = false;
  #restAt = 0;
  // How much the next step takes: more, when the last one had too little of its block to be drawn.
  #size = STEP;

  /** @param {HTMLElement} target @param {Labels} labels */
  constructor(target, labels) {
    this.target = target;
    this.labels = labels;
  }

  /** Show `text`; `whole` says that nothing will be added. */
  show(/** @type {string} */ text, /** @type {boolean} */ whole) {
    const clean = text.includes("\r") ? text.replace(/\r\n?/g, "\n") : text;
    const added = clean.startsWith(this.#text.slice(0, this.#settled.text));
    // At the end it is read once more as one, for a link may be defined below its use.
    if (!added || (whole && !this.#whole && clean.length <= WHOLE)) this.#begin();
    this.#text = clean;
    this.#whole = whole;
    this.#restAt = 0;
    if (whole && this.#settled.text === 0 && clean.length <= WHOLE) this.#size = WHOLE;
    unfinished.delete(this);
    unfinished.add(this);
    if (spent < BUDGET_MS) this.draw();
    if (unfinished.has(this) && this.#nodes.length === 0) this.target.textContent = clean.slice(0, STEP);
    if (markdown) nextFrame();
    else loadMarkdown();
  }

  #begin() {
    this.#settled = { text: 0, children: 0, elements: 0 };
    this.#outline = { base: 0, last: 2 };
  }

  /** Draw on until everything is drawn or the time of this frame is used up. */
  draw() {
    const before = spent;
    if (markdown === null || performance.now() < this.#restAt) return;
    if (this.#nodes.length === 0) this.target.replaceChildren();
    for (;;) {
      const started = performance.now();
      const piece = this.#text.slice(this.#settled.text, this.#settled.text + this.#size);
      const last = this.#settled.text + piece.length === this.#text.length;
      const done = this.#step(markdown, piece, last);
      this.#size = done === "short" ? this.#size * 2 : STEP;
      spent += performance.now() - started;
      if (done === "all") unfinished.delete(this);
      if (done === "all" || spent >= BUDGET_MS) break;
    }
    // A last block that takes long to make is made the more rarely while it grows.
    const took = spent - before;
    if (!this.#whole && took > BUDGET_MS) this.#restAt = performance.now() + 4 * took;
  }

  /**
   * Parse the piece of the text that begins where it is settled, and draw it. All of its blocks but the last are settled
   * then. A piece with very many elements is drawn in part.
   *
   * @param {typeof import("./markdown.js")} grammar
   * @param {string} piece
   * @param {boolean} last whether it goes to the end of the text
   * @returns {"all" | "part" | "short"} what of the text is drawn now; nothing, when the piece was too short for its block
   */
  #step({ blocks, parts, plain }, piece, last) {
    if (this.#settled.text >= MAX_STYLED || this.#settled.elements >= MAX_ELEMENTS) return this.#asItIs(parts(piece).map(plain), piece.length, last);
    const found = blocks(piece, this.labels, { ...this.#outline });
    // The line that is not ended yet may still turn out to belong to the block before it.
    const open = last && this.#whole ? piece.length : piece.lastIndexOf("\n") + 1;
    const tail = found.findLast(({ start }) => start < open)?.start ?? 0;
    let elements = 0;
    for (const { start, node } of found) {
      // Whatever begins together, as the parts of a long block do, is drawn together.
      if (elements >= STEP_ELEMENTS && start > 0 && start <= tail) {
        this.#draw(found.filter((one) => one.start < start), start);
        return "part";
      }
      elements += count(node);
    }
    if (!last && tail === 0) {
      // One block that is longer than a step: more of it is needed, to see its end.
      if (piece.length < MAX_BLOCK || found[0]?.node.attrs.class === "code") return "short";
      return this.#asItIs([...parts(piece), ""].map(plain), piece.length, last);
    }
    this.#draw(found, tail);
    return last ? "all" : "part";
  }

  /** Draw blocks; those that begin before `tail` are settled. */
  #draw(/** @type {import("./markdown.js").Block[]} */ found, /** @type {number} */ tail) {
    this.#put(found.map(({ node }) => node));
    const settled = found.filter(({ start }) => start < tail);
    this.#settle(tail, settled.length);
    this.#settled.elements += settled.reduce((sum, { node }) => sum + count(node), 0);
    for (const { node } of settled) {
      if (!/^h[3-6]$/.test(node.tag)) continue;
      this.#outline.last = Number(node.tag[1]);
      this.#outline.base ||= Number(node.attrs.class.slice("level-".length));
    }
  }

  /** Show pieces of text as they are; all but the last are settled. */
  #asItIs(/** @type {Node[]} */ pieces, /** @type {number} */ length, /** @type {boolean} */ last) {
    this.#put(pieces);
    this.#settle(length - String(pieces.at(-1)?.kids[0] ?? "").length, pieces.length - 1);
    return last ? "all" : "part";
  }

  #settle(/** @type {number} */ text, /** @type {number} */ children) {
    this.#settled.text += text;
    this.#settled.children += children;
  }

  /** Make the children behind the settled ones be `nodes`. */
  #put(/** @type {Node[]} */ nodes) {
    const { children } = this.#settled;
    nodes.forEach((node, index) => {
      const at = children + index;
      patch(this.target, this.target.childNodes[at], this.#nodes[at], node);
      this.#nodes[at] = node;
    });
    const count = children + nodes.length;
    while (this.target.childNodes.length > count) this.target.lastChild?.remove();
    this.#nodes.length = count;
  }
}

/**
 * Turn what stands at `have` (made from `old`) into `wanted`, or put it there.
 *
 * @param {globalThis.Node} parent
 * @param {globalThis.Node | undefined} have
 * @param {Node | string | undefined} old
 * @param {Node | string} wanted
 */
function patch(parent, have, old, wanted) {
  if (have === undefined || old === undefined) {
    parent.appendChild(make(wanted));
  } else if (typeof wanted === "string" && typeof old === "string") {
    if (wanted === old) return;
    /** @type {Text} */ (have).data = wanted;
    spent += costOf(wanted);
  } else if (typeof wanted !== "string" && typeof old !== "string" && sameElement(old, wanted)) {
    wanted.kids.forEach((kid, index) => patch(have, have.childNodes[index], old.kids[index], kid));
    while (have.childNodes.length > wanted.kids.length) have.lastChild?.remove();
  } else {
    parent.replaceChild(make(wanted), have);
  }
}

function sameElement(/** @type {Node} */ one, /** @type {Node} */ other) {
  const names = Object.keys(one.attrs);
  return (
    one.tag === other.tag &&
    names.length === Object.keys(other.attrs).length &&
    names.every((name) => one.attrs[name] === other.attrs[name])
  );
}

/** How many elements a tree has. @returns {number} */
function count(/** @type {Node} */ { kids }) {
  return kids.reduce((sum, kid) => sum + (typeof kid === "string" ? 0 : count(kid)), 1);
}

function costOf(/** @type {string} */ text) {
  let lines = 1;
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) lines += 1;
  return text.length * CHARACTER_MS + lines * LINE_MS;
}

/** @returns {globalThis.Node} */
function make(/** @type {Node | string} */ node) {
  if (typeof node === "string") {
    spent += costOf(node);
    return document.createTextNode(node);
  }
  spent += ELEMENT_MS;
  // Of the elements that come here only MathML's begin so.
  const made = node.tag[0] === "m" ? document.createElementNS(MATHML, node.tag) : document.createElement(node.tag);
  for (const [name, value] of Object.entries(node.attrs)) made.setAttribute(name, value);
  for (const kid of node.kids) made.append(make(kid));
  return made;
}
