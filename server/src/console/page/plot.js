// Lines over time, in SVG.

import { el, svg } from "./dom.js";

// What was not longer ago is what a plot says of now.
const NOW_MS = 10_000;
const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [400, 130, 46, 16, 6];

/** The smallest of 1, 2, 5 times a power of ten (or of two, for bytes) that is not below. */
function nice(max, base) {
  if (!(max > 0)) return 1;
  if (base === 1024) return 2 ** Math.ceil(Math.log2(max));
  const power = 10 ** Math.floor(Math.log10(max));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= max * 0.999);
}

function line(points, field, from, to, max) {
  const x = (at) => LEFT + ((at - from) / (to - from)) * (WIDTH - LEFT);
  const y = (value) => TOP + (1 - value / max) * (HEIGHT - TOP - BOTTOM);
  let path = "";
  let isDrawn = false;
  for (const point of points) {
    const value = point[field];
    // A second without a request has no latency: the line is interrupted there.
    if (value === null || value === undefined) {
      isDrawn = false;
      continue;
    }
    path += `${isDrawn ? "L" : "M"}${x(point.at).toFixed(1)} ${y(value).toFixed(1)}`;
    if (!isDrawn) path += `L${(x(point.at) + 0.8).toFixed(1)} ${y(value).toFixed(1)}`;
    isDrawn = true;
  }
  return path;
}

/** A card: title, lines of [field, name], a way to write values. It begins with the first point, five minutes ago at most. */
export function plot(title, lines, write, points, { base = 10 } = {}) {
  const to = points.at(-1)?.at ?? Date.now();
  const minutes = Math.min(5, Math.max(1, Math.ceil((to - (points[0]?.at ?? to)) / 60_000)));
  const from = to - minutes * 60_000;
  const seen = points.filter((point) => point.at >= from);
  const highest = Math.max(0, ...seen.flatMap((point) => lines.map(([field]) => point[field] ?? 0)));
  const max = nice(highest, base);
  const last = (field) => seen.findLast((point) => point[field] !== null && point.at > to - NOW_MS)?.[field];
  const said = lines.map(([field, name]) => `${name}: ${last(field) === undefined ? "none" : write(last(field))}`).join(", ");
  const level = (share) => TOP + (1 - share) * (HEIGHT - TOP - BOTTOM);
  return el("section", { class: "card plot" },
    el("h2", {}, title),
    svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}, last ${minutes} min. Now ${said}` },
      [0, 0.5, 1].map((share) => [
        svg("line", { class: "grid", x1: LEFT, x2: WIDTH, y1: level(share), y2: level(share) }),
        svg("text", { x: LEFT - 5, y: level(share) + 4, "text-anchor": "end" }, write(max * share)),
      ]),
      svg("text", { x: LEFT, y: HEIGHT - 2 }, `−${minutes} min`),
      svg("text", { x: WIDTH, y: HEIGHT - 2, "text-anchor": "end" }, "now"),
      lines.map(([field], i) => svg("path", { class: i === 0 ? "stroke-a" : "stroke-b", d: line(seen, field, from, to, max) }))),
    el("p", { class: "legend" }, lines.map(([field, name], i) => el("span", {},
      el("span", { class: `swatch ${i === 0 ? "a" : "b"}` }), `${name} `,
      el("b", {}, last(field) === undefined ? "–" : write(last(field)))))));
}
