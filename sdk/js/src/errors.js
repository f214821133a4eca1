// What a plugin throws, and what the host refuses.

export class PluginError extends Error {
  /** @param {string} message */
  constructor(message) {
    super(message);
    this.name = "PluginError";
  }
}

export class HostError extends PluginError {
  /**
   * @param {import("./index.d.ts").HostError["kind"]} kind
   * @param {string} what
   */
  constructor(kind, what) {
    super(kind === "limit" ? `over the limit ${what}` : `${kind}: ${what}`);
    this.name = "HostError";
    this.kind = kind;
    this.what = what;
  }
}
