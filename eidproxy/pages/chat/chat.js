// The page: what is shown, and what every button does. It keeps one list of exchanges and draws each of them again when
// it changes. No text is ever parsed as markup: elements are built, texts are set.

import { ask } from "/chat/answer.js";
import { MAX_MESSAGE, cleaned, codePoints, joined, outgoing } from "/chat/conversation.js";
import { show } from "/chat/markup.js";
import { NOTICES, noticeOf } from "/chat/notices.js";
import * as session from "/chat/session.js";
import english from "/chat/strings.en.js";
import korean from "/chat/strings.ko.js";

// How long the page goes on asking again by itself while a model is being made ready.
const PATIENCE_MS = 5 * 60_000;
// The counter appears when a question comes near the cap.
const COUNTER_FROM = MAX_MESSAGE * 0.8;

const $ = (id) => document.getElementById(id);
const modes = Array.from(document.querySelectorAll("input[name=mode]"));
const finePointer = matchMedia("(pointer: fine)").matches;

let words = session.preference("language", ["ko", "en"]) === "en" ? english : korean;
let token = session.storedToken();
// Whose conversation is shown: that of the token, also after the token has run out; null before the first login.
let owner = token === null ? null : session.ownerOf(token);
// {question, answer, mode, refused, notice: {kind, requestId} | null, running}
let exchanges = [];
// The request under way: {exchange, controller, phase, text, resume, position, startsAt, retryAt, wake}
let run = null;
const views = new WeakMap();

function fill(template, values) {
  return template.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

function element(tag, { className, text, ...rest } = {}, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  Object.assign(made, rest);
  made.append(...children);
  return made;
}

// --- Asking ---------------------------------------------------------------------------------------------------------

/** Ask for the answer of `exchange`; with `resume` for the rest of it. What is shown stays until the first new word. */
async function answer(exchange, { mode = exchange.mode, resume = false } = {}) {
  if (run !== null) return;
  exchange.mode = mode;
  exchange.notice = null;
  exchange.refused = false;
  if (token === null) {
    settle(exchange, { kind: session.wasAccepted() ? "login_expired" : "login", resume });
    return;
  }
  const mine = { exchange, controller: new AbortController(), phase: "thinking", text: "", resume };
  run = mine;
  exchange.running = true;
  redraw(exchange);
  drawRun();
  followEnd(true);

  const before = resume ? exchange.answer : "";
  const earlier = exchanges.slice(0, exchanges.indexOf(exchange));
  const messages = outgoing(earlier, exchange, resume ? words.resume_request : null);
  const { signal } = mine.controller;
  const patienceEnds = Date.now() + PATIENCE_MS;
  let outcome;
  let kind;
  for (;;) {
    outcome = await ask({
      token,
      mode,
      messages,
      signal,
      accepted: session.markAccepted,
      progress: (news) => onProgress(mine, news),
      text(piece) {
        mine.text += piece;
        exchange.answer = joined(before, mine.text);
        onText(mine);
      },
    });
    kind = noticeOf(outcome, { mode, hasText: mine.text !== "", resume, wasAccepted: session.wasAccepted() });
    if (!NOTICES[kind]?.again || mine.text !== "" || Date.now() > patienceEnds) break;
    mine.phase = kind;
    if (!(await pause(mine, outcome.retrySeconds ?? NOTICES[kind].seconds))) {
      outcome = { end: "stopped" };
      kind = "stopped";
      break;
    }
  }
  // A logout in the meantime has taken the exchange off the page.
  if (run !== mine) return;
  run = null;
  exchange.running = false;
  if (outcome.status === 401) {
    token = null;
    session.dropToken({ expired: true });
  }
  settle(exchange, { kind, resume, requestId: outcome.requestId, seconds: outcome.retrySeconds });
}

/** Write down how an exchange ended, and say so. */
function settle(exchange, { kind, resume = false, requestId = null, seconds = null }) {
  if (kind === null) {
    exchange.notice = null;
  } else {
    const wait = seconds ?? NOTICES[kind].seconds ?? null;
    const counts = wait !== null && kind !== "stopped" && NOTICES[kind].buttons.includes("retry");
    exchange.notice = { kind, requestId, resume, wait, live: true, readyAt: counts ? Date.now() + wait * 1000 : null };
    // A continuation that was refused says nothing against the exchange it should have continued.
    exchange.refused = NOTICES[kind].refused === true && !resume;
  }
  save();
  redraw(exchange);
  drawRun();
  drawHead();
  say(kind === null ? words.page.finished : "");
  followEnd();
}

/** Wait before the page asks again; false when the person stopped it. `run.wake()` ends the wait early. */
function pause(mine, seconds) {
  if (mine.controller.signal.aborted) return Promise.resolve(false);
  mine.retryAt = Date.now() + seconds * 1000;
  drawRun();
  return new Promise((resolve) => {
    const end = (goOn) => {
      clearTimeout(timer);
      mine.retryAt = null;
      mine.wake = null;
      if (run === mine) drawRun();
      resolve(goOn);
    };
    const timer = setTimeout(() => end(true), seconds * 1000);
    mine.wake = () => end(true);
    mine.controller.signal.addEventListener("abort", () => end(false), { once: true });
  });
}

function onProgress(mine, { state, position, eta_seconds: eta }) {
  if (run !== mine || mine.text !== "") return;
  if (state === "queued") {
    mine.phase = Number.isInteger(position) && position > 1 ? "queued" : "next";
    mine.position = position;
    mine.startsAt = Number.isFinite(eta) ? Date.now() + eta * 1000 : null;
  } else if (state === "upstream" && (mine.phase === "queued" || mine.phase === "next")) {
    mine.phase = "thinking";
  }
  drawRun();
}

let frame = 0;

function onText(mine) {
  if (run !== mine) return;
  if (mine.phase !== "streaming") {
    mine.phase = "streaming";
    drawRun();
  }
  // Many pieces may come within one frame; a hidden tab gets no frames and draws when it is shown again.
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    if (run !== mine) return;
    redraw(mine.exchange);
    followEnd();
  });
}

// --- Actions of the buttons -----------------------------------------------------------------------------------------

const actions = {
  retry: (exchange) => answer(exchange, { resume: exchange.notice?.resume }),
  again: (exchange) => answer(exchange),
  resume: (exchange) => answer(exchange, { resume: true }),
  daily: (exchange) => inMode(exchange, "daily"),
  other: (exchange) => inMode(exchange, exchange.mode === "deep" ? "daily" : "deep"),
  login: () => openLogin(),
  edit(exchange) {
    exchanges = exchanges.filter((one) => one !== exchange);
    const draft = $("compose").value;
    $("compose").value = draft.trim() ? `${exchange.question}\n${draft}` : exchange.question;
    save();
    drawAll();
    onDraft();
    $("compose").focus();
  },
  fresh(exchange) {
    exchanges = [exchange];
    drawAll();
    return answer(exchange);
  },
};

function inMode(exchange, mode) {
  chooseMode(mode);
  return answer(exchange, { mode, resume: exchange.notice?.resume });
}

function act(name, exchange) {
  actions[name](exchange);
  // The button that was pressed is gone by now; the keyboard goes on at the question field.
  if (name !== "login" && finePointer) $("compose").focus();
}

function send() {
  const question = cleaned($("compose").value);
  if (run !== null || question === "" || codePoints(question) > MAX_MESSAGE) return;
  const exchange = { question, answer: "", mode: chosenMode(), refused: false, notice: null, running: false };
  exchanges.push(exchange);
  $("compose").value = "";
  onDraft();
  drawAll();
  answer(exchange);
}

function stop() {
  run?.controller.abort();
  if (finePointer) $("compose").focus();
}

function startFresh() {
  leaveRun();
  exchanges = [];
  save();
  drawAll();
  if (finePointer) $("compose").focus();
}

/** Break the request off and forget it; nothing of it is shown or kept. */
function leaveRun() {
  const left = run;
  run = null;
  left?.controller.abort();
}

async function copy(text, button) {
  let label = words.page.copied;
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else copyBySelection(text);
  } catch {
    label = words.page.copy_failed;
  }
  say(label);
  button.textContent = label;
  setTimeout(() => {
    button.textContent = words.page.copy;
  }, 2000);
}

/** Copy without the clipboard interface, which browsers only have on HTTPS and on this very machine. */
function copyBySelection(text) {
  const field = element("textarea", { className: "unseen", value: text });
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  if (!copied) throw new Error("not copied");
}

// --- Logging in and out ---------------------------------------------------------------------------------------------

function login(pasted) {
  const who = session.ownerOf(pasted);
  if (who === null) return false;
  leaveRun();
  if (owner !== null && owner !== who) forget();
  // What was asked before the first login belongs to the person who now logs in.
  if (owner !== who) exchanges = [...loaded(who), ...exchanges];
  token = pasted;
  owner = who;
  session.keepToken(token);
  for (const one of exchanges) one.running = false;
  save();
  drawAll();
  const waiting = exchanges.at(-1);
  if (waiting?.notice?.kind.startsWith("login")) answer(waiting, { resume: waiting.notice.resume });
  return true;
}

function logout() {
  forget();
  token = null;
  owner = null;
  session.dropToken();
  session.removeExchanges();
  drawAll();
}

/** Take everything of the person off the page: exchanges, the question being written, the request under way. */
function forget() {
  leaveRun();
  exchanges = [];
  $("compose").value = "";
  onDraft();
}

function openLogin() {
  $("token").value = "";
  $("login-error").textContent = "";
  $("login").showModal();
}

/** A token in the fragment of the address, which is taken out of the address (and of the history entry) at once. */
function takeFragment() {
  const found = /^#token=(.+)$/.exec(location.hash);
  if (!found) return;
  history.replaceState(null, "", location.pathname);
  if (login(found[1])) return;
  openLogin();
  $("login-error").textContent = words.page.login_bad;
}

function loaded(who) {
  return session.loadExchanges(who).map((one) => {
    // It was under way when the page went: what came is kept.
    const broken = { kind: one.answer ? "cut" : "cut_empty", requestId: null };
    const known = one.notice && Object.hasOwn(NOTICES, one.notice.kind) ? one.notice : null;
    return {
      question: one.question,
      answer: one.answer,
      mode: one.mode === "deep" ? "deep" : "daily",
      refused: one.refused === true,
      notice: one.running ? broken : known,
      running: false,
    };
  });
}

function save() {
  if (owner === null) return;
  const kept = exchanges.map(({ notice, ...one }) => ({
    ...one,
    notice: notice && { kind: notice.kind, requestId: notice.requestId, resume: notice.resume },
  }));
  session.saveExchanges(owner, kept);
}

// --- Drawing --------------------------------------------------------------------------------------------------------

function drawAll() {
  $("log").replaceChildren(...exchanges.map(draw));
  drawRun();
  drawHead();
}

function redraw(exchange) {
  const article = views.get(exchange);
  if (!article?.isConnected) return;
  if (run?.exchange === exchange && run.phase === "streaming" && article.classList.contains("writing")) {
    show(article.querySelector(".text"), exchange.answer);
    return;
  }
  article.replaceWith(draw(exchange));
}

function draw(exchange) {
  const last = exchange === exchanges.at(-1);
  const article = element("article", { className: "exchange" });
  article.append(element("h2", { className: "unseen", text: words.page.question }));
  article.append(element("p", { className: "question", text: exchange.question }));
  if (exchange.answer) {
    const text = element("div", { className: "text" });
    show(text, exchange.answer);
    const part = element("div", { className: "answer" }, element("h2", { className: "unseen", text: words.page.answer }));
    if (exchange.mode === "deep") part.append(element("span", { className: "badge", text: words.page.deep }));
    part.append(text);
    if (!exchange.running) part.append(tools(exchange, last));
    article.append(part);
  }
  if (exchange.running) {
    if (run?.phase === "streaming") article.classList.add("writing");
    else if (!run?.resume) article.classList.add("stale");
  } else if (exchange.notice) {
    article.append(notice(exchange, last));
  }
  views.set(exchange, article);
  return article;
}

function tools(exchange, last) {
  const bar = element("div", { className: "tools" });
  const button = element("button", { type: "button", className: "plain", text: words.page.copy });
  button.addEventListener("click", () => copy(exchange.answer, button));
  bar.append(button);
  if (last && exchange.notice === null) {
    const again = element("button", { type: "button", className: "plain", text: words.page.again });
    again.addEventListener("click", () => act("again", exchange));
    bar.append(again);
  }
  return bar;
}

function notice(exchange, last) {
  const { kind, requestId, live, readyAt, wait } = exchange.notice;
  const { quiet, refused } = NOTICES[kind];
  const { title, body } = words.notices[kind];
  // Once the conversation has gone on, one line is enough.
  if (!last) return element("p", { className: "past", text: title });
  const box = element("section", { className: quiet ? "notice quiet" : "notice" });
  // Only what has just happened is an alert; what is drawn again from the past is not.
  const said = element("div", {}, element("strong", { text: title }));
  if (live) said.setAttribute("role", quiet ? "status" : "alert");
  exchange.notice.live = false;
  box.append(said);

  let sentence = body;
  if (kind === "unknown" && !requestId) sentence = words.later;
  if (kind === "stopped" && !exchange.answer) sentence = "";
  const counting = readyAt !== null && readyAt !== undefined;
  const line = element("p");
  if (sentence.includes("{s}") && !counting) {
    line.textContent = words.later;
  } else if (sentence.includes("{s}")) {
    const [head, end] = sentence.split("{s}");
    // A timer is not read out again at each tick, though it stands in an alert.
    const seconds = element("span", { text: String(wait) });
    seconds.setAttribute("role", "timer");
    line.append(head, seconds, end);
  } else {
    line.textContent = fill(sentence, { request_id: requestId });
  }
  if (sentence) said.append(line);

  const names = NOTICES[kind].buttons.filter((name) => name !== "edit" || !exchange.answer);
  // Whatever stopped an answer, the part that came can be continued.
  if (exchange.answer && !refused && !names.includes("resume") && !kind.startsWith("login")) names.push("resume");
  const row = element("div", { className: "row" });
  names.forEach((name, index) => {
    const button = element("button", {
      type: "button",
      className: index === 0 ? "main" : "second",
      text: words.buttons[name],
    });
    button.dataset.action = name;
    button.addEventListener("click", () => act(name, exchange));
    row.append(button);
  });
  if (names.length) box.append(row);
  if (counting) countDown(exchange.notice, box, line);
  // The number to ask about, where asking helps and the sentence does not have it.
  if (requestId && !sentence.includes("{request_id}") && !refused && !kind.startsWith("login")) {
    const id = element("p", { text: `${words.page.request_id} ${requestId}` });
    box.append(element("details", {}, element("summary", { text: words.page.more }), id));
  }
  return box;
}

/** Keep the retry button of `box` disabled until the time the server asked for is over. */
function countDown(state, box, line) {
  const button = box.querySelector("[data-action=retry]");
  const tick = () => {
    const left = Math.ceil((state.readyAt - Date.now()) / 1000);
    const timer = line.querySelector("[role=timer]");
    button.disabled = left > 0;
    button.textContent = left > 0 ? fill(words.buttons.retry_in, { s: left }) : words.buttons.retry;
    if (timer && left > 0) timer.textContent = String(left);
    if (timer && left <= 0) line.textContent = words.ready_again;
    // A box that was drawn anew has a countdown of its own.
    if (left > 0 && (box.isConnected || !started)) setTimeout(tick, 250);
    started = true;
  };
  let started = false;
  tick();
}

/** The state of the request under way: one line, or a card while it waits. */
function drawRun() {
  const waiting = ["queued", "next", "warming", "cold"].includes(run?.phase);
  $("progress").className = `progress${run ? " shown" : ""}${waiting ? " waiting" : ""}`;
  $("log").setAttribute("aria-busy", String(run !== null));
  $("send").hidden = run !== null;
  $("stop").hidden = run === null;
  $("stop").textContent = waiting ? words.page.cancel : words.page.stop;
  $("now").hidden = !(run?.phase === "cold" && run.retryAt);
  const status = $("status");
  if (run === null) {
    status.replaceChildren();
  } else {
    const { title, body } = words.states[run.phase === "cold" && !run.retryAt ? "cold_now" : run.phase];
    // Seconds that run down are not part of what is read out: they stand in the line below it.
    const read = body.includes("{s}") ? "" : fill(body, { n: run.position });
    const shown = `${title}\n${read}`;
    if (status.dataset.shown !== shown || !status.firstChild) {
      status.replaceChildren(element("b", { text: title }), read);
      status.dataset.shown = shown;
    }
  }
  drawTiming();
  followEnd();
}

function drawTiming() {
  const line = $("timing");
  const left = (time) => Math.ceil((time - Date.now()) / 1000);
  let text = "";
  if (run?.phase === "cold" && run.retryAt) {
    text = fill(words.states.cold.body, { s: Math.max(left(run.retryAt), 1) });
  } else if ((run?.phase === "queued" || run?.phase === "next") && run.startsAt) {
    const seconds = left(run.startsAt);
    if (seconds < 2) text = words.eta.soon;
    else if (seconds < 60) text = fill(words.eta.seconds, { n: seconds });
    else text = fill(words.eta.minutes, { n: Math.ceil(seconds / 60) });
  }
  if (line.textContent !== text) line.textContent = text;
}

function drawHead() {
  $("welcome").hidden = exchanges.length > 0;
  $("welcome-login").hidden = token !== null;
  $("account").textContent = token === null ? words.page.login : words.page.logout;
  $("fresh").hidden = exchanges.length === 0;
}

/** Set every fixed text of the page in the chosen language. */
function drawWords() {
  document.documentElement.lang = words.language;
  document.title = words.page.title;
  for (const one of document.querySelectorAll("[data-text]")) one.textContent = words.page[one.dataset.text];
  for (const one of document.querySelectorAll("[data-button]")) one.textContent = words.buttons[one.dataset.button];
  for (const one of document.querySelectorAll("[data-label]")) one.setAttribute("aria-label", words.page[one.dataset.label]);
  for (const one of document.querySelectorAll("[data-hint]")) one.placeholder = words.page[one.dataset.hint];
  $("language").lang = words === korean ? "en" : "ko";
}

function say(text) {
  $("said").textContent = text;
}

// --- The question field ---------------------------------------------------------------------------------------------

function onDraft() {
  const field = $("compose");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
  const count = codePoints(cleaned(field.value));
  const over = count > MAX_MESSAGE;
  const counter = $("counter");
  const digits = (n) => n.toLocaleString(words.language);
  counter.classList.toggle("over", over);
  field.setAttribute("aria-invalid", String(over));
  if (over) counter.textContent = fill(words.page.over, { n: digits(count - MAX_MESSAGE), max: digits(MAX_MESSAGE) });
  else if (count >= COUNTER_FROM) counter.textContent = fill(words.page.counter, { n: digits(count), max: digits(MAX_MESSAGE) });
  else counter.textContent = "";
  $("send").disabled = count === 0 || over;
  followEnd();
}

function onKey(event) {
  // While an input method composes, Enter takes its proposal. Some browsers say so only by the key code 229.
  if (event.key !== "Enter" || event.isComposing || event.keyCode === 229) return;
  if (event.shiftKey || event.altKey) return;
  // On a touch keyboard Enter is the only way to a new line; there the button sends.
  if (matchMedia("(pointer: coarse)").matches && !event.ctrlKey && !event.metaKey) return;
  event.preventDefault();
  send();
}

function chosenMode() {
  return modes.find((one) => one.checked)?.value ?? "daily";
}

function chooseMode(mode) {
  for (const one of modes) one.checked = one.value === mode;
  session.keepPreference("mode", mode);
}

// --- Scrolling: the page follows the answer as long as its end is in view ------------------------------------------

let following = true;

function followEnd(force = false) {
  if (force) following = true;
  if (following) scrollTo(0, document.documentElement.scrollHeight);
  else onScroll();
}

function onScroll() {
  const page = document.documentElement;
  following = page.scrollHeight - innerHeight - scrollY < 64;
  $("to-end").hidden = following;
}

// --- Start ----------------------------------------------------------------------------------------------------------

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("compose").addEventListener("input", onDraft);
$("compose").addEventListener("keydown", onKey);
$("stop").addEventListener("click", stop);
$("now").addEventListener("click", () => run?.wake?.());
$("fresh").addEventListener("click", startFresh);
$("to-end").addEventListener("click", () => followEnd(true));
$("account").addEventListener("click", () => (token === null ? openLogin() : logout()));
$("welcome-button").addEventListener("click", openLogin);
$("login-close").addEventListener("click", () => $("login").close());
$("login-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (login($("token").value.trim())) {
    $("token").value = "";
    $("login").close();
    if (finePointer) $("compose").focus();
  } else {
    $("login-error").textContent = words.page.login_bad;
  }
});
$("language").addEventListener("click", () => {
  words = words === korean ? english : korean;
  session.keepPreference("language", words.language);
  drawWords();
  drawAll();
  onDraft();
});
for (const one of modes) one.addEventListener("change", () => session.keepPreference("mode", one.value));
addEventListener("scroll", onScroll, { passive: true });
addEventListener("hashchange", takeFragment);
addEventListener("pagehide", () => {
  // Only what is under way is not kept yet; another tab may have written since.
  if (run !== null) save();
});
session.watchOtherTabs(
  () => owner,
  () => {
    forget();
    token = null;
    owner = null;
    session.dropToken();
    drawAll();
  },
);
setInterval(drawTiming, 500);

chooseMode(session.preference("mode", ["daily", "deep"]) ?? "daily");
if (owner === null) token = null;
else exchanges = loaded(owner);
drawWords();
drawAll();
onDraft();
takeFragment();
followEnd(true);
