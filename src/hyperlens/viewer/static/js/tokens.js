/** Tokens as running text, coloured by effort. Nothing in a token can hide, move or imitate the text around it. */

import { clear, el, number, spell } from "./dom.js";

const ARROWS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
const STEPS = { ...ARROWS, PageDown: 20, PageUp: -20, Home: -Infinity, End: Infinity };
/** More tokens change their colours at once: as many transitions would stop the picture beside them. */
const MANY = 200;
const SIGNS = { "\n": "↵", "\t": "⇥", " ": "·" };
const KINDS = { "\n": "newline", "\t": "tab", " ": "space" };

/** A text in one line for labels and titles: whitespace as signs, what cannot be seen as its escape. */
export function spellOut(text) {
  return spell(text).replace(/[\n\t ]/g, (sign) => SIGNS[sign]);
}

/** A text as nodes: what can be read stays as it is, the style sheet marks whitespace quietly, the rest is its escape. */
export function showText(text) {
  const shown = document.createDocumentFragment();
  let plain = "";
  const flush = () => {
    if (plain) shown.append(document.createTextNode(plain));
    plain = "";
  };
  for (const sign of String(text)) {
    const spelled = spell(sign);
    const kind = KINDS[sign] ?? (spelled === sign ? null : "escape");
    if (kind) flush();
    if (kind) shown.append(el("span", { class: kind }, spelled));
    else plain += sign;
  }
  flush();
  return shown;
}

/** The text of a token, whichever answer of the server it came with. */
const read = (token) => (typeof token === "string" ? token : (token.text ?? token.reference ?? token.token ?? ""));

const known = (effort) => typeof effort === "number" && Number.isFinite(effort);

/** Draws tokens into `node` as a listbox: a click or the arrow keys choose one.
 *
 * `effort`: one number in `scale` per token, null where it is undefined. `onSelect(index)` hears what was chosen, null after
 * Escape; `onHover(index, event)` where the pointer is, null when it has left.
 */
export function showTokens(node, given) {
  const { tokens, effort = [], selected = null, scale = [0, 1], label = "Tokens" } = given;
  const { onSelect = () => {}, onHover = () => {} } = given;
  const box = el("div", { class: "tokens", role: "listbox", "aria-label": label, "aria-orientation": "horizontal" });
  const options = [];
  let current = null;

  function colour(option, value) {
    const said = spellOut(option.text) || "empty";
    option.node.classList.toggle("unmeasured", !known(value));
    option.node.style.setProperty("--effort", known(value) ? ((value - scale[0]) / (scale[1] - scale[0])).toFixed(3) : 0);
    option.node.setAttribute("aria-label", `${said}, effort ${known(value) ? number(value) : "undefined"}`);
  }

  function append(token, value = token.effort) {
    const index = options.length;
    const text = read(token);
    const inside = text === "" ? el("span", { class: "escape" }, "∅") : showText(text);
    const place = { tabindex: index ? -1 : 0, "data-index": index };
    const option = { text, node: el("span", { class: "token", role: "option", "aria-selected": "false", ...place }, inside) };
    options.push(option);
    colour(option, value);
    box.append(option.node);
    box.classList.toggle("many", options.length > MANY);
  }

  function select(index) {
    options[current ?? 0]?.node.setAttribute("tabindex", "-1");
    options[current]?.node.setAttribute("aria-selected", "false");
    current = index;
    options[current ?? 0]?.node.setAttribute("tabindex", "0");
    reveal(options[current]?.node);
    options[current]?.node.setAttribute("aria-selected", "true");
  }

  /** Scrolls the box, never the page. */
  function reveal(node) {
    if (!node || box.scrollHeight <= box.clientHeight) return;
    const [top, bottom] = [node.offsetTop, node.offsetTop + node.offsetHeight];
    if (top < box.scrollTop || bottom > box.scrollTop + box.clientHeight) box.scrollTop = top - box.clientHeight / 2;
  }

  function choose(index) {
    select(index);
    options[index]?.node.focus({ preventScroll: true });
    onSelect(index);
  }

  function press(event) {
    const at = Number(event.target.closest(".token")?.dataset.index ?? 0);
    if (event.key === "Escape") choose(null);
    else if (event.key === "Enter" || event.key === " ") choose(at);
    else if (event.key in STEPS) choose(Math.min(Math.max(at + STEPS[event.key], 0), options.length - 1));
    else return;
    event.preventDefault();
  }

  const find = (event) => event.target.closest(".token")?.dataset.index;
  box.addEventListener("keydown", press);
  box.addEventListener("click", (event) => find(event) !== undefined && choose(Number(find(event))));
  box.addEventListener("pointermove", (event) => onHover(find(event) === undefined ? null : Number(find(event)), event));
  box.addEventListener("pointerleave", (event) => onHover(null, event));
  tokens.forEach((token, index) => append(token, effort[index] ?? token.effort));
  clear(node).append(box);
  select(selected);
  return {
    append,
    select,
    update: (values) => options.forEach((option, index) => colour(option, values[index])),
    close: () => box.remove(),
  };
}
