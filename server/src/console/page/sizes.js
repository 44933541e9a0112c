// How many keys and bytes are below a prefix, and how often they are written.

import { Refused, get } from "./api.js";
import { count, fromBase64, many, size, toUrlBase64 } from "./bytes.js";
import { el, notice, repeat, replace, table } from "./dom.js";
import { link, prefixForm, readableRanges } from "./keys.js";

const PAUSE = 5000;

export function sizes(part, prefix, refused) {
  const list = el("div");
  part.append(el("h1", {}, "Sizes"), prefixForm("sizes", prefix), crumbs(prefix), list);
  return repeat(async () => {
    try {
      replace(list, ...shownSizes(await get("prefixes", { prefix: toUrlBase64(prefix) })));
    } catch (error) {
      refused(error, list);
      const ranges = error instanceof Refused && !error.isForLogin && (await readableRanges("sizes"));
      if (ranges) list.append(ranges);
    }
  }, PAUSE);
}

/** The prefixes that this one is in. */
function crumbs(prefix) {
  const parts = [el("a", { href: "#/sizes" }, "all")];
  for (let at = prefix.indexOf(0x2f, 1); at !== -1; at = prefix.indexOf(0x2f, at + 1)) parts.push(" › ", link("sizes", prefix.subarray(0, at + 1)));
  return el("nav", { class: "crumbs", "aria-label": "Prefixes above" }, parts);
}

function shownSizes({ children, keys, bytes, is_cut: isCut, writes_per_second: writes }) {
  const most = Math.max(1, ...children.map((child) => child.bytes));
  const rows = [...children].sort((a, b) => b.bytes - a.bytes).map((child) => {
    const name = fromBase64(child.name);
    return [name.at(-1) === 0x2f ? link("sizes", name) : link("key", name), count(child.keys), size(child.bytes), bar(child.bytes / most),
      child.writes_per_second > 0 ? child.writes_per_second.toFixed(1) : "–"];
  });
  const caption = `${many(keys, "key")}, ${size(bytes)}, ${writes.toFixed(1)} writes per second`;
  return [
    ...(isCut ? [notice("warn", "There is more than is read for one answer: the figures are lower bounds. A longer prefix shows all.")] : []),
    el("section", { class: "card" }, table(caption, [["Prefix or key", "key"], ["Keys", "number"], ["Bytes", "number"], ["Share"],
      ["Writes per second", "number"]], rows)),
  ];
}

function bar(share) {
  const filled = el("span", { class: "bar" });
  filled.style.width = `${(share * 100).toFixed(1)}%`;
  return el("span", { class: "track", "aria-hidden": "true" }, filled);
}
