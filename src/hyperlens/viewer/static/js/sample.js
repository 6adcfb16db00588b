/** The view of one sample: its texts, its tokens by effort, the picture of its confidence, and a pinned token.
 *
 * All gestures change the address; what the address says is shown. So every view can be shared and gone back to.
 */

import { openDepths } from "./depths.js";
import { clear, el, number, say } from "./dom.js";
import { drawHeatmap } from "./heatmap.js";
import { choice, pick } from "./parts.js";
import { update } from "./state.js";
import { openTip } from "./tip.js";
import { showText, showTokens, spellOut } from "./tokens.js";
import { openTrajectory } from "./trajectory.js";

const PROBABILITY = "probability";
const SHARES = [PROBABILITY, "top_probability", "gap"];
/** Up to so many tokens leave room beside their picture. */
const FEW = 8;
/** In the address: no token is pinned, which is not the same as nothing said. */
const NONE = "none";

/** Puts the view into `main` and gives its handle {update, close, neighbours}.
 *
 * `ask(reading)` gives the sample with the values of another reading; `names` is how the address names the sample; `depth` is
 * shown where the address has none.
 */
export function openSample(main, sample, { ask, names, depth }) {
  const parts = layOut(main, sample);
  const readings = [...new Set([PROBABILITY, ...(sample.readings ?? [])])];
  const values = { [PROBABILITY]: sample.confidence };
  let now = null;

  const go = (changes) => update({ ...names, depth: now.depth, token: now.token ?? NONE, layer: now.state, ...changes });
  const pin = (token, state) => go(token === null ? { token: NONE, layer: null } : { token, layer: state });
  const hover = (token, state, event) => tip.show(token === null ? null : describeCell(sample, now, token, state), event);
  const settled = (token) => now.state ?? sample.commit[now.depth][token] ?? sample.layers - now.depth;

  const tip = openTip();
  const depths = openDepths(sample.depths, (one) => go({ depth: one }));
  const named = readings.map((one) => [one, sayReading(one)]);
  const reading = choice("Reading", named, PROBABILITY, (one) => go({ reading: one === PROBABILITY ? null : one }));
  parts.controls.append(depths.node, readings.length > 1 ? reading : "");
  const tokens = showTokens(parts.tokens, {
    tokens: sample.tokens,
    label: "Tokens, coloured by effort",
    onSelect: (token) => pin(token, token === null ? null : settled(token)),
    onHover: (token, event) => hover(token, token === null ? null : settled(token), event),
  });
  const trajectory = openTrajectory(parts.pinned);
  const nothing = { tokens: [], confidence: [], commit: [] };
  const heatmap = drawHeatmap(parts.heatmap, { ...nothing, layers: sample.layers, onHover: hover, onClick: pin });

  /** Shows what the address says; true, since it always can. */
  async function apply(state) {
    const wish = pick(readings, state.reading);
    values[wish] ??= (await ask(wish)).values;
    const before = now;
    now = { ...readAddress(sample, state, depth), reading: wish, values: values[wish], ...describeReading(wish, values[wish]) };
    const changed = (key) => before?.[key] !== now[key];
    if (changed("depth") || changed("reading")) drawDepth(before);
    if (changed("depth") || changed("reading") || changed("token") || changed("state")) showPinned(before);
    return true;
  }

  function drawDepth(before) {
    const at = now.depth;
    const picture = { tokens: sample.tokens.map(textOf), confidence: now.values[at], depth: at, commit: sample.commit[at] };
    heatmap.update({ ...picture, measure: now.measure, range: now.range, animate: before?.reading === now.reading });
    tokens.update(sample.effort[at]);
    depths.show(at);
    reading.querySelector("select").value = now.reading;
  }

  function showPinned(before) {
    tokens.select(now.token);
    heatmap.highlight(now.token, now.state);
    trajectory.show({ sample, ...now });
    if (before && now.token !== null) say(describeCell(sample, now, now.token, now.state).join(", "));
  }

  const close = () => [depths, tokens, trajectory, tip, heatmap].forEach((one) => one.close());
  return { update: apply, close, neighbours: parts.neighbours };
}

function layOut(main, sample) {
  const parts = {
    neighbours: el("nav", { class: "neighbours", "aria-label": "Samples of the list" }),
    controls: el("section", { class: "panel controls", "aria-label": "What is shown" }),
    tokens: el("div", {}),
    heatmap: el("div", { class: "picture" }),
    pinned: el("section", { class: "panel pinned", "aria-labelledby": "pinned-title" }),
  };
  const verdict = sample.correct === null ? null : sample.correct ? "right" : "wrong";
  const level = sample.level === null ? null : el("span", { class: "badge" }, `level ${sample.level}`);
  const badges = [level, verdict && el("span", { class: `badge ${verdict}` }, verdict)];
  const heading = el("h1", {}, `${sample.task} ${sample.sample}`, " ", badges);
  const ramp = el("span", { class: "scale" }, "effort Ω 0", el("span", { class: "ramp effort", "aria-hidden": "true" }), "1");
  const words = el("section", { class: "panel", "aria-label": "Texts and tokens" });
  words.append(writeTexts(sample), el("div", { class: "heading" }, el("h2", {}, "Tokens by effort"), ramp), parts.tokens);
  const picture = el("section", { class: "panel" }, el("h2", {}, "Confidence at every state"), parts.heatmap);
  const beside = el("div", { class: sample.tokens.length > FEW ? "above" : "beside" }, picture, parts.pinned);
  clear(main).append(el("header", { class: "heading" }, heading, parts.neighbours), words, parts.controls, beside);
  return parts;
}

function writeTexts({ prompt, target, generated }) {
  const texts = [["Prompt", prompt], ["Answer", target], ["Generated", generated]];
  const known = texts.filter(([, text]) => text !== null && text !== undefined);
  const entries = known.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", { class: "words" }, showText(text))));
  return el("dl", { class: "texts" }, entries);
}

const textOf = (token) => token.reference ?? token.token ?? "";

const sayReading = (reading) => reading.replaceAll("_", " ");

/** Depth, token and state that an address means; without a token the hardest one is pinned, where it settles. */
function readAddress(sample, state, fallback) {
  const depth = sample.depths.find((one) => String(one) === state.depth) ?? Number(fallback);
  if (state.token === NONE || !sample.tokens.length) return { depth, token: null, state: null };
  const wish = Number.parseInt(state.token, 10);
  const token = wish >= 0 && wish < sample.tokens.length ? wish : findHardest(sample.effort[depth]);
  const layer = Number.parseInt(state.layer, 10);
  const settled = sample.commit[depth][token] ?? sample.layers - depth;
  return { depth, token, state: layer >= 0 && layer <= sample.layers ? layer : settled };
}

function findHardest(effort) {
  return effort.reduce((best, value, token) => ((value ?? -1) > (effort[best] ?? -1) ? token : best), 0);
}

/** The name of a reading, and the ends of its colours: 0 and 1 for shares, else its own least and greatest value. */
function describeReading(reading, values) {
  const measure = reading === PROBABILITY ? "confidence" : sayReading(reading);
  if (SHARES.includes(reading)) return { measure, range: [0, 1] };
  const all = Object.values(values).flat(2).filter(Number.isFinite);
  const range = all.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [0, 0]);
  return { measure, range };
}

/** What a cell says, in lines. */
function describeCell(sample, { depth, values, measure }, token, state) {
  const states = values[depth][token] ?? [];
  const at = Math.min(state, states.length - 1);
  const own = state > sample.layers - depth ? ", the model’s own output" : "";
  const top = (sample.top?.[depth]?.[token]?.[at] ?? []).slice(0, 5);
  return [
    `“${spellOut(textOf(sample.tokens[token]))}”, token ${token}`,
    `state ${state}${own}`,
    `${measure} ${number(states[at], 3)}`,
    `effort Ω ${number(sample.effort[depth][token])}`,
    ...top.map(([text, share]) => `“${spellOut(text)}” ${number(share, 3)}`),
  ];
}
