// The server's answers; those of the current view are kept, so that it can be saved, and in a saved page they are all there is.

import { getToken } from "./state.js";

const MOST_KEPT = 30_000_000;
const embedded = document.getElementById("saved-view");

/** The saved view that this page is: {state, responses, streams, …}; null where it is the viewer itself. */
export const saved = embedded ? JSON.parse(embedded.textContent) : null;

let kept = new Map();
let unauthorised = () => {};

/** A refusal: `message` is the server's sentence, `field` what it is about or null, `status` the HTTP status, 0 for none. */
export class ApiError extends Error {
  constructor(message, status = 0, field = null) {
    super(message);
    this.status = status;
    this.field = field;
  }
}

/** Call this function whenever the server wants another token. */
export function onUnauthorised(action) {
  unauthorised = action;
}

/** The path of a run and what is asked of it; without a number in the address the first run is meant. */
export function placeRun(number = "0", rest = "") {
  return `runs/${encodeURIComponent(number)}${rest}`;
}

/** The JSON at /api/`path` with these parameters; those that are null, undefined or "" are left out. */
export async function get(path, params = {}, signal = undefined) {
  const key = nameRequest(path, params);
  if (saved) return answerSaved(key);
  const text = await (await send(key, { signal })).text();
  keep(key, text);
  return JSON.parse(text);
}

/** Send the body and call `onEvent(name, data)` for each event that comes back; ends with the stream, or with the signal. */
export async function stream(path, body, onEvent, signal = undefined) {
  const key = "POST " + nameRequest(path, {});
  if (saved) return replaySaved(key, onEvent);
  const events = [];
  const answer = await send(nameRequest(path, {}), { method: "POST", body: JSON.stringify(body), signal });
  const keepAll = () => keep(key, JSON.stringify({ body, events }));
  try {
    for await (const [name, data] of readEvents(answer.body)) {
      events.push([name, data]);
      onEvent(name, data);
    }
  } finally {
    keepAll();
  }
}

/** The body and the events of a stream that was saved with the page, or null. */
export function savedStream(path) {
  return saved?.responses["POST " + nameRequest(path, {})] ?? null;
}

/** The answers of the current view as {request: JSON text}. */
export function recorded() {
  return Object.fromEntries(kept);
}

/** Forget the answers so far: another view begins. */
export function forget() {
  kept = new Map();
}

function nameRequest(path, params) {
  const given = Object.entries(params).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const query = new URLSearchParams(given.map(([key, value]) => [key, String(value)]));
  query.sort();
  return "/api/" + path.replace(/^\/?(api\/)?/, "") + (given.length ? "?" + query : "");
}

async function send(address, options) {
  const headers = { Authorization: `Bearer ${getToken()}` };
  if (options.body) headers["Content-Type"] = "application/json";
  const answer = await fetch(address, { ...options, headers }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The viewer's server does not answer. Is `hyperlens view` still running?");
  });
  if (!answer.ok) throw await refuse(answer);
  return answer;
}

async function refuse(answer) {
  const said = (await answer.json().catch(() => ({}))).error ?? {};
  if (answer.status === 401) unauthorised();
  return new ApiError(said.message ?? `The server answered with status ${answer.status}.`, answer.status, said.field ?? null);
}

function keep(key, text) {
  kept.delete(key);
  kept.set(key, text);
  let size = [...kept.values()].reduce((sum, one) => sum + one.length, 0);
  for (const [oldest, one] of kept) {
    if (size <= MOST_KEPT || oldest === key) break;
    kept.delete(oldest);
    size -= one.length;
  }
}

function answerSaved(key) {
  if (key in saved.responses) return structuredClone(saved.responses[key]);
  throw new ApiError("This was not saved with the page. Open the run in the viewer to see it.");
}

function replaySaved(key, onEvent) {
  for (const [name, data] of saved.responses[key]?.events ?? []) onEvent(name, data);
}

/** The events of a text/event-stream as [name, data]; data is parsed where it is JSON. */
async function* readEvents(body) {
  let rest = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      yield* parts.map(readEvent).filter(Boolean);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function readEvent(part) {
  const lines = part.split(/\r?\n/);
  const named = (name) => lines.filter((line) => line.startsWith(name + ":"));
  const fields = (name) => named(name).map((line) => line.slice(name.length + 1).trim());
  const text = fields("data").join("\n");
  const name = fields("event")[0] ?? "message";
  if (!text && name === "message") return null;
  try {
    return [name, text ? JSON.parse(text) : null];
  } catch {
    return [name, text];
  }
}
