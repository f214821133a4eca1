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
 * @property {(server: string) => import("./index.d.ts").Tool[]} toolList
 * @property {(server: string, tool: string, json: string) => import("./index.d.ts").ToolOutcome} toolCall
 * @property {(name: string) => string} secret
 * @property {(text: string) => number[]} encode
 * @property {(tokens: number[]) => string} decode
 * @property {(text: string) => number} count
 * @property {((name: string) => HostBucket) | undefined} [bucket]
 * @property {((method: string, url: string, headers: [string, string][], body: Uint8Array) => HostAnswer) | undefined} [http]
 * @property {{ open: (opening: import("./agent.d.ts").Opening) => HostSession, write: (text: string) => void } | undefined} [agent]
 */

/**
 * A session of an agent.
 * @typedef {object} HostSession
 * @property {() => number} tokens
 * @property {(text: string) => number} append
 * @property {(bounds: import("./agent.d.ts").Bounds) => import("./agent.d.ts").Generated} generate
 * @property {(bounds: import("./agent.d.ts").Bounds) => void} start
 * @property {() => HostStep} next
 * @property {() => void} stop
 * @property {() => HostSession} fork
 * @property {() => void} close
 */

/** @typedef {{ tag: "text", val: import("./index.d.ts").Chunk } | { tag: "done", val: import("./index.d.ts").Usage }} HostStep */

/**
 * An open bucket.
 * @typedef {object} HostBucket
 * @property {(key: string) => Uint8Array | undefined} get
 * @property {(key: string, value: Uint8Array) => void} set
 * @property {(key: string) => void} delete
 * @property {() => string[]} keys
 * @property {(key: string, delta: number) => number} increment
 * @property {(key: string) => HostSnapshot} snapshot
 */

/**
 * The state of a key. A swap that came too late returns the newer state.
 * @typedef {object} HostSnapshot
 * @property {Uint8Array | undefined} value
 * @property {(value: Uint8Array) => HostSnapshot | undefined} swap
 */

/** @typedef {{ status: number, headers: [string, string][], body: Uint8Array }} HostAnswer */

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
export function host() {
  if (current === undefined) {
    throw new PluginError(
      "there is no host here: ask it inside of route, compose, the post-processor and run, not while the module is loaded; " +
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

export const tools = {
  /** @param {string} server */
  list: (server) => host().toolList(server),
  /** @param {string} server @param {string} tool @param {unknown} [value] */
  call: (server, tool, value = {}) => {
    const json = JSON.stringify(value);
    if (json === undefined) throw new PluginError(`the arguments of \`${tool}\` cannot be said in JSON`);
    return host().toolCall(server, tool, json);
  },
};

export const secrets = {
  /** @param {string} name */
  get: (name) => host().secret(name),
};

export const tokenizer = {
  /** @param {string} text */
  encode: (text) => host().encode(text),
  /** @param {number[]} tokens */
  decode: (tokens) => host().decode(tokens),
  /** @param {string} text */
  count: (text) => host().count(text),
};
