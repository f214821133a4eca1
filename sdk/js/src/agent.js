// Write a plugin that drives its own generations: extend `Agent`, make it the default export. What each name means is in agent.d.ts. Not
// here: plugins that only decide (policy.js).

import { PluginError } from "./errors.js";
import { host } from "./host.js";
import { CompositionEntry, Sampling } from "./values.js";

export class Agent {
  /**
   * @param {import("./index.d.ts").Request} _request
   * @returns {import("./agent.d.ts").Answer}
   */
  run(_request) {
    throw new TypeError("an agent has a method run");
  }
}

/**
 * @param {string} [text]
 * @param {Partial<import("./agent.d.ts").Answer>} [more]
 * @returns {import("./agent.d.ts").Answer}
 */
export const Answer = (text = "", more = {}) => ({ metadata: {}, claims: {}, ...more, text });

export class Opening {
  /**
   * @param {import("./index.d.ts").Prompt} prompt
   * @param {import("./agent.d.ts").OpeningOptions} [options]
   */
  constructor(prompt, options = {}) {
    this.prompt = prompt;
    this.composition = options.composition ?? [];
    this.sampling = Sampling(options.sampling);
    this.stop = { strings: [], tokenIds: [], ignoreEos: false, ...options.stop };
    this.cold = options.cold;
  }

  /** @param {string} adapter @param {number} weight */
  adapter(adapter, weight) {
    return this.entry(CompositionEntry(adapter, weight));
  }

  /** @param {import("./index.d.ts").CompositionEntry} entry */
  entry(entry) {
    this.composition.push(entry);
    return this;
  }

  /** @param {string} text */
  stopAt(text) {
    this.stop.strings.push(text);
    return this;
  }
}

/** @param {import("./agent.d.ts").Generated} generated */
export function meanLogprob({ tokens }) {
  let sum = 0;
  for (const { logprob } of tokens) {
    if (logprob === undefined) throw new PluginError("no log-probabilities: set `logprobs` in the sampling");
    sum += logprob;
  }
  return sum / Math.max(tokens.length, 1);
}

/** What no engine has before it has explicit resource management; compilers of `using` take the same. */
const DISPOSE = /** @type {typeof Symbol.dispose} */ (Symbol.dispose ?? Symbol.for("Symbol.dispose"));

export class Session {
  /** @type {import("./host.js").HostSession | undefined} */
  #held;

  /** @param {import("./host.js").HostSession} held */
  constructor(held) {
    this.#held = held;
  }

  /** @param {import("./agent.d.ts").Opening} opening */
  static open(opening) {
    return new Session(lent().open(opening));
  }

  tokens() {
    return this.#session().tokens();
  }

  /** @param {string} text */
  append(text) {
    return this.#session().append(text);
  }

  /** @param {import("./agent.d.ts").Bounds} [bounds] */
  generate(bounds = {}) {
    return this.#session().generate(bounds);
  }

  /** @param {import("./agent.d.ts").Bounds} [bounds] */
  stream(bounds = {}) {
    const session = this.#session();
    session.start(bounds);
    return this.#chunks(session);
  }

  /**
   * @param {import("./host.js").HostSession} session
   * @returns {Generator<import("./index.d.ts").Chunk, import("./index.d.ts").Usage, undefined>}
   */
  *#chunks(session) {
    let hasEnded = false;
    try {
      for (;;) {
        // What fails has ended, too.
        hasEnded = true;
        const step = this.#session().next();
        if (step.tag === "done") return step.val;
        hasEnded = false;
        yield step.val;
      }
    } finally {
      if (!hasEnded && this.#held !== undefined) session.stop();
    }
  }

  stop() {
    this.#session().stop();
  }

  fork() {
    return new Session(this.#session().fork());
  }

  close() {
    const held = this.#held;
    this.#held = undefined;
    held?.close();
  }

  [DISPOSE]() {
    this.close();
  }

  #session() {
    if (this.#held === undefined) throw new PluginError("this session is closed");
    return this.#held;
  }
}

/** @param {string} text */
export function write(text) {
  lent().write(text);
}

function lent() {
  const { agent } = host();
  if (agent === undefined) throw new PluginError("only an agent has sessions and writes: `export default class extends Agent { … }`");
  return agent;
}
