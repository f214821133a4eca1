// Key-value buckets behind the component's imports, which are the standard's own package. Loaded inside of a component only, and
// only if the plugin imports `tenon-sdk/kv`. Not here: anything that a plugin's author calls.

import * as atomics from "wasi:keyvalue/atomics@0.2.0-draft2";
import * as store from "wasi:keyvalue/store@0.2.0-draft2";

import { HostError, PluginError } from "./errors.js";

/**
 * The build says whether 64 bits are a `bigint` to this engine: the contract's own interfaces have none, the standard's do.
 * @type {boolean}
 */
const hasBigInt = TENON_BIGINT;

/** @param {string} what @param {any} error @returns {never} */
function refused(what, error) {
  if (error?.tag === "access-denied") throw new HostError("denied", `${what}; see the manifest's grants.kv`);
  throw new HostError("failed", `${what}: ${error?.tag === "no-such-store" ? "there is none" : error?.val}`);
}

/**
 * @template T
 * @param {string} what
 * @param {() => T} call
 * @returns {T}
 */
function stored(what, call) {
  try {
    return call();
  } catch (error) {
    const payload = /** @type {any} */ (error)?.payload;
    if (typeof payload?.tag !== "string") throw error;
    refused(what, payload);
  }
}

/** @param {any} cas @param {string} what @returns {import("./host.js").HostSnapshot} */
function snapshotOf(cas, what) {
  return {
    value: stored(what, () => cas.current()) ?? undefined,
    swap: (value) => {
      try {
        atomics.swap(cas, value);
        return undefined;
      } catch (error) {
        const payload = /** @type {any} */ (error)?.payload;
        if (payload?.tag === "cas-failed") return snapshotOf(payload.val, what);
        if (payload?.tag === "store-error") refused(what, payload.val);
        throw error;
      }
    },
  };
}

/** @param {string} name @returns {import("./host.js").HostBucket} */
export function bucket(name) {
  const what = `the bucket \`${name}\``;
  const opened = stored(what, () => store.open(name));
  return {
    get: (key) => stored(what, () => opened.get(key)) ?? undefined,
    set: (key, value) => stored(what, () => opened.set(key, value)),
    delete: (key) => stored(what, () => opened.delete(key)),
    keys: () => {
      /** @type {string[]} */
      const found = [];
      /** @type {string | undefined} */
      let cursor;
      do {
        const page = stored(what, () => opened.listKeys(cursor));
        found.push(...page.keys);
        cursor = page.cursor ?? undefined;
      } while (cursor !== undefined);
      return found;
    },
    increment: (key, delta) => {
      const sum = Number(stored(what, () => atomics.increment(opened, key, hasBigInt ? BigInt(delta) : delta)));
      if (!Number.isSafeInteger(sum)) throw new PluginError(`${what}: the number of \`${key}\` is over 2^53`);
      return sum;
    },
    snapshot: (key) => snapshotOf(stored(what, () => atomics.Cas.new(opened, key)), what),
  };
}
