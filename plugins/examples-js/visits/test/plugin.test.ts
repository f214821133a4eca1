// What is counted, kept and refused.

import assert from "node:assert/strict";
import { test } from "node:test";

import { HostError } from "tenon-sdk";
import { Harness, request } from "tenon-sdk/testing";

import Visits from "../src/plugin.js";

const harness = () => new Harness().config("visitor_key", "salt").config("visits_max", "2").secret("salt", "s").bucket("visits");
const from = (visitor: string, text = "hello") => request(text, { parameters: new Map([["visitor", visitor]]) });

test("a visitor is refused after so many visits, and another is not", () => {
  const host = harness();
  const tags = ["ann", "ann", "ann", "bob"].map((visitor) => host.route(Visits, from(visitor)).tag);
  assert.deepEqual(tags, ["serve", "serve", "reject", "serve"]);
  assert.deepEqual([...host.values("visits").values()].sort(), ["1", "3"]);
  assert.ok(![...host.values("visits").keys()].some((key) => key.includes("ann")), "nobody's name is kept");
});

test("the last questions are kept", () => {
  const host = harness();
  for (const text of ["a", "b", "c", "ü"]) host.compose(Visits, from("ann", text));
  assert.deepEqual([...host.values("visits").values()], ['["b","c","ü"]']);
  assert.deepEqual(host.lines(), ["2 tokens, 13 characters kept"]);
});

test("what is not granted is said", () => {
  assert.throws(() => new Harness().config("visitor_key", "salt").route(Visits, from("ann")), HostError);
  assert.throws(() => new Harness().config("visitor_key", "salt").secret("salt", "s").route(Visits, from("ann")), /grants\.kv/);
});
