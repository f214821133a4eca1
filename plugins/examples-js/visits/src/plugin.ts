// Counts a visitor's requests in a bucket, and refuses when there were too many; the base answers the rest. Configuration: `visits_max`,
// and `visitor_key`, the name of the secret that visitors are told apart with. The manifest grants the bucket `visits` and that secret.

import { Decision, Plan, Policy, Prompt, type Request, config, log, secrets, tokenizer } from "tenon-sdk";
import { open } from "tenon-sdk/kv";

const VISITS_MAX = 100;
/** The last questions of a visitor that are kept. */
const KEPT_MAX = 3;

export default class Visits extends Policy {
  route(request: Request): Decision {
    const visitor = named(request);
    const visits = open("visits").increment(`count/${visitor}`);
    const most = Number(config.get("visits_max") ?? VISITS_MAX);
    return visits > most ? Decision.reject("too_many_visits", `${visits} visits, at most ${most}`) : Decision.serve();
  }

  compose(request: Request): Plan {
    const key = `asked/${named(request)}`;
    const kept = open("visits").updateText(key, (before) => {
      const asked: string[] = JSON.parse(before ?? "[]");
      return JSON.stringify([...asked, request.text].slice(-KEPT_MAX));
    });
    log.info(`${tokenizer.count(request.text)} tokens, ${kept.length} characters kept`);
    return new Plan(Prompt.chat("Answer in one sentence.", request.text), { tokenBudget: request.maxTokens ?? 48 });
  }
}

/** A visitor's name in the bucket: what was sent is not kept as it is. */
function named(request: Request): string {
  const visitor = `${secrets.get(config.require("visitor_key"))}/${request.parameters.get("visitor") ?? "nobody"}`;
  let hash = 0x811c9dc5;
  for (const letter of visitor) hash = Math.imul(hash ^ (letter.codePointAt(0) ?? 0), 0x01000193) >>> 0;
  return hash.toString(16).padStart(8, "0");
}
