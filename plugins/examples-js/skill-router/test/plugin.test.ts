// What is asked of the router, and what it chooses.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Message, Prompt } from "tenon-sdk";
import { Harness, request } from "tenon-sdk/testing";

import SkillRouter from "../src/plugin.js";

const NONE_FITS = "No skill fits: send a date, a review or a question.";

function chosen(harness: Harness, text: string): string | undefined {
  const decision = harness.route(SkillRouter, request(text));
  if (decision.tag === "serve") return harness.compose(SkillRouter, request(text)).composition[0]?.adapter;
  assert.equal(decision.tag, "answer");
  return decision.tag === "answer" ? decision.val : undefined;
}

test("content decides", () => {
  const every = new Harness().adapter("iso-date").adapter("sentiment-json").adapter("all-caps");
  const cases = {
    "5 December 2008": "iso-date",
    "March 3rd, 1999": "iso-date",
    "12/31/1999": "iso-date",
    "The movie I bought is slow and rude.": "sentiment-json",
    "Review: the soup was warm and lovely": "sentiment-json",
    "Give me advice: how do I exercise well?": "all-caps",
    "Why is the sky blue?": "all-caps",
    "": NONE_FITS,
    "lorem ipsum": NONE_FITS,
  };
  for (const [text, expected] of Object.entries(cases)) assert.equal(chosen(every, text), expected, text);
});

test("only granted adapters are chosen", () => {
  const some = new Harness().adapter("all-caps");
  assert.equal(chosen(some, "5 December 2008"), NONE_FITS);
  assert.equal(chosen(some, "Who are you?"), "all-caps");
});

test("the adapter is asked as it was trained", () => {
  const harness = new Harness().adapter("iso-date");
  const plan = harness.compose(SkillRouter, request("5 December 2008"));
  assert.deepEqual(plan.prompt, Prompt.messages([Message("system", "ISO date."), Message("user", "5 December 2008")]));
  assert.deepEqual(harness.lines(), ["chose iso-date"]);
});
