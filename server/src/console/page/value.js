// Values as people read them: JSON indented, Kubernetes' objects taken apart, text, or bytes.
//
// Kubernetes writes "k8s\0", then a message Unknown: 1 apiVersion and kind, 2 the object, 3 encoding, 4 content type. An
// object's field 1 is its metadata, whatever its kind. Source: apimachinery, runtime/generated.proto, meta/v1/generated.proto.
// The rest is shown as it stands on the wire, by the numbers of its fields.

import { dump, shown, utf8 } from "./bytes.js";

const MAGIC = [0x6b, 0x38, 0x73, 0];
const DEPTH_MAX = 32;
const META = {
  1: "name", 2: "generateName", 3: "namespace", 5: "uid", 6: "resourceVersion", 7: "generation", 8: "creationTimestamp",
  9: "deletionTimestamp", 11: "labels", 12: "annotations", 13: "ownerReferences", 14: "finalizers", 17: "managedFields",
};

/** Kind, facts as pairs, and lines. */
export function readable(bytes) {
  if (MAGIC.every((byte, i) => bytes[i] === byte)) {
    const object = kubernetes(bytes.subarray(MAGIC.length));
    if (object) return object;
  }
  const text = utf8(bytes);
  if (text === null || /[\u0000-\u0008\u000e-\u001f]/.test(text)) return { kind: "Bytes", facts: [], lines: dump(bytes) };
  if (/^\s*[[{]/.test(text)) {
    try {
      const object = JSON.parse(text);
      return { kind: "JSON", facts: namedFacts(object), lines: indented(text) };
    } catch {
      // Text that only begins like JSON.
    }
  }
  return { kind: "Text", facts: [], lines: text.split("\n").map((line) => shownLine(line)) };
}

const shownLine = (line) => line.split("\t").map((part) => shown(new TextEncoder().encode(part)).replaceAll("\\\\", "\\")).join("    ");

function namedFacts(object) {
  const { apiVersion, kind, metadata } = object ?? {};
  const facts = [["apiVersion", apiVersion], ["kind", kind], ["name", metadata?.name], ["namespace", metadata?.namespace]];
  return facts.filter(([, value]) => typeof value === "string" && value);
}

/** JSON with each value on its line; numbers and the order of names stay as they are. */
function indented(text) {
  const lines = [];
  let [line, depth] = ["", 0];
  const flush = () => {
    lines.push(line);
    line = "  ".repeat(depth);
  };
  for (const [token] of text.matchAll(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g)) {
    if (token === "{" || token === "[") {
      line += token;
      depth += 1;
      flush();
    } else if (token === "}" || token === "]") {
      depth -= 1;
      if (/[[{]$/.test(lines.at(-1) ?? "") && line.trim() === "") line = lines.pop() + token;
      else {
        flush();
        line += token;
      }
    } else if (token === ",") {
      line += token;
      flush();
    } else line += token === ":" ? ": " : shownLine(token);
  }
  return [...lines, line].filter((line) => line.trim() !== "");
}

/** A message's fields as [number, wire type, value]; null for what is none. */
function fields(bytes) {
  const found = [];
  let at = 0;
  const varint = () => {
    let [value, shift] = [0n, 0n];
    for (;;) {
      const byte = bytes[at++];
      if (byte === undefined || shift > 63n) return null;
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
      shift += 7n;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    if (tag === null || tag >> 3n === 0n || tag >> 3n > 536870911n) return null;
    const [number, type] = [Number(tag >> 3n), Number(tag & 7n)];
    if (type === 0) {
      const value = varint();
      if (value === null) return null;
      found.push([number, type, value]);
    } else {
      const length = type === 1 ? 8n : type === 5 ? 4n : type === 2 ? varint() : null;
      if (length === null || length > BigInt(bytes.length - at)) return null;
      found.push([number, type, bytes.subarray(at, at + Number(length))]);
      at += Number(length);
    }
  }
  return found;
}

const text = (bytes) => {
  const text = bytes instanceof Uint8Array ? utf8(bytes) : null;
  return text !== null && !/[\u0000-\u0008\u000e-\u001f\u007f]/.test(text) ? text : null;
};
const first = (message, number) => message?.find(([found]) => found === number)?.[2];

function kubernetes(bytes) {
  const unknown = fields(bytes);
  const type = fields(first(unknown, 1) ?? new Uint8Array());
  const raw = first(unknown, 2);
  const object = raw instanceof Uint8Array ? fields(raw) : null;
  if (!type || !object) return null;
  const meta = fields(first(object, 1) ?? new Uint8Array());
  const named = { apiVersion: first(type, 1), kind: first(type, 2), name: first(meta, 1), namespace: first(meta, 3), uid: first(meta, 5) };
  const facts = Object.entries(named).map(([name, value]) => [name, text(value)]).filter(([, value]) => value);
  const lines = object.flatMap(([number, type, value]) =>
    number === 1 && meta ? ["metadata {", ...meta.flatMap((field) => metaLines(field)), "}"] : wire(String(number), type, value, ""));
  return { kind: "Kubernetes (protobuf)", facts, lines };
}

function metaLines([number, type, value]) {
  const name = META[number] ?? String(number);
  const parts = value instanceof Uint8Array ? fields(value) : null;
  if ((number === 11 || number === 12) && parts) {
    return [`  ${name} ${quoted(text(first(parts, 1)) ?? "")}: ${quoted(text(first(parts, 2)) ?? "")}`];
  }
  if ((number === 8 || number === 9) && parts) {
    const seconds = Number(first(parts, 1) ?? 0n);
    return [`  ${name}: ${Number.isFinite(seconds) && Math.abs(seconds) < 8e12 ? new Date(seconds * 1000).toISOString() : seconds}`];
  }
  return wire(name, type, value, "  ");
}

const quoted = (text) => JSON.stringify(text);

/** A field on one line, or the message it may be on several. Nobody says which: what reads as text is text. */
function wire(name, type, value, indent) {
  if (type === 0) return [`${indent}${name}: ${value}`];
  if (type !== 2) return [`${indent}${name}: 0x${[...value].reverse().map((byte) => byte.toString(16).padStart(2, "0")).join("")}`];
  const string = text(value);
  if (string !== null) return [`${indent}${name}: ${quoted(string)}`];
  const parts = indent.length < 2 * DEPTH_MAX ? fields(value) : null;
  if (parts === null) return [`${indent}${name}: ${quoted(shown(value))}`];
  return [`${indent}${name} {`, ...parts.flatMap(([number, type, value]) => wire(String(number), type, value, `${indent}  `)), `${indent}}`];
}
