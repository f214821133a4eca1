// Runs a policy or an agent natively, with a host that the test describes: tests need no WebAssembly. What each name means is in
// testing.d.ts.

import { HostError } from "./errors.js";
import { agentOf, policyOf } from "./exported.js";
import { withHost } from "./host.js";
import { lowerActions, lowerAnswer, lowerDecision, lowerEnding, lowerPlan, text, texts, u32 } from "./lower.js";
import { Request } from "./request.js";
import { Engine } from "./testing-agents.js";

const RANDOM_BYTES_MAX = 65_536;
const ADAPTER_RANK = 8;
const EPOCH_SECONDS = 1_767_225_600;

/**
 * @param {string} [text]
 * @param {Partial<import("./index.d.ts").RequestFields>} [more]
 */
export function request(text = "", more = {}) {
  return new Request({ id: "test", function: "test", ...more, text });
}

/** What one call did. */
function nothing() {
  /** @type {{ lines: string[], prefetched: string[], calls: [string, string][], toolCalls: [string, string, string][], requests: import("./testing.d.ts").SentRequest[] }} */
  const made = { lines: [], prefetched: [], calls: [], toolCalls: [], requests: [] };
  return made;
}

/** @param {string | Uint8Array} value @returns {Uint8Array} */
const bytesOf = (value) => (typeof value === "string" ? new Uint8Array(Buffer.from(value)) : value);

/** What a bucket of the harness holds: every write makes another version of its key, also of the same value. */
class Contents {
  /** @type {Map<string, { version: number, value: Uint8Array }>} */
  #kept = new Map();
  #last = 0;

  /** @param {string} key */
  get(key) {
    return this.#kept.get(key)?.value;
  }

  /** @param {string} key @param {Uint8Array} value */
  set(key, value) {
    this.#last += 1;
    this.#kept.set(key, { version: this.#last, value });
  }

  /** @param {string} key */
  delete(key) {
    this.#kept.delete(key);
  }

  /** In order of their bytes. */
  keys() {
    return [...this.#kept.keys()].sort((one, other) => Buffer.compare(Buffer.from(one), Buffer.from(other)));
  }

  /** @param {string} key @param {number} delta */
  increment(key, delta) {
    const before = this.get(key);
    const said = before === undefined ? "0" : Buffer.from(before).toString();
    if (!/^-?\d+$/.test(said)) throw new HostError("failed", "the value is no number");
    const sum = Number(said) + delta;
    this.set(key, Buffer.from(String(sum)));
    return sum;
  }

  /** @param {string} key @returns {import("./host.js").HostSnapshot} */
  snapshot(key) {
    const before = this.#kept.get(key);
    return {
      value: before?.value,
      swap: (value) => {
        if (this.#kept.get(key)?.version !== before?.version) return this.snapshot(key);
        this.set(key, value);
        return undefined;
      },
    };
  }
}

export class Harness {
  /** @type {import("./index.d.ts").Adapter[]} */
  #adapters = [];
  /** @type {Map<string, string>} */
  #config = new Map();
  /** @type {Map<string, string>} */
  #replies = new Map();
  #secrets = new Map();
  /** @type {[string, string, string][]} */
  #tools = [];
  /** @type {Map<string, Contents>} */
  #buckets = new Map();
  /** @type {Map<string, import("./host.js").HostAnswer>} */
  #answers = new Map();
  /** @type {import("./testing-agents.js").Said[]} */
  #said = [];
  #seed = 0;
  #elapsedMs = 0;
  #last = nothing();
  #engine = new Engine([], []);

  /** @param {string} alias */
  adapter(alias) {
    const digest = (this.#adapters.length + 1).toString(16).padStart(64, "0");
    this.#adapters.push({ alias, digest, rank: ADAPTER_RANK, residency: "memory" });
    return this;
  }

  /** @param {string} name @param {string} value */
  config(name, value) {
    this.#config.set(name, value);
    return this;
  }

  /** @param {string} name @param {string} answer */
  reply(name, answer) {
    this.#replies.set(name, answer);
    return this;
  }

  /** @param {string} server @param {string} name @param {string} answer */
  tool(server, name, answer) {
    this.#tools.push([server, name, answer]);
    return this;
  }

  /** @param {string} name @param {string} value */
  secret(name, value) {
    this.#secrets.set(name, value);
    return this;
  }

  /** @param {string} name @param {Record<string, string | Uint8Array>} [values] */
  bucket(name, values = {}) {
    const contents = new Contents();
    for (const [key, value] of Object.entries(values)) contents.set(key, bytesOf(value));
    this.#buckets.set(name, contents);
    return this;
  }

  /**
   * @param {string} url
   * @param {{ status?: number, headers?: Record<string, string>, body?: string | Uint8Array }} [answer]
   */
  answer(url, { status = 200, headers = {}, body = "" } = {}) {
    this.#answers.set(url, { status, headers: Object.entries(headers), body: bytesOf(body) });
    return this;
  }

  /** @param {string} said @param {number} [logprob] */
  says(said, logprob = -1) {
    this.#said.push({ text: said, logprob });
    return this;
  }

  /** @param {import("./index.d.ts").HostError["kind"]} kind @param {string} what */
  refuses(kind, what) {
    this.#said.push(new HostError(kind, what));
    return this;
  }

  /** @param {number} seed */
  seed(seed) {
    this.#seed = seed;
    return this;
  }

  /** @param {number} elapsedMs */
  elapsedMs(elapsedMs) {
    this.#elapsedMs = elapsedMs;
    return this;
  }

  /** @param {unknown} policy @param {Request} request @returns {import("./index.d.ts").Decision} */
  route(policy, request) {
    const made = policyOf(policy);
    const decision = this.#with(() => (made.route ? made.route(request) : { tag: /** @type {const} */ ("serve") }));
    lowerDecision(decision);
    return decision;
  }

  /** @param {unknown} policy @param {Request} request */
  compose(policy, request) {
    const plan = this.#with(() => policyOf(policy).compose(request));
    lowerPlan(plan);
    return plan;
  }

  /**
   * @param {unknown} policy
   * @param {Request} request
   * @param {(string | import("./index.d.ts").Chunk)[]} chunks
   */
  postProcess(policy, request, chunks) {
    return this.#with(() => {
      const processor = policyOf(policy).postProcessor(request);
      const output = new Output();
      /** @type {import("./index.d.ts").FinishReason} */
      let finish = "stop";
      for (const given of chunks) {
        const chunk = typeof given === "string" ? { text: given, tokens: [] } : given;
        output.apply(chunk.text, processor.chunk(chunk));
        if (output.stopped) {
          finish = "stopped-by-plugin";
          break;
        }
      }
      const ending = processor.finish({ promptTokens: 1, completionTokens: chunks.length, finish });
      lowerEnding(ending);
      output.apply("", ending.actions);
      return { text: output.sent, ending };
    });
  }

  /** @param {unknown} agent @param {Request} request */
  run(agent, request) {
    const answer = this.#with(() => agentOf(agent).run(request));
    lowerAnswer(answer);
    return { text: this.#engine.written.join("") + answer.text, answer };
  }

  prompts() {
    return [...this.#engine.prompts];
  }

  written() {
    return [...this.#engine.written];
  }

  sessions() {
    return this.#engine.sessions;
  }

  lines() {
    return [...this.#last.lines];
  }

  prefetched() {
    return [...this.#last.prefetched];
  }

  calls() {
    return [...this.#last.calls];
  }

  toolCalls() {
    return [...this.#last.toolCalls];
  }

  /** @param {string} bucket */
  values(bucket) {
    const contents = this.#buckets.get(bucket) ?? new Contents();
    return new Map(contents.keys().map((key) => [key, Buffer.from(contents.get(key) ?? []).toString()]));
  }

  requests() {
    return [...this.#last.requests];
  }

  /**
   * @template T
   * @param {() => T} call
   * @returns {T}
   */
  #with(call) {
    const last = nothing();
    this.#last = last;
    const replies = new Map(this.#replies);
    const granted = [...this.#tools];
    const adapters = [...this.#adapters];
    const engine = new Engine(this.#said, adapters.map((adapter) => adapter.alias));
    this.#engine = engine;
    const config = new Map(this.#config);
    const [secrets, buckets, answers] = [new Map(this.#secrets), this.#buckets, new Map(this.#answers)];
    const elapsedMs = Math.floor(this.#elapsedMs / 10) * 10;
    let state = this.#seed >>> 0;
    let bytesLeft = RANDOM_BYTES_MAX;
    const next = () => {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
      return state;
    };
    /** @type {import("./host.js").Host} */
    const host = {
      adapters: () => adapters,
      prefetch: (wanted) => void last.prefetched.push(...texts("prefetch", wanted)),
      write: (_level, message) => void last.lines.push(message),
      elapsedMs: () => elapsedMs,
      unixSeconds: () => EPOCH_SECONDS + elapsedMs / 1000,
      randomBytes: (count) => {
        if (count > bytesLeft) throw new HostError("limit", "random_bytes_max");
        bytesLeft -= count;
        return Uint8Array.from({ length: count }, () => next() >>> 24);
      },
      randomNext: next,
      configGet: (name) => config.get(name),
      configAll: () => config,
      callFunction: (name, input) => {
        const said = replies.get(name);
        if (said === undefined) throw new HostError("denied", `the function \`${name}\`: the manifest's grants.calls does not name it`);
        last.calls.push([name, text("what a function is asked", input.val)]);
        const usage = { promptTokens: 1, completionTokens: 1, finish: /** @type {const} */ ("stop") };
        return { text: said, function: name, version: 1, usage, metadata: new Map(), receipt: "" };
      },
      toolList: (server) => {
        const found = granted.filter(([of]) => of === text("the name of a server", server));
        if (found.length === 0) throw new HostError("denied", `the tool server \`${server}\`; see the manifest's grants.tools`);
        return found.map(([, name]) => ({ name, description: "", inputSchema: '{"type":"object"}' }));
      },
      toolCall: (server, tool, json) => {
        const found = granted.find(([of, name]) => of === server && name === tool);
        if (found === undefined) throw new HostError("denied", `the tool \`${tool}\` of \`${server}\`; see the manifest's grants.tools`);
        last.toolCalls.push([server, tool, json]);
        return { text: found[2], structured: undefined, isError: false };
      },
      secret: (name) => {
        const value = secrets.get(text("the name of a secret", name));
        if (value === undefined) throw new HostError("denied", `the secret \`${name}\`; see the manifest's grants.secrets`);
        return value;
      },
      encode: (said) => [...Buffer.from(text("a text", said))],
      decode: (tokens) => Buffer.from(tokens.map((token) => u32("a token", token) & 0xff)).toString(),
      count: (said) => Buffer.byteLength(text("a text", said)),
      bucket: (name) => {
        const contents = buckets.get(name);
        if (contents === undefined) throw new HostError("denied", `the bucket \`${name}\`; see the manifest's grants.kv`);
        return contents;
      },
      http: (method, url, headers, body) => {
        last.requests.push({ method, url, headers: new Map(headers), body: Buffer.from(body).toString() });
        const known = [...answers.keys()].filter((start) => url.startsWith(start)).sort((one, other) => other.length - one.length);
        const found = answers.get(known[0] ?? "");
        if (found === undefined) throw new HostError("denied", `${method} ${url}; see the manifest's grants.http`);
        return found;
      },
      agent: engine,
    };
    return withHost(host, call);
  }
}

/** What the host does with actions (see `wit/types.wit`): what neither pass, replace nor hold settled is passed. */
class Output {
  held = "";
  sent = "";
  stopped = false;

  /** @param {string} text @param {import("./index.d.ts").Action[]} actions */
  apply(text, actions) {
    lowerActions(actions);
    /** @type {string | undefined} */
    let chunk = text;
    for (const action of actions) {
      switch (action.tag) {
        case "pass":
          this.sent += this.held + (chunk ?? "");
          this.held = "";
          chunk = undefined;
          break;
        case "replace":
          this.sent += action.val;
          this.held = "";
          chunk = undefined;
          break;
        case "hold":
          this.held += chunk ?? "";
          chunk = undefined;
          break;
        case "emit":
          this.sent += action.val;
          break;
        case "stop":
          this.stopped = true;
          break;
        case "switch-composition":
          break;
      }
    }
    if (chunk !== undefined) {
      this.sent += this.held + chunk;
      this.held = "";
    }
  }
}
