// Sessions as the harness has them: what is generated was put in by the test. Not here: limits, but those that the test says.

import { HostError } from "./errors.js";
import { lowerBounds, lowerOpening, text } from "./lower.js";

/** @typedef {{ text: string, logprob: number } | HostError} Said */

/** @param {import("./index.d.ts").Prompt} prompt */
function textOf(prompt) {
  if (prompt.tag === "text") return prompt.val;
  return prompt.tag === "messages" ? prompt.val.map((message) => message.content).join("") : prompt.val.name;
}

/** What generations say, in order; what came of it. */
export class Engine {
  /** @type {string[]} */
  prompts = [];
  /** @type {string[]} */
  written = [];
  sessions = 0;
  #said;
  #granted;

  /** @param {Said[]} said @param {string[]} granted */
  constructor(said, granted) {
    this.#said = [...said];
    this.#granted = granted;
  }

  /** @param {import("./agent.d.ts").Opening} opening @returns {import("./host.js").HostSession} */
  open(opening) {
    for (const { adapter } of lowerOpening(opening).composition) {
      if (!this.#granted.includes(adapter)) throw new HostError("denied", `the adapter \`${adapter}\`: the manifest does not grant it`);
    }
    return new FakeSession(this, textOf(opening.prompt), opening.sampling.logprobs !== undefined);
  }

  /** @param {string} said */
  write(said) {
    this.written.push(text("what is written", said));
  }

  /** What the next generation says. @param {string} held */
  next(held) {
    this.prompts.push(held);
    const said = this.#said.shift() ?? new HostError("failed", "the test has no more to say; see `Harness.says`");
    if (said instanceof HostError) throw said;
    return said;
  }
}

/** Holds text; each character counts as a token, and each word is a chunk. */
class FakeSession {
  /** @type {import("./host.js").HostStep[]} */
  #underWay = [];
  #engine;
  #held;
  #logprobs;

  /** @param {Engine} engine @param {string} held @param {boolean} logprobs whether the session's sampling asks for them */
  constructor(engine, held, logprobs) {
    this.#engine = engine;
    this.#held = held;
    this.#logprobs = logprobs;
    engine.sessions += 1;
  }

  tokens() {
    return [...this.#held].length;
  }

  /** @param {string} said */
  append(said) {
    this.#idle();
    this.#held += text("a text", said);
    return this.tokens();
  }

  /** @param {import("./agent.d.ts").Bounds} bounds */
  generate(bounds) {
    this.start(bounds);
    /** @type {import("./agent.d.ts").Generated} */
    const made = { text: "", tokens: [], usage: { promptTokens: 0, completionTokens: 0, finish: "stop" } };
    for (;;) {
      const step = this.next();
      if (step.tag === "done") return { ...made, usage: step.val };
      made.text += step.val.text;
      made.tokens.push(...step.val.tokens);
    }
  }

  /** @param {import("./agent.d.ts").Bounds} bounds */
  start(bounds) {
    const { maxTokens } = lowerBounds(bounds);
    this.#idle();
    const said = this.#engine.next(this.#held);
    const characters = [...said.text].slice(0, maxTokens === undefined ? undefined : maxTokens >>> 0);
    const asked = bounds.sampling === undefined ? this.#logprobs : bounds.sampling.logprobs !== undefined;
    const logprob = asked ? said.logprob : undefined;
    const tokens = (/** @type {string} */ word) => [...word].map((one) => ({ id: one.codePointAt(0) ?? 0, logprob }));
    const given = characters.join("");
    const words = given.match(/\S+\s*|\s+/g) ?? [];
    /** @type {import("./index.d.ts").FinishReason} */
    const finish = given === said.text ? "stop" : "length";
    this.#underWay = words.map((word) => ({ tag: "text", val: { text: word, tokens: tokens(word) } }));
    this.#underWay.push({ tag: "done", val: { promptTokens: this.tokens(), completionTokens: characters.length, finish } });
  }

  next() {
    const step = this.#underWay.shift();
    if (step === undefined) throw new HostError("failed", "nothing is being generated in this session; `start` it first");
    if (step.tag === "text") this.#held += step.val.text;
    return step;
  }

  stop() {
    this.#underWay = [];
  }

  /** @returns {import("./host.js").HostSession} */
  fork() {
    this.#idle();
    return new FakeSession(this.#engine, this.#held, this.#logprobs);
  }

  close() {
    this.#engine.sessions -= 1;
  }

  #idle() {
    if (this.#underWay.length > 0) throw new HostError("failed", "this session generates; read it to its end, or `stop` it, first");
  }
}
