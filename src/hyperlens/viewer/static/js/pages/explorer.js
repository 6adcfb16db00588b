/** One sample of a run in the explorer, and the way to its neighbours in the list that it was opened from. */

import { get, placeRun, saved } from "../api.js";
import { clear, el } from "../dom.js";
import { askList, chooseReading, keepList, listOf } from "../listing.js";
import { openSample } from "../sample.js";
import { link } from "../state.js";

/** What names a sample and its list: where one of them changes, another sample is meant. */
const NAMES = ["run", "model", "lens", "task", "sample", "among", "sort", "order", "search", "show", "level", "by", "at"];

export const title = (state) => (state.sample === undefined ? "Explorer" : `${state.task ?? ""} ${state.sample}`.trim());

export async function show(main, state, signal) {
  const run = await get(placeRun(state.run), {}, signal);
  const named = { ...state, run: run.id, ...(await findSample(run, state, signal)) };
  if (named.sample === undefined) return showNothing(main, run);
  const { model, lens, depth } = chooseReading(run, state);
  const asked = { model, lens, task: named.task, sample: named.sample };
  const ask = (reading) => get(placeRun(run.id, "/sample"), { ...asked, reading }, signal);
  const sample = await ask();
  performance.mark("sample-arrived");
  const names = Object.fromEntries(NAMES.map((key) => [key, named[key] ?? null]));
  const view = openSample(main, sample, { ask, names, depth });
  await view.update(state);
  measurePainting();
  showNeighbours(view.neighbours, run, named, signal).catch((error) => {
    if (error.name !== "AbortError") clear(view.neighbours).append(el("span", { class: "quiet" }, error.message));
  });
  const means = (now, key) => now[key] === state[key] || String(now[key] ?? "") === String(names[key] ?? "");
  const isList = (now) => now.sample === undefined && now.depth !== state.depth; // the first of another list is meant
  return { update: (now) => !isList(now) && NAMES.every((key) => means(now, key)) && view.update(now), close: view.close };
}

/** The sample of the address; without one the first of the list, which is the hardest where nothing else is said. */
async function findSample(run, state, signal) {
  if (state.sample !== undefined && state.task !== undefined) return {};
  const list = { ...state, ...listOf(state) };
  const { rows } = await askList(run, list, 0, 1, signal);
  return rows.length ? { ...keepList(list, 0), task: rows[0].task, sample: String(rows[0].sample) } : {};
}

function showNothing(main, run) {
  const all = el("a", { href: link({ page: "samples", task: null, level: null }) }, "All samples");
  const said = el("p", { class: "empty" }, "No sample has been read yet, or none is like that.");
  clear(main).append(el("h1", {}, run.name), said, el("p", {}, all));
  return null;
}

/** From the arrival of the answer until the picture is on the screen. */
function measurePainting() {
  requestAnimationFrame(() => setTimeout(() => performance.measure("draw-sample", "sample-arrived")));
}

/** Links to the samples before and after this one, and to the list; without a place in a list, in the task's order. */
async function showNeighbours(node, run, named, signal) {
  if (saved) return;
  const placed = named.at !== undefined && named.at !== null;
  const list = placed ? listOf(named) : { task: named.task, depth: named.depth, sort: "sample", order: "up" };
  const at = Math.max(0, Number(placed ? named.at : named.sample) || 0);
  const first = Math.max(0, at - 1);
  const { rows, total } = await askList(run, { ...named, ...list }, first, 3, signal);
  const isThis = (row) => String(row.sample) === String(named.sample) && [row.task, row.spec].includes(named.task);
  const place = rows.findIndex(isThis);
  const kept = keepList({ ...named, ...list }, null);
  const step = (label, by) => {
    const row = place < 0 ? undefined : rows[place + by];
    const to = row && { ...kept, at: first + place + by, task: row.task, sample: row.sample, token: null, layer: null };
    return el("a", to ? { class: "step", href: link(to) } : { class: "step", role: "link", "aria-disabled": "true" }, label);
  };
  const back = el("a", { href: link({ page: "samples", ...listOf(named) }) }, "All samples");
  const where = place < 0 ? "" : el("span", { class: "quiet" }, `${first + place + 1} of ${total}`);
  clear(node).append(step("← Previous", -1), where, step("Next →", 1), back);
}
