// Effort while a model speaks: tokens in the colour of their effort as they come, and the heatmap that grows with them.

import { get, saved, savedStream, stream } from "../api.js";
import { clear, el, number, say, spell } from "../dom.js";
import { drawHeatmap } from "../heatmap.js";
import { facts } from "../parts.js";
import { openTip } from "../tip.js";
import { showTokens, spellOut } from "../tokens.js";

const BROKEN = "The server ended the answer with an error.";

/** What the form had when the page was left, for as long as the tab is open. */
let left = null;

export function title() {
  return "Live";
}

/** The page of the model that the viewer is connected to. */
export async function show(main, state, signal) {
  const model = await get("live", {}, signal);
  clear(main).append(el("h1", {}, "Live"));
  if (!model.connected) return void main.append(...drawUnconnected(model));
  const form = drawForm(model);
  const answer = drawAnswer(model);
  const page = { model, form, answer, running: null };
  main.append(
    facts([
      ["Model", model.model],
      ["Lens", model.lens],
      ["Layers", model.layers],
      ["Vocabulary", model.candidates ? `the model's own ${model.candidates} top tokens` : null],
      ["Read", model.stride > 1 ? `every ${model.stride} states` : null],
    ]),
    form.node,
    answer.node,
  );
  const press = (event) => event.key === "Escape" && page.running?.abort();
  document.addEventListener("keydown", press);
  form.node.addEventListener("submit", (event) => {
    event.preventDefault();
    speak(page, signal);
  });
  form.stop.addEventListener("click", () => page.running?.abort());
  if (saved) await replay(page);
  else if (left) writeFields(form.fields, left);
  return {
    update: () => true,
    close() {
      document.removeEventListener("keydown", press);
      page.running?.abort();
      left = readFields(form.fields);
      answer.close();
    },
  };
}

function drawUnconnected(model) {
  const line = (text) => el("pre", {}, el("code", {}, text));
  return [
    model.error ? el("p", { class: "alert", role: "alert" }, model.error) : null,
    el("section", { class: "panel" },
      el("p", {}, "The viewer is not connected to a model. Start a server, then the viewer with its address:"),
      line("hyperlens serve MODEL"),
      line("hyperlens view RUNS --live URL"),
    ),
  ].filter(Boolean);
}

function drawForm(model) {
  const field = (name, label, attributes) => {
    const input = el("input", { id: `live-${name}`, name, type: "number", required: true, ...attributes });
    return [input, el("div", { class: "field" }, el("label", { for: `live-${name}` }, label), input)];
  };
  const most = model.limits?.new_tokens ?? 4096;
  const layers = Math.max(0, (model.layers ?? 65) - 1);
  const text = { required: true, spellcheck: "false", placeholder: "Once upon a time" };
  const prompt = el("textarea", { id: "live-prompt", name: "prompt", ...text });
  const [max_tokens, tokens] = field("max_tokens", "New tokens", { min: 1, max: most, value: Math.min(64, most) });
  const [temperature, heat] = field("temperature", "Temperature", { min: 0, max: 2, step: 0.05, value: 0 });
  const [focal_depth, depth] = field("focal_depth", "Focal depth", { min: 0, max: layers, value: model.focal_depth ?? 0 });
  const chat = el("input", { id: "live-chat", type: "checkbox", disabled: model.chat === false });
  const start = el("button", { class: "first", type: "submit" }, "Generate");
  const stop = el("button", { type: "button", disabled: true }, "Stop");
  const node = el("form", { class: "panel live" },
    el("div", { class: "field" }, el("label", { for: "live-prompt" }, "Prompt"), prompt),
    el("div", { class: "row" }, tokens, heat, depth,
      el("div", { class: "check" }, chat, el("label", { for: "live-chat" }, "as a chat message")),
      start, stop,
      el("span", { class: "quiet small" }, "Escape stops"),
    ),
  );
  return { node, start, stop, fields: { prompt, max_tokens, temperature, focal_depth, chat } };
}

/** Where the tokens appear; the heatmap is drawn at most once in a frame. */
function drawAnswer(model) {
  const [words, picture, counts] = [el("div"), el("div"), el("ul", { class: "facts" })];
  const point = el("p", { class: "quiet small readout" });
  const status = el("p", { class: "quiet", role: "status" }, "Nothing has been generated yet.");
  const node = el("section", { class: "panel", "aria-label": "Answer" }, status, counts, words, picture, point);
  const shown = { tokens: [], pinned: null, line: null, map: null, tip: null, frame: 0 };

  function begin(depth) {
    close();
    Object.assign(shown, { tokens: [], pinned: null, depth, tip: openTip() });
    shown.line = showTokens(words, {
      tokens: [],
      label: "Tokens of the answer",
      onSelect: (index) => pin(index, settled(index)),
      onHover: (index, event) => hover(index, settled(index), event),
    });
    counts.replaceChildren();
    clear(point);
  }

  function add(token) {
    shown.tokens.push(token);
    shown.line.append(token.text, token.effort);
    if (!shown.frame) shown.frame = requestAnimationFrame(redraw);
  }

  function redraw() {
    shown.frame = 0;
    const values = {
      tokens: shown.tokens.map((one) => one.text),
      confidence: shown.tokens.map(spread),
      commit: shown.tokens.map((one) => one.commit),
    };
    const drawn = { layers: model.layers, depth: shown.depth, pinned: shown.pinned, onHover: hover, onClick: pin };
    if (shown.map) shown.map.update(values);
    else shown.map = drawHeatmap(picture, { ...values, ...drawn });
    counts.replaceChildren(...count(shown.tokens).childNodes);
  }

  const settled = (index) => shown.tokens[index]?.commit ?? shown.tokens[index]?.states.at(-1) ?? null;
  const hover = (index, state, event) => shown.tip.show(shown.tokens[index] ? describe(index, state) : null, event);

  /** One token is chosen in the text and in the picture; null lets go. */
  function pin(index, state) {
    const there = Boolean(shown.tokens[index]);
    shown.pinned = there ? { token: index, state } : null;
    shown.line.select(there ? index : null);
    shown.map?.highlight(shown.pinned?.token, shown.pinned?.state);
    clear(point).append(there ? describe(index, state).join(" · ") : "");
  }

  function describe(index, state) {
    const { text, effort, commit, states, confidence } = shown.tokens[index];
    const place = states.indexOf(state);
    const at = place < 0 ? [] : [`confidence at state ${state}: ${number(confidence[place])}`];
    return [`Token ${index}, “${spellOut(text)}”`, `Ω ${number(effort)}`, `commit ${commit ?? "–"}`, ...at];
  }

  function close() {
    cancelAnimationFrame(shown.frame);
    for (const one of [shown.line, shown.map, shown.tip]) one?.close();
    Object.assign(shown, { frame: 0, line: null, map: null, tip: null });
  }

  const tell = (text) => clear(status).append(spell(text));
  const end = (summary) => {
    cancelAnimationFrame(shown.frame);
    if (shown.tokens.length) redraw();
    if (summary) counts.replaceChildren(...countAll(summary).childNodes);
  };
  return { node, begin, add, tell, end, close, size: () => shown.tokens.length };
}

/** The confidence at every state up to the last that was read; what was not read is left open. */
function spread({ states, confidence }) {
  const all = new Array((states.at(-1) ?? -1) + 1).fill(null);
  states.forEach((state, place) => (all[state] = confidence[place]));
  return all;
}

/** How many tokens so far, and the running mean of their effort, without those where it is undefined. */
function count(tokens) {
  const known = tokens.map((one) => one.effort).filter((one) => one !== null);
  const mean = known.length ? known.reduce((sum, one) => sum + one, 0) / known.length : null;
  const last = `Ω ${number(tokens.at(-1)?.effort)}`;
  return facts([["Tokens", tokens.length], ["Ω, running mean", number(mean, 3)], ["Last token", last]]);
}

function countAll(summary) {
  return facts([
    ["Tokens", summary.tokens],
    ["Ω, mean", number(summary.effort, 3)],
    ["Confidence, mean", number(summary.confidence, 3)],
    ["Committed early", summary.committed_early === undefined ? null : number(summary.committed_early)],
  ]);
}

function readFields({ prompt, max_tokens, temperature, focal_depth, chat }) {
  return {
    prompt: prompt.value,
    max_tokens: max_tokens.valueAsNumber,
    temperature: temperature.valueAsNumber,
    focal_depth: focal_depth.valueAsNumber,
    chat: chat.checked,
  };
}

function writeFields(fields, { chat, ...values }) {
  fields.chat.checked = chat;
  for (const [name, value] of Object.entries(values)) fields[name].value = value;
}

/** Generate; the same way ends it, whether the model is done, the reader stops it, or the server refuses. */
async function speak(page, signal) {
  if (page.running) return;
  const stopper = (page.running = new AbortController());
  const body = readFields(page.form.fields);
  setRunning(page, true);
  page.answer.begin(body.focal_depth);
  page.answer.tell("Generating …");
  try {
    await stream("live", body, (name, data) => hear(page, name, data), AbortSignal.any([stopper.signal, signal]));
    finish(page, `Finished after ${sayTokens(page)}.`);
  } catch (error) {
    if (signal.aborted) return;
    finish(page, error.name === "AbortError" ? `Stopped after ${sayTokens(page)}.` : error.message);
  } finally {
    page.running = null;
    setRunning(page, false);
  }
}

function hear(page, name, data) {
  if (name === "message" && data) page.answer.add(data);
  else if (name === "end") page.answer.end(data?.summary ?? data?.hyperlens?.summary);
  else if (name === "error") throw new Error(data?.error?.message ?? data?.message ?? BROKEN);
}

function finish(page, sentence) {
  page.answer.tell(sentence);
  say(sentence);
}

function sayTokens(page) {
  const size = page.answer.size();
  return `${size} ${size === 1 ? "token" : "tokens"}`;
}

function setRunning(page, running) {
  page.form.start.disabled = running;
  page.form.stop.disabled = !running;
}

/** In a saved page: the answer that was saved, at once. */
async function replay(page) {
  const { fields, start } = page.form;
  start.disabled = true;
  const before = savedStream("live");
  if (!before) return;
  fields.prompt.value = before.body.prompt;
  page.answer.begin(before.body.focal_depth);
  await stream("live", before.body, (name, data) => hear(page, name, data));
  page.answer.tell(`Saved with ${sayTokens(page)}.`);
}
