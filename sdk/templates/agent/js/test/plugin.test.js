// The agent, natively.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Harness, request } from "tenon-sdk/testing";

import Plugin from "../src/plugin.js";

test("the longer of two answers is sent", () => {
  const harness = new Harness().says("short").says("a longer one");
  assert.equal(harness.run(Plugin, request("hello")).text, "a longer one");
  assert.deepEqual([harness.prompts().length, harness.sessions()], [2, 0]);
});

test("nothing is answered by itself", () => {
  assert.equal(new Harness().run(Plugin, request(" ")).text, "Say something.");
});
