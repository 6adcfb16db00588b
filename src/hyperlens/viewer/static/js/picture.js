/** The heatmap as a file of its own: an SVG that carries its pixels, or that SVG as a PNG. */

import { sampleRamp } from "./colours.js";
import { announce, download, el } from "./dom.js";
import { spellOut } from "./tokens.js";

const SVG = "http://www.w3.org/2000/svg";
const [LEFT, TOP, RIGHT, BOTTOM] = [56, 16, 24, 92];

/** Saves what the heatmap shows as heatmap.svg or heatmap.png, and says so. */
export async function savePicture(parts, chart, scale, kind) {
  const text = new XMLSerializer().serializeToString(drawPicture(parts, chart, scale));
  download(`heatmap.${kind}`, kind === "svg" ? new Blob([text], { type: "image/svg+xml" }) : await rasterise(text));
  announce(`The heatmap is saved as heatmap.${kind}.`);
}

function drawPicture({ canvas, overlay, plane }, { tokens, layers, cell, measure, depth }, { ends, colours }) {
  const [width, height] = [tokens.length * cell.column, (layers + 1) * cell.row];
  const style = getComputedStyle(plane);
  const size = { width: width + LEFT + RIGHT, height: height + TOP + BOTTOM };
  const root = shape("svg", { ...size, "font-family": "sans-serif", "font-size": 12 });
  const ground = getComputedStyle(document.body).backgroundColor;
  root.append(shape("rect", { width: "100%", height: "100%", fill: ground }));
  const place = { x: LEFT, y: TOP, width, height, preserveAspectRatio: "none" };
  root.append(shape("image", { ...place, href: enlarge(canvas, width, height) }));
  const lines = shape("svg", { ...place, viewBox: overlay.getAttribute("viewBox") });
  for (const path of overlay.querySelectorAll("path")) lines.append(copyLine(path));
  root.append(lines);
  const write = (textContent, attributes) =>
    root.append(Object.assign(shape("text", { fill: style.color, ...attributes }), { textContent }));
  for (let state = 0; state <= layers; state += Math.max(1, Math.ceil(16 / cell.row))) {
    write(state, { x: LEFT - 6, y: TOP + height - (state + 0.5) * cell.row + 4, "text-anchor": "end" });
  }
  for (let token = 0; token < tokens.length; token += Math.max(1, Math.ceil(16 / cell.column))) {
    const [x, y] = [LEFT + (token + 0.5) * cell.column + 4, TOP + height + 8];
    const start = [...spellOut(tokens[token])].slice(0, 10).join("");
    write(start, { x, y, "text-anchor": "end", transform: `rotate(-90 ${x} ${y})` });
  }
  const foot = TOP + height + BOTTOM - 8;
  const block = { y: foot - 10, width: 9, height: 11 };
  root.append(...sampleRamp(colours).map((fill, step) => shape("rect", { ...block, x: LEFT + 24 + 9 * step, fill })));
  write(ends[0], { x: LEFT + 18, y: foot, "text-anchor": "end" });
  write(`${ends[1]}  ${measure} at each residual state, focal depth ${depth}`, { x: LEFT + 130, y: foot });
  return root;
}

/** An element of SVG with attributes. */
export function shape(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function copyLine(path) {
  const { stroke, strokeWidth, strokeLinejoin } = getComputedStyle(path);
  const drawn = { stroke, "stroke-width": strokeWidth, "stroke-linejoin": strokeLinejoin };
  return shape("path", { d: path.getAttribute("d"), fill: "none", "vector-effect": "non-scaling-stroke", ...drawn });
}

/** The pixels at the size of the screen, since not every reader of SVG enlarges them with sharp edges. */
function enlarge(canvas, width, height) {
  const large = Object.assign(el("canvas"), { width, height });
  const context = large.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(canvas, 0, 0, width, height);
  return large.toDataURL("image/png");
}

async function rasterise(text) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const large = Object.assign(el("canvas"), { width: 2 * image.width, height: 2 * image.height });
  large.getContext("2d").drawImage(image, 0, 0, large.width, large.height);
  return new Promise((resolve) => large.toBlob(resolve, "image/png"));
}
