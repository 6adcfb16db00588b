/** The focal depth as a slider over the depths that were read, with a button that runs through them. */

import { el } from "./dom.js";

/** Milliseconds from one depth to the next: a transition of 600 and a rest. */
const EVERY = 1300;

/** A control for `depths`; `onChoose(depth)` hears every choice. Gives {node, show, close}. */
export function openDepths(depths, onChoose) {
  let timer = null;
  const steps = { min: 0, max: depths.length - 1, step: 1 };
  const slider = el("input", { type: "range", id: "depth", ...steps, "aria-describedby": "depth-said" });
  const said = el("output", { id: "depth-said", for: "depth" });
  const button = el("button", { type: "button", class: "play", disabled: depths.length < 2 });
  const marks = el("div", { class: "marks", "aria-hidden": "true" }, depths.map((depth) => el("span", {}, depth)));

  const label = () => {
    button.textContent = timer === null ? "▶ Play" : "❚❚ Pause";
    button.setAttribute("aria-label", timer === null ? "Play through the focal depths" : "Pause");
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    label();
  };
  const advance = () => {
    const next = Number(slider.value) + 1;
    if (next >= depths.length) return stop();
    onChoose(depths[next]);
    if (next === depths.length - 1) stop();
  };
  const play = () => {
    if (timer !== null) return stop();
    timer = setInterval(advance, EVERY);
    label();
    if (Number(slider.value) === depths.length - 1) onChoose(depths[0]);
    else advance();
  };
  slider.addEventListener("input", () => {
    stop();
    onChoose(depths[Number(slider.value)]);
  });
  button.addEventListener("click", play);
  label();

  const show = (depth) => {
    slider.value = depths.indexOf(depth);
    slider.setAttribute("aria-valuetext", `focal depth ${depth}`);
    const focus = depth === 1 ? "the last layer in focus" : `the last ${depth} layers in focus`;
    said.textContent = `m = ${depth}, ${depth === 0 ? "the logit lens" : focus}`;
  };
  const heading = el("div", { class: "heading" }, el("label", { for: "depth" }, "Focal depth"), said);
  const node = el("div", { class: "depths" }, button, el("div", { class: "slider" }, heading, slider, marks));
  return { node, show, close: stop };
}
