// UTF-8 by hand: an engine may have neither TextEncoder nor TextDecoder. Not here: what the text means.

import { PluginError } from "./errors.js";
import { text } from "./lower.js";

/** @param {string | Uint8Array} value */
export const bytesOf = (value) => (typeof value === "string" ? encodeText(value) : value);

/**
 * @param {string} said
 */
function encodeText(said) {
  const escaped = encodeURIComponent(text("a value", said));
  const bytes = [];
  for (let at = 0; at < escaped.length; at += 1) {
    if (escaped[at] === "%") {
      bytes.push(parseInt(escaped.slice(at + 1, at + 3), 16));
      at += 2;
    } else bytes.push(escaped.charCodeAt(at));
  }
  return Uint8Array.from(bytes);
}

/**
 * @param {string} what
 * @param {Uint8Array} bytes
 */
export function decodeText(what, bytes) {
  let escaped = "";
  for (const byte of bytes) escaped += `%${byte.toString(16).padStart(2, "0")}`;
  try {
    return decodeURIComponent(escaped);
  } catch {
    throw new PluginError(`${what} is no text`);
  }
}
