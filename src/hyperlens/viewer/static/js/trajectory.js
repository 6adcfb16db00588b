/** One token through the model: its confidence at every state for every focal depth that was read, as lines and as a table. */

import { depthLines } from "./colours.js";
import { clear, el, number } from "./dom.js";
import { draw, erase } from "./figure.js";
import { facts } from "./parts.js";
import { showText, spellOut } from "./tokens.js";

const HEIGHT = 320;

/** Puts the panel of a pinned token into `node` and gives its handle {show, close}.
 *
 * `show({sample, values, measure, range, depth, token, state})`: `values` are those of the reading by focal depth, token and
 * state; `token` is null where none is pinned.
 */
export function openTrajectory(node) {
  const parts = {
    title: el("h2", { id: "pinned-title" }),
    facts: el("div", {}),
    figure: el("figure", { class: "trajectory" }),
    top: el("div", { class: "top-tokens" }),
    table: el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Values of the pinned token" }),
  };
  const hint = el("p", { class: "hint" }, "Choose a token or a cell to follow it through the model.");
  const table = el("details", {}, el("summary", {}, "As a table"), parts.table);
  const body = el("div", {}, parts.facts, parts.figure, parts.top, table);
  clear(node).append(parts.title, hint, body);
  const show = (view) => {
    const pinned = view.token !== null;
    [hint.hidden, body.hidden] = [pinned, !pinned];
    clear(parts.title).append(...(pinned ? nameToken(view) : ["No token is pinned"]));
    if (pinned) fill(parts, view);
  };
  return { show, close: () => erase(parts.figure) };
}

function fill(parts, view) {
  clear(parts.facts).append(facts(listFacts(view)));
  drawLines(parts.figure, view);
  clear(parts.top).append(...listTop(view));
  clear(parts.table).append(writeTable(view));
}

function nameToken({ sample, token }) {
  const { token: before, reference, position } = sample.tokens[token];
  return [quote(reference ?? before), el("span", { class: "quiet after" }, " after ", quote(before), `, position ${position}`)];
}

const quote = (text) => el("span", { class: "quoted" }, showText(text ?? ""));

function listFacts({ sample, values, measure, depth, token, state }) {
  const { output, output_probability } = sample.tokens[token];
  const of = (table) => table?.[depth]?.[token] ?? null;
  const last = of(values)?.length - 1;
  const read = of(values)?.[Math.min(state, last)];
  return [
    ["effort Ω", number(of(sample.effort))],
    [`${measure} at state ${state}`, number(read, 3)],
    ["onset", number(of(sample.onset), 0)],
    ["commit", number(of(sample.commit), 0)],
    ["the model’s own token", `${spellOut(output ?? "")} ${number(output_probability, 3)}`],
  ];
}

function drawLines(node, { sample, values, measure, range, depth, token, state }) {
  const trace = (one, line) => ({
    x: (values[one][token] ?? []).map((_, at) => at),
    y: values[one][token] ?? [],
    name: `m = ${one}`,
    mode: "lines",
    line: { ...line, width: one === depth ? 3.5 : 1.7 },
    hovertemplate: `focal depth ${one}, state %{x}: %{y:.3f}<extra></extra>`,
  });
  const own = values[depth][token] ?? [];
  const here = { x: [state], y: [own[Math.min(state, own.length - 1)]] };
  const pinned = { ...here, mode: "markers", showlegend: false, hoverinfo: "skip" };
  const margin = 0.04 * (range[1] - range[0]);
  const upright = { type: "line", x0: state, x1: state, y0: 0, y1: 1, yref: "paper" };
  const layout = ({ ink, quiet }) => ({
    height: HEIGHT,
    margin: { l: 48, r: 8, t: 8, b: 40 },
    xaxis: { title: { text: "residual state" }, range: [-0.4, sample.layers + 0.4], zeroline: false },
    yaxis: { title: { text: measure }, range: [range[0] - margin, range[1] + margin], zeroline: false },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { color: ink } },
    shapes: [{ ...upright, line: { color: quiet, width: 1, dash: "dot" } }],
  });
  const dressed = ({ ink, panel, order }) => {
    const lines = depthLines(sample.depths.length, order);
    const marker = { size: 10, color: ink, line: { color: panel, width: 2 } };
    return [...sample.depths.map((one, place) => trace(one, lines[place])), { ...pinned, marker }];
  };
  const lines = `states 0 to ${sample.layers}, one line for each focal depth`;
  const label = `${measure} of the pinned token at ${lines}; the table has its values`;
  const name = `trajectory-${sample.task}-${sample.sample}-${token}`;
  draw(node, dressed, layout, { name, label }).catch((error) => clear(node).append(el("p", { class: "alert" }, error.message)));
}

/** The most probable tokens at the pinned state, where the run kept them. */
function listTop({ sample, depth, token, state }) {
  const kept = sample.top?.[depth]?.[token];
  const here = kept?.[Math.min(state, kept.length - 1)] ?? [];
  if (!here.length) return [];
  const bar = (share) => Object.assign(el("i", { class: "bar", "aria-hidden": "true" }), { style: `--share: ${share}` });
  const items = here.map(([text, share]) => el("li", {}, quote(text), bar(share), number(share, 3)));
  return [el("h3", {}, `Top tokens at state ${state}`), el("ol", {}, items)];
}

function writeTable({ sample, values, measure, depth, token, state }) {
  const kept = sample.top?.[depth]?.[token];
  const head = ["state", ...sample.depths.map((one) => `m = ${one}`), ...(kept ? ["top tokens"] : [])];
  const cell = (one, row) => el("td", { class: "n" }, number(values[one][token]?.[row], 3));
  const best = (row) => el("td", {}, (kept[row] ?? []).map(([text]) => spellOut(text)).join("  "));
  const rows = Array.from({ length: sample.layers + 1 }, (_, row) =>
    el("tr", { class: row === state && "here" }, [
      el("th", { scope: "row" }, row),
      sample.depths.map((one) => cell(one, row)),
      kept && best(row),
    ]),
  );
  const headings = head.map((name, place) => el("th", { scope: "col", class: place && name !== "top tokens" && "n" }, name));
  return el(
    "table",
    {},
    el("caption", {}, `${measure} at every state; a dash where the lens reads the model’s own output`),
    el("thead", {}, el("tr", {}, headings)),
    el("tbody", {}, rows),
  );
}
