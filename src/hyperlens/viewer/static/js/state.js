// What is shown is in the address, behind the #, so that it can be shared; the token never is.

const TOKEN = "hyperlens-token";
/** What stays where one goes to another page; the rest belongs to the page that is left. */
const KEPT = ["run", "model", "lens", "task", "level", "depth"];
/** What names a part of a run, and so means nothing in another one. */
const OF_RUN = ["model", "lens", "task", "level", "depth", "sample", "token", "layer"];

/** Milliseconds that another tab has to answer. */
const PATIENCE = 150;

const listeners = new Set();
/** Only tabs of the same origin hear one another in it. */
const tabs = new BroadcastChannel(TOKEN);
let start = {};
let token = "";

/** The state as an object of strings; `page` is always there. */
export function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  const state = given.has("page") ? Object.fromEntries(given) : start;
  return { page: "overview", ...state };
}

/** The state that an address without one means: that of a saved page. */
export function startFrom(state) {
  start = state;
}

/** Change the state and tell the listeners; null removes a key. `replace: false` makes a step that Back undoes. */
export function update(changes, { replace = true } = {}) {
  const href = link(changes);
  if (href === location.hash) return;
  history[replace ? "replaceState" : "pushState"](null, "", href);
  tell();
}

/** The address of the state with these changes. Another page keeps only the run, model, lens, task, level and depth. */
export function link(changes) {
  const now = read();
  const state = Object.fromEntries(Object.entries(now).filter(([key]) => staysWith(key, now, changes)));
  const isGiven = ([, value]) => value !== null && value !== undefined && value !== "";
  const entries = Object.entries({ ...state, ...changes }).filter(isGiven);
  return "#" + new URLSearchParams(entries.map(([key, value]) => [key, String(value)]));
}

function staysWith(key, now, changes) {
  if (changes.page && changes.page !== now.page && !KEPT.includes(key)) return false;
  return !("run" in changes && String(changes.run) !== now.run && OF_RUN.includes(key));
}

/** Call this function with the state after each change; gives a function that ends it. */
export function onChange(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function tell() {
  const state = read();
  for (const listener of [...listeners]) listener(state);
}

/** Move a token out of the address, where it would be shared, to this tab's own memory. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (!given.has("token") || given.has("page")) return;
  setToken(given.get("token"));
  given.delete("token");
  history.replaceState(null, "", location.pathname + location.search + (given.size ? "#" + given : ""));
}

/** What the browser keeps under a name, or null; also null where it refuses its store to this page. */
export function recall(store, name) {
  try {
    return globalThis[store].getItem(name);
  } catch {
    return null;
  }
}

/** Keep a text under a name, where the browser allows it. */
export function keep(store, name, text) {
  try {
    globalThis[store].setItem(name, text);
  } catch {}
}

/** The token, or "". */
export function getToken() {
  return token || (recall("sessionStorage", TOKEN) ?? "");
}

/** Keep the token for as long as the tab is open. */
export function setToken(given) {
  token = given;
  keep("sessionStorage", TOKEN, given);
}

/** The token that another open tab of this viewer has, or "": a tab that a link opens gets no memory of its own. */
export function askTabs() {
  return new Promise((resolve) => {
    tabs.addEventListener("message", ({ data }) => data.token && resolve(data.token));
    tabs.postMessage({ asks: true });
    setTimeout(resolve, PATIENCE, "");
  });
}

tabs.addEventListener("message", ({ data }) => data.asks && getToken() && tabs.postMessage({ token: getToken() }));

addEventListener("hashchange", () => {
  takeToken();
  tell();
});
