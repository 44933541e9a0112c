// Members, alarms, and what this member did in the last minutes.

import { get } from "./api.js";
import { count, size } from "./bytes.js";
import { el, notice, repeat, table } from "./dom.js";
import { plot } from "./plot.js";

const KEPT = 900;
const perSecond = (value) => `${value >= 100 ? count(Math.round(value)) : Number(value.toFixed(1))}`;
const milliseconds = (value) => (value >= 1000 ? `${Number((value / 1000).toFixed(1))} s` : `${Number(value.toFixed(value < 10 ? 1 : 0))} ms`);

const PLOTS = [
  ["Requests per second", [["reads", "Reads"], ["writes", "Writes"]], perSecond],
  ["Read latency", [["read_p50", "p50"], ["read_p99", "p99"]], milliseconds],
  ["Write latency", [["write_p50", "p50"], ["write_p99", "p99"]], milliseconds],
  ["Disk, p99", [["sync_p99", "Log sync"], ["commit_p99", "Store write"]], milliseconds],
  ["Watch events and failed requests per second", [["events", "Events"], ["failed", "Failed"]], perSecond],
  ["Size of the store", [["size_bytes", "On disk"]], size, { base: 1024 }],
];

export function cluster(part, _, refused) {
  const head = el("div");
  const members = el("section", { class: "card" });
  const plots = el("div", { class: "plots" });
  part.append(el("h1", {}, "Cluster"), head, members, plots);
  let points = [];
  const look = async () => {
    try {
      const overview = await get("overview");
      showHealth(overview);
      head.replaceChildren(...heading(overview));
      members.replaceChildren(memberTable(overview));
    } catch (error) {
      showHealth(null);
      refused(error, head);
    }
  };
  const draw = async () => {
    try {
      const fresh = await get("series", { since: points.at(-1)?.at ?? 0 });
      points = [...points, ...fresh].slice(-KEPT);
      plots.replaceChildren(...PLOTS.map(([title, lines, write, options]) => plot(title, lines, write, points, options)));
    } catch {
      // The members' request says what is wrong.
    }
  };
  const ends = [repeat(look, 2000), repeat(draw, 1000)];
  return () => ends.forEach((end) => end());
}

/** Keeps the line in the page's head true while another view is shown. */
export function followHealth() {
  return repeat(async () => {
    try {
      showHealth(await get("overview"));
    } catch {
      showHealth(null);
    }
  }, 5000);
}

function showHealth(overview) {
  const pill = document.querySelector("#health");
  const [kind, text] = overview ? health(overview) : ["bad", "No answer"];
  pill.className = `pill ${kind}`;
  if (pill.textContent !== text) pill.textContent = text;
}

function health({ members, alarms }) {
  const down = members.filter((member) => !member.state).length;
  const hasLeader = members.some((member) => member.state?.leader);
  if (!hasLeader) return ["bad", "No leader"];
  if (alarms.length > 0) return ["bad", `Alarm ${alarms[0].kind}`];
  if (down > 0) return ["warn", `${down} of ${members.length} members down`];
  return ["good", "Healthy"];
}

function heading(overview) {
  const own = overview.members.find((member) => member.id === overview.member);
  const state = own?.state;
  const leader = overview.members.find((member) => member.id === state?.leader);
  const facts = [
    ["Cluster", overview.cluster],
    ["Asked", own?.name || overview.member],
    ["Leader", leader ? leader.name || leader.id : "none"],
    ["Term", state ? count(state.term) : "–"],
    ["Revision", state ? count(state.revision) : "–"],
    ["Compacted", state && state.compacted > 0 ? count(state.compacted) : "never"],
    ["Keys", state ? count(state.keys) : "–"],
    ["Version", `Pintle ${state?.pintle ?? "?"}, as etcd ${overview.etcd}`],
  ];
  const name = (id) => overview.members.find((member) => member.id === id)?.name || id;
  const alarms = overview.alarms.map((alarm) => notice("bad", `Alarm ${alarm.kind} of ${name(alarm.member)}. `,
    alarm.kind === "NOSPACE" ? "Writes are refused until there is room and the alarm is disarmed." : "The members' data differ."));
  return [...alarms, el("dl", { class: "facts" }, facts.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value))))];
}

function memberTable({ members, member: asked }) {
  const newest = Math.max(0, ...members.map((member) => member.state?.committed_index ?? 0));
  const leader = members.find((member) => member.id === asked)?.state?.leader ?? members.find((member) => member.state)?.state.leader;
  const role = (member) => (member.id === leader ? "Leader" : member.is_learner ? "Learner" : "Follower");
  const named = (member) => [member.name || "not started", el("span", { class: "sub mono id" }, member.id)];
  const rows = [...members].sort((a, b) => (a.name || a.id).localeCompare(b.name || b.id)).map((member) => {
    const { state } = member;
    if (!state) {
      return [named(member), "–", [el("span", { class: "pill bad" }, "Down"), el("span", { class: "sub" }, member.error)],
        "–", "–", "–", "–", "–", urls(member)];
    }
    const behind = newest - state.applied_index;
    return [
      named(member),
      role(member),
      state.problems.length > 0
        ? [el("span", { class: "pill bad" }, "Problem"), el("span", { class: "sub" }, state.problems.join(", "))]
        : el("span", { class: "pill good" }, "Healthy"),
      count(state.revision),
      count(state.committed_index),
      count(state.applied_index),
      behind > 0 ? count(behind) : "0",
      [size(state.size_bytes), quota(state)],
      urls(member),
    ];
  });
  return table("Members", [["Name"], ["Role"], ["Health"], ["Revision", "number"], ["Committed", "number"], ["Applied", "number"],
    ["Behind", "number"], ["Size", "number"], ["Client URLs"]], rows);
}

function quota({ size_bytes: used, quota_bytes: bytes }) {
  if (!(bytes > 0)) return null;
  return el("span", { class: "sub" }, `${Math.round((used / bytes) * 100)} % of ${size(bytes)}`);
}

const urls = (member) => el("span", { class: "mono" }, member.client_urls.join(" ") || "–");
