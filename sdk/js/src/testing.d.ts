/**
 * Runs a policy natively, with a host that the test describes: tests need no WebAssembly.
 *
 * ```ts
 * const plan = new Harness().adapter("manners").config("tone", "warm").compose(Polite, request("hello"));
 * assert.equal(plan.composition[0]?.adapter, "manners");
 * ```
 *
 * What crosses to the host in a component is checked here as there, so that a wrong type fails a test.
 */

import type { Chunk, Decision, Ending, Plan, Policy, Request, RequestFields } from "./index.d.ts";

/** A request with this text and nothing else, unless it is said. */
export function request(text?: string, more?: Partial<RequestFields>): Request;

/** A policy, or a class of one that takes no arguments. */
export type Tested = Policy | (new () => Policy);

/** A host made for one test. Each call begins as it was described, with an empty log. */
export class Harness {
  /** Grants an adapter of this alias. */
  adapter(alias: string): this;
  /** Sets a value of the manifest's configuration. */
  config(name: string, value: string): this;
  /** Grants calls of a function, which answers this. */
  reply(name: string, answer: string): this;
  /** Seeds the random numbers. */
  seed(seed: number): this;
  /** Sets what the clock shows. */
  elapsedMs(elapsedMs: number): this;
  /** Calls `route`. */
  route(policy: Tested, request: Request): Decision;
  /** Calls `compose`. */
  compose(policy: Tested, request: Request): Plan;
  /** Feeds the post-processor these chunks and returns what the caller would read, and the ending. */
  postProcess(policy: Tested, request: Request, chunks: (string | Chunk)[]): { text: string; ending: Ending };
  /** What the last call has logged. */
  lines(): string[];
  /** Which adapters the last call asked to be fetched ahead. */
  prefetched(): string[];
  /** The functions that the last call asked, each with what it was asked. */
  calls(): [string, string][];
}
