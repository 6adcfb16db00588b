/** The samples of a run as a table: search, sort, filter, open one. */

import { get, placeRun, saved } from "../api.js";
import { clear, el, number, say } from "../dom.js";
import { askList, chooseReading, keepList } from "../listing.js";
import { choice, sayDepth } from "../parts.js";
import { link, update as go } from "../state.js";
import { showText } from "../tokens.js";

const PAGE = 50;
const PATIENCE = 250;
/** Milliseconds until the list of a run that is still being written is asked for again, unless somebody is in it. */
const AGAIN = 5000;
/** Orders that people ask for by name: the words, and what the server calls them. */
const ORDERS = [
  ["Hardest first", { sort: "effort", order: "down" }],
  ["Easiest first", { sort: "effort", order: "up" }],
  ["Latest commit first", { sort: "commit", order: "down" }],
  ["Most struggle first", { sort: "struggle", order: "down" }],
  ["Surest first", { sort: "confidence", order: "down" }],
  ["Least sure first", { sort: "confidence", order: "up" }],
  ["Wrong first", { sort: "accuracy", order: "up" }],
  ["As in the task", { sort: "sample", order: "up" }],
];
const SHOWN = [["all", "All"], ["right", "Right"], ["wrong", "Wrong"], ["wrong_confident", "Wrong and confident"]];
const COLUMNS = [
  ["Sample", "sample"], ["Prompt", null], ["Level", null, "n"], ["Right", "accuracy"], ["Confidence", "confidence", "n"],
  ["Effort Ω", "effort"], ["Commit", "commit", "n"], ["Struggle", "struggle", "n"], ["Tokens", null, "n"],
];

export const title = () => "Samples";

export async function show(main, state, signal) {
  const run = await get(placeRun(state.run), {}, signal);
  const parts = {
    count: el("p", { class: "quiet" }),
    table: el("div", { class: "wide" }),
    pager: el("nav", { class: "row", "aria-label": "Pages of samples" }),
  };
  const controls = el("div", { class: "row", role: "search", "aria-label": "Samples" });
  parts.table.addEventListener("keydown", moveFocus);
  const list = el("section", { class: "panel", "aria-label": "List of samples" }, parts.count, parts.table, parts.pager);
  clear(main).append(el("h1", {}, `Samples of ${run.name}`), controls, list);
  const fields = addControls(controls, run, state);
  let shown = 0;
  const refresh = async (now) => {
    const mine = (shown += 1);
    fields.forEach((set) => set(now));
    parts.table.setAttribute("aria-busy", "true");
    const offset = Math.max(0, Number(now.offset) || 0);
    const found = await askList(run, now, offset, PAGE, signal);
    if (mine === shown) fill(parts, found, now, offset, run);
  };
  let last = state;
  const update = async (now) => {
    if (["run", "model", "lens"].some((key) => now[key] !== state[key])) return false;
    await refresh((last = now));
    return true;
  };
  await refresh(state);
  const again = () => parts.table.contains(document.activeElement) || refresh(last).catch(() => {});
  const timer = run.state === "running" && !saved ? setInterval(again, AGAIN) : null;
  return { update, close: () => clearInterval(timer), title: () => `Samples ${run.name}` };
}

/** Adds the fields above the table; gives a function for each that shows what the address says. */
function addControls(node, run, state) {
  const reading = chooseReading(run, state);
  const found = (run.results?.groups ?? []).map(({ level }) => level).filter(Number.isInteger);
  const levels = [...new Set(found)].sort((one, other) => one - other);
  const depths = reading.depths.map((depth) => [depth, sayDepth(depth)]);
  const all = (names) => [["", "All"], ...names];
  const order = (place) => (place in ORDERS ? ORDERS[place][1] : {});
  const choices = [
    ["Order", ORDERS.map(([name], place) => [place, name]), findOrder, order],
    ["Show", SHOWN, (now) => now.show ?? "all", (show) => ({ show })],
    ["Task", all(run.tasks), (now) => now.task ?? "", (task) => ({ task })],
    ["Level", all(levels), (now) => now.level ?? "", (level) => ({ level })],
    ["Focal depth", depths, (now) => chooseReading(run, now).depth, (depth) => ({ depth })],
    ["Model", reading.models, () => reading.model, (model) => ({ model, lens: null })],
    ["Lens", reading.lenses, () => reading.lens, (lens) => ({ lens })],
  ];
  const useful = choices.filter(([name, options]) => options.length > (["Task", "Level"].includes(name) ? 2 : 1));
  return [addSearch(node), ...useful.map((one) => addChoice(node, ...one))];
}

function addSearch(node) {
  let timer = null;
  const plain = { autocomplete: "off", spellcheck: "false" };
  const input = el("input", { type: "search", id: "search", placeholder: "Words of a prompt", ...plain });
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => start({ search: input.value }), PATIENCE);
  });
  node.append(el("div", { class: "field grow" }, el("label", { for: "search" }, "Search"), input));
  return (now) => document.activeElement !== input && (input.value = now.search ?? "");
}

function addChoice(node, name, options, read, change) {
  const field = choice(name, options, null, (value) => start(change(value)));
  node.append(field);
  return (now) => (field.querySelector("select").value = read(now));
}

/** Another list begins at its first page. */
const start = (changes) => go({ offset: null, ...changes });

const sorting = (now) => ({ sort: now.sort ?? "effort", order: now.order ?? "down" });

function findOrder(now) {
  const { sort, order } = sorting(now);
  return String(ORDERS.findIndex(([, one]) => one.sort === sort && one.order === order));
}

function fill(parts, { total, rows }, now, offset, run) {
  const last = offset + rows.length;
  const none = "No sample is like that. Change the search or the filters.";
  const said = total === 0 ? none : `Samples ${offset + 1} to ${last} of ${total}`;
  parts.count.textContent = said;
  say(said);
  parts.table.removeAttribute("aria-busy");
  clear(parts.table);
  if (rows.length) parts.table.append(writeTable(rows, now, offset, run));
  const turn = (to) => () => go({ offset: to || null }, { replace: false });
  const page = (label, to, there) => el("button", { type: "button", disabled: !there, onclick: turn(to) }, label);
  clear(parts.pager);
  if (total <= PAGE) return;
  parts.pager.append(page("← Previous", Math.max(0, offset - PAGE), offset > 0), page("Next →", offset + PAGE, last < total));
}

function writeTable(rows, now, offset, run) {
  const head = el("thead", {}, el("tr", {}, COLUMNS.map((column) => writeHead(column, now))));
  const { depth, model, lens } = chooseReading(run, now);
  const sample = (row) => ({ page: "explorer", model, lens, depth, task: row.task, sample: row.sample });
  const body = rows.map((row, place) => writeRow(row, link({ ...keepList(now, offset + place), ...sample(row) })));
  const said = "Samples; the link of a row opens it in the explorer, the arrow keys go from row to row";
  const caption = el("caption", { class: "heard" }, said);
  return el("table", { class: "samples" }, caption, head, el("tbody", {}, body));
}

function writeHead([name, key, kind], now) {
  const { sort, order } = sorting(now);
  if (key === null) return el("th", { scope: "col", class: kind }, name);
  const mine = sort === key;
  const turn = () => start({ sort: key, order: mine && order === "down" ? "up" : "down" });
  const [arrow, way] = !mine ? ["", null] : order === "down" ? [" ↓", "descending"] : [" ↑", "ascending"];
  const attributes = { type: "button", class: "sorter", id: `sort-${key}`, onclick: turn };
  const button = el("button", attributes, name, el("i", { "aria-hidden": "true" }, arrow));
  return el("th", { scope: "col", class: kind, "aria-sort": way }, button);
}

function writeRow(row, href) {
  const open = (event) => !event.target.closest("a") && !getSelection().toString() && (location.hash = href);
  const correct = row.correct === null ? "–" : row.correct ? "right" : "wrong";
  const bar = Object.assign(el("i", { class: "bar", "aria-hidden": "true" }), { style: `--share: ${row.effort ?? 0}` });
  return el(
    "tr",
    { onclick: open },
    el("th", { scope: "row" }, el("a", { href, class: "open" }, `${row.task} ${row.sample}`)),
    el("td", { class: "asked" }, el("div", {}, showText(row.prompt ?? ""))),
    el("td", { class: "n" }, row.level ?? "–"),
    el("td", {}, el("span", { class: `badge ${correct}` }, correct)),
    el("td", { class: "n" }, number(row.confidence, 3)),
    el("td", { class: "effort" }, el("span", {}, number(row.effort, 3), bar)),
    el("td", { class: "n" }, sayLayers(row.commit)),
    el("td", { class: "n" }, sayLayers(row.struggle)),
    el("td", { class: "n" }, row.tokens ?? "–"),
  );
}

/** A mean over the tokens of a sample, of one token a whole number. */
const sayLayers = (layers) => number(layers, Number.isInteger(layers) ? 0 : 1);

function moveFocus(event) {
  const links = [...event.currentTarget.querySelectorAll("a.open")];
  const at = links.indexOf(document.activeElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: links.length - 1 }[event.key];
  if (at < 0 || to === undefined) return;
  event.preventDefault();
  links[Math.min(Math.max(to, 0), links.length - 1)].focus();
}
