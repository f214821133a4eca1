// Makers of the contract's values, which are plain objects: `{ tag, val }` where there are several sorts. Not here: what checks
// them, which is lower.js.

/**
 * @param {string} role
 * @param {string} content
 */
export const Message = (role, content) => ({ role, content });

export const Prompt = {
  /** @param {string} text @returns {import("./index.d.ts").Prompt} */
  text: (text) => ({ tag: "text", val: text }),
  /** @param {import("./index.d.ts").Message[]} messages @returns {import("./index.d.ts").Prompt} */
  messages: (messages) => ({ tag: "messages", val: messages }),
  /** @param {string} name @param {Record<string, string>} [args] @returns {import("./index.d.ts").Prompt} */
  template: (name, args = {}) => ({ tag: "template", val: { name, arguments: args } }),
  /** @param {string} system @param {string} user @returns {import("./index.d.ts").Prompt} */
  chat: (system, user) => ({ tag: "messages", val: [Message("system", system), Message("user", user)] }),
};

export const Decision = {
  /** @returns {import("./index.d.ts").Decision} */
  serve: () => ({ tag: "serve" }),
  /** @param {string} name @returns {import("./index.d.ts").Decision} */
  handOver: (name) => ({ tag: "hand-over", val: name }),
  /** @param {string} text @returns {import("./index.d.ts").Decision} */
  answer: (text) => ({ tag: "answer", val: text }),
  /** @param {string} code @param {string} reason @returns {import("./index.d.ts").Decision} */
  reject: (code, reason) => ({ tag: "reject", val: { code, reason } }),
};

export const Span = {
  /** @returns {import("./index.d.ts").Span} */
  whole: () => ({ tag: "whole" }),
  /** @param {number} first @param {number} end @returns {import("./index.d.ts").Span} */
  output: (first, end) => ({ tag: "output", val: { first, end } }),
  /** @param {number} first @returns {import("./index.d.ts").Span} */
  outputFrom: (first) => ({ tag: "output-from", val: first }),
};

/**
 * @param {string} adapter
 * @param {number} weight
 * @param {Partial<import("./index.d.ts").CompositionEntry>} [more]
 * @returns {import("./index.d.ts").CompositionEntry}
 */
export const CompositionEntry = (adapter, weight, more = {}) => ({ span: Span.whole(), ...more, adapter, weight });

export const Constraint = {
  /** @param {string} schema @returns {import("./index.d.ts").Constraint} */
  jsonSchema: (schema) => ({ tag: "json-schema", val: schema }),
  /** @param {string} regex @returns {import("./index.d.ts").Constraint} */
  regex: (regex) => ({ tag: "regex", val: regex }),
  /** @param {string} grammar @returns {import("./index.d.ts").Constraint} */
  grammar: (grammar) => ({ tag: "grammar", val: grammar }),
};

export const ColdPolicy = {
  /** @param {number} waitMs @returns {import("./index.d.ts").ColdPolicy} */
  wait: (waitMs) => ({ tag: "wait", val: waitMs }),
  /** @returns {import("./index.d.ts").ColdPolicy} */
  base: () => ({ tag: "base" }),
  /** @param {import("./index.d.ts").CompositionEntry[]} composition @returns {import("./index.d.ts").ColdPolicy} */
  fallback: (composition) => ({ tag: "fallback", val: composition }),
  /** @returns {import("./index.d.ts").ColdPolicy} */
  refuse: () => ({ tag: "refuse" }),
};

export const Action = {
  /** @returns {import("./index.d.ts").Action} */
  pass: () => ({ tag: "pass" }),
  /** @param {string} text @returns {import("./index.d.ts").Action} */
  replace: (text) => ({ tag: "replace", val: text }),
  /** @returns {import("./index.d.ts").Action} */
  hold: () => ({ tag: "hold" }),
  /** @param {string} text @returns {import("./index.d.ts").Action} */
  emit: (text) => ({ tag: "emit", val: text }),
  /** @returns {import("./index.d.ts").Action} */
  stop: () => ({ tag: "stop" }),
  /** @param {import("./index.d.ts").CompositionEntry[]} composition @returns {import("./index.d.ts").Action} */
  switchComposition: (composition) => ({ tag: "switch-composition", val: composition }),
};

/**
 * @param {Partial<import("./index.d.ts").Ending>} [parts]
 * @returns {import("./index.d.ts").Ending}
 */
export const Ending = (parts = {}) => ({ actions: [Action.pass()], metadata: {}, claims: {}, ...parts });

/**
 * @param {Partial<import("./index.d.ts").Sampling>} [parts]
 * @returns {import("./index.d.ts").Sampling}
 */
export const Sampling = (parts = {}) => ({
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  ...parts,
});

export class Plan {
  /**
   * @param {import("./index.d.ts").Prompt} prompt
   * @param {import("./index.d.ts").PlanOptions} [options]
   */
  constructor(prompt, options = {}) {
    this.prompt = prompt;
    this.composition = options.composition ?? [];
    this.sampling = Sampling(options.sampling);
    this.stop = { strings: [], tokenIds: [], ignoreEos: false, ...options.stop };
    this.constraint = options.constraint;
    this.cold = options.cold;
    this.deadlineMs = options.deadlineMs;
    this.tokenBudget = options.tokenBudget;
    this.prefetch = options.prefetch ?? [];
    this.postProcess = options.postProcess ?? false;
  }

  /**
   * @param {string} adapter
   * @param {number} weight
   */
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

  postProcessed() {
    this.postProcess = true;
    return this;
  }
}
