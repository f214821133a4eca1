// Runs a policy natively, with a host that the test describes: tests need no WebAssembly. What each name means is in
// testing.d.ts.

import { HostError } from "./errors.js";
import { withHost } from "./host.js";
import { lowerActions, lowerDecision, lowerEnding, lowerPlan, text, texts } from "./lower.js";
import { policyOf } from "./policy.js";
import { Request } from "./request.js";

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

/** What a call has done before it begins. */
function nothing() {
  return {
    lines: /** @type {string[]} */ ([]),
    prefetched: /** @type {string[]} */ ([]),
    calls: /** @type {[string, string][]} */ ([]),
  };
}

export class Harness {
  /** @type {import("./index.d.ts").Adapter[]} */
  #adapters = [];
  /** @type {Map<string, string>} */
  #config = new Map();
  /** @type {Map<string, string>} */
  #replies = new Map();
  #seed = 0;
  #elapsedMs = 0;
  #last = nothing();

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

  lines() {
    return [...this.#last.lines];
  }

  prefetched() {
    return [...this.#last.prefetched];
  }

  calls() {
    return [...this.#last.calls];
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
    const adapters = [...this.#adapters];
    const config = new Map(this.#config);
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
