// The router: which page the address means, and what is around every page.

import { ApiError, forget, get, onUnauthorised, saved } from "./api.js";
import { announce, clear, el, spell } from "./dom.js";
import { saveView } from "./export.js";
import { keepFocus } from "./focus.js";
import { askTabs, getToken, keep, link, onChange, read, recall, setToken, startFrom, takeToken } from "./state.js";

const PAGES = {
  overview: () => import("./pages/overview.js"),
  study: () => import("./pages/study.js"),
  samples: () => import("./pages/samples.js"),
  explorer: () => import("./pages/explorer.js"),
  compare: () => import("./pages/compare.js"),
  live: () => import("./pages/live.js"),
};
const TABS = [
  ["overview", "Runs"],
  ["study", "Study"],
  ["samples", "Samples"],
  ["explorer", "Explorer"],
  ["compare", "Compare"],
  ["live", "Live"],
];
const OF_A_RUN = ["study", "samples", "explorer"];
const THEME = "hyperlens-theme";

const main = document.getElementById("main");
let current = { page: null, run: null, view: null, stop: new AbortController() };

/** Show what the address says: by the page that is there, where it can, or afresh. */
async function show(state) {
  drawTabs(state);
  announce("");
  const mine = current;
  try {
    if (state.page === mine.page && (await mine.view?.update?.(state))) return setTitle(mine, state);
  } catch (error) {
    if (mine === current && error.name !== "AbortError") showError(error);
    return;
  }
  if (mine === current) await showAfresh(read());
}

async function showAfresh(state) {
  leave();
  const moved = current.page !== null && current.page !== state.page;
  const mine = (current = { page: state.page, view: null, module: null, stop: new AbortController() });
  forget();
  clear(main).setAttribute("aria-busy", "true");
  try {
    mine.module = await findPage(state.page)();
    if (mine !== current) return;
    setTitle(mine, state);
    mine.view = (await mine.module.show(main, state, mine.stop.signal)) ?? null;
    if (mine === current) setTitle(mine, state);
  } catch (error) {
    if (mine === current && error.name !== "AbortError") showError(error);
  }
  if (mine !== current) return mine.view?.close?.();
  main.removeAttribute("aria-busy");
  if (moved) main.focus({ preventScroll: true });
}

function findPage(page) {
  if (Object.hasOwn(PAGES, page)) return PAGES[page];
  throw new ApiError(`There is no page "${page}". Choose one above.`);
}

function leave() {
  current.stop.abort();
  current.view?.close?.();
  current.view = null;
}

/** What a view is called, where it knows more than its address says. */
function setTitle({ module, view }, state) {
  document.title = spell(`${(view?.title ?? module.title)(state)} · HyperLens`);
}

function drawTabs(state) {
  const tabs = saved ? TABS.filter(([page]) => page === state.page) : TABS;
  const shown = tabs.filter(([page]) => state.run !== undefined || !OF_A_RUN.includes(page));
  const tab = ([page, name]) => el("a", { href: link({ page }), "aria-current": page === state.page && "page" }, name);
  clear(document.getElementById("pages")).append(...shown.map(tab));
}

function showError(error) {
  if (error.status === 401) return askToken();
  leave();
  if (!(error instanceof ApiError)) console.error(error);
  const sentence = error instanceof ApiError ? error.message : `The viewer failed: ${error.message}`;
  clear(main).append(
    el("h1", {}, "This cannot be shown"),
    el("p", { class: "alert", role: "alert" }, sentence),
    el("p", {}, el("a", { href: link({ page: "overview", run: null }) }, "All runs")),
  );
}

/** Ask for the token; with it, what the address says is shown. */
function askToken() {
  leave();
  const field = el("input", { id: "token", type: "password", autocomplete: "off", required: true, spellcheck: "false" });
  const enter = (event) => {
    event.preventDefault();
    setToken(field.value.trim());
    showAfresh(read());
  };
  clear(main).append(
    el("h1", {}, "Token"),
    el("p", {}, "This viewer wants its token: it is in the address that `hyperlens view` printed, behind #token=."),
    el(
      "form",
      { class: "row", onsubmit: enter },
      el("label", { for: "token" }, "Token"),
      field,
      el("button", { class: "first" }, "Open"),
    ),
  );
  main.removeAttribute("aria-busy");
  document.title = "Token · HyperLens";
  field.focus();
}

/** These colours, and their names on the button and to the figures. */
function setTheme(name) {
  document.documentElement.dataset.theme = name;
  document.getElementById("theme").textContent = name === "dark" ? "Light" : "Dark";
  document.getElementById("theme").setAttribute("aria-label", name === "dark" ? "Light colours" : "Dark colours");
  document.dispatchEvent(new CustomEvent("themechange"));
}

/** Light or dark as the system says, until the button is pressed; then as it says. On paper always light. */
function prepareTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const choose = () => setTheme(recall("localStorage", THEME) ?? (system.matches ? "dark" : "light"));
  system.addEventListener("change", choose);
  addEventListener("beforeprint", () => setTheme("light"));
  addEventListener("afterprint", choose);
  document.getElementById("theme").addEventListener("click", () => {
    keep("localStorage", THEME, document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    choose();
  });
  choose();
}

function prepareSaving() {
  const button = document.getElementById("save");
  button.hidden = saved !== null;
  button.addEventListener("click", async () => {
    button.disabled = true;
    await saveView(document.title).then(announce, (error) => announce(`The view was not saved: ${error.message}`));
    button.disabled = false;
  });
  if (saved) document.getElementById("foot").textContent = `Saved on ${saved.date} by HyperLens; it needs no network.`;
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
takeToken();
if (saved) startFrom(saved.state);
prepareTheme();
prepareSaving();
onUnauthorised(askToken);
onChange((state) => keepFocus(() => show(state)));
if (!saved && !getToken()) setToken(await askTabs());
show(read());
