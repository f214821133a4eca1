// Key-value buckets that the manifest grants. What each name means is in kv.d.ts. Not here: the limits of buckets, which the host has.

import { PluginError } from "./errors.js";
import { host } from "./host.js";
import { data, text, whole } from "./lower.js";
import { bytesOf, decodeText } from "./text.js";

const UPDATE_ATTEMPTS_MAX = 16;

export class Snapshot {
  #snapshot;

  /** @param {import("./host.js").HostSnapshot} snapshot */
  constructor(snapshot) {
    this.#snapshot = snapshot;
    this.value = snapshot.value;
  }

  /** @param {string | Uint8Array} value */
  swap(value) {
    const newer = this.#snapshot.swap(data("the value of a key", bytesOf(value)));
    return newer === undefined ? undefined : new Snapshot(newer);
  }
}

export class Bucket {
  #bucket;

  /** @param {import("./host.js").HostBucket} bucket */
  constructor(bucket) {
    this.#bucket = bucket;
  }

  /** @param {string} key */
  get(key) {
    return this.#bucket.get(text("a key", key));
  }

  /** @param {string} key */
  getText(key) {
    const value = this.get(key);
    return value === undefined ? undefined : decodeText(`the value of \`${key}\``, value);
  }

  /** @param {string} key @param {string | Uint8Array} value */
  set(key, value) {
    this.#bucket.set(text("a key", key), data("the value of a key", bytesOf(value)));
  }

  /** @param {string} key */
  delete(key) {
    this.#bucket.delete(text("a key", key));
  }

  keys() {
    return this.#bucket.keys();
  }

  /** @param {string} key @param {number} [delta] */
  increment(key, delta = 1) {
    return this.#bucket.increment(text("a key", key), whole("delta", delta));
  }

  /** @param {string} key */
  snapshot(key) {
    return new Snapshot(this.#bucket.snapshot(text("a key", key)));
  }

  /** @param {string} key @param {(value: Uint8Array | undefined) => string | Uint8Array} change */
  update(key, change) {
    let snapshot = this.snapshot(key);
    for (let attempt = 0; attempt < UPDATE_ATTEMPTS_MAX; attempt += 1) {
      const value = bytesOf(change(snapshot.value));
      const newer = snapshot.swap(value);
      if (newer === undefined) return value;
      snapshot = newer;
    }
    throw new PluginError(`others change \`${key}\` all the time`);
  }

  /** @param {string} key @param {(value: string | undefined) => string} change */
  updateText(key, change) {
    const said = (/** @type {Uint8Array} */ value) => decodeText(`the value of \`${key}\``, value);
    return said(this.update(key, (value) => change(value === undefined ? undefined : said(value))));
  }
}

/** @param {string} name */
export function open(name) {
  const { bucket } = host();
  if (bucket === undefined) throw new PluginError("this component was built without tenon-sdk/kv: build it anew");
  return new Bucket(bucket(text("the name of a bucket", name)));
}
