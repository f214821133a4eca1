// {{name}}: answers an empty text by itself; the rest is served on the base, or under the adapter that the configuration's
// `adapter` names.

import { Decision, Plan, Policy, type Request, config } from "tenon-sdk";

export default class Plugin extends Policy {
  override route(request: Request): Decision {
    return request.text.trim() === "" ? Decision.answer("Say something.") : Decision.serve();
  }

  compose(request: Request): Plan {
    const plan = new Plan(request.prompt(), { tokenBudget: request.maxTokens });
    const adapter = config.get("adapter");
    return adapter === undefined ? plan : plan.adapter(adapter, 1.0);
  }
}
