// Keys and values are bytes: how they are written for the server, and for people.

export function fromBase64(text) {
  const binary = atob((text ?? "").replaceAll("-", "+").replaceAll("_", "/"));
  return Uint8Array.from(binary, (char) => char.charCodeAt(0));
}

export function toBase64(bytes) {
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return btoa(binary);
}

export const toUrlBase64 = (bytes) => toBase64(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

/** The text these bytes are, or null. */
export function utf8(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return null;
  }
}

const hex = (byte) => byte.toString(16).padStart(2, "0");
// Controls, what has no width, and what turns the direction of text around would make a key look like another.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff]/u;

/** A key as one line; `\xNN` for what cannot be seen, `\\` for a backslash. */
export function shown(bytes) {
  const text = utf8(bytes);
  const escape = (part) => [...new TextEncoder().encode(part)].map((byte) => `\\x${hex(byte)}`).join("");
  if (text === null) {
    return [...bytes].map((byte) => (byte > 0x1f && byte < 0x7f ? String.fromCharCode(byte).replace("\\", "\\\\") : `\\x${hex(byte)}`)).join("");
  }
  return [...text].map((char) => (char === "\\" ? "\\\\" : UNSEEN.test(char) ? escape(char) : char)).join("");
}

/** What `shown` wrote, as bytes. */
export function read(text) {
  const bytes = [];
  for (const [part, escaped] of text.matchAll(/\\(?:x([0-9a-fA-F]{2}))|\\\\|[^]/gu)) {
    if (escaped !== undefined) bytes.push(parseInt(escaped, 16));
    else bytes.push(...new TextEncoder().encode(part === "\\\\" ? "\\" : part));
  }
  return Uint8Array.from(bytes);
}

/** The end of the range of keys that begin so, as the API takes it. */
export function prefixEnd(prefix) {
  const end = [...prefix];
  while (end.length > 0 && end.at(-1) === 0xff) end.pop();
  if (end.length === 0) return Uint8Array.of(0);
  end[end.length - 1] += 1;
  return Uint8Array.from(end);
}

/** Offset, bytes in hexadecimal, and what of them is text. */
export function dump(bytes) {
  const lines = [];
  for (let at = 0; at < bytes.length; at += 16) {
    const part = [...bytes.subarray(at, at + 16)];
    const text = part.map((byte) => (byte > 0x1f && byte < 0x7f ? String.fromCharCode(byte) : ".")).join("");
    lines.push(`${at.toString(16).padStart(6, "0")}  ${part.map(hex).join(" ").padEnd(47)}  ${text}`);
  }
  return lines;
}

export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${unit === 0 || bytes >= 100 ? Math.round(bytes) : bytes.toFixed(1)} ${units[unit]}`;
}

export const count = (number) => Number(number).toLocaleString("en");

/** A number with what it counts. */
export const many = (number, what) => `${count(number)} ${what}${Number(number) === 1 ? "" : "s"}`;
