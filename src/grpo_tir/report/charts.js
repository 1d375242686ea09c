"use strict";
// Figures and tables. All DOM nodes are made by `h`, which adds strings as text nodes: no markup is ever parsed.

const SVG = "http://www.w3.org/2000/svg";
const $ = (selector, root = document) => root.querySelector(selector);

function h(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const drawn = ["svg", "path", "line", "text", "circle", "rect", "g"].includes(name);
  const node = drawn ? document.createElementNS(SVG, name) : document.createElement(name);
  if (classes.length) node.setAttribute("class", classes.join(" "));
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key.startsWith("--")) node.style.setProperty(key, value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Decode a chunk of the page: base64, gzip, JSON. Chunks follow the script, so a chunk may not be loaded yet. */
async function unpack(name) {
  if (document.readyState === "loading" && !document.getElementById(name)?.nextElementSibling) {
    await new Promise((done) => document.addEventListener("DOMContentLoaded", done, { once: true }));
  }
  const binary = atob(document.getElementById(name).textContent);
  const bytes = Uint8Array.from(binary, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// Figures -----------------------------------------------------------------------------------------------------------

const SHARE = { unit: "%", scale: 100, floor: 0, ceiling: 100 };
const FIGURES = [
  ["The paper's figures", [
    { title: "Accuracy", of: "of answers", ...SHARE, note: "Share of right answers: sampled in training, greedy on held-out problems.",
      series: [["eval/accuracy", "held out"], ["accuracy", "training"]] },
    { title: "Reward", unit: "", note: "Mean reward of the rollouts of a step.", series: [["reward", "mean"]] },
    { title: "Code ratio", of: "of responses", ...SHARE, note: "Responses that contain code.",
      series: [["tools/code_ratio", "with code"]] },
    { title: "Pass ratio", of: "of executed blocks", ...SHARE,
      note: "Executed code that ran without an error; in responses with a right and with a wrong answer.",
      series: [["tools/pass_ratio", "all"], ["tools/pass_ratio_right", "right"], ["tools/pass_ratio_wrong", "wrong"]] },
    { title: "Executed ratio", of: "of written blocks", ...SHARE, note: "Code blocks that were run; the others came after the last call.",
      series: [["tools/executed_ratio", "executed"]] },
    { title: "Code before answer", of: "of blocks", ...SHARE, note: "Code blocks written before the final answer, not after it.",
      series: [["tools/code_before_answer_ratio", "before"]] },
    { title: "Calls per response", unit: "calls", floor: 0, note: "Mean number of tool calls.", series: [["tools/calls_mean", "calls"]] },
    { title: "Response length", unit: "tokens", floor: 0, note: "Mean length, tool output included.",
      series: [["completions/mean_length", "tokens"]] },
  ]],
  ["Health", [
    { title: "Entropy", unit: "nats", floor: 0, note: "Mean entropy of the policy's next token.", series: [["entropy", "entropy"]] },
    { title: "Cut off", of: "of responses", ...SHARE, note: "Responses that ran out of their token budget.",
      series: [["completions/clipped_ratio", "cut off"]] },
    { title: "Flat groups", of: "of groups", ...SHARE, note: "Groups whose samples all got the same reward: they give no gradient.",
      series: [["frac_reward_zero_std", "flat"]] },
    { title: "Reward spread", unit: "", floor: 0, note: "Standard deviation of the reward within groups.",
      series: [["reward_std", "std"]] },
    { title: "Gradient norm", unit: "", floor: 0, note: "Before clipping.", series: [["grad_norm", "norm"]] },
    { title: "Time per step", unit: "s", floor: 0, note: "Wall time of a step, and its parts for rollouts and learning.",
      series: [["time/step", "step"], ["time/rollout", "rollout"], ["time/learn", "learn"]] },
    { title: "Failed calls by error", unit: "calls", floor: 0, stack: "tools/error/", note: "Grouped by the last line of the error." },
  ]],
];
/** Return the groups of figures: the fixed ones, and one by source of the problems if the runs recorded it. */
function figureGroups() {
  const keys = [...new Set(report.runs.flatMap((run) => Object.keys(run.metrics)))].filter((key) => key.startsWith("by_source/"));
  const named = [["accuracy", "Accuracy", "right answers in training"], ["code_ratio", "Code ratio", "responses with code"],
    ["recovery_ratio", "Recovery ratio", "failed calls that a successful call follows"]];
  const figures = named.map(([end, title, what]) => ({ title: `${title} by source`, ...SHARE, note: `Share of ${what}, by source of the problem.`,
    series: keys.filter((key) => key.endsWith(`/${end}`)).map((key) => [key, key.slice("by_source/".length, -end.length - 1)]) }));
  return keys.length ? [...FIGURES, ["By source", figures]] : FIGURES;
}
const FINAL = [["eval/accuracy", "Accuracy, held out", SHARE], ["accuracy", "Accuracy, training", SHARE], ["reward", "Reward", {}],
  ["tools/code_ratio", "Code ratio", SHARE], ["tools/pass_ratio", "Pass ratio", SHARE],
  ["tools/executed_ratio", "Executed ratio", SHARE], ["tools/calls_mean", "Calls per response", {}],
  ["completions/mean_length", "Response length", { unit: "tokens" }], ["entropy", "Entropy", { unit: "nats" }],
  ["time/step", "Time per step", { unit: "s" }]];

let report;
const colour = (i) => `var(--run${i % 7})`;
const view = { window: 1, first: 0, last: 1, hidden: new Set(), cursor: null, charts: [], grids: new Map() };

function format(value, { unit = "", scale = 1 } = {}) {
  if (value === null || value === undefined) return "–";
  const shown = value * scale, size = Math.abs(shown);
  const digits = unit === "%" ? 1 : size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  const text = size > 0 && size < 1e-3 ? shown.toExponential(1) : shown.toFixed(digits);
  return (text.replace("-", "−") + (unit === "%" ? "%" : unit ? ` ${unit}` : "")).trim();
}

/** Return the centred mean over up to `window` recorded points as [step, mean]; fewer points at both ends. */
function smooth(points, window) {
  const half = Math.floor(window / 2);
  return points.map(([step], i) => {
    const reach = Math.min(half, i, points.length - 1 - i);
    let sum = 0;
    for (let j = i - reach; j <= i + reach; j++) sum += points[j][1];
    return [step, sum / (2 * reach + 1)];
  });
}

function pointsOf(run, key) {
  const column = run.metrics[key] || [];
  return run.steps.map((step, i) => [step, column[i]]).filter(([, value]) => value !== null && value !== undefined);
}

function ticks(low, high, count) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** Return [low, high, ticks] of an axis: the range of the values with a margin, from tick to tick. */
function extent(values, { scale = 1, floor = -Infinity, ceiling = Infinity }) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { low = Math.min(low, value * scale); high = Math.max(high, value * scale); }
  if (low > high) return [0, 1, [0, 1]];
  if (floor === 0 && low >= 0 && low < 0.45 * high) low = 0;
  if (ceiling === 100 && high > 70) high = Math.max(high, 100);
  const air = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  low = Math.max(floor, low - (low === 0 ? 0 : air));
  high = Math.min(ceiling, high + air);
  const near = ticks(low, high, 4), step = near[1] - near[0] || 1, tidy = (value) => Number((value * step).toPrecision(12));
  const [from, to] = [Math.floor(low / step + 1e-9), Math.ceil(high / step - 1e-9)];
  const marks = Array.from({ length: to - from + 1 }, (_, i) => tidy(from + i)).filter((mark) => mark >= floor && mark <= ceiling);
  return [Math.max(floor, tidy(from)), Math.min(ceiling, tidy(to)), marks];
}

/** A card with a title, a legend that also shows the values at the cursor, and an SVG drawn at its real width. */
class Chart {
  constructor(figure, lines) {
    this.figure = figure;
    this.lines = lines;
    this.svg = h("svg", { tabindex: 0, role: "img" });
    this.legend = h("ul.legend");
    this.node = h("figure.card", {}, h("figcaption", {}, h("h4", {}, figure.title), h("p", {}, figure.note)), this.legend, this.svg);
    this.svg.addEventListener("pointermove", (event) => pointAt(this.stepAt(event)));
    this.svg.addEventListener("pointerleave", () => pointAt(null));
    this.svg.addEventListener("blur", () => pointAt(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
  }

  draw() {
    const width = this.node.clientWidth - 32;
    if (width < 50) return;
    const box = this.box = { left: 44, right: width - 8, top: 16, bottom: 172 };
    this.shown = this.lines.filter((line) => !view.hidden.has(line.run));
    for (const line of this.shown) {
      const window = line.exact || line.points.length < 8 ? 1 : Math.min(view.window, Math.ceil(line.points.length / 3));
      line.mean = smooth(line.points, window);
      line.smoothed = window > 1;
    }
    if (this.figure.stack) this.stack();
    const values = this.shown.flatMap((line) => line.top || [...line.points, ...line.mean]).map(([, value]) => value);
    const steps = this.steps = [...new Set(this.shown.flatMap((line) => line.points.map(([step]) => step)))].sort((a, b) => a - b);
    const [low, high, marks] = extent(this.figure.stack ? [0, ...values] : values, this.figure);
    const { first, last } = view;
    this.x = (step) => box.left + ((step - first) / (last - first)) * (box.right - box.left);
    this.y = (value) => box.bottom - ((value * (this.figure.scale || 1) - low) / (high - low)) * (box.bottom - box.top);
    this.svg.setAttribute("viewBox", `0 0 ${width} 200`);
    this.svg.setAttribute("height", 200);
    this.svg.setAttribute("aria-label", this.inWords());
    this.cursor = h("g");
    this.svg.replaceChildren(...this.axes(marks, first, last), ...this.shown.flatMap((line) => this.curve(line)), this.cursor);
    this.point();
  }

  axes(marks, first, last) {
    const { box, figure } = this, unit = figure.unit === "%" ? `% ${figure.of || ""}` : figure.unit || "";
    const y = (mark) => this.y(mark / (figure.scale || 1));
    const words = (mark) => (String(mark).length > 6 ? mark.toExponential() : String(mark)).replace("-", "−");
    const across = ticks(first, last, Math.max(2, Math.floor((box.right - box.left) / 90))).filter(Number.isInteger);
    return [
      ...marks.flatMap((mark) => [
        h("line.grid", { x1: box.left, x2: box.right, y1: y(mark), y2: y(mark) }),
        h("text.tick.y", { x: box.left - 8, y: y(mark) + 4 }, words(mark)),
      ]),
      ...across.map((mark) => h("text.tick.x", { x: this.x(mark), y: box.bottom + 16 }, String(mark))),
      h("text.unit", { x: box.left, y: box.top - 6 }, unit),
      h("text.unit.x", { x: box.right, y: 198 }, "step"),
    ];
  }

  curve(line) {
    const spot = ([step, value]) => `${this.x(step).toFixed(1)} ${this.y(value).toFixed(1)}`;
    if (line.top) {
      const area = `M${line.top.map(spot).join("L")}L${[...line.base].reverse().map(spot).join("L")}Z`;
      return [h("path.area", { d: area, "--c": colour(line.colour) })];
    }
    const tint = { "--c": colour(line.colour) };
    const raw = h("path.raw", { d: line.points.map((point) => `M${spot(point)}h0`).join(""), ...tint });
    const mean = h(`path.mean.dash${line.dash}`, { d: `M${line.mean.map(spot).join("L")}`, ...tint });
    raw.classList.toggle("sparse", !line.smoothed);
    return line.points.length ? [raw, mean] : [];
  }

  /** Stack the areas: add up the means of all lines at each step. */
  stack() {
    const sums = new Map();
    for (const line of this.shown) {
      line.base = line.mean.map(([step]) => [step, sums.get(step) || 0]);
      line.top = line.mean.map(([step, value], i) => [step, value + line.base[i][1]]);
      for (const [step, value] of line.top) sums.set(step, value);
    }
  }

  stepAt(event) {
    const at = event.clientX - this.svg.getBoundingClientRect().left;
    const far = (step) => Math.abs(this.x(step) - at);
    return this.steps?.length ? this.steps.reduce((best, step) => (far(step) < far(best) ? step : best)) : null;
  }

  key(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
    if (!move || !this.steps.length) return;
    event.preventDefault();
    const now = view.cursor === null ? (move < 0 ? this.steps.length : -1) : this.steps.findLastIndex((step) => step <= view.cursor);
    pointAt(this.steps[Math.max(0, Math.min(this.steps.length - 1, now + move))]);
  }

  /** Show the values at the cursor, or at the last step if there is no cursor. */
  point() {
    const { cursor } = view, marks = [];
    const inside = cursor !== null && this.steps.length && cursor >= this.steps[0] && cursor <= this.steps[this.steps.length - 1];
    if (inside) marks.push(h("line.cursor", { x1: this.x(cursor), x2: this.x(cursor), y1: this.box.top, y2: this.box.bottom }));
    const readings = this.shown.map((line) => {
      const at = cursor === null ? line.mean.length - 1 : line.mean.findLastIndex(([step]) => step <= cursor);
      const found = line.mean[at], tint = { "--c": colour(line.colour) };
      if (inside && found) {
        marks.push(h("circle.dot", { cx: this.x(found[0]), cy: this.y(line.top ? line.top[at][1] : found[1]), r: 3.5, ...tint }));
      }
      return { line, icon: h(`i.dash${line.top ? "area" : line.dash}`, tint), value: h("b", {}, format(found?.[1], this.figure)) };
    });
    this.legend.replaceChildren(...this.readout(readings));
    if (inside) {
      const x = Math.min(this.x(cursor), this.box.right - 30);
      marks.push(h("text.unit.now", { x, y: this.box.top - 6 }, `step ${cursor}`));
    }
    this.cursor.replaceChildren(...marks);
  }

  /** Return legend entries: a list, or a table with one line for each run if several runs have several series. */
  readout(readings) {
    const names = [...new Set(this.lines.map((line) => line.name))], runs = [...new Set(this.lines.map((line) => line.run))];
    const matrix = names.length > 1 && report.runs.length > 1 && !this.figure.stack;
    this.legend.classList.toggle("matrix", matrix);
    if (!matrix) return readings.map(({ line, icon, value }) => h("li", { title: line.label }, icon, h("span", {}, line.label), value));
    this.legend.style.setProperty("--n", names.length);
    const rows = runs.map((run) => readings.filter(({ line }) => line.run === run)).filter((row) => row.length);
    return [h("li"), ...names.map((name, dash) => h("li", {}, h(`i.dash${dash}`), name)), ...rows.flatMap((row) => [
      h("li.name", { "--c": colour(row[0].line.colour), title: report.runs[row[0].line.run].name }, report.runs[row[0].line.run].name),
      ...names.map((name) => h("li", {}, row.find(({ line }) => line.name === name)?.value ?? "–"))])];
  }

  inWords() {
    const each = this.shown.filter((line) => line.mean.length).map((line) =>
      `${line.label} from ${format(line.mean[0][1], this.figure)} to ${format(line.mean[line.mean.length - 1][1], this.figure)}`);
    return `${this.figure.title}: ${each.join("; ")}. Use the arrow keys to read single steps.`;
  }
}

let queued = false;
function pointAt(step) {
  view.cursor = step;
  if (queued) return;
  queued = true;
  requestAnimationFrame(() => { queued = false; for (const chart of view.charts) if (chart.shown) chart.point(); });
}

const redraw = () => { for (const chart of view.charts) chart.draw(); };

/** Return the charts of a figure: one, or one for each run if areas are stacked; none if nothing was recorded. */
function chartsOf(figure) {
  const { runs } = report;
  if (figure.stack) {
    return runs.flatMap((run, i) => {
      const keys = Object.keys(run.metrics).filter((key) => key.startsWith(figure.stack));
      const total = (key) => pointsOf(run, key).reduce((sum, [, value]) => sum + value, 0);
      const lines = keys.sort((a, b) => total(b) - total(a)).slice(0, 6).map((key, j) => {
        const column = run.metrics[key].map((value) => value ?? 0);
        return { run: i, colour: j, dash: 0, label: key.slice(figure.stack.length), points: run.steps.map((step, k) => [step, column[k]]) };
      });
      const title = runs.length > 1 ? `${figure.title} · ${run.name}` : figure.title;
      return lines.length ? [new Chart({ ...figure, title }, lines)] : [];
    });
  }
  const present = figure.series.filter(([key]) => runs.some((run) => pointsOf(run, key).length));
  const lines = runs.flatMap((run, i) => present.map(([key, name], dash) => {
    const label = runs.length === 1 ? name : present.length === 1 ? run.name : `${run.name}, ${name}`;
    const many = present.length > 3 && runs.length === 1;  // more series than dashes: colours
    return { run: i, colour: many ? dash % 7 : i % 7, dash: many ? 0 : dash, label, name, exact: key.startsWith("eval/"), points: pointsOf(run, key) };
  })).filter((line) => line.points.length);
  return lines.length ? [new Chart(figure, lines)] : [];
}

/** Update the charts of a grid. An existing chart keeps its position and focus and gets the new lines. */
function place(grid, figures) {
  const charts = figures.flatMap(chartsOf).map((fresh) => {
    const old = view.charts.find((chart) => chart.figure.title === fresh.figure.title && chart.node.parentNode === grid);
    if (old) { old.lines = fresh.lines; return old; }
    view.charts.push(fresh);
    new ResizeObserver(() => fresh.draw()).observe(fresh.node);
    return fresh;
  });
  const nodes = charts.map((chart) => chart.node);
  if (nodes.length !== grid.children.length || nodes.some((node, i) => node !== grid.children[i])) grid.replaceChildren(...nodes);
  for (const chart of charts) if (chart.shown) chart.draw();
}

/** Draw all figures of the current report. A live page calls this again for new data. */
function drawFigures() {
  const { runs } = report, home = $("#charts"), longest = Math.max(0, ...runs.map((run) => run.steps.length));
  if (!longest) return home.replaceChildren(h("p.notice", {}, "No metrics were recorded, so there are no figures to draw."));
  $(".notice", home)?.remove();
  const steps = runs.flatMap((run) => run.steps).sort((a, b) => a - b);
  view.first = steps[0];
  view.last = Math.max(steps[steps.length - 1], steps[0] + 1);
  setWindow(longest);
  for (const [name, figures] of figureGroups()) {
    if (!view.grids.has(name)) {
      view.grids.set(name, h("div.grid"));
      home.append(h("h3", {}, name), view.grids.get(name));
    }
    place(view.grids.get(name), figures);
  }
  drawOthers(home);
  if (runs.length > 1 && !$("button.run")) $("#controls").append(...runs.map(runButton));
}

/** Add all other metrics in a closed <details>; they are drawn when it is opened. */
function drawOthers(home) {
  const used = new Set(figureGroups().flatMap(([, figures]) => figures.flatMap((figure) => (figure.series || []).map(([key]) => key))));
  const recorded = [...new Set(report.runs.flatMap((run) => Object.keys(run.metrics)))];
  const rest = recorded.filter((key) => !used.has(key) && !key.startsWith("tools/error/")).sort();
  if (!rest.length) return;
  view.others ??= h("details", {}, h("summary"), h("div.grid"));
  const [summary, grid] = view.others.children, words = "As recorded in metrics.jsonl.";
  const draw = () => view.others.open && place(grid, rest.map((key) => ({ title: key, unit: "", note: words, series: [[key, key]] })));
  summary.textContent = `All other recorded metrics (${rest.length})`;
  view.others.ontoggle = draw;
  if (!view.others.isConnected) home.append(view.others);
  draw();
}

/** Set up the slider of the moving average. Until the user moves it, the window follows the length of the run. */
function setWindow(longest) {
  const slider = $("#window"), show = () => { slider.nextElementSibling.textContent = view.window; };
  if (!view.chosen) view.window = Math.max(1, Math.min(16, Math.round(longest / 12)));
  Object.assign(slider, { max: Math.max(2, Math.min(64, Math.floor(longest / 3))), value: view.window });
  slider.oninput = () => { Object.assign(view, { chosen: true, window: Number(slider.value) }); show(); redraw(); };
  show();
}

function runButton(run, i) {
  const press = ({ currentTarget }) => {
    view.hidden.has(i) ? view.hidden.delete(i) : view.hidden.add(i);
    currentTarget.setAttribute("aria-pressed", String(!view.hidden.has(i)));
    redraw();
  };
  return h("button.chip.run", { type: "button", "aria-pressed": "true", "--c": colour(i), onclick: press }, run.name);
}

// Summary and tables ------------------------------------------------------------------------------------------------

/** Return the means of the first and of the last tenth of the recorded points, at most ten points each. */
function ends(run, key) {
  const values = pointsOf(run, key).map(([, value]) => value);
  const count = key.startsWith("eval/") ? 1 : Math.max(1, Math.min(10, Math.floor(values.length / 10)));
  const mean = (part) => (part.length ? part.reduce((a, b) => a + b, 0) / part.length : null);
  return [mean(values.slice(0, count)), mean(values.slice(-count))];
}

/** Draw a small curve of one run. All runs share one vertical scale, so that their curves can be compared. */
function sparkline(run, key) {
  const points = pointsOf(report.runs[run], key), all = report.runs.flatMap((one) => pointsOf(one, key));
  const [low, high] = extent(all.map(([, value]) => value), {});
  const line = smooth(points, Math.ceil(points.length / 30)), last = points.length - 1 || 1;
  const spot = ([, value], i) => `${(2 + (86 * i) / last).toFixed(1)} ${(22 - (20 * (value - low)) / (high - low)).toFixed(1)}`;
  return h("svg.spark", { viewBox: "0 0 90 24", width: 90, height: 24, "aria-hidden": "true", "--c": colour(run) },
    h("path", { d: `M${line.map(spot).join("L")}` }));
}

function flatten(value, prefix = "", into = new Map()) {
  for (const [key, inner] of Object.entries(value || {})) {
    if (inner && typeof inner === "object" && !Array.isArray(inner)) flatten(inner, `${prefix}${key}.`, into);
    else into.set(prefix + key, Array.isArray(inner) ? JSON.stringify(inner) : String(inner ?? "–"));
  }
  return into;
}

function table(caption, head, rows) {
  return h("div.scroll", { tabindex: 0, role: "region", "aria-label": caption }, h("table", {}, h("caption", {}, caption),
    h("thead", {}, h("tr", {}, head.map((cell) => h("th", { scope: "col" }, cell)))),
    h("tbody", {}, rows.map(([first, ...cells]) =>
      h("tr", {}, h("th", { scope: "row" }, first), cells.map((cell) => h("td", {}, cell)))))));
}

function drawTables() {
  const { runs } = report, home = $("#tables-body"), head = ["", ...runs.map((run) => run.name)];
  const open = new Set([...home.querySelectorAll("details[open] > summary")].map((summary) => summary.textContent));
  home.replaceChildren();
  const known = FINAL.filter(([key]) => runs.some((run) => pointsOf(run, key).length));
  const finals = known.map(([key, name, kind]) => [name, ...runs.map((run, i) => {
    const points = pointsOf(run, key), [first, last] = ends(run, key), before = points.length > 1 ? `${format(first, kind)} → ` : "";
    const words = h("span", {}, before, h("b", {}, format(last, kind)));
    return points.length ? h("span.ends", {}, sparkline(i, key), words) : "–";
  })]);
  const caption = "Start → end: means of the first and last tenth of the steps, at most ten; held-out accuracy: first and last value";
  if (finals.length) home.append(table(caption, head, finals));
  const facts = runs.map((run) => flatten(run.metadata)), configs = runs.map((run) => flatten(run.config));
  const rows = (maps, keep = () => true) => [...new Set(maps.flatMap((map) => [...map.keys()]))]
    .map((key) => [key, ...maps.map((map) => map.get(key) ?? "–")]).filter(([, ...cells]) => keep(cells));
  if (runs.length > 1) home.append(table("Where the configurations differ", head, rows(configs, (cells) => new Set(cells).size > 1)));
  const folded = (name, maps) => maps.some((map) => map.size)
    && home.append(h("details", { open: open.has(name) }, h("summary", {}, name), table(name, head, rows(maps))));
  folded("Full configuration", configs);
  folded("Versions, executor and machine", facts);
}

function drawHero() {
  const names = { "eval/accuracy": "accuracy on held-out problems", accuracy: "accuracy in training", reward: "mean reward" };
  const keys = Object.keys(names), counts = (name) => report.runs.map((run) => pointsOf(run, name).length);
  const moves = (name) => Math.min(...counts(name)) > 0 && Math.max(...counts(name)) > 1;
  const tiles = report.runs.map((run, i) => {
    const key = keys.find(moves) || keys.find((name) => pointsOf(run, name).length);
    const [first, last] = key ? ends(run, key) : [null, null], kind = key === "reward" ? {} : SHARE;
    const calls = run.config?.tool?.max_tool_calls, steps = run.steps.length ? run.steps[run.steps.length - 1] : 0;
    const tool = calls === undefined ? null : calls ? `up to ${calls} tool call${calls > 1 ? "s" : ""}` : "no tool";
    const facts = [tool, run.config?.model?.path, `${steps} steps`];
    return h("article.tile", { "--c": colour(i) }, h("h3", {}, run.name), key ? sparkline(i, key) : null,
      key ? h("p.big", {}, pointsOf(run, key).length > 1 ? h("small", {}, format(first, kind), " → ") : null, format(last, kind)) : h("p.big", {}, "–"),
      h("p.what", {}, key ? names[key] : "no metrics"),
      h("p.facts", {}, facts.filter(Boolean).join(" · ")),
      run.alarms.map(([first, last, text]) => h("p.note.alarm", {}, h("b", {}, `Alarm, step ${first === last ? first : `${first} to ${last}`}: `), text)),
      run.notes.map((note) => h("p.note", {}, note)));
  });
  $("#hero").replaceChildren(h("div.tiles", {}, tiles));
}

function themeButton() {
  const names = ["auto", "light", "dark"], button = $("#theme"), root = document.documentElement;
  let now = "auto";
  const show = () => { root.dataset.theme = now; button.textContent = now[0].toUpperCase() + now.slice(1); };
  try {
    now = names.find((name) => name === localStorage.getItem("grpo-tir-theme")) || now;
  } catch { /* some browsers have no storage for files */ }
  button.addEventListener("click", () => {
    now = names[(names.indexOf(now) + 1) % 3];
    show();
    try { localStorage.setItem("grpo-tir-theme", now); } catch { /* no storage: the choice lasts for this visit */ }
    document.dispatchEvent(new Event("themechange"));
  });
  show();
}

async function main() {
  themeButton();
  if (!("DecompressionStream" in window)) {
    $("#hero").append(h("p.notice", {}, "This browser cannot unpack the page: please use a browser of 2023 or later."));
    return;
  }
  report = await unpack("data");
  drawHero();
  drawFigures();
  drawTables();
  await openBrowser();
  document.documentElement.dataset.ready = Math.round(performance.now()); // milliseconds, for the benchmark
}
main().catch((error) => $("#hero").append(h("p.notice", {}, `This page could not be drawn: ${error}`)));
