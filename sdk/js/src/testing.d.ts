/**
 * Runs a policy or an agent natively, with a host that the test describes: tests need no WebAssembly.
 *
 * ```ts
 * const plan = new Harness().adapter("manners").config("tone", "warm").compose(Polite, request("hello"));
 * assert.equal(plan.composition[0]?.adapter, "manners");
 * assert.equal(new Harness().says("Wet.").run(Corrector, request("The sea?")).text, "Wet.");
 * ```
 *
 * What crosses to the host in a component is checked here as there, so that a wrong type fails a test.
 */

import type { Agent, Answer } from "./agent.d.ts";
import type { Chunk, Decision, Ending, HostError, Plan, Policy, Request, RequestFields } from "./index.d.ts";

/** A request with this text and nothing else, unless it is said. */
export function request(text?: string, more?: Partial<RequestFields>): Request;

/** A policy, or a class of one that takes no arguments. */
export type Tested = Policy | (new () => Policy);

/** An agent, or a class of one that takes no arguments. */
export type TestedAgent = Agent | (new () => Agent);

/** A request as a policy sent it. */
export interface SentRequest {
  method: string;
  url: string;
  headers: Map<string, string>;
  /** As text. */
  body: string;
}

/** A host made for one test. Each call begins as it was described, with an empty log. */
export class Harness {
  /** Grants an adapter of this alias. */
  adapter(alias: string): this;
  /** Sets a value of the manifest's configuration. */
  config(name: string, value: string): this;
  /** Grants calls of a function, which answers this. */
  reply(name: string, answer: string): this;
  /** Grants a tool of a server, which answers every call with this text. */
  tool(server: string, name: string, answer: string): this;
  /** Grants a secret. */
  secret(name: string, value: string): this;
  /** Grants a bucket, with these values. What a call writes is there for the next one. */
  bucket(name: string, values?: Record<string, string | Uint8Array>): this;
  /** Grants requests to URLs that begin with this one, and answers them so; of several the longest counts. */
  answer(url: string, answer?: { status?: number; headers?: Record<string, string>; body?: string | Uint8Array }): this;
  /** Has the next generation of an agent say this, each token with this log-probability (-1). Without more, generations fail. */
  says(text: string, logprob?: number): this;
  /** Has the next generation of an agent refused, as a budget refuses it: `.refuses("limit", "generations_max")`. */
  refuses(kind: HostError["kind"], what: string): this;
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
  /** Calls `run` and returns all that the caller would read, and the answer. */
  run(agent: TestedAgent, request: Request): { text: string; answer: Answer };
  /** What sessions held when the last call had them generate, in order. */
  prompts(): string[];
  /** What the last call wrote before its answer, in the pieces in which it did. */
  written(): string[];
  /** How many sessions the last call left open. */
  sessions(): number;
  /** What the last call has logged. */
  lines(): string[];
  /** Which adapters the last call asked to be fetched ahead. */
  prefetched(): string[];
  /** The functions that the last call asked, each with what it was asked. */
  calls(): [string, string][];
  /** The tools that the last call called: server, tool, arguments as JSON. */
  toolCalls(): [string, string, string][];
  /** What a bucket holds now, as text. */
  values(bucket: string): Map<string, string>;
  /** What the last call has sent. */
  requests(): SentRequest[];
}
