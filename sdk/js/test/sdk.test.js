// The SDK itself, natively: builders, the harness, what is refused before it crosses. That it builds is checked in sdk/check.py.

import assert from "node:assert/strict";
import { test } from "node:test";

import {
  Action, ColdPolicy, CompositionEntry, Constraint, Decision, HostError, Message, Plan, PluginError, Policy, PostProcessor, Prompt,
  Request, Sampling, Span, catalog, clock, config, functions, log, random, secrets, tokenizer, tools,
} from "../src/index.js";
import { get, post } from "../src/http.js";
import { open } from "../src/kv.js";
import { lowerActions, lowerDecision, lowerEnding, lowerPlan } from "../src/lower.js";
import { Harness, request } from "../src/testing.js";

class Shout extends PostProcessor {
  text = "";

  /** @param {import("../src/index.js").Chunk} chunk */
  chunk(chunk) {
    this.text += chunk.text;
    const stop = this.text.indexOf(".");
    return stop < 0 ? [Action.hold()] : [Action.replace(this.text.slice(0, stop).toUpperCase()), Action.stop()];
  }
}

/** Uses all that the host lends. */
class FirstSentence extends Policy {
  /** @param {Request} asked */
  compose(asked) {
    log.info(`at ${clock.elapsedMs()} ms`);
    const weight = asked.parameterAs("weight", Number) ?? 0.5;
    const plan = new Plan(asked.prompt(), { tokenBudget: asked.maxTokens }).postProcessed().stopAt("###");
    for (const adapter of catalog.adapters()) plan.adapter(adapter.alias, weight);
    plan.sampling.seed = random.next();
    plan.deadlineMs = Number(config.require("deadline"));
    catalog.prefetch(["later"]);
    return plan;
  }

  postProcessor() {
    return new Shout();
  }
}

test("a plan uses what the host lends", () => {
  const harness = new Harness().adapter("a").adapter("b").config("deadline", "900").seed(7).elapsedMs(19);
  const plan = harness.compose(FirstSentence, request("hi", { parameters: new Map([["weight", "0.25"]]) }));
  assert.deepEqual(plan.composition.map((entry) => [entry.adapter, entry.weight]), [["a", 0.25], ["b", 0.25]]);
  assert.equal(plan.deadlineMs, 900);
  assert.deepEqual([harness.lines(), harness.prefetched()], [["at 10 ms"], ["later"]]);
  assert.equal(plan.sampling.seed, (7 * 1_664_525 + 1_013_904_223) % 2 ** 32, "the Rust harness draws the same");
  assert.equal(harness.compose(new FirstSentence(), request("hi")).sampling.seed, plan.sampling.seed, "seeded, so repeatable");
});

test("errors say what is wrong", () => {
  assert.throws(() => new Harness().compose(FirstSentence, request("hi")), /`deadline`/);
  const heavy = request("hi", { parameters: new Map([["weight", "heavy"]]) });
  assert.throws(() => new Harness().compose(FirstSentence, heavy), (error) => error instanceof PluginError && /`weight`/.test(error.message));
});

test("without a host nothing is lent", () => {
  assert.throws(() => clock.elapsedMs(), /there is no host here/);
  new Harness().route(FirstSentence, request());
  assert.throws(() => config.all(), /there is no host here/);
});

test("randomness has the host's limit", () => {
  const draws = { compose: () => (random.bytes(65_536), random.bytes(1), new Plan(Prompt.text("x"))) };
  const tried = () => new Harness().compose(/** @type {any} */ (draws), request());
  assert.throws(tried, (error) => error instanceof HostError && error.kind === "limit" && error.what === "random_bytes_max");
});

test("actions mean what they mean to the host", () => {
  const sent = (/** @type {[string, import("../src/index.js").Action[]][]} */ rounds) => {
    let round = 0;
    const processor = { chunk: () => rounds[round++]?.[1] ?? [], finish: () => ({ actions: [Action.emit("|")], metadata: {}, claims: {} }) };
    const policy = { compose: () => new Plan(Prompt.text("")), postProcessor: () => processor };
    return new Harness().postProcess(/** @type {any} */ (policy), request(), rounds.map(([chunk]) => chunk)).text;
  };
  assert.equal(sent([["a", [Action.hold()]], ["b", []]]), "ab|", "what nothing settled is passed");
  assert.equal(sent([["a", [Action.emit("<")]]]), "<a|");
  assert.equal(sent([["a", [Action.replace("x"), Action.pass()]]]), "x|", "a chunk is settled once");
  assert.equal(sent([["a", [Action.hold()]], ["b", [Action.hold()]], ["c", [Action.pass()]]]), "abc|");
  assert.equal(sent([["a", [Action.stop()]], ["b", []]]), "a|");
});

test("held text is replaced or sent at the end", () => {
  assert.equal(new Harness().postProcess(FirstSentence, request(), ["one ", "two. three", "four"]).text, "ONE TWO");
  assert.equal(new Harness().postProcess(FirstSentence, request(), ["never ", { text: "ends", tokens: [] }]).text, "never ends");
});

test("a request is read by name", () => {
  const asked = request("hi", { inputJson: '{"n": 3}', parameters: new Map([["n", "3"]]) });
  assert.deepEqual([asked.parameter("n"), asked.parameter("constructor"), asked.parameterAs("m", Number)], ["3", undefined, undefined]);
  assert.deepEqual(asked.json(), { n: 3 });
  assert.deepEqual(asked.prompt(), Prompt.messages([Message("user", "hi")]));
});

test("whatever is typed may cross", () => {
  const plan = new Plan(Prompt.template("t", { x: "ü" }), { cold: ColdPolicy.wait(10), constraint: Constraint.regex("a+"), sampling: { seed: 0xffff_ffff } });
  plan.entry(CompositionEntry("a", 1, { modules: { qProj: true }, layers: { first: 0, end: 4 }, span: Span.output(1, 2) }));
  plan.entry(CompositionEntry("a", -0.5, { span: Span.outputFrom(3) }));
  const raw = lowerPlan(plan);
  assert.deepEqual(raw.prompt, { tag: "template", val: { name: "t", arguments: [{ name: "x", value: "ü" }] } });
  assert.equal(raw.sampling.seed, -1, "the same 32 bits, with a sign");
  assert.equal(raw.composition[0]?.modules.qProj, true);
  assert.equal(raw.composition[0]?.modules.kProj, false);
  assert.equal(lowerPlan(new Plan(Prompt.chat("a", "b"), { cold: ColdPolicy.fallback(plan.composition) })).cold?.tag, "fallback");
  assert.deepEqual(Sampling({ temperature: 0.7 }).topP, 1);
  assert.deepEqual(lowerDecision(Decision.handOver("f")), { tag: "hand-over", val: "f" });
});

test("a wrong type is named", () => {
  const any = /** @type {any} */ (undefined);
  const plan = (/** @type {object} */ fields) => Object.assign(new Plan(Prompt.text("x")), fields);
  /** @type {[any, RegExp][]} */
  const cases = [
    [null, /what compose returns must be an object/],
    [Promise.resolve(1), /nothing of a plugin is async/],
    [plan({ prompt: "x" }), /plan\.prompt must be one of text, messages, template/],
    [plan({ prompt: { tag: "constructor" } }), /plan\.prompt/],
    [plan({ prompt: Prompt.text(any) }), /plan\.prompt\.text must be a string/],
    [plan({ prompt: Prompt.text("\ud800") }), /surrogate/],
    [plan({ composition: ["a"] }), /plan\.composition/],
    [plan({ composition: [CompositionEntry("a", any)] }), /weight/],
    [plan({ composition: [CompositionEntry("a", 1, { modules: /** @type {any} */ ({ q_proj: true }) })] }), /modules/],
    [plan({ tokenBudget: -1 }), /plan\.tokenBudget must be a whole number from 0 to 4294967295; it is -1/],
    [plan({ tokenBudget: 1.5 }), /tokenBudget/],
    [plan({ deadlineMs: 2 ** 32 }), /deadlineMs/],
    [plan({ deadlineMs: 10n }), /deadlineMs/],
    [plan({ prefetch: "abc" }), /an array/],
    [plan({ postProcess: 1 }), /true or false/],
    [plan({ cold: ColdPolicy.wait(any) }), /cold\.wait/],
  ];
  for (const [value, said] of cases) assert.throws(() => lowerPlan(value), said);
  assert.throws(() => lowerDecision(any), /what route returns/);
  assert.throws(() => lowerDecision(Promise.resolve()), /nothing of a plugin is async/);
  assert.throws(() => lowerActions([any]), /an action must be one of/);
  assert.throws(() => lowerActions(any), /the actions must be an array/);
  assert.throws(() => lowerEnding({ actions: [], metadata: { a: 1 }, claims: {} }), /metadata\.a must be a string/);
});

test("what is exported is a policy", () => {
  assert.throws(() => new Harness().compose(/** @type {any} */ ({}), request()), /default export must be a policy/);
  assert.throws(() => new Harness().compose(/** @type {any} */ (undefined), request()), /default export must be a policy/);
});

test("another function answers if it is granted", () => {
  const route = (/** @type {Request} */ asked) => {
    const said = [functions.call("facts", asked.text), functions.callJson("facts", { a: [1] }, { maxTokens: 3 })];
    return Decision.answer(said.map((one) => one.text).join(" "));
  };
  const policy = /** @type {any} */ ({ route, compose: () => new Plan(Prompt.text("")) });
  const harness = new Harness().reply("facts", "Wet.");
  assert.deepEqual(harness.route(policy, request("Is it?")), Decision.answer("Wet. Wet."));
  assert.deepEqual(harness.calls(), [["facts", "Is it?"], ["facts", '{"a":[1]}']]);
  assert.throws(() => new Harness().route(policy, request("Is it?")), /grants\.calls/);
});

test("the clock and the dice of a component are the host's", async () => {
  const before = { Date: globalThis.Date, now: Date.now, random: Math.random };
  const { useHostsClockAndRandom } = await import("../src/globals.js");
  useHostsClockAndRandom();
  try {
    const route = () => Decision.answer(`${Date.now()} ${new Date().toISOString()} ${new Date(0).getTime()} ${Math.random() < 1}`);
    const policy = { route, compose: () => new Plan(Prompt.text("")) };
    const decision = new Harness().elapsedMs(1500).route(/** @type {any} */ (policy), request());
    assert.deepEqual(decision, Decision.answer("1767225601500 2026-01-01T00:00:01.500Z 0 true"));
    assert.throws(() => Date.now(), /there is no host here/);
  } finally {
    globalThis.Date = before.Date;
    Date.now = before.now;
    Math.random = before.random;
  }
});

/** @param {() => void} call */
const policyOf = (call) =>
  class extends Policy {
    /** @param {Request} asked */
    compose(asked) {
      call();
      return new Plan(asked.prompt());
    }
  };

test("a bucket is read, written and swapped", () => {
  const harness = new Harness().bucket("b", { text: "ü", bytes: Uint8Array.of(255), n: "41" });
  /** @type {unknown[]} */
  const seen = [];
  harness.compose(
    policyOf(() => {
      const bucket = open("b");
      seen.push(bucket.get("none"), bucket.getText("text"), bucket.get("bytes")?.[0], bucket.increment("n"));
      const snapshot = bucket.snapshot("text");
      bucket.set("text", snapshot.value ?? "");
      const newer = snapshot.swap("too late");
      assert.ok(newer);
      seen.push(newer.swap("in time"), bucket.getText("text"));
      seen.push(bucket.updateText("list", (value) => `${value ?? ""}x`));
      bucket.delete("bytes");
      seen.push(bucket.keys());
    }),
    request(),
  );
  assert.deepEqual(seen, [undefined, "ü", 255, 42, undefined, "in time", "x", ["list", "n", "text"]]);
  assert.deepEqual([...harness.values("b")], [["list", "x"], ["n", "42"], ["text", "in time"]]);
});

test("what a bucket cannot hold is said", () => {
  /** @type {[(bucket: any) => unknown, RegExp][]} */
  const cases = [
    [(bucket) => bucket.getText("bytes"), /is no text/],
    [(bucket) => bucket.increment("text"), /is no number/],
    [(bucket) => bucket.increment("n", 0.5), /whole number/],
    [(bucket) => bucket.set("n", 1), /must be a Uint8Array/],
    [(bucket) => bucket.get(1), /must be a string/],
    [(bucket) => bucket.update("text", () => (bucket.set("text", "other"), "mine")), /all the time/],
  ];
  for (const [call, said] of cases) {
    const harness = new Harness().bucket("b", { text: "ü", bytes: Uint8Array.of(255) });
    assert.throws(() => harness.compose(policyOf(() => call(open("b"))), request()), said);
  }
});

test("secrets, tokens and requests", () => {
  const asks = policyOf(() => {
    const answer = post("https://a.example/v1/x", "böd", { "X-Key": secrets.get("key") });
    assert.deepEqual([answer.status, answer.headers.get("x-a"), answer.json()], [201, "b", { a: [1] }]);
    assert.equal(tokenizer.decode(tokenizer.encode("hé")), "hé");
    assert.equal(tokenizer.count("hé"), 3);
  });
  const harness = new Harness().secret("key", "s").answer("https://a.example/", { status: 404 });
  harness.answer("https://a.example/v1", { status: 201, headers: { "X-A": "b" }, body: '{"a": [1]}' }).compose(asks, request());
  const [sent] = harness.requests();
  assert.deepEqual([sent?.method, sent?.body, sent?.headers.get("X-Key")], ["POST", "böd", "s"]);
  assert.throws(() => new Harness().compose(asks, request()), /the secret `key`/);
  assert.throws(() => new Harness().secret("key", "s").compose(asks, request()), /grants\.http/);
  const noText = policyOf(() => get("https://a.example/").json());
  assert.throws(() => new Harness().answer("https://a.example", { body: Uint8Array.of(255) }).compose(noText, request()), /no JSON/);
});

test("tools of servers are listed and called as granted", () => {
  let said = "";
  const policy = policyOf(() => {
    const names = tools.list("facts").map((tool) => tool.name).join();
    said = `${names}: ${tools.call("facts", "depth", { sea: "Baltic" }).text}`;
  });
  const harness = new Harness().tool("facts", "depth", "600 m");
  harness.compose(policy, request());
  assert.equal(said, "depth: 600 m");
  assert.deepEqual(harness.toolCalls(), [["facts", "depth", '{"sea":"Baltic"}']]);
  assert.throws(() => new Harness().compose(policy, request()), /grants\.tools/);
  assert.throws(() => new Harness().tool("facts", "other", "").compose(policy, request()), /`depth` of `facts`/);
});
