// A study: effort by task and level with its intervals, trends and contrasts, and how far they can be trusted.

import { get, placeRun, saved } from "../api.js";
import { clear, el, interval, number, spell } from "../dom.js";
import { draw, fetchAhead, plain } from "../figure.js";
import { keepFocus } from "../focus.js";
import { chooseReading } from "../listing.js";
import { choice, facts, fill, sayDepth, sayState, sentences, table } from "../parts.js";
import { link, update } from "../state.js";

const PAUSE = 5000;
/** What is drawn by task: the measure by its name in words and beside its value, the ends of its axis and of its interval. */
const MEASURES = {
  effort: { name: "Effort Ω", sign: "Ω", range: [0, 1], low: "low", high: "high" },
  accuracy: { name: "Accuracy", sign: "accuracy", range: [0, 1.02], low: "accuracy_low", high: "accuracy_high" },
};
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "star", "hexagon"];

export function title() {
  return "Study";
}

/** The study of the run in the state; one that is unfinished is asked for again every few seconds. */
export async function show(main, state, signal) {
  fetchAhead();
  const head = { name: el("h1"), facts: el("div"), choices: el("div", { class: "row" }) };
  const place = el("div");
  let timer = null;
  let now = state;

  async function refresh() {
    const mine = now;
    const run = await get(placeRun(mine.run), {}, signal);
    if (mine !== now) return;
    const chosen = chooseReading(run, mine);
    clear(head.name).append(spell(run.name));
    clear(head.facts).append(drawFacts(run, chosen));
    if (isNew(head.choices, [mine, chosen])) clear(head.choices).append(...drawChoices(chosen));
    if (isNew(place, [run.state, run.shards, chosen])) await fill(place, () => drawStudy(run, chosen, signal));
    clearTimeout(timer);
    if (run.state === "running" && !saved) timer = setTimeout(() => keepFocus(refresh).catch(() => {}), PAUSE);
  }

  async function change(next) {
    if (next.run !== now.run) return false;
    now = next;
    await refresh();
    return true;
  }

  clear(main).append(el("header", {}, Object.values(head)), place);
  await refresh();
  return { update: change, close: () => clearTimeout(timer), title: () => `Study ${head.name.textContent}` };
}

/** Whether a node is to show another thing than before: what shows the same already keeps its focus and its open choice. */
function isNew(node, thing) {
  const before = node.dataset.shown;
  node.dataset.shown = JSON.stringify(thing);
  return node.dataset.shown !== before;
}

function drawFacts(run, { model }) {
  const shards = run.state === "running" && `${run.shards[0]} of ${run.shards[1]} shards, shown so far`;
  return facts([
    ["State", sayState(run.state)],
    ["Written", shards],
    ["Layers", run.models?.[model]?.layers],
    ["Created", run.manifest?.created?.slice(0, 16).replace("T", " ")],
    ["Seed", run.manifest?.seed],
  ]);
}

function drawChoices({ models, model, lenses, lens, depths, depth }) {
  const set = (change) => (value) => update(change(value), { replace: false });
  return [
    choice("Model", models, model, set((value) => ({ model: value, lens: null }))),
    choice("Lens", lenses, lens, set((value) => ({ lens: value }))),
    choice("Focal depth", depths.map((one) => [one, sayDepth(one)]), depth, set((value) => ({ depth: value }))),
    el("a", { href: link({ page: "samples" }) }, "All samples"),
  ];
}

async function drawStudy(run, { model, lens, depth }, signal) {
  if (model === undefined || lens === undefined) return el("p", { class: "empty" }, "No model of this run has been read yet.");
  const all = await get(placeRun(run.id, "/effort"), { model, lens }, signal);
  const here = (row) => String(row.depth) === String(depth);
  const rows = all.rows.filter(here);
  return [
    drawPanels(rows, all.rows, depth),
    drawRows(rows, model, lens, depth),
    drawContrasts((all.contrasts ?? []).filter(here), depth),
    drawTrends((all.trends ?? []).filter(here), depth),
    run.caveats?.length ? el("section", { class: "panel" }, ...sentences("What to keep in mind", run.caveats)) : null,
  ];
}

function drawPanels(rows, all, depth) {
  const tasks = [...new Set(rows.map((row) => row.task))];
  if (!tasks.length) return el("p", { class: "empty" }, "Nothing has been measured at this focal depth yet.");
  const graded = rows.some((row) => row.level !== null);
  const shown = Object.entries(MEASURES).map(([key, { name, range }]) => {
    const node = el("figure");
    const heading = `${name} by task${graded ? " and level" : ""}`;
    const label = `${heading} at ${sayDepth(depth)}; the numbers are in the table below`;
    const traces = (colours) => tasks.map((task, place) => drawTask(key, rows, [task, place], graded, colours));
    draw(node, traces, layOut(name, range, rows, tasks, graded), { name: `${key}-by-task`, label });
    return el("section", { class: "panel" }, el("h2", {}, heading), node);
  });
  const depths = [...new Set(all.map((row) => row.depth))];
  if (depths.length > 1) shown.push(drawDepths(all, tasks, depths));
  return el("div", { class: "columns" }, shown);
}

/** Effort of each task over the focal depths: the mean of its levels is not made here, so the hardest level stands for it. */
function drawDepths(all, tasks, depths) {
  const node = el("figure");
  const level = (row) => row.level ?? 0;
  const listHardest = (task) => {
    const mine = all.filter((row) => row.task === task);
    return mine.filter((row) => level(row) === Math.max(...mine.map(level)));
  };
  const drawLine = (task, place, colours) => {
    const mine = listHardest(task);
    const x = mine.map((row) => `m = ${row.depth}`);
    return { ...dress(task, place, colours, true), ...withInterval("effort", task, mine), x };
  };
  const traces = (colours) => tasks.map((task, place) => drawLine(task, place, colours));
  const layout = layOut("Effort Ω", [0, 1], [], tasks, true);
  layout.xaxis = { title: { text: "Focal depth" }, type: "category", categoryarray: depths.map((one) => `m = ${one}`) };
  draw(node, traces, layout, { name: "effort-by-depth", label: "Effort of the hardest level of each task by focal depth" });
  const said = "Each focal depth averages other states, so that only its own tasks and levels can be compared.";
  const note = el("p", { class: "quiet small" }, said);
  return el("section", { class: "panel" }, el("h2", {}, "Effort Ω by focal depth, hardest level"), node, note);
}

function layOut(name, range, rows, tasks, graded) {
  const levels = [...new Set(rows.map((row) => row.level))].sort((one, other) => one - other);
  const xaxis = graded
    ? { title: { text: "Level: steps that a question needs" }, tickvals: levels }
    : { type: "category", categoryorder: "array", categoryarray: tasks.map(plain) };
  return { height: 330, xaxis, yaxis: { title: { text: name }, range }, showlegend: graded && tasks.length > 0 };
}

/** A measure of a task by its level, or by its name where the tasks have none. */
function drawTask(key, rows, [task, place], graded, colours) {
  const mine = rows.filter((row) => row.task === task);
  const x = mine.map((row) => (graded ? (row.level ?? 0) : plain(task)));
  return { ...dress(task, place, colours, graded), ...withInterval(key, task, mine), x };
}

/** A measure with its intervals as error bars. */
function withInterval(key, task, rows) {
  const { sign, low, high } = MEASURES[key];
  const length = (row, end) => (row[end] === null || row[key] === null ? 0 : Math.abs(row[end] - row[key]));
  const [array, arrayminus] = [high, low].map((end) => rows.map((row) => length(row, end)));
  return {
    y: rows.map((row) => row[key]),
    error_y: { type: "data", symmetric: false, array, arrayminus, thickness: 1.2, width: 3 },
    customdata: rows.map((row) => [interval(row[key], row[low], row[high]), row.n]),
    hovertemplate: `<b>${plain(task)}</b> %{x}<br>${sign} %{customdata[0]}<br>%{customdata[1]} samples<extra></extra>`,
  };
}

function dress(task, place, colours, joined) {
  const color = colours.series[place % colours.series.length];
  return {
    type: "scatter",
    mode: joined ? "lines+markers" : "markers",
    name: plain(task),
    line: { color, width: 1.8 },
    marker: { color, size: 7, symbol: SYMBOLS[place % SYMBOLS.length] },
  };
}

function drawRows(rows, model, lens, depth) {
  const address = (row) => link({ page: "samples", task: row.task, level: row.level, model, lens, depth });
  const open = (row) => el("a", { href: address(row), "aria-label": `samples of ${nameRow(row)}` }, "samples");
  const nameRow = (row) => `${row.task}, level ${row.level ?? "none"}`;
  const measured = `Effort, accuracy and confidence by task and level at ${sayDepth(depth)}`;
  const caption = `${measured}; 95 % bootstrap intervals over samples`;
  return el("section", { class: "panel" }, table(caption, [
    ["Task", (row) => row.task, { head: true }],
    ["Level", (row) => row.level ?? "–", { n: true }],
    ["Samples", (row) => row.n.toLocaleString("en"), { n: true }],
    ["Effort Ω", (row) => interval(row.effort, row.low, row.high), { n: true }],
    ["Accuracy", (row) => interval(row.accuracy, row.accuracy_low, row.accuracy_high), { n: true }],
    ["Confidence", (row) => number(row.confidence), { n: true }],
    ["Look at", open],
  ], rows));
}

function drawContrasts(rows, depth) {
  if (!rows.length) return null;
  const adjusted = "p (Holm) is adjusted for all comparisons of the run";
  const caption = `Hard − easy at ${sayDepth(depth)}; AUROC 0.5 is no difference; ${adjusted}`;
  return el("section", { class: "panel" }, el("h2", {}, "Contrasts"), table(caption, [
    ["Contrast", (row) => row.contrast, { head: true }],
    ["Ω easy", (row) => number(row.easy?.mean), { n: true }],
    ["Ω hard", (row) => number(row.hard?.mean), { n: true }],
    ["Difference", (row) => sayInterval(row.difference), { n: true }],
    ["AUROC", (row) => sayInterval(row.auroc), { n: true }],
    ["p", (row) => sayP(row.p), { n: true }],
    ["p (Holm)", (row) => sayP(row.p_holm), { n: true }],
    ["At like confidence", (row) => sayInterval(row.matched?.confidence), { n: true }],
    ["Right answers only", (row) => sayInterval(row.correct), { n: true }],
  ], rows));
}

function drawTrends(rows, depth) {
  if (!rows.length) return null;
  const caption = `Spearman's rho of level and effort at ${sayDepth(depth)}; 95 % bootstrap intervals`;
  return el("section", { class: "panel" }, el("h2", {}, "Trends"), table(caption, [
    ["Task", (row) => row.task, { head: true }],
    ["Samples", (row) => row.n, { n: true }],
    ["rho", (row) => interval(row.rho, row.low, row.high), { n: true }],
    ["Without confidence", (row) => sayRho(row.partial?.confidence), { n: true }],
    ["Without length", (row) => sayRho(row.partial?.length), { n: true }],
    ["Right answers only", (row) => sayRho(row.correct), { n: true }],
  ], rows));
}

function sayInterval(one) {
  return one ? interval(one.value, one.low, one.high) : "–";
}

function sayRho(one) {
  return one ? interval(one.rho, one.low, one.high) : "–";
}

function sayP(p) {
  return number(p, p !== null && p >= 0.001 ? 3 : 5);
}
