/**
 * Write a Tenon plugin in TypeScript or JavaScript: extend `Policy`, make it the default export, test it natively.
 *
 * ```ts
 * import { Plan, Policy, Prompt, type Request } from "tenon-sdk";
 *
 * export default class Polite extends Policy {
 *   compose(request: Request): Plan {
 *     return new Plan(Prompt.chat("Be polite.", request.text)).adapter("manners", 0.8);
 *   }
 * }
 * ```
 *
 * A plugin that drives its own generations extends `Agent` of `tenon-sdk/agent`.
 *
 * `npx tenon-sdk build src/plugin.ts -o plugin.wasm` makes the component; it imports nothing but `tenon:plugin/*`. The module is
 * run when the component is built, and what it made then is there for each request: each has a fresh copy of that state.
 */

/** A fault of the function, in words: the caller sees it with status 502. To refuse a request, return `Decision.reject` from
 * `route` instead. Any other exception is told the same way, and its stack goes to the function's log. */
export class PluginError extends Error {
  constructor(message: string);
}

/** Why a host function did not do what was asked; `what` names it. */
export class HostError extends PluginError {
  constructor(kind: HostError["kind"], what: string);
  readonly kind: "denied" | "unsupported" | "limit" | "failed";
  readonly what: string;
}

/** A plugin of world `policy`. The host calls `route`, and `compose` if that said `Decision.serve()`. Made once, without
 * arguments, when the component is built. Nothing of it is async. */
export abstract class Policy {
  /** Serve here (unless overridden), hand over, answer directly, or reject. */
  route(request: Request): Decision;
  /** Prompt, adapters, sampling. */
  abstract compose(request: Request): Plan;
  /** Made for each request whose plan has `postProcess` set. */
  postProcessor(request: Request): PostProcessor;
}

/** Sees an answer as it is decoded. */
export abstract class PostProcessor {
  /** Called with text as it is decoded, in order. The actions are applied in order. */
  abstract chunk(chunk: Chunk): Action[];
  /** Called once, after the last chunk. Ends by sending what is held back, unless overridden. */
  finish(usage: Usage): Ending;
}

/** Sends everything as it comes. */
export class PassThrough extends PostProcessor {
  chunk(chunk: Chunk): Action[];
}

/** One turn of a conversation; `role` is `system`, `user`, `assistant` or `tool`. */
export interface Message {
  role: string;
  content: string;
}
export function Message(role: string, content: string): Message;

export interface RequestFields {
  /** Identifier of this invocation, also sent to the caller as `x-request-id`. */
  id: string;
  function: string;
  version: number;
  /** The input itself if it is a string, its member `text` if it is an object that has one, otherwise the content of the last
   * user message; empty if there is none of these. */
  text: string;
  /** The whole input as JSON text; `json()` reads it. */
  inputJson: string;
  /** The conversation, if the call was chat-shaped. */
  messages: Message[];
  /** The scalar members of an input object, each as text. */
  parameters: Map<string, string>;
  /** Whether the caller reads a stream. */
  stream: boolean;
  /** The caller's own limit on output tokens. */
  maxTokens: number | undefined;
}

/** What the caller asked for. */
export interface Request extends RequestFields {}
export class Request {
  constructor(fields?: Partial<RequestFields>);
  /** A scalar member of the input object, as text. */
  parameter(name: string): string | undefined;
  /** A scalar member of the input object, parsed (`Number`, …); `undefined` if it is not there. Throws a `PluginError` if
   * `parse` throws or makes `NaN` of it. */
  parameterAs<T>(name: string, parse: (text: string) => T): T | undefined;
  /** The whole input as JSON values. */
  json(): any;
  /** The conversation if there is one, else the text as one user message. */
  conversation(): Message[];
  /** `conversation` as a prompt. */
  prompt(): Prompt;
}

/** What to prompt with. */
export type Prompt =
  | { tag: "text"; val: string }
  | { tag: "messages"; val: Message[] }
  | { tag: "template"; val: { name: string; arguments: Record<string, string> } };
export const Prompt: {
  /** Taken as it is, special tokens included. */
  text(text: string): Prompt;
  /** Rendered through the base's chat template. */
  messages(messages: Message[]): Prompt;
  /** A template of the manifest, rendered with arguments. */
  template(name: string, args?: Record<string, string>): Prompt;
  /** A system prompt and one question. */
  chat(system: string, user: string): Prompt;
};

/** What to do with a request. */
export type Decision =
  | { tag: "serve" }
  | { tag: "hand-over"; val: string }
  | { tag: "answer"; val: string }
  | { tag: "reject"; val: { code: string; reason: string } };
export const Decision: {
  /** Serve it here: `compose` is called next. */
  serve(): Decision;
  /** Hand it over to another function of the same tenant. */
  handOver(name: string): Decision;
  /** Answer with this text, without generating. */
  answer(text: string): Decision;
  /** A refusal that the caller sees, with status 422; `code` is at most 64 lower-case letters, digits and `_`. */
  reject(code: string, reason: string): Decision;
};

/** Modules of a layer; those that are `true`. */
export interface Modules {
  qProj?: boolean;
  kProj?: boolean;
  vProj?: boolean;
  oProj?: boolean;
  gateProj?: boolean;
  upProj?: boolean;
  downProj?: boolean;
}

/** Layers (or tokens, in a span) `first .. end`, half open, counted from 0. */
export interface LayerRange {
  first: number;
  end: number;
}

/** Which part of the sequence an adapter applies to. */
export type Span = { tag: "whole" } | { tag: "output"; val: LayerRange } | { tag: "output-from"; val: number };
export const Span: {
  /** Prompt and output. */
  whole(): Span;
  /** The output tokens `first .. end`, half open, counted from 0. */
  output(first: number, end: number): Span;
  /** The output from this token on. */
  outputFrom(first: number): Span;
};

/** One term of y = Wx + sum of weight * scale * B(A x). */
export interface CompositionEntry {
  /** An alias or a digest of an adapter that this function may use. */
  adapter: string;
  weight: number;
  /** Only these modules; all that the adapter has if absent. */
  modules?: Modules | undefined;
  layers?: LayerRange | undefined;
  span: Span;
}
export function CompositionEntry(adapter: string, weight: number, more?: Partial<CompositionEntry>): CompositionEntry;

/** How tokens are drawn; greedy unless set. */
export interface Sampling {
  temperature: number;
  /** 0 is off. */
  topK: number;
  /** 1 is off. */
  topP: number;
  /** 0 is off. */
  minP: number;
  /** 1 is off. */
  repetitionPenalty: number;
  presencePenalty: number;
  frequencyPenalty: number;
  seed?: number | undefined;
  /** How many alternatives to report for each token; chunks carry log-probabilities if it is set. */
  logprobs?: number | undefined;
}
export function Sampling(parts?: Partial<Sampling>): Sampling;

/** Where the generation ends, beside the end of the sequence. */
export interface StopConditions {
  strings: string[];
  tokenIds: number[];
  /** Go on after the end-of-sequence token. */
  ignoreEos: boolean;
}

/** What the output must match. */
export type Constraint =
  | { tag: "json-schema"; val: string }
  | { tag: "regex"; val: string }
  | { tag: "grammar"; val: string };
export const Constraint: {
  jsonSchema(schema: string): Constraint;
  regex(regex: string): Constraint;
  /** A Lark grammar. */
  grammar(grammar: string): Constraint;
};

/** What to do when an adapter is not resident. */
export type ColdPolicy =
  | { tag: "wait"; val: number }
  | { tag: "base" }
  | { tag: "fallback"; val: CompositionEntry[] }
  | { tag: "refuse" };
export const ColdPolicy: {
  /** Wait for at most this many milliseconds. */
  wait(waitMs: number): ColdPolicy;
  /** Serve the base without it. */
  base(): ColdPolicy;
  /** Use this composition in its place. */
  fallback(composition: CompositionEntry[]): ColdPolicy;
  /** Answer 503 with `Retry-After`. */
  refuse(): ColdPolicy;
};

export interface PlanOptions {
  composition?: CompositionEntry[] | undefined;
  sampling?: Partial<Sampling> | undefined;
  stop?: Partial<StopConditions> | undefined;
  constraint?: Constraint | undefined;
  cold?: ColdPolicy | undefined;
  /** Milliseconds from now in which the answer must be complete. */
  deadlineMs?: number | undefined;
  /** How many tokens may be generated; the function's limit if absent, which is also what the host applies on top. */
  tokenBudget?: number | undefined;
  /** Adapters that later requests are likely to need. */
  prefetch?: string[] | undefined;
  postProcess?: boolean | undefined;
}

/** A value describing the generation, which the host checks. With a prompt alone: greedy, on the base, passed through. The
 * methods add to it and return the plan itself. */
export class Plan {
  constructor(prompt: Prompt, options?: PlanOptions);
  prompt: Prompt;
  composition: CompositionEntry[];
  sampling: Sampling;
  stop: StopConditions;
  constraint: Constraint | undefined;
  cold: ColdPolicy | undefined;
  deadlineMs: number | undefined;
  tokenBudget: number | undefined;
  prefetch: string[];
  postProcess: boolean;
  /** Adds an adapter, by alias or digest, over all its modules and layers. */
  adapter(adapter: string, weight: number): this;
  /** Adds any composition entry. */
  entry(entry: CompositionEntry): this;
  /** Stops before this text appears. */
  stopAt(text: string): this;
  /** Asks for the post-processor. */
  postProcessed(): this;
}

/** One generated token; `logprob` is there if the plan's sampling asked. */
export interface Token {
  id: number;
  logprob?: number | undefined;
}

/** Text that was decoded since the last call, with the tokens that it came from. */
export interface Chunk {
  text: string;
  tokens: Token[];
}

/** What to do with a chunk. Actions are applied in order; `pass`, `replace` and `hold` settle the chunk, and what none of them
 * settled is passed. */
export type Action =
  | { tag: "pass" }
  | { tag: "replace"; val: string }
  | { tag: "hold" }
  | { tag: "emit"; val: string }
  | { tag: "stop" }
  | { tag: "switch-composition"; val: CompositionEntry[] };
export const Action: {
  /** Send what is held back, then the chunk. */
  pass(): Action;
  /** Send this in place of what is held back and the chunk. */
  replace(text: string): Action;
  /** Keep the chunk back, behind what is held already. */
  hold(): Action;
  /** Send this as well. */
  emit(text: string): Action;
  /** End the generation. */
  stop(): Action;
  /** Go on with another composition. */
  switchComposition(composition: CompositionEntry[]): Action;
};

export type FinishReason = "stop" | "length" | "stopped-by-plugin" | "cancelled" | "deadline";

/** What was read and generated, in tokens. */
export interface Usage {
  promptTokens: number;
  completionTokens: number;
  finish: FinishReason;
}

/** The plugin's last word. */
export interface Ending {
  /** Applied to what is still held back, as if it were a last, empty chunk; `pass` unless given. */
  actions: Action[];
  /** Added to the answer. */
  metadata: Record<string, string>;
  /** Written into the receipt as the plugin's own claims. */
  claims: Record<string, string>;
}
export function Ending(parts?: Partial<Ending>): Ending;

/** An adapter that is granted to this function. */
export interface Adapter {
  alias: string;
  /** BLAKE3 of the canonical form, 64 hexadecimal digits. */
  digest: string;
  rank: number;
  /** In a slot of the runner, in host memory, on storage. */
  residency: "device" | "memory" | "storage";
}

/** The adapters that this function may use. */
export const catalog: {
  /** Every adapter that is granted to this function. */
  adapters(): Adapter[];
  /** Whether an adapter of this alias is granted. */
  has(alias: string): boolean;
  /** Says that these will be needed soon. A hint: nothing waits for it. */
  prefetch(adapters: string[]): void;
};

/** Lines for the function's log; what goes over the limit on bytes is dropped. */
export const log: {
  /** For the plugin's author. */
  debug(message: string): void;
  /** Ordinary. */
  info(message: string): void;
  /** Worth a look. */
  warn(message: string): void;
  /** Something failed. */
  error(message: string): void;
};

/** A coarse clock; in a component, `Date` shows it too. */
export const clock: {
  /** Milliseconds since this request began, in steps of 10. */
  elapsedMs(): number;
  /** Seconds since 1970-01-01 UTC. */
  unixSeconds(): number;
};

/** Random numbers, repeatable from the seed in the receipt; in a component, `Math.random` draws them too. */
export const random: {
  /** Random bytes, at most 65536 in one request, over all calls. */
  bytes(count: number): Uint8Array;
  /** Uniform over all values of 32 bits. */
  next(): number;
};

/** The function's configuration, from its manifest. */
export const config: {
  /** The value of this name, if there is one. */
  get(name: string): string | undefined;
  /** The value of this name. Throws a `PluginError` that names it. */
  require(name: string): string;
  /** Every name and value. */
  all(): Map<string, string>;
};

/** What another function is asked: a text, or JSON as text. */
export type CallInput = { tag: "text" | "json"; val: string };

/** What another function answered. */
export interface Reply {
  text: string;
  /** Who answered: another one than was called, if that one handed over. */
  function: string;
  version: number;
  usage: Usage;
  metadata: Map<string, string>;
  /** Identifier of its receipt. */
  receipt: string;
}

/** Other functions of the tenant, as far as the manifest's `grants.calls` names them. */
export const functions: {
  /** Asks another function with a text, and waits for its whole answer. */
  call(name: string, text: string, options?: { maxTokens?: number }): Reply;
  /** The same with any value that JSON can say. */
  callJson(name: string, value: unknown, options?: { maxTokens?: number }): Reply;
};

/** A tool of a server that speaks MCP. */
export interface Tool {
  name: string;
  /** Written by the server: as trustworthy as that. */
  description: string;
  /** JSON Schema of its arguments, as text. */
  inputSchema: string;
}

/** What a tool answered. */
export interface ToolOutcome {
  text: string;
  /** JSON, as text. */
  structured: string | undefined;
  /** Whether the tool says that it failed. */
  isError: boolean;
}

/** Tools of MCP servers, as far as the manifest's `grants.tools` names them. The host holds the addresses and the credentials. */
export const tools: {
  /** The granted ones of a server, by the name that the manifest gives it. */
  list(server: string): Tool[];
  /** Calls one with any object that JSON can say. */
  call(server: string, tool: string, value?: unknown): ToolOutcome;
};

/** The tenant's secrets that the manifest grants (`grants.secrets`). */
export const secrets: {
  /** What the secret of this name holds. Throws a `HostError` if it is not granted. */
  get(name: string): string;
};

/** The base's tokenizer, over text of at most 1 MiB in one request. In tests it makes a token of every byte. */
export const tokenizer: {
  /** The tokens of a text, as a prompt that is given as text has them. */
  encode(text: string): number[];
  /** The text of tokens. What is no text by itself, such as half a character, becomes U+FFFD. */
  decode(tokens: number[]): string;
  /** How many tokens a text has. */
  count(text: string): number;
};
