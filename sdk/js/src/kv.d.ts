/**
 * Key-value buckets that the manifest grants (`grants.kv`).
 *
 * ```ts
 * import { open } from "tenon-sdk/kv";
 * if (open("seen").increment(user) > 100) return Decision.reject("too_many", "come back tomorrow");
 * ```
 *
 * What is denied or fails is thrown as `HostError`.
 */

/** The bucket of this name. */
export function open(name: string): Bucket;

/** An open bucket; `open` makes one. */
export class Bucket {
  private constructor();
  /** The value of a key, if it has one. */
  get(key: string): Uint8Array | undefined;
  /** The same as text. Throws a `PluginError` if it is none. */
  getText(key: string): string | undefined;
  /** Gives a key a value. */
  set(key: string, value: string | Uint8Array): void;
  /** Takes the value away, if there is one. */
  delete(key: string): void;
  /** Every key, in order of their bytes. */
  keys(): string[];
  /** Adds to a number, which is 0 before; what it is then. Over 2^53 a number is no longer exact: that is thrown. */
  increment(key: string, delta?: number): number;
  /** A key's state now. */
  snapshot(key: string): Snapshot;
  /** Changes a value by what it was, again and again until nobody came between; what it is then. */
  update(key: string, change: (value: Uint8Array | undefined) => string | Uint8Array): Uint8Array;
  /** The same with text. */
  updateText(key: string, change: (value: string | undefined) => string): string;
}

/** The state of a key, to be swapped against. */
export class Snapshot {
  private constructor();
  /** The value that the key had. */
  readonly value: Uint8Array | undefined;
  /** Gives the key a value if it is still in this state. If not, nothing is done and its state is returned. Use it once. */
  swap(value: string | Uint8Array): Snapshot | undefined;
}
