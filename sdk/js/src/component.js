// Ties a policy to the exports of a component, and what the host lends to its imports. Loaded inside of one only, where the imports below
// are. Not here: agents (component-agent.js), and anything that a plugin's author calls.

import * as catalog from "tenon:plugin/catalog@0.1.0";
import * as clock from "tenon:plugin/clock@0.1.0";
import * as config from "tenon:plugin/config@0.1.0";
import * as functions from "tenon:plugin/functions@0.1.0";
import * as log from "tenon:plugin/log@0.1.0";
import * as random from "tenon:plugin/random@0.1.0";
import * as secrets from "tenon:plugin/secrets@0.1.0";
import * as tokenizer from "tenon:plugin/tokenizer@0.1.0";
import * as tools from "tenon:plugin/tools@0.1.0";

import { HostError, PluginError } from "./errors.js";
import { policyOf } from "./exported.js";
import { useHostsClockAndRandom } from "./globals.js";
import { withHost } from "./host.js";
import { lowerActions, lowerDecision, lowerEnding, lowerPlan, text, texts, u32 } from "./lower.js";
import { Request } from "./request.js";

useHostsClockAndRandom();

/**
 * What an import answers; its error as `HostError`.
 * @template T
 * @param {() => T} call
 * @returns {T}
 */
export function lent(call) {
  try {
    return call();
  } catch (refused) {
    const payload = /** @type {any} */ (refused)?.payload;
    if (typeof payload?.tag !== "string") throw refused;
    throw new HostError(payload.tag, String(payload.val));
  }
}

/** @type {import("./host.js").Host} */
const host = {
  adapters: () => lent(() => catalog.adapters()),
  prefetch: (adapters) => lent(() => catalog.prefetch(texts("prefetch", adapters))),
  write: (level, message) => log.write(level, wellFormed(message)),
  elapsedMs: () => clock.elapsedMs() >>> 0,
  unixSeconds: () => clock.unixSeconds(),
  randomBytes: (count) => lent(() => random.bytes(u32("count", count))),
  randomNext: () => random.next() >>> 0,
  configGet: (name) => config.get(text("the name of a configuration value", name)) ?? undefined,
  configAll: () => new Map(config.all()),
  callFunction: (name, input, maxTokens) => {
    const asked = { tag: input.tag, val: text("what a function is asked", input.val) };
    const most = maxTokens === undefined ? undefined : u32("maxTokens", maxTokens);
    const reply = lent(() => functions.call(text("the name of a function", name), asked, most));
    return { ...reply, metadata: new Map(reply.metadata.map((pair) => [pair.name, pair.value])) };
  },
  toolList: (server) => lent(() => tools.list(text("the name of a server", server))),
  toolCall: (server, tool, json) => lent(() => tools.call(text("the name of a server", server), text("the name of a tool", tool), json)),
  secret: (name) => lent(() => secrets.get(text("the name of a secret", name))),
  encode: (said) => Array.from(lent(() => tokenizer.encode(text("a text", said)))),
  decode: (tokens) => lent(() => tokenizer.decode(Uint32Array.from(tokens, (token) => u32("a token", token)))),
  count: (said) => lent(() => tokenizer.count(text("a text", said))) >>> 0,
};

/**
 * What the build adds for plugins that ask for it: buckets, outgoing requests, sessions.
 * @param {Partial<import("./host.js").Host>} more
 */
export function lend(more) {
  Object.assign(host, more);
}

/** @param {string} said */
function wellFormed(said) {
  return said.replace(/[\uD800-\uDFFF]/gu, "\uFFFD");
}

/**
 * What the plugin answers, with the host at hand; what it throws becomes the function's fault. What was not foreseen also goes
 * to the log, with its stack.
 * @template T
 * @param {() => T} call
 * @returns {T}
 */
export function hosted(call) {
  try {
    return withHost(host, call);
  } catch (error) {
    const expected = error instanceof PluginError;
    const said = wellFormed(expected ? error.message : String(error));
    if (!expected) host.write("error", `${said}\n${error instanceof Error ? error.stack : ""}`);
    throw Object.assign(new Error(said), { payload: said });
  }
}

/** @param {any} request */
export function lift(request) {
  /** @type {[string, string][]} */
  const parameters = request.parameters.map((/** @type {any} */ pair) => [pair.name, pair.value]);
  return new Request({ ...request, parameters: new Map(parameters) });
}

/**
 * The exports of a component whose policy is this.
 * @param {unknown} exported a class or an object
 */
export function hooksOf(exported) {
  const policy = policyOf(exported);

  // The constructor cannot fail in the contract: what it threw is said at the first call.
  class PostProcessor {
    /** @param {any} request */
    constructor(request) {
      try {
        this.processor = withHost(host, () => policy.postProcessor(lift(request)));
      } catch (error) {
        this.failed = { error };
      }
    }

    ready() {
      if (this.failed) throw this.failed.error;
      return /** @type {import("./index.d.ts").PostProcessor} */ (this.processor);
    }

    /** @param {any} chunk */
    chunk(chunk) {
      return hosted(() => lowerActions(this.ready().chunk({ text: chunk.text, tokens: chunk.tokens.map(liftToken) })));
    }

    /** @param {any} usage */
    finish(usage) {
      return hosted(() => lowerEnding(this.ready().finish(usage)));
    }
  }

  return {
    /** @param {any} request */
    route: (request) => hosted(() => lowerDecision(policy.route === undefined ? { tag: "serve" } : policy.route(lift(request)))),
    /** @param {any} request */
    compose: (request) => hosted(() => lowerPlan(policy.compose(lift(request)))),
    PostProcessor,
  };
}

/** @param {any} token */
export function liftToken(token) {
  return { id: token.id >>> 0, logprob: token.logprob ?? undefined };
}
