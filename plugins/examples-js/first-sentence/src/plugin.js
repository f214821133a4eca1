// Shows post-processing: the answer is held back until its first sentence is complete; then that is sent, in one piece, and the
// generation ends. In plain JavaScript.

import { Action, Ending, Plan, Policy, PostProcessor } from "tenon-sdk";

export default class FirstSentence extends Policy {
  /** @param {import("tenon-sdk").Request} request */
  compose(request) {
    return new Plan(request.prompt(), { tokenBudget: request.maxTokens }).postProcessed();
  }

  postProcessor() {
    return new Held();
  }
}

class Held extends PostProcessor {
  text = "";

  /** @param {import("tenon-sdk").Chunk} chunk */
  chunk(chunk) {
    this.text += chunk.text;
    const end = this.text.search(/[.!?]/);
    return end < 0 ? [Action.hold()] : [Action.replace(this.text.slice(0, end + 1)), Action.stop()];
  }

  /** @param {import("tenon-sdk").Usage} usage */
  finish(usage) {
    const read = { "tokens-read": String(usage.completionTokens) };
    return Ending({ metadata: read, claims: read });
  }
}
