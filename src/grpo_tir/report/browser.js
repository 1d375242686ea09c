
// Trajectory browser ------------------------------------------------------------------------------------------------
// Left: the groups that match the filters. Right: the samples of one group. Summaries are columns. The texts of a
// group are unpacked when it is opened. All text passes `readable` and becomes text nodes.

const ROW = 60;
const FILTERS = [
  ["all", "All", "Every group"],
  ["recovered", "Recovered error", "A call failed, and a later call ran without an error"],
  ["failed", "Failed code", "Some executed code failed or timed out"],
  ["contradiction", "Contradicts its tool", "The last call did not print the final answer"],
  ["fake", "Made-up output", "The model wrote an output block itself"],
  ["aha", "Aha", "Right in the end, after another boxed answer or after words of doubt (wait, mistake, …)"],
  ["cut", "Cut off", "The response reached its maximum length"],
  ["invalid", "Set aside", "Invalid because of an outage: neither scored nor trained on"],
  ["longest", "Longest", "All groups, the longest response first"],
];
const MODES = [
  ["source", "Source", "Plain: text of the model. Green: output of the tool. Underlined: output that the model made up."],
  ["logprobs", "Log-prob", "The deeper the orange, the lower the token's log-prob when it was sampled (full colour at −4 nats)."],
  ["ratios", "Ratio", "Blue: more probable than when it was sampled. Orange: less probable (full colour at ±20%)."],
  ["advantage", "Advantage", "Blue: probability is increased. Orange: it is decreased. Tool tokens get no gradient."],
];
const browse = { filter: "all", mode: "source", whole: true, run: "", step: "", query: "", shown: [], at: -1, opened: 0 };
const unpacked = new Map();
let traces;
let groups = [];

const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
const LONE = /[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
/** Show characters that hide, reorder or break text by their code. */
const readable = (text) =>
  String(text).replace(CONTROL, (c) => `⟨${c.charCodeAt(0).toString(16).padStart(4, "0")}⟩`).replace(LONE, "\ufffd");

const flagged = (row, flag) => Boolean(traces.flags[row] & (1 << traces.names.indexOf(flag)));
const verdict = (row) => (flagged(row, "invalid") ? "invalid" : flagged(row, "correct") ? "right" : "wrong");
const signed = (value) => (value === null ? "–" : (value > 0 ? "+" : "") + format(value));
const share = (group) => group.right / group.rows.length;
const score = (group) => `step ${group.step}: ${group.right} of ${group.rows.length} right`;
const count = (number) => number.toLocaleString("en");
const textOf = (segment) => segment.text ?? segment.tokens.join("");

function gatherGroups() {
  const found = new Map(), { run, step, problem, chunk } = traces;
  for (let row = 0; row < step.length; row++) {
    const key = `${run[row]}.${step[row]}.${traces.group[row]}`;
    let group = found.get(key);
    if (!group) {
      group = { key, run: run[row], step: step[row], problem: problem[row], chunk: chunk[row], rows: [], flags: 0, right: 0, longest: 0 };
      found.set(key, group);
    }
    group.rows.push(row);
    group.flags |= traces.flags[row];
    group.right += flagged(row, "correct");
    group.longest = Math.max(group.longest, traces.tokens[row]);
  }
  groups = [...found.values()].sort((a, b) => a.step - b.step || a.run - b.run);
}

/** Select the groups that match the filters. */
function matchGroups() {
  const every = ["all", "longest"].includes(browse.filter), bit = every ? -1 : 1 << traces.names.indexOf(browse.filter);
  const query = browse.query.trim().toLowerCase();
  const wanted = traces.problems.map(([id, text]) => `${id} ${text}`.toLowerCase().includes(query));
  browse.shown = groups.filter((group) => (every || group.flags & bit) && (!browse.whole || group.chunk >= 0) && wanted[group.problem]
    && (browse.run === "" || group.run === Number(browse.run)) && (browse.step === "" || group.step === Number(browse.step)));
  if (browse.filter === "longest") browse.shown.sort((a, b) => b.longest - a.longest);
  $("#found").textContent = `${count(browse.shown.length)} of ${count(groups.length)} groups`;
}

function applyFilters(keep) {
  matchGroups();
  $("#list").scrollTop = 0;
  return select(Math.max(0, browse.shown.findIndex((group) => group.key === keep)));
}

/** Create only the list entries in view, so that 50,000 rollouts scroll as fast as 50. */
function drawList() {
  const list = $("#list"), first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
  const last = first + Math.ceil((list.clientHeight || 560) / ROW) + 8;
  $("#sizer").style.height = `${browse.shown.length * ROW}px`;
  $("#sizer").replaceChildren(...browse.shown.slice(first, last).map((group, i) => {
    const at = first + i, [id, text] = traces.problems[group.problem];
    const state = { "aria-selected": String(at === browse.at), "aria-setsize": browse.shown.length, "aria-posinset": at + 1 };
    const place = { "--top": `${at * ROW}px`, "--c": colour(group.run) };
    const run = report.runs.length > 1 ? h("span.of-run", {}, report.runs[group.run].name) : null;
    return h("div.item", { id: `item${at}`, role: "option", ...state, ...place, onclick: () => select(at) },
      h("div.item-line", {}, run, h("b", {}, `step ${group.step}`), h("span", {}, readable(text || id))),
      h("div.squares", { role: "img", "aria-label": score(group) }, group.rows.map(square)));
  }));
  list.setAttribute("aria-activedescendant", `item${browse.at}`);
}

function square(row) {
  const hit = traces.names.includes(browse.filter) && flagged(row, browse.filter);
  return h(`i.square.${verdict(row)}${hit ? ".hit" : ""}`);
}

function select(at) {
  browse.at = Math.min(at, browse.shown.length - 1);
  const list = $("#list"), top = browse.at * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  drawList();
  drawMap();
  return openGroup(browse.shown[browse.at]);
}

/** Select a group. If the filters hide it, reset them. */
function goTo(group) {
  const at = browse.shown.findIndex((one) => one.key === group.key);
  if (at >= 0) return select(at);
  Object.assign(browse, { filter: "all", run: "", step: "", query: "", whole: browse.whole && group.chunk >= 0 });
  showControls();
  return applyFilters(group.key);
}

/** Draw the overview of a run: a column for each step, a cell for each group, most right answers at the bottom. */
function drawMap() {
  const canvas = $("#map"), current = browse.shown[browse.at], run = current ? current.run : 0;
  const columns = new Map();
  for (const group of groups.filter((one) => one.run === run)) {
    columns.set(group.step, [...(columns.get(group.step) || []), group]);
  }
  const width = canvas.clientWidth, height = canvas.clientHeight, density = window.devicePixelRatio || 1;
  Object.assign(canvas, { width: width * density, height: height * density });
  const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  pen.scale(density, density);
  const colours = ["low", "mid", "high"].map((name) => style.getPropertyValue(`--heat-${name}`).trim().split(" ").map(Number));
  const blend = (part) => {
    const from = part < 0.5 ? 0 : 1, mix = part * 2 - from;
    return colours[from].map((channel, i) => Math.round(channel + (colours[from + 1][i] - channel) * mix)).join(" ");
  };
  const wide = width / (columns.size || 1), tall = height / Math.max(1, ...[...columns.values()].map((column) => column.length));
  const places = [...columns.values()].flatMap((column, i) => column.sort((a, b) => share(b) - share(a)).map((group, j) =>
    [group, i * wide, height - (j + 1) * tall, Math.max(wide - (wide > 4), 0.6), Math.max(tall - (tall > 4), 0.6)]));
  for (const [group, ...box] of places) {
    pen.fillStyle = `rgb(${blend(share(group))} / ${group.chunk >= 0 ? 1 : 0.45})`;
    pen.fillRect(...box);
  }
  const [, x, y, w, t] = places.find(([group]) => group === current) || [];
  Object.assign(pen, { strokeStyle: style.getPropertyValue("--ink"), lineWidth: 2 });
  if (w) pen.strokeRect(Math.max(1, x - 1), Math.max(1, y), w + 2, t - 1);
  const far = (event, [, left, top, w, t]) => Math.hypot(left + w / 2 - event.offsetX, top + t / 2 - event.offsetY);
  canvas.onclick = (event) => {
    if (places.length) goTo(places.reduce((best, place) => (far(event, place) < far(event, best) ? place : best))[0]);
  };
  const steps = [...columns.keys()];
  $("#map-words").textContent = `${report.runs[run].name}: steps ${steps[0]} to ${steps[steps.length - 1]}, one cell for each group`;
}

// One group ---------------------------------------------------------------------------------------------------------

async function openGroup(group) {
  const ticket = ++browse.opened, detail = $("#detail");
  if (!group) return detail.replaceChildren(h("p.notice", {}, "No group matches these filters."));
  if (group.chunk >= 0 && !unpacked.has(group.chunk)) {
    if (unpacked.size > 40) unpacked.delete(unpacked.keys().next().value);
    unpacked.set(group.chunk, await unpack(`g${group.chunk}`));
  }
  if (ticket !== browse.opened) return; // another group was opened meanwhile
  const whole = unpacked.get(group.chunk), cards = group.rows.map((row, i) => card(row, whole?.[i]));
  detail.replaceChildren(problemHeader(group, whole?.[0]), whole ? tabs(group, cards) : notKept(group), h("div.cards", {}, cards));
  const hit = group.rows.findIndex((row) => (browse.filter === "longest"
    ? traces.tokens[row] === group.longest : traces.names.includes(browse.filter) && flagged(row, browse.filter)));
  if (hit > 0) cards[hit].parentNode.scrollLeft = cards[hit].offsetLeft - cards[0].offsetLeft;
  try {
    if (ticket > 1) history.replaceState(null, "", `#trace=${group.key}`);
  } catch { /* some browsers do not allow this for files */ }
}

function problemHeader(group, rollout) {
  const [id, text] = traces.problems[group.problem];
  return h("header.problem", {},
    h("p.where", {}, h("b", { "--c": colour(group.run) }, report.runs[group.run].name), ` · ${readable(id)} · ${score(group)}`),
    h("p.question", {}, readable(rollout?.problem ?? text)),
    rollout && h("p.gold", {}, "Answer ", h("b", {}, readable(rollout.answer ?? "–"))),
    rollout?.prompt && h("details.prompt", {}, h("summary", {}, "Prompt as sent"), h("pre", {}, readable(rollout.prompt))),
    acrossTraining(group));
}

const tabs = (group, cards) => h("div.tabs", {}, group.rows.map((row, i) =>
  h("button.tab", { type: "button", "aria-label": `Sample ${traces.sample[row]}, ${verdict(row)}`, onclick: () => show(cards[i]) },
    square(row), String(traces.sample[row]))));

function notKept(group) {
  const kept = traces.chunk.filter((chunk) => chunk >= 0).length, file = `rollouts/step_${String(group.step).padStart(6, "0")}.jsonl`;
  return h("p.notice", {}, `This page keeps ${count(kept)} of ${count(traces.chunk.length)} trajectories in full. These are not among them: see ${file}.`);
}

function show(node) {
  node.scrollIntoView({ block: "nearest", inline: "start" });
  node.focus({ preventScroll: true });
}

/** Show the share of right answers each time this problem was drawn, as bars. */
function acrossTraining(group) {
  const same = groups.filter((other) => other.problem === group.problem);
  if (same.length < 2) return null;
  return h("div.across", {}, h("span", {}, "This problem across training"), h("div.bars", {}, same.map((other) => h("button.bar", {
    type: "button", title: score(other), "aria-label": `${report.runs[other.run].name}, ${score(other)}`,
    "aria-current": other.key === group.key && "true",
    "--c": colour(other.run), "--v": `${Math.round(share(other) * 100)}%`, onclick: () => goTo(other),
  }))));
}

function card(row, rollout) {
  const kind = verdict(row), words = { right: "✓ right", wrong: "✕ wrong", invalid: "set aside" }[kind];
  const marks = FILTERS.filter(([flag]) => traces.names.includes(flag) && flag !== "failed" && flagged(row, flag));
  const { reward, advantage, tokens, calls } = traces;
  const facts = { reward: signed(reward[row]), advantage: signed(advantage[row]), tokens: tokens[row], calls: calls[row] };
  const ended = rollout && `ended: ${rollout.finish_reason ?? "unknown"}${rollout.trained ? "" : " · not trained on"}`;
  let call = 0;
  return h(`article.sample.${kind}`, { tabindex: 0, "aria-label": `Sample ${traces.sample[row]}, ${kind}` },
    h("header", {}, h("b.number", {}, `#${traces.sample[row]}`), h("b.verdict", {}, words),
      h("dl", {}, Object.entries(facts).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value))))),
      marks.length ? h("div.marks", {}, marks.map(([, name, hint]) => h("span.mark", { title: hint }, name))) : null),
    rollout && h("div.body", {}, rollout.segments.map((segment) => (segment.tool
      ? toolSegment(segment, rollout.calls[call++]) : modelSegment(segment, row, rollout)))),
    ended && h("footer", {}, ended));
}

function toolSegment(segment, call) {
  const text = textOf(segment), parts = readable(text).trim().split(/((?:^|\n)```[^\n]*)/); // odd parts: fences
  const printed = ["stdout", "stderr"].filter((name) => call?.[name].trim() && !text.includes(call[name].trim()));
  return h("div.tool", {},
    h("div.call", {}, call ? h(`span.status.${call.status === "ok" ? "ok" : "bad"}`, {}, call.status) : "tool",
      call && call.seconds !== null ? h("span", {}, format(call.seconds, { unit: "s" })) : null),
    h("pre", {}, parts.map((part, i) => (i % 2 ? h("span.fence", {}, part) : part))),
    printed.length ? h("details", {}, h("summary", {}, "full output"),
      printed.map((name) => h("pre", { "data-name": name }, readable(call[name])))) : null);
}

function modelSegment(segment, row, rollout) {
  if (browse.mode !== "source") return h("pre.model", {}, tokensOf(segment, row, rollout));
  const fence = /(```[^\n]*)(?:\n([\s\S]*?)(?:(```(?!\S*output)|```(?=```))|$))?/g; // opening line, body, closing fence
  const text = readable(textOf(segment)), parts = [];
  let last = 0;
  for (const match of text.matchAll(fence)) {
    const [all, opening, body = "", closing = ""] = match;
    parts.push(text.slice(last, match.index));
    if (!body.trim()) parts.push(h("span.fence", {}, all));
    else if (opening.startsWith("```output")) parts.push(h("span.fake", { title: "No tool ran: the model wrote this output itself." }, all));
    else parts.push(h("span.fence", {}, `${opening}\n`), h("code", {}, ...highlight(body)), h("span.fence", {}, closing));
    last = match.index + all.length;
  }
  return h("pre.model", {}, parts, text.slice(last));
}

const PYTHON = new RegExp([
  /(#[^\n]*)/, /("""[^]*?"""|'''[^]*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')/,
  /\b(and|as|assert|break|class|continue|def|del|elif|else|except|False|finally|for|from|global|if|import|in|is|lambda)\b/,
  /\b(None|not|or|pass|raise|return|True|try|while|with|yield)\b/, /\b(\d+(?:\.\d+)?)\b/,
].map((part) => part.source).join("|"), "g");

function* highlight(code) {
  let last = 0;
  for (const match of code.matchAll(PYTHON)) {
    yield code.slice(last, match.index);
    yield h(`span.${["comment", "string", "keyword", "keyword", "digit"][match.slice(1, 6).findIndex(Boolean)]}`, {}, match[0]);
    last = match.index + match[0].length;
  }
  yield code.slice(last);
}

/** For each mode: a token's value as a signed share of the full colour, and as text. */
const SCALES = {
  logprobs: (value) => [value / 400,
    `log-prob ${format(value / 100, { unit: "nats" })}, probability ${format(Math.exp(value / 100), SHARE)}`],
  ratios: (value) => [(value / 1000 - 1) / 0.2, `ratio ${format(value / 1000)}`],
  advantage: (value) => [value / 2, `advantage ${signed(value)}`],
};

function tokensOf(segment, row, rollout) {
  const texts = segment.tokens ?? segment.ids?.map((id) => `‹${id}›`) ?? [];
  const values = browse.mode === "advantage" ? texts.map(() => (rollout.trained ? traces.advantage[row] : 0)) : segment[browse.mode];
  if (!values?.some((value) => value !== null)) return [h("span.none", {}, "(not recorded) "), readable(textOf(segment))];
  return texts.map((text, i) => {
    const [size, words] = values[i] === null || values[i] === undefined ? [0, "not recorded"] : SCALES[browse.mode](values[i]);
    const depth = `${Math.round(Math.min(1, Math.abs(size)) * 70)}%`;
    return h(`span.token${size < 0 ? ".down" : ""}`, { "--v": depth, title: words }, readable(text));
  });
}

// Controls and keys -------------------------------------------------------------------------------------------------

function chip(kind, [value, label, hint], number) {
  const amount = number === undefined ? null : h("small", {}, count(number));
  const choose = () => change(kind, value);
  return h("button.chip", { type: "button", role: "radio", title: hint, [`data-${kind}`]: value, onclick: choose }, label, amount);
}

function showControls() {
  for (const kind of ["filter", "mode"]) {
    for (const node of document.querySelectorAll(`[data-${kind}]`)) {
      node.setAttribute("aria-checked", String(node.dataset[kind] === browse[kind]));
    }
  }
  for (const key of ["run", "step", "query"]) $(`#pick-${key}`).value = browse[key];
  $("#pick-whole").checked = browse.whole;
  $("#mode-words").textContent = MODES.find(([mode]) => mode === browse.mode)[2];
}

const cardsNow = () => [...document.querySelectorAll(".sample")];
const focused = () => cardsNow().findIndex((node) => node.contains(document.activeElement));

async function change(key, value) {
  const current = browse.shown[browse.at], scrolled = $(".cards")?.scrollLeft ?? 0, at = focused();
  browse[key] = value;
  showControls();
  if (key !== "mode") return applyFilters(key === "filter" ? null : current?.key);
  await openGroup(current);
  if ($(".cards")) $(".cards").scrollLeft = scrolled;
  cardsNow()[at]?.focus({ preventScroll: true });
}

function keys(event) {
  const { target, key } = event, radio = target.closest('[role="radio"]'), cards = cardsNow(), at = focused();
  if (event.ctrlKey || event.metaKey || event.altKey || ["INPUT", "SELECT", "SUMMARY"].includes(target.tagName)) return;
  const side = { ArrowRight: 1, ArrowLeft: -1 }[key] || 0, step = (by) => select(Math.max(0, browse.at + by));
  const actions = {
    j: () => step(1), k: () => step(-1), "/": () => $("#pick-query").focus(), f: () => $('[data-filter][aria-checked="true"]').focus(),
    Escape: () => $("#list").focus({ preventScroll: true }),
    ...Object.fromEntries(MODES.map(([mode], i) => [String(i + 1), () => change("mode", mode)])),
  };
  if (target.id === "list") {
    Object.assign(actions, { ArrowDown: actions.j, ArrowUp: actions.k, PageDown: () => step(8), PageUp: () => step(-8),
      Home: () => select(0), End: () => step(Infinity), Enter: () => cards[0] && show(cards[0]) });
  }
  const beside = side && (radio ? radio[side > 0 ? "nextElementSibling" : "previousElementSibling"] : at >= 0 && cards[at + side]);
  if (beside) actions[key] = () => { show(beside); if (radio) beside.click(); };
  if (!actions[key]) return;
  event.preventDefault();
  actions[key]();
}

/** Fill the filters with their counts, and the lists of runs and steps. A live page calls this again. */
function fillControls() {
  const focus = document.activeElement?.dataset.filter, picked = { run: $("#pick-run"), step: $("#pick-step") };
  const totals = traces.names.map((name) => traces.flags.reduce((sum, _, row) => sum + flagged(row, name), 0));
  const known = FILTERS.map((filter) => [filter, totals[traces.names.indexOf(filter[0])]]).filter(([, total]) => total !== 0);
  $("#filters").replaceChildren(...known.map(([filter, total]) => chip("filter", filter, total)));
  if (focus) $(`[data-filter="${focus}"]`)?.focus({ preventScroll: true });
  const there = (select) => new Set([...select.options].map((option) => option.value));
  const add = (select, options) => select.append(...options.filter(([value]) => !there(select).has(value))
    .map(([value, name]) => h("option", { value }, name)));
  add(picked.run, report.runs.map((run, i) => [String(i), run.name]));
  add(picked.step, [...new Set(groups.map((group) => String(group.step)))].map((step) => [step, step]));
  showControls();
}

function openBrowser() {
  traces = report.traces;
  const none = "No rollouts were recorded, so there are no trajectories to browse.";
  if (!traces.step.length) return $("#none") || $("#traces").append(h("p.notice", { id: "none" }, none));
  $("#none")?.remove();
  gatherGroups();
  $("#browser").hidden = false;
  $("#modes").append(...MODES.map((mode) => chip("mode", mode)));
  for (const key of ["run", "step", "query"]) $(`#pick-${key}`).addEventListener("input", ({ target }) => change(key, target.value));
  $("#pick-whole").addEventListener("change", ({ target }) => change("whole", target.checked));
  $("#list").addEventListener("scroll", () => requestAnimationFrame(drawList));
  $("#traces").addEventListener("keydown", keys);
  new ResizeObserver(drawMap).observe($("#map"));
  document.addEventListener("themechange", drawMap);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMap);
  const linked = groups.find((group) => `#trace=${group.key}` === location.hash);
  if (linked) { browse.whole = linked.chunk >= 0; $("#traces").scrollIntoView(); }
  fillControls();
  return applyFilters(linked?.key);
}
