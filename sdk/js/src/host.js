// What the host lends. The component's imports stand behind it, or the harness in tests: whoever calls the policy says which.

import { PluginError } from "./errors.js";

/**
 * One method for each function that the contract imports; what it refuses is thrown as `HostError`.
 * @typedef {object} Host
 * @property {() => import("./index.d.ts").Adapter[]} adapters
 * @property {(adapters: string[]) => void} prefetch
 * @property {(level: "debug" | "info" | "warn" | "error", message: string) => void} write
 * @property {() => number} elapsedMs
 * @property {() => number} unixSeconds
 * @property {(count: number) => Uint8Array} randomBytes
 * @property {() => number} randomNext
 * @property {(name: string) => string | undefined} configGet
 * @property {() => Map<string, string>} configAll
 * @property {(name: string, input: import("./index.d.ts").CallInput, maxTokens: number | undefined) => import("./index.d.ts").Reply} callFunction
 */

/** @type {Host | undefined} */
let current;

/**
 * Calls with this host at hand.
 * @template T
 * @param {Host} host
 * @param {() => T} call
 * @returns {T}
 */
export function withHost(host, call) {
  const before = current;
  current = host;
  try {
    return call();
  } finally {
    current = before;
  }
}

/** @returns {Host} */
function host() {
  if (current === undefined) {
    throw new PluginError(
      "there is no host here: ask it inside of route, compose and the post-processor, not while the module is loaded; " +
        "in tests, call these through Harness of tenon-sdk/testing",
    );
  }
  return current;
}

export const catalog = {
  adapters: () => host().adapters(),
  /** @param {string} alias */
  has: (alias) => host().adapters().some((adapter) => adapter.alias === alias),
  /** @param {string[]} adapters */
  prefetch: (adapters) => host().prefetch(adapters),
};

export const log = {
  /** @param {string} message */
  debug: (message) => host().write("debug", String(message)),
  /** @param {string} message */
  info: (message) => host().write("info", String(message)),
  /** @param {string} message */
  warn: (message) => host().write("warn", String(message)),
  /** @param {string} message */
  error: (message) => host().write("error", String(message)),
};

export const clock = {
  elapsedMs: () => host().elapsedMs(),
  unixSeconds: () => host().unixSeconds(),
};

export const random = {
  /** @param {number} count */
  bytes: (count) => host().randomBytes(count),
  next: () => host().randomNext(),
};

export const config = {
  /** @param {string} name */
  get: (name) => host().configGet(name),
  /** @param {string} name */
  require: (name) => {
    const value = host().configGet(name);
    if (value === undefined) {
      throw new PluginError(`the function's configuration has no \`${name}\`; set it in the manifest`);
    }
    return value;
  },
  all: () => host().configAll(),
};

export const functions = {
  /** @param {string} name @param {string} text @param {{ maxTokens?: number }} [options] */
  call: (name, text, options = {}) => host().callFunction(name, { tag: "text", val: text }, options.maxTokens),
  /** @param {string} name @param {unknown} value @param {{ maxTokens?: number }} [options] */
  callJson: (name, value, options = {}) => {
    const json = JSON.stringify(value);
    if (json === undefined) throw new PluginError(`the input of \`${name}\` cannot be said in JSON`);
    return host().callFunction(name, { tag: "json", val: json }, options.maxTokens);
  },
};
