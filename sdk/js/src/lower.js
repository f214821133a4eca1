// Looks at what a plugin returned and makes the values that cross to the host: there, one of a wrong type would end the
// component without a word. Called by the component and by the harness alike. Not here: grants and limits, which are the
// host's to check.

import { PluginError } from "./errors.js";
import { Sampling } from "./values.js";

const U32_MAX = 0xffff_ffff;
const MODULES = ["qProj", "kProj", "vProj", "oProj", "gateProj", "upProj", "downProj"];

/** @typedef {Record<string, any>} Raw values in the shape of the generated bindings */

/**
 * @param {string} name
 * @param {string} wanted
 * @param {unknown} value
 * @returns {never}
 */
function wrong(name, wanted, value) {
  let said;
  if (value instanceof Promise) said = "a promise; nothing of a plugin is async";
  else {
    try {
      said = JSON.stringify(value) ?? String(value);
    } catch {
      said = String(value);
    }
  }
  throw new PluginError(`${name} must be ${wanted}; it is ${said.length <= 80 ? said : `${said.slice(0, 77)}...`}`);
}

/** @param {string} name @param {any} value @returns {string} */
export function text(name, value) {
  if (typeof value !== "string") wrong(name, "a string", value);
  if (/[\uD800-\uDFFF]/u.test(value)) {
    throw new PluginError(`${name} holds half of a surrogate pair, which no encoding can send`);
  }
  return value;
}

/** @param {string} name @param {any} value @returns {any[]} */
function list(name, value) {
  return Array.isArray(value) ? value : wrong(name, "an array", value);
}

/** @param {string} name @param {any} value @returns {string[]} */
export function texts(name, value) {
  return list(name, value).map((one) => text(name, one));
}

/** @param {string} name @param {any} value @returns {Raw} */
function object(name, value) {
  const is = typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Promise);
  return is ? value : wrong(name, "an object", value);
}

/** @param {string} name @param {any} value @returns {number} */
function number(name, value) {
  return typeof value === "number" ? value : wrong(name, "a number", value);
}

/** @param {string} name @param {any} value @returns {boolean} */
function boolean(name, value) {
  return typeof value === "boolean" ? value : wrong(name, "true or false", value);
}

/**
 * The same 32 bits with a sign: QuickJS's bindings take no larger numbers, and all read these bits as they are.
 * @param {string} name
 * @param {any} value
 * @returns {number}
 */
export function u32(name, value) {
  const fits = Number.isInteger(value) && value >= 0 && value <= U32_MAX;
  return fits ? value | 0 : wrong(name, `a whole number from 0 to ${U32_MAX}`, value);
}

/**
 * @template T
 * @param {(name: string, value: any) => T} lower
 * @returns {(name: string, value: any) => T | undefined}
 */
function maybe(lower) {
  return (name, value) => (value === undefined || value === null ? undefined : lower(name, value));
}

/** @param {string} name @param {any} value */
function pairs(name, value) {
  const entries = value instanceof Map ? [...value] : Object.entries(object(name, value));
  return entries.map(([key, one]) => ({ name: text(`a name in ${name}`, key), value: text(`${name}.${key}`, one) }));
}

/**
 * A variant: its tag and what its case holds.
 * @param {string} name
 * @param {any} value
 * @param {Record<string, ((name: string, value: any) => unknown) | null>} cases
 */
function variant(name, value, cases) {
  const tag = typeof value === "object" && value !== null ? value.tag : undefined;
  const lower = typeof tag === "string" && Object.hasOwn(cases, tag) ? cases[tag] : wrong(name, `one of ${Object.keys(cases).join(", ")}`, value);
  return lower ? { tag, val: lower(`${name}.${tag}`, value.val) } : { tag };
}

/** @param {string} name @param {any} value */
const range = (name, value) => {
  const { first, end } = object(name, value);
  return { first: u32(`${name}.first`, first), end: u32(`${name}.end`, end) };
};

/** @param {string} name @param {any} value */
const modules = (name, value) => {
  const given = object(name, value);
  for (const key of Object.keys(given)) if (!MODULES.includes(key)) wrong(name, `an object with ${MODULES.join(", ")}`, value);
  return Object.fromEntries(MODULES.map((key) => [key, given[key] === undefined ? false : boolean(`${name}.${key}`, given[key])]));
};

/** @param {string} name @param {any} value @returns {Raw[]} */
function composition(name, value) {
  return list(name, value).map((given) => {
    const entry = object(name, given);
    return {
      adapter: text(`${name}.adapter`, entry.adapter),
      weight: number(`${name}.weight`, entry.weight),
      modules: maybe(modules)(`${name}.modules`, entry.modules),
      layers: maybe(range)(`${name}.layers`, entry.layers),
      span: variant(`${name}.span`, entry.span ?? { tag: "whole" }, { whole: null, output: range, "output-from": u32 }),
    };
  });
}

/** @param {string} name @param {any} value */
const message = (name, value) => {
  const { role, content } = object(name, value);
  return { role: text(`${name}.role`, role), content: text(`${name}.content`, content) };
};

/** @param {string} name @param {any} value */
const template = (name, value) => {
  const given = object(name, value);
  return { name: text(`${name}.name`, given.name), arguments: pairs(`${name}.arguments`, given.arguments ?? {}) };
};

/** @param {string} name @param {any} value */
const rejection = (name, value) => {
  const { code, reason } = object(name, value);
  return { code: text(`${name}.code`, code), reason: text(`${name}.reason`, reason) };
};

/** What `route` may return. @param {any} value */
export function lowerDecision(value) {
  return variant("what route returns", value, { serve: null, "hand-over": text, answer: text, reject: rejection });
}

/** @param {string} name @param {any} value */
const prompt = (name, value) => variant(name, value, { text, messages: (at, given) => list(at, given).map((one) => message(at, one)), template });

/** @param {string} name @param {any} value */
const drawn = (name, value) => {
  const given = object(name, value);
  /** @param {string} key */
  const part = (key) => number(`${name}.${key}`, given[key]);
  return {
    temperature: part("temperature"),
    topK: u32(`${name}.topK`, given.topK),
    topP: part("topP"),
    minP: part("minP"),
    repetitionPenalty: part("repetitionPenalty"),
    presencePenalty: part("presencePenalty"),
    frequencyPenalty: part("frequencyPenalty"),
    seed: maybe(u32)(`${name}.seed`, given.seed),
    logprobs: maybe(u32)(`${name}.logprobs`, given.logprobs),
  };
};

/** @param {string} name @param {any} value */
const stops = (name, value) => {
  const given = object(name, value);
  return {
    strings: texts(`${name}.strings`, given.strings),
    tokenIds: list(`${name}.tokenIds`, given.tokenIds).map((id) => u32(`${name}.tokenIds`, id)),
    ignoreEos: boolean(`${name}.ignoreEos`, given.ignoreEos),
  };
};

const constraint = maybe((name, given) => variant(name, given, { "json-schema": text, regex: text, grammar: text }));
const cold = maybe((name, given) => variant(name, given, { wait: u32, base: null, fallback: composition, refuse: null }));

/** What `compose` may return. @param {any} value */
export function lowerPlan(value) {
  const plan = object("what compose returns", value);
  return {
    prompt: prompt("plan.prompt", plan.prompt),
    composition: composition("plan.composition", plan.composition),
    sampling: drawn("plan.sampling", plan.sampling),
    stop: stops("plan.stop", plan.stop),
    constraint: constraint("plan.constraint", plan.constraint),
    cold: cold("plan.cold", plan.cold),
    deadlineMs: maybe(u32)("plan.deadlineMs", plan.deadlineMs),
    tokenBudget: maybe(u32)("plan.tokenBudget", plan.tokenBudget),
    prefetch: texts("plan.prefetch", plan.prefetch),
    postProcess: boolean("plan.postProcess", plan.postProcess),
  };
}

/** What a session may be opened with. @param {any} value */
export function lowerOpening(value) {
  const opening = object("what a session is opened with", value);
  return {
    prompt: prompt("opening.prompt", opening.prompt),
    composition: composition("opening.composition", opening.composition),
    sampling: drawn("opening.sampling", opening.sampling),
    stop: stops("opening.stop", opening.stop),
    cold: cold("opening.cold", opening.cold),
  };
}

/** What a generation may have. A part of a sampling or of stop conditions stands for a whole. @param {any} value */
export function lowerBounds(value) {
  const bounds = object("the bounds", value);
  const unset = { strings: [], tokenIds: [], ignoreEos: false };
  return {
    maxTokens: maybe(u32)("maxTokens", bounds.maxTokens),
    sampling: maybe((name, given) => drawn(name, Sampling(object(name, given))))("sampling", bounds.sampling),
    stop: maybe((name, given) => stops(name, { ...unset, ...object(name, given) }))("stop", bounds.stop),
    constraint: constraint("constraint", bounds.constraint),
  };
}

/** What `run` may return. @param {any} value */
export function lowerAnswer(value) {
  const answer = object("what run returns", value);
  return {
    text: text("what run returns.text", answer.text),
    metadata: pairs("metadata", answer.metadata),
    claims: pairs("claims", answer.claims),
  };
}

/** What a chunk may be answered with. @param {any} value */
export function lowerActions(value) {
  return list("the actions", value).map((action) =>
    variant("an action", action, { pass: null, replace: text, hold: null, emit: text, stop: null, "switch-composition": composition }),
  );
}

/** What `finish` may return. @param {any} value */
export function lowerEnding(value) {
  const ending = object("what finish returns", value);
  return {
    actions: lowerActions(ending.actions),
    metadata: pairs("metadata", ending.metadata),
    claims: pairs("claims", ending.claims),
  };
}

/** @param {string} name @param {any} value @returns {Uint8Array} */
export function data(name, value) {
  if (!(value instanceof Uint8Array)) wrong(name, "a Uint8Array", value);
  return value;
}

/** @param {string} name @param {any} value @returns {number} */
export function whole(name, value) {
  if (!Number.isSafeInteger(value)) wrong(name, "a whole number below 2^53", value);
  return value;
}
