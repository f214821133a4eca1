// Ties an agent to the exports of a component, and sessions to its imports. Loaded inside of a component only, and only if the plugin
// imports `tenon-sdk/agent`. Not here: anything that a plugin's author calls.

import * as output from "tenon:plugin/output@0.1.0";
import * as sessions from "tenon:plugin/sessions@0.1.0";

import { hosted, lent, lift, liftToken } from "./component.js";
import { agentOf } from "./exported.js";
import { lowerAnswer, lowerBounds, lowerOpening, text } from "./lower.js";

/** The engine's own name for it, where it has none of the language's. */
const DISPOSE = Symbol.dispose ?? Symbol.for("dispose");

/** @param {any} usage */
const liftUsage = (usage) => ({ ...usage, promptTokens: usage.promptTokens >>> 0, completionTokens: usage.completionTokens >>> 0 });

/** @param {any} session @returns {import("./host.js").HostSession} */
function held(session) {
  return {
    tokens: () => session.tokens() >>> 0,
    append: (said) => lent(() => session.append(text("a text", said))) >>> 0,
    generate: (bounds) => {
      const made = lent(() => session.generate(lowerBounds(bounds)));
      return { text: made.text, tokens: made.tokens.map(liftToken), usage: liftUsage(made.usage) };
    },
    start: (bounds) => lent(() => session.start(lowerBounds(bounds))),
    next: () => {
      const { tag, val } = lent(() => session.next());
      return tag === "done" ? { tag, val: liftUsage(val) } : { tag, val: { text: val.text, tokens: val.tokens.map(liftToken) } };
    },
    stop: () => session.stop(),
    fork: () => held(lent(() => session.fork())),
    close: () => (session[DISPOSE] ?? session[Symbol.for("dispose")])?.call(session),
  };
}

/** What only agents have. @type {NonNullable<import("./host.js").Host["agent"]>} */
export const agent = {
  open: (opening) => {
    const lowered = lowerOpening(opening);
    return held(lent(() => sessions.Session.open(lowered)));
  },
  write: (said) => lent(() => output.write(text("what is written", said))),
};

/**
 * The exports of a component that is this agent.
 * @param {unknown} exported a class or an object
 */
export function driverOf(exported) {
  const plugin = agentOf(exported);
  return {
    /** @param {any} request */
    run: (request) => hosted(() => lowerAnswer(plugin.run(lift(request)))),
  };
}
