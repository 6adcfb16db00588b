// Two models on the same samples: verdicts, changes with their intervals, the samples that broke, two samples side by side.

import { get } from "../api.js";
import { clear, el, interval, number, say } from "../dom.js";
import { draw, fetchAhead, plain } from "../figure.js";
import { choice, facts, fill, sayDepth, table } from "../parts.js";
import { drawPair } from "../pair.js";
import { link, update } from "../state.js";

const MEASURES = [["accuracy", "Accuracy"], ["confidence", "Confidence"], ["effort", "Effort Ω"]];
const INTERVALS = "95 % intervals by a paired bootstrap; ▲ rose, ▼ fell, where the interval excludes 0";
const MOST_LINES = 24;
/** Letters of a name beside a figure. */
const LONGEST = 22;
const NOTHING =
  "There is nothing to compare yet: this needs two finished runs, or one of two models. " +
  "Start the viewer with the runs of both models: hyperlens view BEFORE AFTER";
const SAME = "Before and after are the same model of the same run; choose another one.";
const KEYS = ["before", "after", "before_model", "after_model", "depth"];

export function title() {
  return "Compare";
}

/** The comparison of the two sides in the state; choosing a sample only draws that sample. */
export async function show(main, state, signal) {
  const { runs } = await get("runs", {}, signal);
  const sides = listSides(runs);
  const found = el("div");
  const pair = el("section", { class: "panel", id: "pair", "aria-label": "One sample side by side", hidden: true });
  const chooser = el("div", { class: "row" });
  clear(main).append(el("h1", {}, "Compare two models"), chooser, found, pair);
  if (sides.length < 2) {
    found.append(...sayMissing(runs, sides, state), el("p", { class: "empty" }, NOTHING));
    return { update: () => false };
  }
  fetchAhead();
  const chosen = chooseSides(sides, state);
  chooser.append(...drawChooser(sides, chosen));
  if (!chosen.before || !chosen.after) {
    found.append(...sayMissing(runs, sides, state));
    return { update: () => false };
  }
  let answer = null;
  await fill(found, async () => {
    answer = await ask(chosen, state, signal);
    chooser.append(drawDepths(answer.sides.lens));
    return drawComparison(answer, state);
  });
  const showPair = (now) => drawPair(pair, answer, chosen, now, signal);
  if (answer) await showPair(state);
  let last = state;
  return {
    async update(now) {
      if (KEYS.some((key) => now[key] !== last[key]) || !answer) return false;
      const moved = now.sample !== last.sample || now.task !== last.task;
      last = now;
      markChosen(found, now);
      await showPair(now);
      if (moved) pair.scrollIntoView({ block: "start" });
      return true;
    },
    close: () => drawPair(pair, null),
  };
}

/** Every model of every finished run. */
function listSides(runs) {
  const finished = runs.filter((run) => run.state === "finished");
  const alone = (name) => finished.filter((run) => run.name === name).length === 1;
  const nameRun = (run) => (alone(run.name) ? run.name : run.place);
  const nameSide = (run, model) => ({ run: String(run.id), model, name: `${nameRun(run)} · ${model}` });
  return finished.flatMap((run) => run.models.map((model) => nameSide(run, model)));
}

/** What changed, at the focal depth of the address where both were read at it, else at the main one. */
async function ask({ before, after }, state, signal) {
  const sides = { before: before.run, before_model: before.model, after: after.run, after_model: after.model };
  const answer = await get("compare", sides, signal);
  const { depths, depth } = answer.sides.lens;
  const wish = depths.find((one) => String(one) === state.depth);
  return wish === undefined || wish === depth ? answer : get("compare", { ...sides, depth: wish }, signal);
}

/** The sides of the address, undefined where it names what is not there; else the first two, of one run if it has two. */
function chooseSides(sides, state) {
  const first = sides.find((side) => side.run !== state.after) ?? sides[0];
  const before = state.before === undefined ? first : findSides(sides, state, "before")[0];
  const others = sides.filter((side) => side !== before);
  if (state.after !== undefined) return { before, after: findSides(others, state, "after")[0] };
  return { before, after: others.find((side) => side.run === before?.run) ?? others[0] };
}

function findSides(sides, state, which) {
  const [run, model] = [state[which], state[`${which}_model`]];
  return sides.filter((side) => side.run === run && (model === undefined || side.model === model));
}

/** Why a side of the address cannot be compared, in sentences. */
function sayMissing(runs, sides, state) {
  const asked = ["before", "after"].filter((which) => state[which] !== undefined);
  const missing = asked.filter((which) => !findSides(sides, state, which).length);
  const said = missing.map((which) => explain(runs, state[which], state[`${which}_model`]));
  const sentences = said.length || !asked.length ? said : [SAME];
  return sentences.map((one) => el("p", { class: "alert", role: "alert" }, one));
}

function explain(runs, id, model) {
  const run = runs.find((one) => String(one.id) === id);
  if (!run) return `There is no run "${id}"; choose another one.`;
  if (run.state === "unreadable") return `The run ${run.name} cannot be read; choose another one.`;
  if (run.state !== "finished") return `The run ${run.name} is unfinished; it can be compared when it has ended.`;
  return `The run ${run.name} has no model "${model}"; it has ${run.models.join(", ")}.`;
}

function drawChooser(sides, { before, after }) {
  const options = sides.map((side, place) => [place, side.name]);
  const none = [[-1, "choose"]];
  const set = (which) => (place) => {
    const now = { before, after, [which]: sides[Number(place)] };
    update({ ...nameSides(now), task: null, sample: null, token: null }, { replace: false });
  };
  const swap = () => update({ ...nameSides({ before: after, after: before }), token: null }, { replace: false });
  const choose = (name, which, side) => choice(name, side ? options : [...none, ...options], sides.indexOf(side), set(which));
  return [
    choose("Before", "before", before),
    choose("After", "after", after),
    before && after ? el("button", { type: "button", onclick: swap }, "Swap") : "",
  ];
}

/** The sides as the address has them; one that is not there stays as it is. */
function nameSides({ before, after }) {
  return {
    ...(before && { before: before.run, before_model: before.model }),
    ...(after && { after: after.run, after_model: after.model }),
  };
}

function drawComparison({ sides: { lens }, samples, verdicts, changes, broken, count_broken }, state) {
  const rows = groupChanges(changes);
  return [
    facts([["Samples in pairs", samples.toLocaleString("en")], ["Lens", lens.name], ["Context", lens.context]]),
    el("section", { class: "panel", "aria-label": "Verdicts" }, verdicts.map(drawVerdict)),
    drawForest(rows),
    drawChanges(rows),
    drawBroken(broken, count_broken, state),
  ];
}

function drawDepths({ depths, depth }) {
  const choose = (wish) => update({ depth: wish }, { replace: false });
  return choice("Focal depth", depths.map((one) => [one, sayDepth(one)]), depth, choose);
}

function drawVerdict({ name, task, tone, sentence, weakened = [] }) {
  const reasons = el("ul", {}, weakened.map((one) => el("li", {}, one)));
  return el(
    "article",
    { class: `verdict ${tone ?? ""}` },
    el("h2", {}, el("span", { class: "quiet" }, `${task ?? "All samples"}: `), name),
    el("p", {}, sentence),
    weakened.length ? el("details", {}, el("summary", {}, `What weakens this (${weakened.length})`), reasons) : null,
  );
}

/** The changes as one row for each task and level, with its measures under their names. */
function groupChanges(changes) {
  const rows = new Map();
  for (const one of changes) {
    const key = JSON.stringify([one.task, one.level]);
    if (!rows.has(key)) rows.set(key, { task: one.task, level: one.level, n: one.n });
    rows.get(key)[one.measure] = one;
  }
  return [...rows.values()];
}

function nameGroup({ task, level }) {
  return shorten(task ?? "all samples") + (level === null ? "" : `, level ${level}`);
}

/** Beside a figure: a level under its task goes without the task's name. */
function nameLine({ task, level }) {
  return level === null ? `<b>${plain(shorten(task ?? "all samples"))}</b>` : `level ${level}`;
}

function shorten(name) {
  return name.length <= LONGEST ? name : `${name.slice(0, LONGEST - 1)}…`;
}

/** One small figure for each measure: a line from low to high, and a mark at the change. */
function drawForest(rows) {
  const shown = rows.length > MOST_LINES ? rows.filter((row) => row.level === null) : rows;
  const panels = MEASURES.filter(([key]) => shown.some((row) => row[key])).map(([key, name]) => {
    const node = el("figure");
    const mine = shown.filter((row) => row[key]).reverse();
    const ticks = { tickvals: mine.map((_, place) => place), ticktext: mine.map(nameLine), tickfont: { size: 12 } };
    const layout = {
      height: 70 + 22 * mine.length,
      showlegend: false,
      xaxis: { title: { text: "after − before" }, range: spanChanges(mine, key), zerolinewidth: 1.5 },
      yaxis: { ...ticks, range: [-0.6, mine.length - 0.4], zeroline: false },
      margin: { l: 40, r: 12, t: 8, b: 44 },
    };
    const label = `Change of ${key} with its interval; the numbers are in the table below`;
    draw(node, (colours) => [traceForest(mine, key, colours)], layout, { name: `change-of-${key}`, label });
    return el("section", { class: "panel" }, el("h2", {}, name), node);
  });
  return el("div", { class: "columns" }, panels);
}

/** From the least to the greatest end of the intervals, 0 among them, with room for the marks at both. */
function spanChanges(rows, key) {
  const ends = rows.flatMap((row) => [row[key].low, row[key].value, row[key].high]).filter(Number.isFinite);
  const [low, high] = [Math.min(0, ...ends), Math.max(0, ...ends)];
  const room = 0.06 * (high - low) || 0.01;
  return [low - room, high + room];
}

function traceForest(rows, key, colours) {
  const values = rows.map((row) => row[key]);
  const colour = values.map(({ low, high }) => (low > 0 ? colours.series[1] : high < 0 ? colours.series[0] : colours.quiet));
  const symbol = values.map(({ low, high }) => (low > 0 ? "triangle-right" : high < 0 ? "triangle-left" : "circle-open"));
  const side = (one, end) => (one[end] === null ? 0 : Math.abs(one[end] - one.value));
  const [array, arrayminus] = ["high", "low"].map((end) => values.map((one) => side(one, end)));
  const say = (row) => interval(row[key].value, row[key].low, row[key].high, 3);
  return {
    type: "scatter",
    mode: "markers",
    x: values.map((one) => one.value),
    y: rows.map((_, place) => place),
    marker: { color: colour, size: 8, symbol },
    error_x: { type: "data", symmetric: false, array, arrayminus, color: colours.quiet, thickness: 1.4, width: 4 },
    text: rows.map((row) => `${plain(nameGroup(row))}<br>${say(row)}<br>${row[key].n} pairs`),
    hovertemplate: "%{text}<extra></extra>",
  };
}

function drawChanges(rows) {
  const caption = `After − before over the samples that both have; ${INTERVALS}`;
  const measured = MEASURES.filter(([key]) => rows.some((row) => row[key]));
  const columns = measured.map(([key, name]) => [name, (row) => sayChange(row[key]), { n: true }]);
  return el("section", { class: "panel" }, el("h2", {}, "What changed"), table(caption, [
    ["Task", (row) => row.task ?? "all samples", { head: true }],
    ["Level", (row) => row.level ?? "–", { n: true }],
    ["Pairs", (row) => row.n.toLocaleString("en"), { n: true }],
    ...columns,
  ], rows));
}

function sayChange(one) {
  if (!one) return "–";
  const mark = one.low > 0 ? "▲ " : one.high < 0 ? "▼ " : "";
  return mark + interval(one.value, one.low, one.high, 3);
}

function drawBroken(broken, count, state) {
  const part = el("section", { class: "panel", "aria-label": "Samples that broke" }, el("h2", {}, "Samples that broke"));
  if (!broken?.length) part.append(el("p", { class: "quiet" }, "No sample was right before and wrong after."));
  else part.append(...listBroken(broken, count));
  markChosen(part, state);
  return part;
}

function listBroken(broken, count) {
  const address = (row) => link({ page: "compare", task: row.spec ?? row.task, sample: row.sample, token: null });
  const opens = (row) => () => say(`Sample ${row.sample} of ${row.task}, side by side, is below.`);
  const order = "right before, wrong after, those that gained most confidence first";
  const caption = `${broken.length} of ${count}: ${order}. Choose one to see it side by side.`;
  const key = (row) => ({ sample: `${row.spec ?? row.task}/${row.sample}` });
  const open = (row) => el("a", { href: address(row), onclick: opens(row), data: key(row) }, `${row.task} ${row.sample}`);
  const pair = (before, after) => `${number(before)} → ${number(after)}`;
  return table(caption, [
    ["Sample", open, { head: true }],
    ["Level", (row) => row.level ?? "–", { n: true }],
    ["Question", (row) => el("span", { class: "clip" }, row.prompt ?? "")],
    ["Confidence", (row) => pair(row.confidence_before, row.confidence_after), { n: true }],
    ["Effort Ω", (row) => pair(row.effort_before, row.effort_after), { n: true }],
  ], broken);
}

function markChosen(node, { task, sample }) {
  for (const one of node.querySelectorAll("a[data-sample]")) {
    const chosen = one.dataset.sample === `${task}/${sample}`;
    if (chosen) one.setAttribute("aria-current", "true");
    else one.removeAttribute("aria-current");
    one.closest("tr").classList.toggle("chosen", chosen);
  }
}
