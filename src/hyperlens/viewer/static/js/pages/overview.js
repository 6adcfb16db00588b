// The runs that the viewer was started with.

import { get, saved } from "../api.js";
import { clear, el, say } from "../dom.js";
import { keepFocus } from "../focus.js";
import { sayState, table } from "../parts.js";
import { link } from "../state.js";

const PAUSE = 3000;

export function title() {
  return "Runs";
}

/** A row for each run; as long as one is unfinished, all are asked for again every few seconds. */
export async function show(main, state, signal) {
  const place = el("section", { class: "panel", "aria-label": "Runs" });
  const summary = el("p", { class: "quiet" });
  let timer = null;
  let states = null;

  async function refresh() {
    const answer = await get("runs", {}, signal);
    clear(place).append(...[drawRuns(answer)].flat());
    summary.textContent = summarise(answer);
    states = tellChanges(states, answer.runs);
    if (!saved && answer.runs.some((run) => run.state === "running")) timer = setTimeout(refreshQuietly, PAUSE);
  }

  /** A server that does not answer for a moment is asked again; the rows stay. */
  function refreshQuietly() {
    keepFocus(refresh).catch((error) => {
      if (error.name === "AbortError" || error.status === 401) return;
      summary.textContent = error.message;
      timer = setTimeout(refreshQuietly, 3 * PAUSE);
    });
  }

  await refresh();
  clear(main).append(el("h1", {}, "Runs"), summary, place);
  return { update: () => true, close: () => clearTimeout(timer) };
}

function summarise({ runs, version }) {
  const running = runs.filter((run) => run.state === "running").length;
  const count = `${runs.length} ${runs.length === 1 ? "run" : "runs"}`;
  return [count, running && `${running} unfinished`, version && `HyperLens ${version}`].filter(Boolean).join(" · ");
}

/** Say which runs have ended since; gives the states of now. */
function tellChanges(before, runs) {
  const now = Object.fromEntries(runs.map((run) => [run.id, run.state]));
  const ended = runs.filter((run) => before?.[run.id] === "running" && run.state === "finished");
  if (ended.length) say(`Finished: ${ended.map((run) => run.name).join(", ")}`);
  return now;
}

function drawRuns({ runs, live }) {
  if (!runs.length) {
    const hint = live ? "The live page is connected." : "Start it with one: hyperlens view FOLDER";
    return el("p", { class: "empty" }, `This viewer was started without a run. ${hint}`);
  }
  return table("Runs, in the order of the command line", [
    ["Run", drawName, { head: true }],
    ["State", drawState],
    ["Models", (run) => run.models?.join(", ") || "–"],
    ["Tasks", (run) => run.tasks?.join(", ") || "–"],
    ["Samples", (run) => (run.samples ?? 0).toLocaleString("en"), { n: true }],
    ["Created", (run) => el("span", { class: "whole" }, (run.created ?? "–").slice(0, 16).replace("T", " "))],
    ["Look at", (run) => drawLinks(run, runs)],
  ], runs);
}

function drawName(run) {
  const href = link({ page: "study", run: run.id, model: null, lens: null });
  const name = run.state === "unreadable" ? run.name : el("a", { href }, run.name);
  return [name, run.place && run.place !== run.name && el("div", { class: "quiet small" }, run.place)];
}

function drawState(run) {
  const badge = el("span", { class: `badge ${run.state}` }, sayState(run.state));
  if (run.state === "unreadable") return [badge, el("p", { class: "small" }, run.error)];
  if (run.state !== "running") return badge;
  const [done, all] = run.shards ?? [0, 1];
  const bar = el("progress", { max: all || 1, value: done, "aria-label": `${run.name}: shards written` });
  return [badge, el("div", { class: "quiet small whole" }, `${done} of ${all} shards`), bar];
}

/** What a finished run can be compared with: its own second model, or another finished run. */
function findPair(run, runs) {
  const others = runs.filter((one) => one.id !== run.id && one.state === "finished");
  const after = run.models?.length > 1 ? run : others[0];
  return run.state === "finished" && after && { page: "compare", run: run.id, before: run.id, after: after.id };
}

function drawLinks(run, runs) {
  if (run.state === "unreadable") return "–";
  const pages = [
    ["study", { page: "study", run: run.id, model: null, lens: null }],
    ["samples", { page: "samples", run: run.id, model: null, lens: null }],
    ["compare", findPair(run, runs)],
  ];
  const links = pages.filter(([, changes]) => changes).flatMap(([name, changes], place) => [
    place ? " · " : "",
    el("a", { href: link(changes), "aria-label": `${name} of ${run.name}` }, name),
  ]);
  return el("span", { class: "whole" }, links);
}
