// The live view: asks /status each second and /metrics each five, shows what they say, sends and keeps nothing.
// It asks nothing while the page is hidden or paused.

const STATUS_MS = 1000;
const METRICS_MS = 5000;
const PATIENCE_MS = 4000;
const WINDOW_MS = 300_000;
const MOST_SLOTS = 6;
const MOST_WAITERS = 8;
const LATE = 0.9; // of a deadline

const SVG = "http://www.w3.org/2000/svg";
const SPARK = { width: 300, height: 40 };

// Each trend is a histogram of /metrics: the samples `_sum` and `_count` with these labels.
const TRENDS = [
  ["Gate wait, foreground", "eidproxy_gate_wait_seconds", 'outcome="granted",priority="foreground"', ""],
  ["Gate wait, background", "eidproxy_gate_wait_seconds", 'outcome="granted",priority="background"', "second"],
  ["First token, daily", "eidproxy_time_to_first_token_seconds", 'mode="daily"', ""],
  ["First token, deep", "eidproxy_time_to_first_token_seconds", 'mode="deep"', "second"],
].map(([title, family, labels, tone]) => ({
  title,
  sum: `${family}_sum{${labels}} `,
  count: `${family}_count{${labels}} `,
  tone,
  total: null, // what /metrics said last: {sum, count}
  samples: [], // {at, sum, count} of each five seconds in which something ended
}));

const $ = (id) => document.getElementById(id);
const depths = []; // {at, value} of each second
let opened = null; // the outcomes when the page opened
let started = null; // when the process that answers began, as /metrics has it
let uptime = 0;
let paused = false;
let timer = 0;
let metricsAt = -Infinity;
let answeredAt = null;
let asking = null;

// Words

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  if (value < 59.95) return `${value.toFixed(1)} s`;
  return length(value);
}

function length(value) {
  const whole = Math.round(value);
  const [days, hours, minutes] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  if (minutes) return whole % 60 ? `${minutes} min ${whole % 60} s` : `${minutes} min`;
  return `${whole} s`;
}

const ages = (value) => (value < 59.95 ? `${value.toFixed(1)} s` : length(value));
const deadline = (value) => (Number.isInteger(value) ? length(value) : seconds(value));
const number = (value) => value.toLocaleString("en");

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Parts

function element(name, className = "", text = "") {
  const node = document.createElement(name);
  node.className = className;
  node.textContent = text;
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

function bar() {
  const svg = drawing("bar", 100, 1);
  svg.setAttribute("aria-hidden", "true");
  return svg;
}

// As many children as there are items, each filled in place: nothing flickers, what is selected stays selected.
function rows(list, items, make, fill) {
  while (list.children.length > items.length) list.lastElementChild.remove();
  while (list.children.length < items.length) list.append(make());
  items.forEach((item, index) => fill(list.children[index], item));
}

// Columns from the left edge of the window to now, as one path: parts of one path meet without seams.
function columns(svg, samples, now, width) {
  const top = Math.max(...samples.map(({ value }) => value), 0.001);
  const path = samples.filter(({ value }) => value > 0).map(({ at, value }) => {
    const left = ((at - now + WINDOW_MS) / WINDOW_MS) * SPARK.width - width;
    const height = Math.max((value / top) * SPARK.height, 1.5);
    return `M${left.toFixed(2)} ${SPARK.height}v${-height.toFixed(2)}h${width}V${SPARK.height}z`;
  });
  svg.firstElementChild.setAttribute("d", path.join(""));
}

// The views

function showGate({ gate, deadlines }) {
  say($("in-use"), `${number(gate.in_use)} of ${number(gate.slots)}`);
  const shown = Array.from({ length: Math.min(gate.slots, MOST_SLOTS) }, (_, index) => gate.holders[index] ?? null);
  // A shared gate also counts the slots that other replicas hold; only our own have an age.
  rows($("slots"), shown.map((holder, index) => ({ holder, taken: index < gate.in_use })), () => {
    const item = element("li");
    item.append(element("span", "who"), element("span", "age"), bar(), element("span", "limit"));
    return item;
  }, (item, { holder, taken }) => {
    const [who, age, line, limit] = item.children;
    item.classList.toggle("free", !taken && holder === null);
    item.classList.toggle("late", holder !== null && holder.age_seconds > LATE * deadlines.stream_seconds);
    say(who, holder !== null ? `${holder.mode}, ${holder.priority}` : taken ? "held by another replica" : "free");
    say(age, holder === null ? "" : ages(holder.age_seconds));
    line.toggleAttribute("hidden", holder === null);
    stretch(line, holder === null ? 0 : holder.age_seconds / deadlines.stream_seconds);
    say(limit, holder === null ? "" : `of at most ${deadline(deadlines.stream_seconds)}`);
  });
  const rest = gate.slots - shown.length;
  $("slots-more").hidden = !rest;
  say($("slots-more"), `and ${number(rest)} more slots`);
}

function stretch(line, part) {
  line.firstElementChild.setAttribute("d", `M0 0h${Math.min(part, 1) * 100}v1H0z`);
}

function showFacts({ router, streams, gate, deadlines, draining }) {
  const word = { true: "reachable", false: "unreachable" }[router.reachable] ?? "not tried yet";
  const age = router.checked_seconds_ago;
  say($("router"), age === null || draining ? word : `${word}, ${length(age)} ago`);
  $("router").classList.toggle("bad", router.reachable === false);
  say($("streams-daily"), number(streams.daily));
  say($("streams-deep"), number(streams.deep));
  say($("mean-hold"), seconds(gate.mean_hold_seconds));
  say($("deadline-stream"), deadline(deadlines.stream_seconds));
  say($("deadline-wait"), deadline(deadlines.gate_wait_seconds));
}

function showWaiting({ gate, deadlines }, now) {
  const all = gate.waiting;
  say($("waiting"), number(all.length));
  say($("queue-limit"), `of at most ${number(gate.queue_limit)}`);
  for (const priority of ["foreground", "background"]) {
    const waiters = all.filter((waiter) => waiter.priority === priority);
    say($(priority), number(waiters.length));
    rows($(`${priority}-list`), waiters.slice(0, MOST_WAITERS), () => {
      const item = element("li");
      item.append(element("span", "place"), bar(), element("span", "age"));
      return item;
    }, (item, { position, age_seconds: age }) => {
      const [place, line, text] = item.children;
      item.classList.toggle("late", age > LATE * deadlines.gate_wait_seconds);
      say(place, `#${position}`);
      say(text, ages(age));
      stretch(line, age / deadlines.gate_wait_seconds);
    });
    const rest = waiters.slice(MOST_WAITERS);
    const oldest = Math.max(...rest.map(({ age_seconds: age }) => age));
    say($(`${priority}-more`), rest.length ? `and ${number(rest.length)} more, the oldest ${ages(oldest)}` : "");
  }
  depths.push({ at: now, value: all.length });
  forget(depths, now);
  columns($("depth"), depths, now, (STATUS_MS / WINDOW_MS) * SPARK.width * 1.1);
}

function showOutcomes(outcomes) {
  opened ??= outcomes;
  const total = Object.values(outcomes).reduce((sum, count) => sum + count, 0);
  const share = total ? ((outcomes.ok ?? 0) / total) * 100 : 0;
  const percent = share === 100 || share === 0 ? share : Math.min(Math.max(share, 0.1), 99.9).toFixed(1);
  say($("outcomes-total"), total ? `${number(total)} ended, ${percent} % of them ok` : "");
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

function sample(text, now) {
  const value = (line) => {
    const start = text.indexOf(`\n${line}`);
    return start < 0 ? 0 : Number.parseFloat(text.slice(start + line.length + 1, start + line.length + 40));
  };
  const start = value("eidproxy_start_time_seconds ");
  if (started !== null && start !== started) {
    // Another process answers: what was counted began anew.
    opened = {};
    for (const trend of TRENDS) trend.total = { sum: 0, count: 0 };
  }
  started = start;
  for (const trend of TRENDS) {
    const total = { sum: value(trend.sum), count: value(trend.count) };
    const last = trend.total;
    if (last !== null && total.count > last.count) {
      trend.samples.push({ at: now, sum: total.sum - last.sum, count: total.count - last.count });
    }
    trend.total = total;
  }
}

function showTrends(now) {
  rows($("trends"), TRENDS, () => {
    const box = element("div");
    const line = element("p");
    const recent = element("span");
    recent.append(element("b"), element("span"));
    line.append(recent, element("span"));
    const svg = drawing("spark", SPARK.width, SPARK.height);
    svg.setAttribute("role", "img");
    box.append(element("h3"), line, svg);
    return box;
  }, (box, trend) => {
    const [title, line, svg] = box.children;
    forget(trend.samples, now);
    const count = trend.samples.reduce((sum, one) => sum + one.count, 0);
    const recent = count ? seconds(trend.samples.reduce((sum, one) => sum + one.sum, 0) / count) : "–";
    const means = trend.samples.map(({ at, sum, count: many }) => ({ at, value: Math.max(sum / many, 0.0001) }));
    const { total } = trend;
    const ever = total?.count ? `since the start ${seconds(total.sum / total.count)}, ${number(total.count)}×` : "not yet";
    say(title, trend.title);
    say(line.children[0].children[0], recent);
    say(line.children[0].children[1], means.length > 1 ? `peak ${seconds(Math.max(...means.map(({ value }) => value)))}` : "");
    say(line.children[1], ever);
    svg.classList.toggle("second", trend.tone === "second");
    svg.setAttribute("aria-label", `${trend.title}: mean ${recent} over ${count} requests in the last five minutes`);
    columns(svg, means, now, 4.2);
  });
}

function forget(samples, now) {
  while (samples.length && samples[0].at < now - WINDOW_MS) samples.shift();
}

function state(name, word, notice = "") {
  $("state").dataset.state = name;
  say($("state"), word);
  $("notice").hidden = !notice;
  say($("notice"), notice);
  $("view").classList.toggle("stale", !["live", "draining"].includes(name));
}

function show(status) {
  const now = performance.now();
  uptime = status.uptime_seconds;
  say($("version"), `version ${status.version}`);
  say($("uptime"), `up ${length(uptime)}`);
  showGate(status);
  showFacts(status);
  showWaiting(status, now);
  showOutcomes(status.outcomes);
  const waiting = status.gate.waiting.length;
  document.title = `${waiting ? `${number(waiting)} waiting – ` : ""}${status.draining ? "draining – " : ""}eidproxy`;
  if (status.draining) {
    state("draining", "draining", "The proxy is shutting down: running answers are finished, new requests are refused.");
  } else {
    state("live", "live");
  }
}

// The clock

class Answer extends Error {}

async function get(path, signal) {
  const limits = AbortSignal.any([signal, AbortSignal.timeout(PATIENCE_MS)]);
  const response = await fetch(path, { cache: "no-store", redirect: "error", signal: limits });
  if (response.status === 401) throw new Answer("The proxy asks for its API key, which this page cannot send.");
  if (!response.ok) throw new Answer(`The proxy answers with status ${response.status}.`);
  return response;
}

async function turn() {
  asking = new AbortController();
  const { signal } = asking;
  try {
    const status = await (await get("status", signal)).json();
    const now = performance.now();
    if (now - metricsAt >= METRICS_MS || status.uptime_seconds < uptime) {
      sample(await (await get("metrics", signal)).text(), now);
      metricsAt = now;
    }
    answeredAt = now;
    show(status);
    showTrends(now);
  } catch (error) {
    if (signal.aborted) return;
    metricsAt = -Infinity; // who answers next may be another process
    document.title = "unreachable – eidproxy";
    if (answeredAt !== null) say($("uptime"), `last answer ${length((performance.now() - answeredAt) / 1000)} ago`);
    const what = error instanceof Answer ? error.message : "The proxy does not answer.";
    state("unreachable", "unreachable", `${what} Trying again each second.`);
  }
  if (!signal.aborted) timer = setTimeout(turn, STATUS_MS);
}

function go() {
  clearTimeout(timer);
  asking?.abort();
  if (paused || document.hidden) {
    document.title = "paused – eidproxy";
    state("paused", "paused");
  } else {
    turn();
  }
}

$("pause").addEventListener("click", () => {
  paused = !paused;
  say($("pause"), paused ? "Resume" : "Pause");
  go();
});
document.addEventListener("visibilitychange", go);
showTrends(performance.now());
go();
