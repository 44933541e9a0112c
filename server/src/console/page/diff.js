// What changed from one list of lines to another.

import { many } from "./bytes.js";

const CELLS_MAX = 4_000_000;
const CONTEXT = 3;

/** Pairs of a mark (" ", "+", "-") and a line. */
export function diff(before, after) {
  let begin = 0;
  while (begin < before.length && begin < after.length && before[begin] === after[begin]) begin += 1;
  let end = 0;
  while (end < before.length - begin && end < after.length - begin && before.at(-1 - end) === after.at(-1 - end)) end += 1;
  const marked = (mark, lines) => lines.map((line) => [mark, line]);
  const [old, fresh] = [before.slice(begin, before.length - end), after.slice(begin, after.length - end)];
  const middle = old.length * fresh.length > CELLS_MAX ? [...marked("-", old), ...marked("+", fresh)] : common(old, fresh);
  return [...marked(" ", before.slice(0, begin)), ...middle, ...marked(" ", before.slice(before.length - end))];
}

/** By the longest common subsequence. */
function common(old, fresh) {
  const width = fresh.length + 1;
  const lengths = new Uint32Array((old.length + 1) * width);
  for (let i = old.length - 1; i >= 0; i -= 1) {
    for (let j = fresh.length - 1; j >= 0; j -= 1) {
      const [down, right] = [lengths[(i + 1) * width + j], lengths[i * width + j + 1]];
      lengths[i * width + j] = old[i] === fresh[j] ? lengths[(i + 1) * width + j + 1] + 1 : Math.max(down, right);
    }
  }
  const rows = [];
  let [i, j] = [0, 0];
  while (i < old.length || j < fresh.length) {
    if (i < old.length && j < fresh.length && old[i] === fresh[j]) {
      rows.push([" ", old[i]]);
      [i, j] = [i + 1, j + 1];
    } else if (j === fresh.length || (i < old.length && lengths[(i + 1) * width + j] >= lengths[i * width + j + 1])) {
      rows.push(["-", old[i++]]);
    } else {
      rows.push(["+", fresh[j++]]);
    }
  }
  return rows;
}

/** Without the lines that are far from any change. */
export function shortened(rows) {
  const isNear = rows.map(() => false);
  rows.forEach(([mark], i) => {
    if (mark !== " ") isNear.fill(true, Math.max(0, i - CONTEXT), i + CONTEXT + 1);
  });
  const kept = [];
  let left = 0;
  const gap = () => {
    if (left > 0) kept.push(["…", `${many(left, "line")} without a change`]);
    left = 0;
  };
  rows.forEach((row, i) => {
    if (!isNear[i]) {
      left += 1;
      return;
    }
    gap();
    kept.push(row);
  });
  gap();
  return kept;
}
