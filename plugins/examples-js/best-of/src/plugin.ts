// An agent: draws several answers from one prompt and sends the one that the model itself finds likeliest, by the mean log-probability of
// its tokens. The prompt is computed once: each draw is a fork of one session. Configuration: `draws` (4), `tokens` (48), and if you like
// `adapter` and `system`.

import { PluginError, Prompt, type Request, Sampling, config, random } from "tenon-sdk";
import { Agent, Answer, type Generated, Opening, Session, meanLogprob } from "tenon-sdk/agent";

const DRAWS = 4;
const TOKENS = 48;

export default class BestOf extends Agent {
  run(request: Request): Answer {
    const sampling = Sampling({ temperature: 0.8, logprobs: 0 });
    const opening = new Opening(Prompt.chat(config.get("system") ?? "Answer the question.", request.text), { sampling });
    const adapter = config.get("adapter");
    if (adapter !== undefined) opening.adapter(adapter, 1);
    const draws = Math.max(number("draws", DRAWS), 1);
    const maxTokens = Math.min(request.maxTokens ?? Infinity, number("tokens", TOKENS));
    using start = Session.open(opening);
    let best: { score: number; drawn: Generated } | undefined;
    for (let draw = 0; draw < draws; draw += 1) {
      using fork = start.fork();
      // Each draw is its own, and can be had again by the seed in the receipt.
      const drawn = fork.generate({ maxTokens, sampling: { ...sampling, seed: random.next() } });
      const score = meanLogprob(drawn);
      if (best === undefined || score > best.score) best = { score, drawn };
    }
    if (best === undefined) throw new PluginError("nothing was drawn");
    const thousandths = Math.trunc(best.score * 1000);
    return Answer(best.drawn.text, { metadata: { draws: String(draws), mean_logprob_thousandths: String(thousandths) } });
  }
}

/** A number of the configuration. */
function number(name: string, fallback: number): number {
  const text = config.get(name);
  if (text === undefined) return fallback;
  if (!/^\d+$/.test(text)) throw new PluginError(`\`${name}\` in the configuration is no such number: ${text}`);
  return Number(text);
}
