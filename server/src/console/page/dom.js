// Elements from data. Text is always text: nothing here, or in any other file, makes HTML of a string.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== undefined && child !== null && child !== false));
  return node;
}

export const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/** A table; columns are [heading, class], cells are nodes or text. */
export function table(caption, columns, rows) {
  const cell = (content, i) => el("td", { "data-label": columns[i][0], class: columns[i][1] }, el("span", {}, content));
  return el("table", {},
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, columns.map(([name, kind]) => el("th", { scope: "col", class: kind }, name)))),
    el("tbody", {}, rows.map((cells) => el("tr", {}, cells.map(cell)))));
}

export const notice = (kind, ...text) => el("p", { class: `notice ${kind}`, role: "alert" }, text);

/** Replaces what is in a node; the link that had the focus has it again. */
export function replace(node, ...content) {
  const focused = node.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  node.replaceChildren(...content);
  if (focused) [...node.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus();
}

/** Calls `work` now and again after each pause, until the function returned is called. */
export function repeat(work, pause) {
  let timer;
  let isOver = false;
  const turn = async () => {
    await work();
    if (!isOver) timer = setTimeout(turn, pause);
  };
  turn();
  return () => {
    isOver = true;
    clearTimeout(timer);
  };
}
