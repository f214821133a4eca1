// Agents natively: sessions and their streams, what is written, what is refused before it crosses. That they build is checked in
// sdk/check.py, that they run on a host in sdk/newcomer.py.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Agent, Answer, Opening, Session, meanLogprob, write } from "../src/agent.js";
import { HostError, Plan, PluginError, Policy, Prompt } from "../src/index.js";
import { lowerAnswer, lowerBounds, lowerOpening } from "../src/lower.js";
import { Harness, request } from "../src/testing.js";

/** @param {(session: Session) => import("../src/agent.js").Answer | void} work */
const agentOf = (work) =>
  class extends Agent {
    /** @param {import("../src/index.js").Request} asked */
    run(asked) {
      const session = Session.open(new Opening(Prompt.text(asked.text)));
      const answer = work(session) ?? Answer();
      session.close();
      return answer;
    }
  };

test("a session holds what it was opened with, what was appended, and what was generated", () => {
  const agent = agentOf((session) => {
    assert.equal(session.tokens(), 2);
    assert.equal(session.append("!"), 3);
    const made = session.generate({ maxTokens: 5 });
    assert.deepEqual([made.text, made.usage], ["so it", { promptTokens: 3, completionTokens: 5, finish: "length" }]);
    assert.equal(session.tokens(), 8);
    const fork = session.fork();
    fork.append("?");
    fork.generate();
    fork.close();
    assert.equal(session.generate().usage.finish, "stop");
    return Answer("end", { metadata: { a: "b" }, claims: { c: "d" } });
  });
  const harness = new Harness().says("so it goes").says("fork").says("");
  const { text, answer } = harness.run(agent, request("hi"));
  assert.deepEqual([text, answer], ["end", { text: "end", metadata: { a: "b" }, claims: { c: "d" } }]);
  assert.deepEqual(harness.prompts(), ["hi!", "hi!so it?", "hi!so it"]);
  assert.equal(harness.sessions(), 0);
});

test("a stream is written as it comes, and what follows may follow", () => {
  const agent = agentOf((session) => {
    const stream = session.stream();
    for (let step = stream.next(); ; step = stream.next()) {
      if (step.done) return assert.deepEqual(step.value, { promptTokens: 2, completionTokens: 9, finish: "stop" });
      write(step.value.text);
    }
  });
  const harness = new Harness().says("one two 3");
  assert.equal(harness.run(agent, request("hi")).text, "one two 3");
  assert.deepEqual(harness.written(), ["one ", "two ", "3"]);
});

test("a stream that is left early stops, and what was read stays", () => {
  const agent = agentOf((session) => {
    for (const _ of session.stream()) break;
    assert.equal(session.append("|"), "hi".length + "one ".length + 1);
    session.stream().next();
    assert.throws(() => session.fork(), (error) => error instanceof HostError && error.kind === "failed" && /`stop`/.test(error.what));
    session.stop();
    session.fork().close();
    session.generate();
  });
  const harness = new Harness().says("one two").says("three four").says("five");
  harness.run(agent, request("hi"));
  assert.deepEqual(harness.prompts(), ["hi", "hione |", "hione |three "]);
  assert.equal(harness.sessions(), 0);
});

test("a session is closed once, and then is of no use", () => {
  const agent = agentOf((session) => {
    session.close();
    assert.throws(() => session.tokens(), (error) => error instanceof PluginError && /closed/.test(error.message));
  });
  const harness = new Harness();
  harness.run(agent, request("hi"));
  assert.equal(harness.sessions(), 0);
  const leaves = agentOf((session) => void session.fork());
  harness.run(leaves, request("hi"));
  assert.equal(harness.sessions(), 1, "one that is not closed is seen");
});

test("log-probabilities are there if the sampling asks", () => {
  const agent = agentOf((session) => {
    assert.throws(() => meanLogprob(session.generate()), /set `logprobs`/);
    assert.equal(meanLogprob(session.generate({ sampling: { logprobs: 0 } })), -0.5);
  });
  new Harness().says("a").says("bc", -0.5).run(agent, request("hi"));
});

test("budgets and grants are host errors that an agent may catch", () => {
  /** @type {unknown[]} */
  const seen = [];
  const agent = agentOf((session) => {
    try {
      session.generate();
    } catch (error) {
      assert.ok(error instanceof HostError);
      seen.push(error.kind, error.what);
    }
  });
  const harness = new Harness().refuses("limit", "generations_max of 0");
  harness.run(agent, request("hi"));
  assert.deepEqual(seen, ["limit", "generations_max of 0"]);
  const adapted = agentOf(() => void Session.open(new Opening(Prompt.text("")).adapter("caps", 1)));
  assert.throws(() => harness.run(adapted, request()), /denied: the adapter `caps`/);
  new Harness().adapter("caps").run(adapted, request());
});

test("a wrong type is named before it crosses", () => {
  const any = /** @type {any} */ (undefined);
  assert.throws(() => lowerAnswer({ text: 1, metadata: {}, claims: {} }), /run returns\.text must be a string/);
  assert.throws(() => lowerAnswer(any), /what run returns must be an object/);
  assert.throws(() => lowerAnswer(Promise.resolve()), /nothing of a plugin is async/);
  assert.throws(() => lowerOpening({ ...new Opening(Prompt.text("")), cold: { tag: "never" } }), /opening\.cold/);
  assert.throws(() => lowerOpening(new Opening(any)), /opening\.prompt/);
  assert.throws(() => lowerBounds({ maxTokens: -1 }), /maxTokens must be a whole number/);
  assert.throws(() => lowerBounds({ stop: { strings: [1] } }), /stop\.strings must be a string/);
  assert.deepEqual(lowerBounds({ stop: { strings: ["x"] } }).stop, { strings: ["x"], tokenIds: [], ignoreEos: false });
  assert.equal(lowerBounds({ sampling: { seed: 1 } }).sampling?.topP, 1, "a part of a sampling stands for a whole");
});

test("what is exported is one of the two", () => {
  const tried = (/** @type {unknown} */ exported) => () => new Harness().run(/** @type {any} */ (exported), request());
  assert.throws(tried({}), /default export must be an agent/);
  assert.throws(tried({ run: () => Answer(), compose: () => undefined }), /is an agent \(`run`\) and a policy \(`compose`\)/);
  const both = /** @type {any} */ ({ run: () => Answer() });
  assert.throws(() => new Harness().compose(both, request()), /must be a policy.*or an agent/);
});

test("a policy has neither sessions nor an output to write to", async () => {
  const { withHost } = await import("../src/host.js");
  const policy = new (class extends Policy {
    compose() {
      write("x");
      return new Plan(Prompt.text(""));
    }
  })();
  const host = /** @type {any} */ ({});
  assert.throws(() => withHost(host, () => policy.compose()), (error) => error instanceof PluginError && /only an agent/.test(error.message));
});
