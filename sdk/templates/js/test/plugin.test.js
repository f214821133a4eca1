// The plugin, natively.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Harness, request } from "tenon-sdk/testing";

import Plugin from "../src/plugin.js";

test("nothing is answered by itself", () => {
  assert.equal(new Harness().route(Plugin, request(" ")).tag, "answer");
  assert.equal(new Harness().route(Plugin, request("hello")).tag, "serve");
});

test("the adapter is the configured one", () => {
  const plan = new Harness().config("adapter", "manners").compose(Plugin, request("hello"));
  assert.deepEqual(plan.composition.map((entry) => entry.adapter), ["manners"]);
  assert.deepEqual(new Harness().compose(Plugin, request("hello")).composition, []);
});
