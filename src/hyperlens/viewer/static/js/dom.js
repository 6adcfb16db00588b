// Elements made without markup: a text of a sample or a model is only ever text.

const HIDDEN = /[\p{C}\p{Z}]/gu;
const SHOWN = new Set([" ", "\n", "\t"]);
const SPELLED = new Set(["aria-label", "title", "alt", "placeholder"]);

/** A text with control characters, and those that turn or hide text, spelled out. */
export function spell(text) {
  return String(text).replace(HIDDEN, (sign) => (SHOWN.has(sign) ? sign : spellSign(sign)));
}

function spellSign(sign) {
  return "\\u" + sign.codePointAt(0).toString(16).padStart(4, "0");
}

/**
 * An element with attributes and children. Strings and numbers become text, spelled; null and false are left out; lists are
 * flattened. `on…` takes a function, `data` an object, every other attribute a text; a value of null or false leaves the
 * attribute out, true gives an empty one.
 */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) setAttribute(node, name, value);
  node.append(...children.flat(Infinity).filter(isThere).map(asNode));
  return node;
}

function setAttribute(node, name, value) {
  if (typeof value === "function" && name.startsWith("on")) node.addEventListener(name.slice(2), value);
  else if (name === "data") Object.assign(node.dataset, value);
  else if (name === "value") node.value = value;
  else if (isThere(value)) node.setAttribute(name, value === true ? "" : SPELLED.has(name) ? spell(value) : String(value));
}

function isThere(value) {
  return value !== null && value !== undefined && value !== false;
}

function asNode(child) {
  return child instanceof Node ? child : document.createTextNode(spell(child));
}

/** The node, emptied. */
export function clear(node) {
  node.replaceChildren();
  return node;
}

/** Say a sentence to those who listen to the page. */
export function say(text) {
  document.getElementById("said").textContent = spell(text);
}

/** Say a sentence and show it, until something else is shown. */
export function announce(text) {
  if (text) say(text);
  document.getElementById("told").textContent = spell(text);
}

/** A number with so many digits, or a dash where there is none. */
export function number(value, digits = 2) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const said = Number(value).toFixed(digits);
  return Number(said) === 0 ? said.replace("-", "") : said.replace("-", "−");
}

/** A value with its interval in brackets. */
export function interval(value, low, high, digits = 2) {
  const ends = [low, high].map((end) => number(end, digits));
  return number(value, digits) + (ends.includes("–") ? "" : ` [${ends.join(", ")}]`);
}

/** Save a text or a blob as a file of this name. */
export function download(name, content, type = "text/plain") {
  const address = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
