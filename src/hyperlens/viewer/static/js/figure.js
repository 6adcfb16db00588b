// Figures by plotly, loaded when the first one is drawn; their colours follow the page's.

import { announce, el, spell } from "./dom.js";

const PLOTLY = "/static/plotly.min.js";
const drawn = new Map();
let loading = null;

/** Fetch plotly beside what else is asked for; it runs when the first figure is drawn, so that what is read stands first. */
export function fetchAhead() {
  if (globalThis.Plotly || loading || document.querySelector(`link[href="${PLOTLY}"]`)) return;
  document.head.append(el("link", { rel: "preload", as: "script", href: PLOTLY }));
}

/** A text for a figure: plotly reads some markup and fills in %{…}, so that of a name is made plain. */
export function plain(text) {
  const signs = { "&": "&amp;", "<": "&lt;", ">": "&gt;", "%": "&#37;" };
  return spell(text).replace(/[&<>%]/g, (sign) => signs[sign]);
}

/** The colours of the page: {page, panel, ink, quiet, line, accent, warn, series: [8 colours], order: those of a sequence}. */
export function theme() {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue("--" + name).trim();
  const names = ["page", "panel", "ink", "quiet", "line", "accent", "warn"];
  return {
    ...Object.fromEntries(names.map((name) => [name, value(name)])),
    series: [1, 2, 3, 4, 5, 6, 7, 8].map((one) => value("series-" + one)),
    order: value("order").split(/\s+/),
  };
}

/**
 * Draw a figure into `node`; traces and layout may be functions of the theme. `config` may have `name` (of saved files) and
 * `label` (said instead of the picture). No trace may need WebGL. Drawing again into the same node changes the figure.
 * The picture comes with the next frame, when the node is in the page and has its width.
 */
export async function draw(node, traces, layout = {}, config = {}) {
  const one = { traces, layout, config };
  drawn.set(node, one);
  await load();
  await new Promise(requestAnimationFrame);
  if (drawn.get(node) !== one || !node.isConnected) return;
  const plot = node.querySelector(":scope > .plot") ?? frame(node);
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", spell(config.label ?? "Figure"));
  await paint(plot, one);
}

/** Take the figure out of `node`. */
export function erase(node) {
  const plot = node.querySelector(":scope > .plot");
  if (plot && globalThis.Plotly) globalThis.Plotly.purge(plot);
  drawn.delete(node);
  node.replaceChildren();
}

function frame(node) {
  const plot = el("div", { class: "plot" });
  const button = (format) =>
    el("button", { type: "button", class: "small", onclick: () => save(node, plot, format) }, format.toUpperCase());
  const tools = el("div", { class: "figure-tools" }, el("span", {}, "Save figure as"), button("svg"), button("png"));
  node.replaceChildren(plot, tools);
  return plot;
}

async function save(node, plot, format) {
  const name = (drawn.get(node)?.config.name ?? "figure").replace(/[^\w-]+/g, "-").slice(0, 80);
  const size = { width: plot.clientWidth, height: plot.clientHeight, scale: 2 };
  await globalThis.Plotly.downloadImage(plot, { format, filename: name, ...size });
  announce(`The figure is saved as ${name}.${format}.`);
}

async function paint(plot, { traces, layout, config }) {
  const colours = theme();
  const resolve = (value) => (typeof value === "function" ? value(colours) : value);
  const { name, label, ...rest } = config;
  const settings = { displayModeBar: false, responsive: true, ...rest };
  await globalThis.Plotly.react(plot, resolve(traces), dress(resolve(layout), colours), settings);
}

/** The layout in the page's colours; what it says itself stays. */
function dress(layout, colours) {
  const axis = { gridcolor: colours.line, linecolor: colours.line, zerolinecolor: colours.line, automargin: true };
  const dressed = {
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colours.ink },
    paper_bgcolor: colours.panel,
    plot_bgcolor: colours.panel,
    colorway: colours.series,
    margin: { l: 56, r: 16, t: 12, b: 48 },
    hoverlabel: { bgcolor: colours.panel, bordercolor: colours.line, font: { color: colours.ink } },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", font: { color: colours.ink } },
    ...layout,
  };
  for (const key of ["xaxis", "yaxis", ...Object.keys(layout).filter((key) => /^[xy]axis\d/.test(key))]) {
    dressed[key] = { ...axis, ...layout[key] };
  }
  return dressed;
}

/** Plotly, from the viewer's own server; in a saved page it is there already. */
function load() {
  if (globalThis.Plotly) return Promise.resolve();
  loading ??= new Promise((resolve, reject) => {
    const refuse = () => reject(new Error("The figures could not be loaded."));
    document.head.append(el("script", { src: PLOTLY, onload: resolve, onerror: refuse }));
  });
  return loading;
}

/** Paint every figure that is still shown again, in the colours of now; forget the others. */
export function repaint() {
  for (const [node, one] of drawn) {
    const plot = node.querySelector(":scope > .plot");
    if (!node.isConnected) drawn.delete(node);
    else if (plot && globalThis.Plotly) paint(plot, one);
  }
}

document.addEventListener("themechange", repaint);
