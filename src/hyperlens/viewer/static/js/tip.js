/** A few lines beside the pointer. */

import { clear, el } from "./dom.js";

const AWAY = 14;

/** A tip for a view, outside the flow of its page: {show(lines, event), close}; without lines it is hidden. */
export function openTip() {
  const node = el("div", { class: "tip", "aria-hidden": "true", hidden: true });
  document.getElementById("main").append(node);
  const show = (lines, event) => {
    node.hidden = lines === null;
    if (lines === null) return;
    clear(node).append(...lines.map((line) => el("div", {}, line)));
    const [width, height] = [node.offsetWidth, node.offsetHeight];
    const left = event.clientX + AWAY + width > innerWidth ? event.clientX - AWAY - width : event.clientX + AWAY;
    const top = event.clientY + AWAY + height > innerHeight ? event.clientY - AWAY - height : event.clientY + AWAY;
    Object.assign(node.style, { left: `${Math.max(4, left)}px`, top: `${Math.max(4, top)}px` });
  };
  return { show, close: () => node.remove() };
}
