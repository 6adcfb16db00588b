// Any view as one HTML file: the modules, the styles, plotly and the answers of the server are all inside it.

import { recorded } from "./api.js";
import { download } from "./dom.js";
import { read } from "./state.js";

const ROOT = "/static/js/";
const IMPORT = /(\bfrom\s*|\bimport\s*\(?\s*)"(\.{1,2}\/[^"]+)"/g;

/** Save what is shown as one file that opens without a network; gives the sentence that says so. */
export async function saveView(title) {
  const name = title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 80) || "view";
  download(`${name}.html`, await writeView(title), "text/html");
  return `The view is saved as ${name}.html.`;
}

/** The text of that file. Its policy allows its own scripts and nothing from elsewhere. */
export async function writeView(title) {
  const [modules, styles, figures] = await Promise.all([readModules(), readStyles(), readFigures()]);
  const nonce = makeNonce();
  const script = (text, rest = "") => `<script nonce="${nonce}"${rest}>${text.replace(/<\/(script)/gi, "<\\/$1")}</script>`;
  const policy = [
    `default-src 'none'; script-src 'nonce-${nonce}' data:; style-src 'unsafe-inline'`,
    "img-src data: blob:; base-uri 'none'; form-action 'none'",
  ].join("; ");
  return [
    "<!doctype html>",
    `<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">`,
    `<meta http-equiv="Content-Security-Policy" content="${policy}">`,
    `<title>${escapeText(title)}</title><link rel="icon" href="data:,">`,
    `<style>${styles}</style>`,
    script(writeAnswers(), ' type="application/json" id="saved-view"'),
    script(JSON.stringify({ imports: modules }), ' type="importmap"'),
    figures && script(figures),
    `</head>${writeBody()}`,
    script('import "js/main.js";', ' type="module"'),
    "</html>",
  ].join("\n");
}

/** Signs that nobody can guess; `randomUUID` is only there where the address is one that the browser calls secure. */
function makeNonce() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The state and the answers as JSON in which no sign can end the script that it stands in. */
function writeAnswers() {
  const responses = Object.fromEntries(Object.entries(recorded()).map(([key, text]) => [key, JSON.parse(text)]));
  const date = new Date().toISOString().slice(0, 10);
  return JSON.stringify({ state: read(), date, responses }).replaceAll("<", "\\u003c");
}

/** The page around the view as the server gives it, without what a view put into it. */
function writeBody() {
  const body = document.body.cloneNode(true);
  for (const id of ["main", "pages", "said", "told"]) body.querySelector("#" + id).replaceChildren();
  const added = "script, body > :not(.skip, .top, main, .foot, #said, #told, noscript)";
  for (const node of body.querySelectorAll(added)) node.remove();
  return body.outerHTML.replace(/<\/body>$/, "");
}

/** Every module as {name: data address}, with its imports by name: an address relative to data would mean nothing. */
async function readModules() {
  const found = new Map();
  const visit = async (name) => {
    if (found.has(name)) return;
    found.set(name, "");
    const text = await readText(ROOT + name);
    const resolve = (given) => new URL(given, `file:///${name}`).pathname.slice(1);
    found.set(name, text.replace(IMPORT, (whole, before, given) => `${before}"js/${resolve(given)}"`));
    await Promise.all([...text.matchAll(IMPORT)].map(([, , given]) => visit(resolve(given))));
  };
  await visit("main.js");
  return Object.fromEntries([...found].map(([name, text]) => ["js/" + name, asAddress(text)]));
}

async function readStyles() {
  const links = [...document.querySelectorAll('link[rel="stylesheet"]')].map((one) => one.getAttribute("href"));
  return (await Promise.all(links.map(readText))).join("\n").replace(/<\/(style)/gi, "<\\/$1");
}

async function readFigures() {
  return globalThis.Plotly ? readText("/static/plotly.min.js") : "";
}

async function readText(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address} could not be read.`);
  return answer.text();
}

function asAddress(text) {
  return "data:text/javascript;charset=utf-8," + encodeURIComponent(text);
}

function escapeText(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}
