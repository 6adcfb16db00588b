// One sample as two models read it: tokens, heatmaps, and the difference between these.

import { get, placeRun } from "./api.js";
import { clear, el, number } from "./dom.js";
import { drawHeatmap } from "./heatmap.js";
import { facts, fill } from "./parts.js";
import { update } from "./state.js";
import { showTokens, spellOut } from "./tokens.js";

const DIFFERENT = "The two models were read at different texts, so there is no difference to draw.";

const open = new WeakMap();

/** Draw the sample of the state into `node`, or hide it where there is none; `comparison` null closes what is there. */
export async function drawPair(node, comparison, sides, state, signal) {
  const chosen = comparison && state.sample !== undefined && state.task !== undefined;
  const shown = open.get(node);
  if (chosen && shown?.same(sides, state)) return shown.select(state);
  shown?.close();
  open.delete(node);
  clear(node).hidden = !chosen;
  if (!chosen) return;
  await fill(node, async () => {
    const lens = comparison.sides.lens.name;
    const { task, sample } = state;
    const ask = ({ run, model }) => get(placeRun(run, "/sample"), { model, lens, task, sample }, signal);
    const [before, after] = await Promise.all([ask(sides.before), ask(sides.after)]);
    const made = build(before, after, sides, comparison, state);
    open.set(node, made);
    return made.parts;
  });
  open.get(node)?.begin();
}

function build(before, after, sides, comparison, state) {
  const depth = comparison.sides.lens.depth;
  const drawn = ({ layers, confidence, commit }) => ({ depth, layers, confidence: confidence[depth], commit: commit[depth] });
  const views = [
    view(sides.before.name, before, { ...drawn(before), tokens: before.tokens.map(nameToken) }),
    view(sides.after.name, after, { ...drawn(after), tokens: after.tokens.map(nameToken) }),
  ];
  const alike = isSameText(before, after);
  if (alike) views.push(viewDifference(before, after, depth));
  const readout = el("p", { class: "readout", "aria-live": "polite" });
  const made = [];
  const select = ({ token, layer }) => {
    const [place, state] = [asNumber(token), asNumber(layer)];
    for (const one of made) one.mark(place, state);
    const hint = "Choose a token or a cell to read its numbers.";
    clear(readout).append(place === null ? hint : sayPlace(before, after, depth, place, state));
  };
  const begin = () => {
    for (const one of views) made.push(one.begin((token, layer) => update({ token, layer })));
    select(state);
  };
  const key = JSON.stringify([sides, state.task, state.sample]);
  const same = (others, now) => JSON.stringify([others, now.task, now.sample]) === key;
  const parts = [
    el("h2", {}, `${before.task}, sample ${before.sample}`),
    el("p", { class: "prompt" }, before.prompt),
    drawAnswers(before, after),
    alike ? null : el("p", { class: "quiet" }, DIFFERENT),
    el("div", { class: "columns level" }, views.map((one) => one.part)),
    readout,
  ];
  return { parts, begin, select, same, close: () => made.forEach((one) => one.close()) };
}

function drawAnswers(before, after) {
  const grade = (one) => (one.correct === null ? null : one.correct ? "right" : "wrong");
  const say = (one) => [grade(one), one.generated].filter(Boolean).join(": ");
  return facts([["Target", before.target], ["Before", say(before)], ["After", say(after)]]);
}

/** Whether both models were read at the same places of the same text. */
function isSameText(before, after) {
  const spellTokens = ({ layers, tokens }) => JSON.stringify([layers, tokens.map(({ position, token }) => [position, token])]);
  return spellTokens(before) === spellTokens(after);
}

/** The numbers of one place on both sides. */
function sayPlace(before, after, depth, token, state) {
  const pair = (pick, digits = 2) => [before, after].map((one) => number(pick(one), digits)).join(" → ");
  const confidence = pair((one) => one.confidence[depth][token]?.[state], 3);
  return [
    `Token ${token}, “${spellOut(nameChange(before, after)[token] ?? "")}”: Ω ${pair((one) => one.effort[depth]?.[token])}`,
    `commit ${pair((one) => one.commit[depth]?.[token], 0)}`,
    ...(state === null ? [] : [`confidence at state ${state}: ${confidence}`]),
  ].join(" · ");
}

/** The tokens and the heatmap of one side; `begin` draws them once they are in the page. */
function view(name, sample, given) {
  const [texts, picture] = [el("div"), el("div")];
  const part = el("section", { "aria-label": name }, el("h3", {}, name), texts, picture);
  const begin = (choose) => {
    const map = drawHeatmap(picture, { ...given, onClick: choose });
    const onSelect = (token) => choose(token, token === null ? null : given.layers - given.depth);
    const effort = sample.effort[given.depth];
    const line = showTokens(texts, { tokens: sample.tokens, effort, onSelect, label: `Tokens of ${name}` });
    const mark = (token, state) => {
      map.highlight(token, state);
      line.select(token);
    };
    return { mark, close: () => [map, line].forEach((one) => one.close()) };
  };
  return { part, begin };
}

/** The heatmap of the difference, as `view` gives one. */
function viewDifference(before, after, depth) {
  const name = "Difference: after − before";
  const picture = el("div");
  const said = el("p", { class: "quiet small" }, "Of the confidence that each has in its own token.");
  const part = el("section", { "aria-label": name }, el("h3", {}, name), said, picture);
  const drawn = { layers: after.layers, tokens: nameChange(before, after), confidence: subtract(before, after, depth) };
  const begin = (choose) => {
    const map = drawHeatmap(picture, { ...drawn, depth, difference: true, measure: "change of confidence", onClick: choose });
    return { mark: map.highlight, close: map.close };
  };
  return { part, begin };
}

/** The token at each place: both where the models do not have the same. */
function nameChange(before, after) {
  const names = after.tokens.map((token, place) => [before.tokens[place] ?? {}, token].map(nameToken));
  return names.map(([first, second]) => (first === second ? first : `${first}→${second}`));
}

function nameToken({ reference, token }) {
  return reference ?? token ?? "";
}

/** What is drawn of a difference: each confidence after less that before. */
function subtract(before, after, depth) {
  const others = before.confidence[depth];
  return after.confidence[depth].map((states, token) => states.map((value, state) => minus(value, others[token][state])));
}

function minus(value, other) {
  return value === null || other === null || other === undefined ? null : value - other;
}

function asNumber(text) {
  return text === undefined || text === null ? null : Number(text);
}
