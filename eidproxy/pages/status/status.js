// The live view: asks /status each second and shows what it says. It sends nothing but the API key, where one is
// wanted, and keeps that in this tab. It asks nothing while the page is hidden or paused.
"use strict";

const STATUS_MS = 1000;
const PATIENCE_MS = 4000;
const ROWS = 60; // of the history: five minutes
const MOST_SLOTS = 4;
const MOST_WAITERS = 8;
const LATE = 0.9; // of a deadline
const KEY = "eid.key";
const LANGUAGE = "eid.language"; // the chat page has the same

const SVG = "http://www.w3.org/2000/svg";
const SPARK = { width: 300, height: 40 };

// Each trend is a key of a row of the history, and a key of that.
const TRENDS = [
  ["gate_wait", "foreground", ""],
  ["gate_wait", "background", "second"],
  ["first_token", "daily", ""],
  ["first_token", "deep", "second"],
];

const $ = (id) => document.getElementById(id);
let language = localStorage.getItem(LANGUAGE) ?? (navigator.language.startsWith("ko") ? "ko" : "en");
let last = null; // the last answer
let opened = null; // its outcomes when the page opened
let startedAt = null; // when the process that answered began, in seconds of the page's clock
let answeredAt = 0;
let paused = false;
let timer = 0;
let asking = null;

// Words

function word(name, values = {}) {
  const text = (WORDS[language] ?? WORDS.en)[name];
  return text.replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.9995) return word("milliseconds", { milliseconds: Math.round(value * 1000) });
  return age(value);
}

function age(value) {
  return value < 59.95 ? word("seconds", { seconds: value.toFixed(1) }) : length(value);
}

function length(value) {
  const whole = Math.round(value);
  const parts = {
    days: Math.floor(whole / 86400),
    hours: Math.floor(whole / 3600) % 24,
    minutes: Math.floor(whole / 60) % 60,
    seconds: whole % 60,
  };
  if (parts.days) return word("days", parts);
  if (parts.hours) return word("hours", parts);
  if (parts.minutes) return word(parts.seconds ? "minutes_seconds" : "minutes", parts);
  return word("seconds", parts);
}

const limit = (value) => (Number.isInteger(value) ? length(value) : seconds(value));
const number = (value) => value.toLocaleString(language);

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Parts

function element(name, className = "") {
  const node = document.createElement(name);
  node.className = className;
  return node;
}

function drawing(className, width, height) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", className);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.append(document.createElementNS(SVG, "path"));
  return svg;
}

// As many children as there are items, each filled in place: nothing flickers, what is selected stays selected.
function rows(list, items, make, fill) {
  while (list.children.length > items.length) list.lastElementChild.remove();
  while (list.children.length < items.length) list.append(make());
  items.forEach((item, index) => fill(list.children[index], item));
}

function ages(list, items, longest, most) {
  rows(list, items, () => {
    const item = element("li");
    const bar = drawing("bar", 100, 1);
    bar.setAttribute("aria-hidden", "true");
    item.append(element("span", "who"), bar, element("span", "age"));
    return item;
  }, (item, { who, age_seconds: value }) => {
    const [name, bar, text] = item.children;
    item.classList.toggle("late", value > LATE * most);
    say(name, who);
    say(text, age(value));
    bar.firstElementChild.setAttribute("d", `M0 0h${((value / longest) * 100).toFixed(2)}v1H0z`);
  });
}

// Columns, the newest at the right edge, as one path: parts of one path meet without seams.
function columns(svg, values) {
  const top = Math.max(...values, 0.001);
  const width = SPARK.width / ROWS;
  const first = ROWS - values.length;
  const path = values.map((value, index) => {
    if (value <= 0) return "";
    const height = Math.max((value / top) * SPARK.height, 1.5);
    return `M${((first + index) * width).toFixed(2)} ${SPARK.height}v${-height.toFixed(2)}h${width * 0.84}V${SPARK.height}z`;
  });
  svg.firstElementChild.setAttribute("d", path.join(""));
}

// The views

function showGate({ gate, deadlines }, longest) {
  say($("in-use"), gate.in_use ? word("in_use", { count: number(gate.in_use), slots: number(gate.slots) }) : word("nobody"));
  const shown = gate.holders.slice(0, MOST_SLOTS).map((holder) => ({
    who: word(holder.settling ? "settling" : holder.priority),
    age_seconds: holder.age_seconds,
  }));
  ages($("slots"), shown, longest, deadlines.stream_seconds);
  // A shared gate also counts the slots that other replicas hold; only our own have an age.
  const others = gate.in_use - gate.holders.length;
  const rest = gate.holders.length - shown.length;
  say($("slots-more"), rest ? word("more_slots", { count: number(rest) }) : others > 0 ? word("elsewhere") : "");
}

function showWaiting({ gate, deadlines, history }, longest) {
  const all = gate.waiting;
  say($("waiting"), number(all.length));
  say($("queue-limit"), word("room", { count: number(gate.queue_limit) }));
  const depths = [...history.map(({ waiting }) => waiting), all.length].slice(-ROWS);
  columns($("depth"), depths);
  $("depth").setAttribute("aria-label", word("depth", { count: number(Math.max(...depths)) }));
  $("queue").hidden = all.length === 0;
  for (const priority of ["foreground", "background"]) {
    const waiters = all.filter((waiter) => waiter.priority === priority);
    say($(priority), number(waiters.length));
    const shown = waiters.slice(0, MOST_WAITERS).map((waiter) => ({
      who: `#${waiter.position}`,
      age_seconds: waiter.age_seconds,
    }));
    ages($(`${priority}-list`), shown, longest, deadlines.gate_wait_seconds);
    const rest = waiters.slice(MOST_WAITERS);
    const time = age(Math.max(0, ...rest.map((waiter) => waiter.age_seconds)));
    say($(`${priority}-more`), rest.length ? word("more_waiting", { count: number(rest.length), time }) : "");
  }
}

function showFacts({ gate, deadlines, router, streams, upstream }) {
  say($("mean-hold"), seconds(gate.mean_hold_seconds));
  say($("deadline-stream"), limit(deadlines.stream_seconds));
  say($("deadline-wait"), limit(deadlines.gate_wait_seconds));
  const reachable = { true: "reachable", false: "not_reachable" }[router.reachable] ?? "not_tried";
  say($("router"), word(reachable));
  $("router").classList.toggle("bad", router.reachable === false);
  for (const mode of ["daily", "deep"]) {
    const { state, since_seconds: since } = upstream[mode];
    const node = $(`upstream-${mode}`);
    const time = length(since);
    say(node, state === "wedged" ? word("stuck", { time }) : state === "suspect" ? word("suspect", { time })
      : word("streams", { count: number(streams[mode]) }));
    node.classList.toggle("bad", state !== "live");
  }
}

function showTrends({ history }) {
  rows($("trends"), TRENDS, () => {
    const box = element("div");
    const line = element("p");
    line.append(element("b"), element("span", "unit"), element("span", "within"), element("span", "count"));
    const svg = drawing("spark", SPARK.width, SPARK.height);
    svg.setAttribute("role", "img");
    box.append(element("h3"), line, svg);
    return box;
  }, (box, [kind, name, tone]) => {
    const [head, line, svg] = box.children;
    const spreads = history.map((row) => row[kind]?.[name] ?? null);
    const count = spreads.reduce((sum, one) => sum + (one?.count ?? 0), 0);
    const total = spreads.reduce((sum, one) => sum + (one?.count ?? 0) * (one?.mean_seconds ?? 0), 0);
    const title = word(`trend_${kind}`, { name: word(name) });
    const [mean, p95] = count ? [seconds(total / count), seconds(spreads.at(-1)?.p95_seconds)] : ["–", "–"];
    say(head, title);
    say(line.children[0], mean);
    say(line.children[1], count ? word("mean") : "");
    say(line.children[2], count ? word("within", { time: p95 }) : "");
    say(line.children[3], count ? word("requests", { count: number(count) }) : "");
    svg.classList.toggle("second", tone === "second");
    svg.classList.toggle("empty", count === 0);
    svg.setAttribute("aria-label", word(count ? "trend_label" : "trend_none", { title, mean, p95, count: number(count) }));
    columns(svg, spreads.map((one) => (one?.count ? Math.max(one.mean_seconds, 0.0001) : 0)));
  });
}

function showOutcomes(outcomes) {
  const total = Object.values(outcomes).reduce((sum, count) => sum + count, 0);
  const share = total ? ((outcomes.ok ?? 0) / total) * 100 : 0;
  const percent = share === 100 || share === 0 ? share : Math.min(Math.max(share, 0.1), 99.9).toFixed(1);
  say($("outcomes-total"), total ? word("outcomes_total", { count: number(total), percent }) : "");
  $("outcomes-none").hidden = total > 0;
  $("outcomes").parentElement.hidden = total === 0;
  const order = Object.entries(outcomes).sort(([one, many], [other, more]) => (other === "ok") - (one === "ok") || more - many);
  rows($("outcomes"), order, () => {
    const row = element("tr");
    const head = element("th");
    head.scope = "row";
    row.append(head, element("td"), element("td"));
    return row;
  }, (row, [reason, count]) => {
    const since = count - (opened[reason] ?? 0);
    say(row.children[0], reason);
    say(row.children[1], number(count));
    say(row.children[2], since ? `+${number(since)}` : "–");
    row.children[2].classList.toggle("bad", since > 0 && reason !== "ok" && reason !== "client_gone");
  });
}

// The head says what is wrong, and in which colour.
function state(name, notice = "") {
  $("top").dataset.state = name;
  say($("state"), word(name));
  $("notice").hidden = !notice;
  say($("notice"), notice);
  $("login").hidden = name !== "locked";
  $("view").hidden = name === "locked";
  const isOld = ["unreachable", "paused"].includes(name);
  $("view").classList.toggle("stale", isOld);
  if (name !== "unreachable") return;
  // Nobody knows what is so now, and nothing must look as if it were.
  for (const id of ["in-use", "waiting", "router", "upstream-daily", "upstream-deep"]) say($(id), "–");
  for (const id of ["slots", "foreground-list", "background-list"]) $(id).replaceChildren();
  for (const id of ["slots-more", "queue-limit"]) say($(id), "");
  $("queue").hidden = true;
  $("router").classList.remove("bad");
}

function verdict({ draining, router, upstream }) {
  if (draining) return ["draining", word("draining_notice")];
  if (router.reachable === false) {
    const notice = word("router_down_notice", { time: length(router.checked_seconds_ago ?? 0) });
    return ["router_down", router.hint === "local_network_privacy" ? `${notice} ${word("local_network_privacy")}` : notice];
  }
  const stuck = Object.entries(upstream).filter(([, one]) => one.state === "wedged");
  if (stuck.length === 0) return ["live", ""];
  const next = Math.min(...stuck.map(([, one]) => one.next_trial_seconds ?? 0));
  const trial = next > 0 ? word("trial_in", { time: length(Math.ceil(next)) }) : word("trial_next");
  return ["wedged", word("wedged_notice", { modes: stuck.map(([mode]) => word(mode)).join(", "), trial })];
}

function show(status) {
  say($("version"), word("version", { version: status.version }));
  say($("uptime"), word("up", { time: length(status.uptime_seconds) }));
  // One scale for all bars: that of the longest age on the screen.
  const longest = Math.max(0.1, ...[...status.gate.holders, ...status.gate.waiting].map((one) => one.age_seconds));
  showGate(status, longest);
  showWaiting(status, longest);
  showFacts(status);
  showTrends(status);
  showOutcomes(status.outcomes);
  const [name, notice] = verdict(status);
  state(name, notice);
  const waiting = status.gate.waiting.length;
  const told = [name === "live" ? "" : word(name), waiting ? word("title_waiting", { count: number(waiting) }) : "", "eidproxy"];
  document.title = told.filter(Boolean).join(" – ");
}

function showFailure(status) {
  const since = length((performance.now() - answeredAt) / 1000);
  if (last !== null) say($("uptime"), word("last_answer", { time: since }));
  document.title = `${word("unreachable")} – eidproxy`;
  state("unreachable", status === null ? word("unreachable_notice") : word("status_notice", { status }));
}

function speak() {
  document.documentElement.lang = language;
  for (const node of document.querySelectorAll("[data-text]")) say(node, word(node.dataset.text));
  say($("pause"), word(paused ? "resume" : "pause"));
  say($("state"), word($("top").dataset.state));
  if (last !== null) show(last);
}

// The clock

async function ask(signal) {
  const key = sessionStorage.getItem(KEY);
  return fetch("status", {
    cache: "no-store",
    redirect: "error",
    headers: key === null ? {} : { Authorization: `Bearer ${key}` },
    signal: AbortSignal.any([signal, AbortSignal.timeout(PATIENCE_MS)]),
  });
}

async function turn() {
  asking = new AbortController();
  const { signal } = asking;
  let refused = null; // with which status
  try {
    const response = await ask(signal);
    if (response.status === 401) {
      lock();
      return;
    }
    if (!response.ok) {
      refused = response.status;
      throw new Error();
    }
    const status = await response.json();
    const began = performance.now() / 1000 - status.uptime_seconds;
    // Another process answers: what was counted began anew.
    if (startedAt !== null && began > startedAt + 1) opened = {};
    startedAt = began;
    opened ??= status.outcomes;
    [last, answeredAt] = [status, performance.now()];
    show(status);
  } catch {
    if (signal.aborted) return;
    showFailure(refused);
  }
  if (!signal.aborted) timer = setTimeout(turn, STATUS_MS);
}

/** Ask for the key. Nothing is asked of the proxy until it is given. */
function lock() {
  say($("login-error"), sessionStorage.getItem(KEY) === null ? "" : word("login_wrong"));
  sessionStorage.removeItem(KEY);
  document.title = `${word("locked")} – eidproxy`;
  state("locked");
  $("key").focus();
}

function go() {
  clearTimeout(timer);
  asking?.abort();
  if (paused || document.hidden) {
    document.title = `${word("paused")} – eidproxy`;
    state("paused");
  } else {
    turn();
  }
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  $("key").value = "";
  if (!/^[!-~]+$/.test(key)) {
    say($("login-error"), word("login_wrong")); // nothing else can stand in a header
    return;
  }
  sessionStorage.setItem(KEY, key);
  go();
});
$("language").addEventListener("click", () => {
  language = language === "ko" ? "en" : "ko";
  localStorage.setItem(LANGUAGE, language);
  speak();
  go();
});
$("pause").addEventListener("click", () => {
  paused = !paused;
  say($("pause"), word(paused ? "resume" : "pause"));
  go();
});
document.addEventListener("visibilitychange", () => {
  if ($("top").dataset.state !== "locked") go();
});
speak();
go();
