/// <reference lib="esnext.disposable" />
/**
 * Write a plugin that drives its own generations: extend `Agent`, make it the default export.
 *
 * ```ts
 * import { Prompt, type Request } from "tenon-sdk";
 * import { Agent, Answer, Opening, Session, write } from "tenon-sdk/agent";
 *
 * export default class Corrector extends Agent {
 *   run(request: Request): Answer {
 *     const draft = Session.open(new Opening(Prompt.chat("Be brief.", request.text)));
 *     draft.generate({ maxTokens: 64 });
 *     draft.append("<|im_end|>\n<|im_start|>user\nCorrect it.<|im_end|>\n<|im_start|>assistant\n");
 *     for (const chunk of draft.stream({ maxTokens: 64 })) write(chunk.text);
 *     return Answer();
 *   }
 * }
 * ```
 *
 * A module that imports this is of world `agent`, and its manifest must set `grants.generations`. What is denied, and a budget that is used
 * up, is thrown as `HostError`.
 */

import type {
  Chunk, ColdPolicy, CompositionEntry, Constraint, Prompt, Request, Sampling, StopConditions, Token, Usage,
} from "./index.d.ts";

/** A plugin of world `agent`. Made once, without arguments, when the component is built. Nothing of it is async. */
export abstract class Agent {
  /** Called once for each request. What it wrote with `write` goes out first, then the answer's text. */
  abstract run(request: Request): Answer;
}

/** The agent's last word. */
export interface Answer {
  /** Sent after what was written. */
  text: string;
  /** Added to the answer. */
  metadata: Record<string, string>;
  /** Written into the receipt as the plugin's own claims. */
  claims: Record<string, string>;
}
/** This text; none unless it is given. */
export function Answer(text?: string, more?: Partial<Omit<Answer, "text">>): Answer;

export interface OpeningOptions {
  composition?: CompositionEntry[] | undefined;
  sampling?: Partial<Sampling> | undefined;
  stop?: Partial<StopConditions> | undefined;
  cold?: ColdPolicy | undefined;
}

/** How a session begins, and what its generations have that say nothing else. With a prompt alone: greedy, on the base. The methods add
 * to it and return the opening itself. */
export class Opening {
  constructor(prompt: Prompt, options?: OpeningOptions);
  prompt: Prompt;
  composition: CompositionEntry[];
  sampling: Sampling;
  stop: StopConditions;
  cold: ColdPolicy | undefined;
  /** Adds an adapter, by alias or digest, over all its modules and layers. */
  adapter(adapter: string, weight: number): this;
  /** Adds any composition entry. */
  entry(entry: CompositionEntry): this;
  /** Stops before this text appears. */
  stopAt(text: string): this;
}

/** One generation. What is absent is the session's; what is there takes the place of all of it. */
export interface Bounds {
  /** Tokens at most; the function's default if absent, and never more than the request has left. */
  maxTokens?: number | undefined;
  sampling?: Partial<Sampling> | undefined;
  stop?: Partial<StopConditions> | undefined;
  constraint?: Constraint | undefined;
}

/** What a generation gave. */
export interface Generated {
  text: string;
  /** With log-probabilities, if the sampling asked. */
  tokens: Token[];
  usage: Usage;
}

/** The mean log-probability of what was generated. Throws a `PluginError` if the sampling did not ask for any. */
export function meanLogprob(generated: Generated): number;

/** A prompt under a composition, which grows by what is appended and generated; `open` makes one. `close` it (or declare it with `using`):
 * that gives back what it holds, and a request may have a few at once. */
export class Session {
  private constructor();
  /** A session that begins so. */
  static open(opening: Opening): Session;
  /** Tokens that it holds: the prompt, what was appended, what was generated. */
  tokens(): number;
  /** Adds text, special tokens included; how many tokens it holds then. */
  append(text: string): number;
  /** Generates to the end. What was generated stays in the session: of a stop string only a token that begins before it, and of an end
   * token nothing. */
  generate(bounds?: Bounds): Generated;
  /** The same, chunk by chunk as it is decoded; what the generator returns at its end is the usage. Until its end, or `stop`, nothing
   * else can be done with the session. A loop that is left early stops it. */
  stream(bounds?: Bounds): Generator<Chunk, Usage, undefined>;
  /** Ends a stream that was not read to its end; what was read of it stays in the session. */
  stop(): void;
  /** Another session that holds the same. What both begin with is computed once. */
  fork(): Session;
  /** Gives back what it holds, and ends what it generates. */
  close(): void;
  [Symbol.dispose](): void;
}

/** Sends text to the caller now. Waits while the caller is slow to read. */
export function write(text: string): void;
