// Which draw is sent, what each begins with, what is refused.

import assert from "node:assert/strict";
import { test } from "node:test";

import { HostError } from "tenon-sdk";
import { Harness, request } from "tenon-sdk/testing";

import BestOf from "../src/plugin.js";

test("the likeliest draw is sent", () => {
  const harness = new Harness().config("draws", "3").config("system", "S.");
  harness.says("so so", -1.5).says("good", -0.25).says("bad", -4);
  const { text, answer } = harness.run(BestOf, request("Q?"));
  assert.equal(text, "good");
  assert.deepEqual(answer.metadata, { draws: "3", mean_logprob_thousandths: "-250" });
  assert.deepEqual(harness.prompts(), ["S.Q?", "S.Q?", "S.Q?"], "every draw begins with the same prompt");
  assert.equal(harness.sessions(), 0, "every session was given back");
});

test("the caller may ask for less", () => {
  const harness = new Harness().config("draws", "1").says("a long story");
  assert.equal(harness.run(BestOf, request("Q?", { maxTokens: 6 })).text, "a long");
});

test("a wrong configuration and too few draws are told", () => {
  const tried = (harness: Harness) => () => harness.run(BestOf, request("Q?"));
  assert.throws(tried(new Harness().config("draws", "many")), /`draws`/);
  assert.throws(tried(new Harness().says("one")), /no more to say/);
  assert.throws(tried(new Harness().config("adapter", "caps")), /denied: the adapter `caps`/);
});

test("a budget ends it and everything is given back", () => {
  const harness = new Harness().says("one").refuses("limit", "generations_max of 1 generations in one request");
  const isLimit = (error: unknown) => error instanceof HostError && error.kind === "limit";
  assert.throws(() => harness.run(BestOf, request("Q?")), isLimit);
  assert.equal(harness.sessions(), 0);
});
