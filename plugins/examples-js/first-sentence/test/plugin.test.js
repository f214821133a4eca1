// What is sent of which chunks.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Harness, request } from "tenon-sdk/testing";

import FirstSentence from "../src/plugin.js";

test("one sentence is enough", () => {
  const read = (/** @type {string[]} */ ...chunks) => new Harness().postProcess(FirstSentence, request(), chunks);
  assert.equal(read("It ", "is. But ", "no.").text, "It is.");
  const whole = read("no ", "end");
  assert.equal(whole.text, "no end");
  assert.deepEqual(whole.ending.claims, { "tokens-read": "2" });
});

test("the plan asks for it", () => {
  const plan = new Harness().compose(FirstSentence, request("hi", { maxTokens: 5 }));
  assert.equal(plan.postProcess, true);
  assert.equal(plan.tokenBudget, 5);
});
