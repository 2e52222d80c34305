// The conversation on the page: one article for each turn, made anew only when something in it changed.

import { versions } from "./conversation.js";
import { button, element, fill, icon } from "./dom.js";
import { NOTICES } from "./notices.js";
import { Painting } from "./paint.js";

/** @typedef {import("./conversation.js").Turn} Turn */
/** @typedef {import("./run.js").Run} Run */
/** @typedef {typeof import("./strings.ko.js").default} Words */

/** What has just happened to a turn: it is read out, and the wait the server asked for is counted down. */
/** @typedef {{turn: string, seconds: number | null, readyAt: number | null}} Event */

/**
 * Everything that is shown.
 * @typedef {object} Scene
 * @property {Turn[]} path the turns, in order
 * @property {Turn[]} turns all of the conversation, with the versions that are not shown
 * @property {Run | null} run
 * @property {string | null} edited the turn whose question is being edited
 * @property {number} forgotten how many turns at the beginning are no longer sent
 * @property {(turn: Turn) => boolean} elsewhere whether another tab is getting the answer
 * @property {(turn: Turn) => number} of how many versions of a turn there are
 * @property {Event | null} event
 * @property {Words} words
 */

/** @typedef {{article: HTMLElement, text: HTMLElement, painting: Painting, key: string}} View */

// No server takes a question of this length; a file from elsewhere may hold one, and it must not hold the tab.
const MAX_QUESTION = 100_000;
const PEN = "M4 16l.6-3.2L13.4 4l2.6 2.6-8.8 8.8z";

export class Log {
  /** @type {Map<string, View>} */
  #views = new Map();

  /**
   * @param {HTMLElement} root
   * @param {{act: (name: string, turn: Turn) => void, copy: (text: string, pressed: HTMLElement) => void,
   *   show: (turn: Turn) => void}} does what the buttons do
   */
  constructor(root, does) {
    this.root = root;
    this.does = does;
    // The copy buttons in the text of an answer.
    root.addEventListener("click", ({ target }) => {
      const pressed = target instanceof Element ? /** @type {HTMLElement | null} */ (target.closest("[data-copy]")) : null;
      if (pressed) does.copy(pressed.closest(".code")?.querySelector("code")?.textContent ?? "", pressed);
    });
  }

  draw(/** @type {Scene} */ scene) {
    /** @type {Map<string, View>} */
    const views = new Map();
    /** @type {HTMLElement[]} */
    const children = [];
    scene.path.forEach((turn, index) => {
      const view = this.#view(scene, turn, index);
      views.set(turn.id, view);
      children.push(view.article);
      if (index + 1 === scene.forgotten) children.push(element("p", { className: "forgotten", text: scene.words.page.forgotten }));
    });
    this.#views = views;
    replaceChildren(this.root, children);
  }

  /** Show what has come of an answer, and nothing else. */
  write(/** @type {Turn} */ turn) {
    this.#views.get(turn.id)?.painting.show(turn.answer, false);
  }

  #view(/** @type {Scene} */ scene, /** @type {Turn} */ turn, /** @type {number} */ index) {
    const state = stateOf(scene, turn, index);
    const key = JSON.stringify([turn, state, turn.answer === "", scene.words.language], (name, value) =>
      // What is only written on does not make the article another one, and neither does a save.
      (name === "answer" && state.running) || name === "beat" || name === "tab" ? undefined : value,
    );
    const had = this.#views.get(turn.id);
    if (had?.key === key) return had;
    const labels = labelsOf(scene.words);
    const sameWords = had?.painting.labels.copy === labels.copy;
    const text = sameWords ? had.text : element("div", { className: "text" });
    const painting = sameWords ? had.painting : new Painting(text, labels);
    const article = this.#article(scene, turn, state, text);
    painting.show(turn.answer, !state.running);
    return { article, text, painting, key };
  }

  #article(/** @type {Scene} */ scene, /** @type {Turn} */ turn, /** @type {State} */ state, /** @type {HTMLElement} */ text) {
    const { words } = scene;
    const article = element("article", { className: "exchange" });
    if (state.edited) article.classList.add("edited");
    article.append(element("h2", { className: "unseen", text: words.page.question }));
    const question = turn.question.length > MAX_QUESTION ? `${turn.question.slice(0, MAX_QUESTION)}…` : turn.question;
    const asked = element("div", { className: "asked" }, element("p", { className: "question", text: question, dir: "auto" }));
    article.append(asked);
    if (!state.running && !state.elsewhere) {
      const edit = button("plain edit", "", () => this.does.act("edit", turn), words.page.edit);
      edit.title = words.page.edit;
      edit.append(icon(PEN));
      asked.append(edit);
    }
    if (turn.answer) {
      const part = element("div", { className: "answer" }, element("h2", { className: "unseen", text: words.page.answer }));
      if (turn.mode === "deep") part.append(element("span", { className: "badge", text: words.page.deep }));
      part.append(text);
      article.append(part);
    }
    if (!state.running) article.append(this.#tools(scene, turn, state));
    if (state.running && scene.run?.phase === "streaming") article.classList.add("writing");
    else if (state.running && !scene.run?.way.resume) article.classList.add("stale");
    if (state.elsewhere) article.append(element("p", { className: "past", text: words.page.elsewhere }));
    else if (!state.running && turn.notice && Object.hasOwn(NOTICES, turn.notice.kind)) {
      article.append(this.#notice(scene, turn, state));
    }
    return article;
  }

  #tools(/** @type {Scene} */ { words, turns }, /** @type {Turn} */ turn, /** @type {State} */ { last, elsewhere, of }) {
    const bar = element("div", { className: "tools" });
    if (of > 1) bar.append(this.#versions(words, versions(turns, turn), turn));
    if (turn.answer) {
      const copy = button("plain", words.page.copy, () => this.does.copy(turn.answer, copy));
      bar.append(copy);
    }
    if (turn.answer && last && !elsewhere && turn.notice === null) {
      bar.append(button("plain", words.page.again, () => this.does.act("again", turn)));
    }
    return bar;
  }

  /** ‹ 1 / 2 › */
  #versions(/** @type {Words} */ words, /** @type {Turn[]} */ all, /** @type {Turn} */ turn) {
    const at = all.indexOf(turn);
    const step = (/** @type {number} */ by, /** @type {string} */ sign, /** @type {string} */ label) => {
      const other = all[at + by];
      const made = button("plain step", sign, () => this.does.show(other), label);
      made.disabled = other === undefined;
      return made;
    };
    const group = element(
      "span",
      { className: "versions" },
      step(-1, "‹", words.page.version_before),
      element("span", { text: fill(words.page.version, { n: at + 1, of: all.length }) }),
      step(1, "›", words.page.version_after),
    );
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", words.page.versions);
    return group;
  }

  #notice(/** @type {Scene} */ { words, event }, /** @type {Turn} */ turn, /** @type {State} */ { last }) {
    const { kind, requestId } = /** @type {import("./conversation.js").Ending} */ (turn.notice);
    const { quiet, refused } = NOTICES[kind];
    const { title, body } = /** @type {Record<string, {title: string, body: string}>} */ (words.notices)[kind];
    // Once the conversation has gone on, one line is enough.
    if (!last) return element("p", { className: "past", text: title });
    const news = event?.turn === turn.id ? event : null;
    const box = element("section", { className: quiet ? "notice quiet" : "notice" });
    // Only what has just happened is an alert; what is drawn again from the past is not.
    const said = element("div", {}, element("strong", { text: title }));
    if (news) said.setAttribute("role", quiet ? "status" : "alert");
    box.append(said);

    let sentence = body;
    if (kind === "unknown" && !requestId) sentence = words.later;
    if (kind === "stopped" && !turn.answer) sentence = "";
    const line = element("p");
    if (sentence.includes("{s}") && !news?.readyAt) {
      line.textContent = words.later;
    } else if (sentence.includes("{s}")) {
      const [head, end] = sentence.split("{s}");
      // A timer is not read out again at each tick, though it stands in an alert.
      const seconds = element("span", { text: String(news?.seconds) });
      seconds.setAttribute("role", "timer");
      line.append(head, seconds, end);
    } else {
      line.textContent = sentence;
    }
    if (sentence) said.append(line);

    const row = element("div", { className: "row" });
    buttonsOf(turn).forEach((name, index) => {
      const label = /** @type {Record<string, string>} */ (words.buttons)[name];
      const made = button(index === 0 ? "main" : "second", label, () => this.does.act(name, turn));
      made.dataset.action = name;
      row.append(made);
    });
    if (row.hasChildNodes()) box.append(row);
    if (news?.readyAt) countDown(words, news.readyAt, box, line);
    // The number to ask about: in sight where the sentence asks for it, else where asking could help.
    if (requestId && kind === "unknown") {
      const id = element("code", { text: requestId });
      const copy = button("plain", words.page.copy, () => this.does.copy(requestId, copy));
      box.append(element("p", { className: "reference" }, `${words.page.request_id} `, id, " ", copy));
    } else if (requestId && !refused && !kind.startsWith("login")) {
      const id = element("p", { text: `${words.page.request_id} ${requestId}` });
      box.append(element("details", {}, element("summary", { text: words.page.more }), id));
    }
    return box;
  }
}

/** @typedef {ReturnType<typeof stateOf>} State */

/** What of the scene one turn shows. */
function stateOf(/** @type {Scene} */ scene, /** @type {Turn} */ turn, /** @type {number} */ index) {
  const running = scene.run?.turn === turn;
  const phase = scene.run?.phase === "streaming" ? "streaming" : "waiting";
  return {
    last: index === scene.path.length - 1,
    running,
    phase: running ? phase : null,
    elsewhere: !running && scene.elsewhere(turn),
    edited: scene.edited === turn.id,
    of: scene.of(turn),
    news: scene.event?.turn === turn.id ? scene.event : null,
  };
}

/** The actions a turn's notice offers, the main one first. */
function buttonsOf(/** @type {Turn} */ turn) {
  const { kind } = /** @type {import("./conversation.js").Ending} */ (turn.notice);
  const names = NOTICES[kind].buttons.filter((name) => (name !== "edit" && name !== "resume") || !!turn.answer === (name === "resume"));
  // Whatever stopped an answer, the part that came can be continued.
  if (turn.answer && !NOTICES[kind].refused && !names.includes("resume") && !kind.startsWith("login")) names.push("resume");
  return names;
}

function labelsOf(/** @type {Words} */ { page }) {
  return { copy: page.code_copy, done: page.done, todo: page.todo, table: page.table };
}

/** Keep the retry button of `box` disabled until the time the server asked for is over. */
function countDown(/** @type {Words} */ words, /** @type {number} */ readyAt, /** @type {HTMLElement} */ box, /** @type {HTMLElement} */ line) {
  const retry = /** @type {HTMLButtonElement | null} */ (box.querySelector("[data-action=retry]"));
  let started = false;
  const tick = () => {
    const left = Math.ceil((readyAt - Date.now()) / 1000);
    const timer = line.querySelector("[role=timer]");
    if (retry) {
      retry.disabled = left > 0;
      retry.textContent = left > 0 ? fill(words.buttons.retry_in, { s: left }) : words.buttons.retry;
    }
    if (timer && left > 0) timer.textContent = String(left);
    if (timer && left <= 0) line.textContent = words.ready_again;
    // A box that was drawn anew has a countdown of its own.
    if (left > 0 && (box.isConnected || !started)) setTimeout(tick, 250);
    started = true;
  };
  tick();
}

/** Make `children` the children of `root`, and leave alone those that are where they belong: a focus in them stays. */
function replaceChildren(/** @type {HTMLElement} */ root, /** @type {HTMLElement[]} */ children) {
  const wanted = new Set(children);
  for (const have of [...root.children]) if (!wanted.has(/** @type {HTMLElement} */ (have))) have.remove();
  children.forEach((child, index) => {
    if (root.children[index] !== child) root.insertBefore(child, root.children[index] ?? null);
  });
}
