/** The focus of the keyboard stays where it is in the page, also where what has it is drawn again. */

/** Milliseconds that what had the focus has to come again. */
const PATIENCE = 5000;

const name = (node) => node.id || node.getAttribute("aria-label") || node.textContent;

/** Does `work`; what had the focus before has it again after it, or as soon as it is there, where nothing else has it then. */
export async function keepFocus(work) {
  const before = document.activeElement;
  const alike = () => [...document.querySelectorAll(before.localName)].filter((node) => name(node) === wish);
  const wish = name(before);
  const place = alike().indexOf(before);
  await work();
  if (before.isConnected) return;
  const giveBack = () => {
    const found = alike()[place] ?? alike()[0];
    if (found && isFree()) [found, ...found.parentElement.children].some(takeFocus);
    return !isFree();
  };
  if (giveBack()) return;
  const watcher = new MutationObserver(() => giveBack() && watcher.disconnect());
  watcher.observe(document.getElementById("main"), { childList: true, subtree: true });
  setTimeout(() => watcher.disconnect(), PATIENCE);
}

const isFree = () => document.activeElement === document.body;

/** Whether a node has the focus now: one that is disabled takes none. */
function takeFocus(node) {
  node.focus({ preventScroll: true });
  return document.activeElement === node;
}
