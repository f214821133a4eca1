// What a plugin implements.

import { Action, Decision, Ending } from "./values.js";

/** @typedef {import("./index.d.ts").Request} Request */

export class Policy {
  /** @param {Request} _request */
  route(_request) {
    return Decision.serve();
  }

  /**
   * @param {Request} _request
   * @returns {import("./index.d.ts").Plan}
   */
  compose(_request) {
    throw new TypeError("a policy has a method compose");
  }

  /**
   * @param {Request} _request
   * @returns {import("./index.d.ts").PostProcessor}
   */
  postProcessor(_request) {
    return new PassThrough();
  }
}

export class PostProcessor {
  /**
   * @param {import("./index.d.ts").Chunk} _chunk
   * @returns {import("./index.d.ts").Action[]}
   */
  chunk(_chunk) {
    throw new TypeError("a post-processor has a method chunk");
  }

  /** @param {import("./index.d.ts").Usage} _usage */
  finish(_usage) {
    return Ending();
  }
}

export class PassThrough extends PostProcessor {
  /** @param {import("./index.d.ts").Chunk} _chunk */
  chunk(_chunk) {
    return [Action.pass()];
  }
}

/**
 * The policy that a module exports: an object, or a class that is made one without arguments.
 * @param {unknown} exported
 * @returns {import("./index.d.ts").Policy}
 */
export function policyOf(exported) {
  const policy = typeof exported === "function" ? Reflect.construct(exported, []) : exported;
  if (typeof policy !== "object" || policy === null || typeof policy.compose !== "function") {
    throw new TypeError("the module's default export must be a policy: `export default class extends Policy { … }`");
  }
  return policy;
}
