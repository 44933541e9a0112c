// Keys by prefix, page by page; and one key with its history.

import { Refused, call, get, user } from "./api.js";
import { count, fromBase64, many, prefixEnd, read, shown, size, toBase64, toUrlBase64 } from "./bytes.js";
import { diff, shortened } from "./diff.js";
import { el, notice, table } from "./dom.js";
import { readable } from "./value.js";

const PAGE = 100;

export const link = (view, bytes, ...content) => el("a", { href: `#/${view}/${toUrlBase64(bytes)}` }, content.length > 0 ? content : shown(bytes));

/** A field for a prefix; what is asked for goes into the address. */
export function prefixForm(view, prefix, label = "Prefix") {
  const submit = (event) => {
    event.preventDefault();
    const hash = `#/${view}/${toUrlBase64(read(new FormData(event.target).get("prefix")))}`;
    if (hash === location.hash) dispatchEvent(new HashChangeEvent("hashchange"));
    else location.hash = hash;
  };
  return el("form", { class: "row", onsubmit: submit, role: "search" },
    el("label", {}, label, el("input", { name: "prefix", value: shown(prefix), autocomplete: "off", spellcheck: "false" })),
    el("button", {}, "Show"));
}

/** Where the user may look, when it is not everywhere. */
export async function readableRanges(view) {
  if (!user()) return null;
  try {
    const { roles = [] } = await call("auth/user/get", { name: user() });
    const answers = await Promise.all(roles.map((role) => call("auth/role/get", { role })));
    const ranges = answers.flatMap(({ perm = [] }) => perm).filter(({ permType = "READ" }) => permType !== "WRITE");
    if (ranges.length === 0) return notice("warn", "Your roles may read no keys.");
    return el("div", { class: "card" }, el("h2", {}, "What your roles may read"),
      el("div", { class: "choices" }, ranges.map(({ key = "", range_end: end }) => (end ? link(view, fromBase64(key)) : link("key", fromBase64(key))))));
  } catch {
    // It is a help only: what was refused has been said.
    return null;
  }
}

export function keys(part, prefix, refused) {
  const list = el("div");
  part.append(el("h1", {}, "Keys"), prefixForm("keys", prefix), list);
  load(list, prefix, null, refused);
}

async function load(list, prefix, after, refused) {
  const start = after ? Uint8Array.of(...after, 0) : prefix.length > 0 ? prefix : Uint8Array.of(0);
  try {
    const range = { key: toBase64(start), range_end: toBase64(prefixEnd(prefix)), limit: PAGE, keys_only: true };
    const { kvs = [], count: left = 0, more } = await call("kv/range", range);
    const rows = kvs.map((kv) => [
      link("key", fromBase64(kv.key)), count(kv.version), count(kv.mod_revision), count(kv.create_revision),
      kv.lease && kv.lease !== "0" ? BigInt(kv.lease).toString(16) : "–",
    ]);
    const caption = after ? `${many(left, "key")} from here on` : many(left, "key");
    const next = more && el("button", { onclick: () => load(list, prefix, fromBase64(kvs.at(-1).key), refused) }, "Next page");
    const back = after && el("button", { class: "quiet", onclick: () => load(list, prefix, null, refused) }, "First page");
    const columns = [["Key", "key"], ["Version", "number"], ["Modified at", "number"], ["Created at", "number"], ["Lease", "number"]];
    list.replaceChildren(
      el("section", { class: "card" }, kvs.length > 0 ? table(caption, columns, rows) : el("p", { class: "soft" }, "No key begins so.")),
      el("div", { class: "choices" }, ...[back, next].filter(Boolean)));
    if (after) list.querySelector("a")?.focus();
  } catch (error) {
    refused(error, list);
    const ranges = error instanceof Refused && !error.isForLogin && (await readableRanges("keys"));
    if (ranges) list.append(ranges);
  }
}

export function key(part, name, refused) {
  const crumb = el("p", { class: "crumbs" }, link("keys", folder(name), `Keys in ${shown(folder(name)) || "all"}`));
  const body = el("div");
  part.append(crumb, el("h1", { class: "mono" }, shown(name)), body);
  const versions = [];
  const more = async (before) => {
    try {
      const page = await get("history", { key: toUrlBase64(name), before });
      versions.push(...page.versions.map((version) => ({ ...version, read: version.value === null ? null : readable(fromBase64(version.value)) })));
      body.replaceChildren(history(versions, page, () => more(versions.at(-1).revision)));
    } catch (error) {
      refused(error, body);
    }
  };
  more(0);
}

const folder = (key) => key.subarray(0, key.lastIndexOf(0x2f) + 1);

function history(versions, { more, compacted }, load) {
  if (versions.length === 0) return notice("warn", "There is no such key, and no history of it above the compacted revision.");
  const content = el("section", { class: "card", "aria-live": "polite" });
  const buttons = versions.map((version, i) => el("button", { "aria-pressed": "false", onclick: () => select(i) },
    `Revision ${count(version.revision)}`,
    el("span", { class: "sub" }, version.read === null ? "deleted" : `version ${count(version.version)}, ${size(fromBase64(version.value).length)}`)));
  const select = (i) => {
    buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(at === i)));
    content.replaceChildren(...shownVersion(versions[i], versions[i + 1], more || i + 1 < versions.length));
  };
  select(0);
  const note = compacted > 0 && !more ? `What was before revision ${count(compacted)} is compacted.` : null;
  return el("div", { class: "split" },
    el("section", { class: "card" },
      el("h2", {}, "History"),
      el("ul", { class: "versions" }, buttons.map((button) => el("li", {}, button))),
      more && el("button", { class: "quiet", onclick: load }, "Older"),
      note && el("p", { class: "soft" }, note)),
    content);
}

function shownVersion(version, before) {
  const title = el("h2", {}, `Revision ${count(version.revision)}`);
  if (version.read === null) return [title, el("p", {}, "The key was deleted."), ...changes(before, [])];
  const { kind, facts, lines } = version.read;
  const all = [["Format", kind], ...facts, ["Created at", count(version.create_revision)], ["Lease", version.lease === "0" ? "none" : version.lease]];
  return [
    title,
    el("dl", { class: "facts" }, all.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value)))),
    ...changes(before, lines),
    el("h2", {}, "Value"),
    el("pre", { tabindex: "0", "aria-label": "Value" }, lines.join("\n")),
  ];
}

const KINDS = { "+": "added", "-": "removed", "…": "gap" };

function changes(before, lines) {
  if (!before) return [];
  const rows = shortened(diff(before.read?.lines ?? [], lines));
  if (rows.every(([mark]) => mark === " " || mark === "…")) return [el("p", { class: "soft" }, "The value is that of the revision before.")];
  return [
    el("h2", {}, `Changes since revision ${count(before.revision)}`),
    el("pre", { class: "diff", tabindex: "0", "aria-label": "Changes" }, rows.map(([mark, line]) => el("span", { class: KINDS[mark] }, `${mark} ${line}`))),
    el("p", {}),
  ];
}
