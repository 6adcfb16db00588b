// What several pages are made of: tables, choices, names.

import { clear, el } from "./dom.js";

/** A caption and a table of columns [name, cell(row), {n: right-aligned, head: row header}]; too wide, it scrolls. */
export function table(caption, columns, rows) {
  const heading = ([name, , kind]) => el("th", { scope: "col", class: kind?.n && "n" }, name);
  const cell = (row) => ([, show, kind]) =>
    el(kind?.head ? "th" : "td", { scope: kind?.head && "row", class: kind?.n && "n" }, show(row));
  const parts = [
    el("thead", {}, el("tr", {}, columns.map(heading))),
    el("tbody", {}, rows.map((row) => el("tr", {}, columns.map(cell(row))))),
  ];
  const named = { "aria-label": caption };
  return [
    el("p", { class: "caption" }, caption),
    el("div", { class: "wide", tabindex: 0, role: "region", ...named }, el("table", named, parts)),
  ];
}

/** A labelled choice of [value, name] pairs or plain values; `onChoose` hears the value. */
export function choice(label, options, chosen, onChoose) {
  const id = "choice-" + label.toLowerCase().replace(/[^a-z]+/g, "-");
  const pairs = options.map((one) => (Array.isArray(one) ? one : [one, one]));
  const select = el(
    "select",
    { id, onchange: (event) => onChoose(event.target.value) },
    pairs.map(([value, name]) => el("option", { value: String(value), selected: String(value) === String(chosen) }, name)),
  );
  return el("div", { class: "field" }, el("label", { for: id }, label), select);
}

/** What is chosen: the wish where it is among the options, else the first of them. */
export function pick(options, wish) {
  const found = options.find((one) => String(one) === String(wish));
  return found ?? options[0];
}

/** The state of a run by its name. Whether one without its end is being written or was given up, its folder does not say. */
export function sayState(state) {
  return state === "running" ? "unfinished" : state;
}

/** A focal depth by its name. */
export function sayDepth(depth) {
  return Number(depth) === 0 ? "m = 0 (logit lens)" : `m = ${depth}`;
}

/** A list of facts: [name, value] pairs; those without a value are left out. */
export function facts(pairs) {
  const shown = pairs.filter(([, value]) => ![null, undefined, false, ""].includes(value));
  return el("ul", { class: "facts" }, shown.map(([name, value]) => el("li", {}, `${name} `, el("b", {}, value))));
}

/** A list of sentences under a title, or nothing. */
export function sentences(title, texts) {
  if (!texts?.length) return [];
  return [el("h2", {}, title), el("ul", {}, texts.map((text) => el("li", {}, text)))];
}

/** Put into `node` what `make` gives, or the sentence of its error. */
export async function fill(node, make) {
  node.setAttribute("aria-busy", "true");
  try {
    const made = await make();
    clear(node).append(...[made].flat(Infinity).filter(Boolean));
  } catch (error) {
    if (error.name === "AbortError") return;
    clear(node).append(el("p", { class: "alert", role: "alert" }, error.message));
  } finally {
    node.removeAttribute("aria-busy");
  }
}
