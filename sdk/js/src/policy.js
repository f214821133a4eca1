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
