// {{name}}: answers an empty text by itself; the rest is served on the base, or under the adapter that the configuration's
// `adapter` names.

import { Decision, Plan, Policy, config } from "tenon-sdk";

export default class Plugin extends Policy {
  /** @param {import("tenon-sdk").Request} request */
  route(request) {
    return request.text.trim() === "" ? Decision.answer("Say something.") : Decision.serve();
  }

  /** @param {import("tenon-sdk").Request} request */
  compose(request) {
    const plan = new Plan(request.prompt(), { tokenBudget: request.maxTokens });
    const adapter = config.get("adapter");
    return adapter === undefined ? plan : plan.adapter(adapter, 1.0);
  }
}
