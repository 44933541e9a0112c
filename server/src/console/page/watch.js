// Changes as they happen.

import { stream } from "./api.js";
import { count, fromBase64, many, prefixEnd, toBase64 } from "./bytes.js";
import { el, notice } from "./dom.js";
import { link, prefixForm } from "./keys.js";
import { readable } from "./value.js";

const SHOWN_MAX = 200;
const LINES_MAX = 6;

export function watch(part, prefix, refused) {
  const stop = new AbortController();
  const state = el("p", { class: "soft", role: "status" }, "Connecting…");
  const problem = el("div");
  const events = el("ul", { class: "events" });
  const button = el("button", { class: "quiet", onclick: () => stop.abort() }, "Stop");
  part.append(el("h1", {}, "Watch"), prefixForm("watch", prefix), problem, el("div", { class: "choices" }, button), state,
    el("section", { class: "card", "aria-label": "Events, newest first" }, events));
  follow(prefix, stop.signal, state, events).catch((error) => {
    if (error.name !== "AbortError") refused(error, problem);
  }).finally(() => {
    state.textContent = `${state.textContent} Stopped.`;
    button.disabled = true;
  });
  return () => stop.abort();
}

async function follow(prefix, signal, state, list) {
  let seen = 0;
  const key = prefix.length > 0 ? prefix : Uint8Array.of(0);
  const create = { create_request: { key: toBase64(key), range_end: toBase64(prefixEnd(prefix)) } };
  await stream("watch", create, (answer) => {
    if (answer.canceled) throw new Error(answer.cancel_reason || "The watch was cancelled.");
    const events = answer.events ?? [];
    seen += events.length;
    list.prepend(...events.slice(-SHOWN_MAX).reverse().map(shownEvent));
    while (list.children.length > SHOWN_MAX) list.lastChild.remove();
    state.textContent = seen === 0 ? "Watching. Nothing has changed yet." : `${many(seen, "event")}.`;
  }, signal);
  list.prepend(notice("warn", "The server has ended the watch."));
}

function shownEvent({ type = "PUT", kv }) {
  const isDelete = type === "DELETE";
  const value = isDelete ? null : readable(fromBase64(kv.value));
  const lines = value?.lines ?? [];
  const rest = lines.length > LINES_MAX ? [`… ${many(lines.length - LINES_MAX, "more line")}`] : [];
  return el("li", {},
    el("span", { class: `pill ${isDelete ? "bad" : "plain"}` }, isDelete ? "Delete" : "Put"), " ",
    el("span", { class: "mono" }, link("key", fromBase64(kv.key))), " ",
    el("span", { class: "soft" }, `revision ${count(kv.mod_revision)}`),
    value && el("pre", {}, [...lines.slice(0, LINES_MAX), ...rest].join("\n")));
}
