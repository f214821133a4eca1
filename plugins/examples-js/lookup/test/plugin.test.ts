// What the function asks of others.

import assert from "node:assert/strict";
import { test } from "node:test";

import { type Plan, Prompt } from "tenon-sdk";
import { Harness, request } from "tenon-sdk/testing";

import Lookup from "../src/plugin.js";

const URL = "https://facts.example/v1?q=";

const harness = () => new Harness().config("url", URL).secret("lookup-key", "s3cret");

/** What the plan puts before the question. */
function system(plan: Plan): string | undefined {
  return plan.prompt.tag === "messages" ? plan.prompt.val[0]?.content : undefined;
}

test("facts are asked for with the key and put before the model", () => {
  const host = harness().answer(URL, { body: "The sea is deep." });
  const plan = host.compose(Lookup, request("what is the sea?"));
  assert.deepEqual(plan.prompt, Prompt.chat("Answer from these facts alone:\nThe sea is deep.", "what is the sea?"));
  const [sent] = host.requests();
  assert.equal(sent?.url, `${URL}what%20is%20the%20sea%3F`);
  assert.equal(sent?.headers.get("authorization"), "Bearer s3cret");
});

test("no facts are no reason to fail, and many have a length", () => {
  const host = harness().answer(URL, { status: 503 });
  assert.match(system(host.compose(Lookup, request("x"))) ?? "", /do not know/);
  assert.deepEqual(host.lines(), ["the service answered with status 503"]);
  const long = harness().answer(URL, { body: "x".repeat(1000) });
  assert.equal(system(long.compose(Lookup, request("x")))?.split("\n")[1]?.length, 256);
});

test("what is not granted is said", () => {
  assert.throws(() => harness().compose(Lookup, request("x")), /grants\.http/);
  assert.throws(() => new Harness().config("url", URL).compose(Lookup, request("x")), /grants\.secrets/);
});
