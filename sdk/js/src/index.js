// Write a Tenon plugin in TypeScript or JavaScript: extend `Policy`, make it the default export, test it natively. What each
// name means is in index.d.ts. Not here: anything of the host. The WIT in `wit/` is the only link.

export { PluginError, HostError } from "./errors.js";
export { catalog, clock, config, functions, log, random } from "./host.js";
export { PassThrough, Policy, PostProcessor } from "./policy.js";
export { Request } from "./request.js";
export { Action, ColdPolicy, CompositionEntry, Constraint, Decision, Ending, Message, Plan, Prompt, Sampling, Span } from "./values.js";
