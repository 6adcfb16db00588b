/** The list of samples as the address asks for it; the table and the explorer's way to the next sample read the same one. */

import { ApiError, get, placeRun } from "./api.js";

const ALL = "all";

/** What the explorer keeps of a list in its address: its place `at` in it, and as `among` and `by` the list's own task and
 * focal depth, since `task` and `depth` are the sample's. */
export function keepList(list, at) {
  const kept = Object.fromEntries(["sort", "order", "search", "show"].map((key) => [key, list[key] ?? null]));
  return { ...kept, among: list.task ?? ALL, by: list.depth ?? null, at };
}

/** The list that a sample in the explorer was opened from. */
export function listOf(state) {
  const { sort, order, search, show, level, among, by, task = null, depth = null } = state;
  return { sort, order, search, show, level, task: among === ALL ? null : (among ?? task), depth: by ?? depth };
}

/** The model or lens of a run that the address names, else the first. Throws the sentence where there is none of that name. */
function find(kind, names, wish, run) {
  if (!names.length || wish === undefined || wish === null) return names[0];
  if (names.includes(wish)) return wish;
  throw new ApiError(`The run ${run.name} has no ${kind} "${wish}"; it has ${names.join(", ")}.`);
}

/** Model, lens and focal depth of a run, by the address or else the first ones and the depth that stands for the lens. */
export function chooseReading(run, state) {
  const models = Object.keys(run.models);
  const model = find("model", models, state.model, run);
  const lenses = Object.keys(run.models[model]?.lenses ?? {});
  const lens = find("lens", lenses, state.lens, run);
  const { focal_depths: depths = [], main = 0 } = run.models[model]?.lenses[lens] ?? {};
  const depth = String(depths.find((one) => String(one) === state.depth) ?? main);
  return { model, lens, depth, models, lenses, depths };
}

/** Samples of a list from `offset` on, hardest first where nothing is said: {total, rows}. */
export function askList(run, list, offset, limit, signal) {
  const { model, lens, depth } = chooseReading(run, list);
  const { task, level, search, show, sort = "effort", order = "down" } = list;
  const asked = { model, lens, depth, task, level, search, show, sort, order, offset, limit };
  return get(placeRun(run.id, "/samples"), asked, signal);
}
