/** The picture of a text: tokens from left to right, residual states from bottom to top, each cell a confidence.
 *
 * One pixel of a canvas per cell, scaled up by the style sheet: to draw again is to write the pixels again, at any size.
 */

import { confidenceTable, differenceTable, sampleRamp } from "./colours.js";
import { clear, el, number } from "./dom.js";
import { savePicture, shape } from "./picture.js";
import { spellOut } from "./tokens.js";

const CONFIDENCE = confidenceTable();
const DIFFERENCE = differenceTable();
/** Pixels on the screen: of a column, of a row, and of all rows together. */
const COLUMN = [3, 96];
const ROW = [5, 34];
const TALL = 420;
/** Room around the plane for the frame of a pinned cell, as in the style sheet. */
const EDGE = 4;
/** Columns so broad carry their token upright, and lying down. */
const LYING = 17;
const UPRIGHT = 44;
const MILLISECONDS = 600;
/** How much of its colour a state has that is the model's own output: there the lens has nothing left to route. */
const OUTPUT = 0.3;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const STEPS = { ...ARROWS, PageUp: [0, 5], PageDown: [0, -5] };

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
const known = (value) => typeof value === "number" && Number.isFinite(value);

/** Draws the heatmap into `node` and gives its handle {update, highlight, close}.
 *
 * `tokens`: their texts. `confidence`: a list over states per token, shorter than `layers` + 1 where the focal `depth` leaves
 * less to read; null where there is none. `commit`: a state per token, or null. `difference`: values are after − before, in
 * [−1, 1]. `range`: what the ends of the colours mean. `onHover(token, state, event)` and `onClick(token, state)` hear null
 * when the pointer left and after Escape. `pinned`: {token, state} or null.
 */
export function drawHeatmap(node, given) {
  const usual = { depth: 0, commit: null, difference: false, measure: "confidence", pinned: null, onHover() {}, onClick() {} };
  const chart = { ...usual, ...given };
  const parts = build();
  let shown = null;
  let frame = 0;

  function draw(values) {
    shown = values;
    paint(parts.canvas, values, chart);
    parts.commit.forEach((path) => path.setAttribute("d", traceCommit(values.commit)));
  }

  function morph(target) {
    const [start, origin] = [performance.now(), shown];
    const step = (now) => {
      const share = clamp((now - start) / MILLISECONDS, 0, 1);
      draw(share === 1 ? target : between(origin, target, share * share * (3 - 2 * share)));
      if (share < 1) frame = requestAnimationFrame(step);
    };
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(step);
  }

  function update({ animate = false, ...changes } = {}) {
    Object.assign(chart, changes);
    const target = readValues(chart);
    const alike = shown?.cells.length === target.cells.length;
    layOut(parts, chart);
    fillLegend(parts, chart);
    describe(parts, chart);
    if (animate && alike && !still()) return morph(target);
    cancelAnimationFrame(frame);
    draw(target);
  }

  function highlight(token, state) {
    chart.pinned = known(token) && known(state) ? { token, state } : null;
    mark(parts.pinned, chart.pinned, chart);
    describe(parts, chart);
    if (chart.pinned) reveal(parts, chart, token);
  }

  listen(parts, chart, highlight);
  clear(node).append(parts.figure);
  const watcher = new ResizeObserver(() => layOut(parts, chart));
  update();
  highlight(chart.pinned?.token, chart.pinned?.state);
  watcher.observe(parts.scroll);
  const close = () => {
    watcher.disconnect();
    cancelAnimationFrame(frame);
    parts.figure.remove();
  };
  return { update, highlight, close };
}

function build() {
  const canvas = el("canvas", { "aria-hidden": "true" });
  const overlay = shape("svg", { preserveAspectRatio: "none", "aria-hidden": "true" });
  const commit = ["commit-ground", "commit"].map((name) => shape("path", { class: name }));
  const output = shape("line", { class: "output-edge", visibility: "hidden" });
  overlay.append(output, ...commit);
  const [hover, pinned] = ["hovered", "pin"].map((name) => el("div", { class: name, hidden: true }));
  const layers = [canvas, el("div", { class: "grid" }), overlay, hover, pinned];
  const plane = el("div", { class: "plane", tabindex: 0, role: "application", "aria-roledescription": "heatmap" }, layers);
  const names = el("div", { class: "names", "aria-hidden": "true" });
  const states = el("div", { class: "states", "aria-hidden": "true" });
  const scroll = el("div", { class: "scroll" }, plane, names);
  const legend = el("figcaption", { class: "legend" });
  const figure = el("figure", { class: "heatmap" }, el("div", { class: "frame" }, states, scroll), legend);
  return { figure, canvas, overlay, commit, output, hover, pinned, plane, names, states, scroll, legend };
}

/** The values as they are drawn: a cell for every state from 0 to `layers`, and how much of its colour every state has. */
function readValues({ tokens, layers, depth, confidence, commit }) {
  const rows = layers + 1;
  const cells = new Float32Array(tokens.length * rows).fill(NaN);
  confidence.slice(0, tokens.length).forEach((given, token) => {
    const states = given ?? [];
    for (let state = 0; states.length && state < rows; state += 1) {
      cells[token * rows + state] = states[Math.min(state, states.length - 1)] ?? NaN;
    }
  });
  const strength = Float32Array.from({ length: rows }, (_, state) => (state <= layers - depth ? 1 : OUTPUT));
  return { cells, strength, commit: commit ? tokens.map((_, token) => commit[token] ?? null) : [] };
}

function between(origin, target, share) {
  const mix = (before, after) => (Number.isNaN(before) ? after : before + share * (after - before));
  const mixAll = (before, after) => after.map((value, place) => mix(before[place], value));
  const commit = target.commit.map((value, token) => (value === null ? null : mix(origin.commit[token] ?? value, value)));
  return { cells: mixAll(origin.cells, target.cells), strength: mixAll(origin.strength, target.strength), commit };
}

/** What the colours of a heatmap mean: the values at their ends, and how these are written. */
function describeScale({ difference, range }) {
  const [low, high] = range ?? (difference ? [-1, 1] : [0, 1]);
  const ends = [low, high].map((end) => number(end, Number.isInteger(end) ? 0 : 2));
  return { low, high, ends, colours: difference ? DIFFERENCE : CONFIDENCE };
}

function paint(canvas, { cells, strength }, chart) {
  const { tokens, layers } = chart;
  const rows = layers + 1;
  if (!tokens.length) return;
  const { low, high, colours } = describeScale(chart);
  if (canvas.width !== tokens.length || canvas.height !== rows) Object.assign(canvas, { width: tokens.length, height: rows });
  const picture = new ImageData(tokens.length, rows);
  for (let place = 0; place < cells.length; place += 1) {
    if (Number.isNaN(cells[place])) continue;
    const [token, state] = [Math.floor(place / rows), place % rows];
    const from = 4 * Math.round(255 * clamp((cells[place] - low) / (high - low || 1), 0, 1));
    const to = 4 * ((layers - state) * tokens.length + token);
    for (let channel = 0; channel < 3; channel += 1) picture.data[to + channel] = colours[from + channel];
    picture.data[to + 3] = colours[from + 3] * strength[state];
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

/** The lower edge of the first settled state of each token, from left to right, as the path of an SVG; gaps where unknown. */
function traceCommit(commit) {
  const height = (value) => (-value).toFixed(3);
  return commit
    .map((value, token) => {
      if (value === null) return "";
      const start = known(commit[token - 1]) ? `V${height(value)}` : `M${token} ${height(value)}`;
      return `${start}H${token + 1}`;
    })
    .join("");
}

/** Sizes of cells, axes and marks, which follow from the number of cells and the room there is. */
function layOut(parts, chart) {
  const { tokens, layers, depth } = chart;
  const rows = layers + 1;
  const column = clamp(Math.floor((parts.scroll.clientWidth - 2 * EDGE) / Math.max(1, tokens.length)), ...COLUMN);
  const row = clamp(Math.floor(TALL / rows), ...ROW);
  chart.cell = { column, row };
  const style = { width: `${column * tokens.length}px`, height: `${row * rows}px` };
  Object.assign(parts.plane.style, style);
  parts.figure.style.setProperty("--column", `${column}px`);
  parts.figure.style.setProperty("--row", `${row}px`);
  parts.figure.classList.toggle("fine", column < 6 || row < 6);
  parts.overlay.setAttribute("viewBox", `0 ${-rows} ${Math.max(1, tokens.length)} ${rows}`);
  const edge = { x1: 0, x2: tokens.length, y1: depth - rows, y2: depth - rows, visibility: depth ? "visible" : "hidden" };
  for (const [name, value] of Object.entries(edge)) parts.output.setAttribute(name, value);
  nameStates(parts.states, chart);
  nameTokens(parts.names, chart);
  mark(parts.pinned, chart.pinned, chart);
}

function nameStates(node, { layers, cell }) {
  const every = [1, 2, 4, 5, 8, 10, 16, 20, 32].find((step) => step * cell.row >= 17) ?? 50;
  const all = Array.from({ length: layers }, (_, state) => state);
  const shown = all.filter((state) => state % every === 0 && (layers - state) * cell.row >= 15);
  const labels = [...shown, layers].map((state) => {
    const label = el("span", {}, state);
    label.style.bottom = `${(state + 0.5) * cell.row}px`;
    return label;
  });
  node.style.height = `${(layers + 1) * cell.row}px`;
  clear(node).append(el("b", {}, "residual state"), ...labels);
}

function nameTokens(node, { tokens, cell }) {
  clear(node).className = cell.column >= UPRIGHT ? "names upright" : cell.column >= LYING ? "names lying" : "names numbers";
  node.style.width = `${cell.column * tokens.length}px`;
  if (cell.column >= LYING) return node.append(...tokens.map((token) => el("span", { title: token }, spellOut(token) || "∅")));
  const every = [5, 10, 20, 50, 100, 200, 500].find((step) => step * cell.column >= 56) ?? 1000;
  for (let token = 0; token < tokens.length; token += every) {
    const label = el("span", {}, token);
    label.style.left = `${(token + 0.5) * cell.column}px`;
    node.append(label);
  }
}

function mark(node, place, { tokens, layers, cell }) {
  node.hidden = place === null || place.token >= tokens.length || place.state > layers;
  if (node.hidden) return;
  Object.assign(node.style, { left: `${place.token * cell.column}px`, bottom: `${place.state * cell.row}px` });
}

function reveal({ scroll }, { cell }, token) {
  const [left, right] = [token * cell.column, (token + 1) * cell.column + 2 * EDGE];
  if (left < scroll.scrollLeft) scroll.scrollLeft = left - 24;
  else if (right > scroll.scrollLeft + scroll.clientWidth) scroll.scrollLeft = right - scroll.clientWidth + 24;
}

function listen(parts, chart, highlight) {
  const { plane } = parts;
  const last = () => ({ token: chart.tokens.length - 1, state: chart.layers });
  const find = (event) => {
    const box = plane.getBoundingClientRect();
    const token = Math.floor(((event.clientX - box.left) / box.width) * chart.tokens.length);
    const state = Math.floor(((box.bottom - event.clientY) / box.height) * (chart.layers + 1));
    return { token: clamp(token, 0, last().token), state: clamp(state, 0, chart.layers) };
  };
  const hover = (cell, event) => {
    mark(parts.hover, cell, chart);
    chart.onHover(cell?.token ?? null, cell?.state ?? null, event);
  };
  const pin = (cell) => {
    highlight(cell?.token, cell?.state);
    chart.onClick(cell?.token ?? null, cell?.state ?? null);
  };
  plane.addEventListener("pointermove", (event) => hover(find(event), event));
  plane.addEventListener("pointerleave", (event) => hover(null, event));
  plane.addEventListener("click", (event) => pin(find(event)));
  plane.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !chart.tokens.length) return;
    const moved = moveCell(chart.pinned, event.key, last());
    if (moved === undefined) return;
    event.preventDefault();
    pin(moved);
  });
}

/** The cell that a key leads to: null lets go, undefined is another key; without a pinned cell it starts at the last state. */
function moveCell(cell, key, last) {
  if (key === "Escape") return null;
  if (!(key in STEPS) && !["Home", "End", "Enter", " "].includes(key)) return undefined;
  if (cell === null) return { token: key === "End" ? last.token : 0, state: last.state };
  const [right, up] = STEPS[key] ?? [key === "Home" ? -Infinity : key === "End" ? Infinity : 0, 0];
  return { token: clamp(cell.token + right, 0, last.token), state: clamp(cell.state + up, 0, last.state) };
}

function describe({ plane }, { tokens, layers, depth, measure, pinned }) {
  const axes = `${tokens.length} tokens from left to right, states 0 to ${layers} from bottom to top, focal depth ${depth}.`;
  const at = pinned ? ` Pinned: token ${pinned.token}, state ${pinned.state}.` : "";
  plane.setAttribute("aria-label", `Heatmap of ${measure}: ${axes} The arrow keys move, Escape lets go.${at}`);
}

function fillLegend(parts, chart) {
  const { measure, commit } = chart;
  const { ends, colours } = describeScale(chart);
  const ramp = el("span", { class: "ramp", "aria-hidden": "true" });
  ramp.style.background = `linear-gradient(90deg, ${sampleRamp(colours).join(", ")})`;
  const savingAs = (kind) => () => savePicture(parts, chart, describeScale(chart), kind);
  const save = (kind) => el("button", { type: "button", class: "small", onclick: savingAs(kind) }, kind.toUpperCase());
  clear(parts.legend).append(
    el("span", { class: "scale" }, measure, " ", ends[0], ramp, ends[1]),
    commit ? el("span", { class: "key" }, el("i", { class: "commit-key" }), "commit: settled from here on") : "",
    el("span", { class: "key" }, el("i", { class: "output-key" }), "pale: the model’s own output"),
    el("span", { class: "figure-tools" }, el("span", {}, "Save heatmap as"), save("svg"), save("png")),
  );
}
