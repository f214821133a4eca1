// Which plugin a module exports: a policy, or an agent. Not here: what these implement (policy.js, agent.js).

/**
 * The policy that a module exports: an object, or a class that is made one without arguments.
 * @param {unknown} exported
 * @returns {import("./index.d.ts").Policy}
 */
export function policyOf(exported) {
  const policy = typeof exported === "function" ? Reflect.construct(exported, []) : exported;
  if (typeof policy !== "object" || policy === null || typeof policy.compose !== "function") {
    throw new TypeError(
      "the module's default export must be a policy: `export default class extends Policy { … }`; " +
        "or an agent, which extends `Agent` of tenon-sdk/agent",
    );
  }
  return policy;
}

/**
 * The agent that a module exports: an object, or a class that is made one without arguments.
 * @param {unknown} exported
 * @returns {import("./agent.d.ts").Agent}
 */
export function agentOf(exported) {
  const agent = typeof exported === "function" ? Reflect.construct(exported, []) : exported;
  if (typeof agent !== "object" || agent === null || typeof agent.run !== "function") {
    throw new TypeError("the module imports tenon-sdk/agent, so its default export must be an agent: `export default class extends Agent { … }`");
  }
  if (typeof agent.compose === "function") {
    throw new TypeError("the module's default export is an agent (`run`) and a policy (`compose`): a plugin is one of them");
  }
  return agent;
}
