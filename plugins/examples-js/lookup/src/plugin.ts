// Asks a service of the author's for facts about the question, with a secret key, and puts them before the model. Configuration: `url`,
// to which the text is added. The manifest grants the service in `grants.http` and the secret `lookup-key`. It is built with
// `--engine starlingmonkey`, as everything is that imports `tenon-sdk/http`.

import { Plan, Policy, Prompt, type Request, config, log, secrets, tokenizer } from "tenon-sdk";
import { get } from "tenon-sdk/http";

const FACT_TOKENS_MAX = 256;
const UNKNOWN = "Say that you do not know if you are not sure.";

export default class Lookup extends Policy {
  compose(request: Request): Plan {
    const facts = asked(request.text);
    // The function serves without its facts rather than not at all.
    const system = facts === undefined ? UNKNOWN : `Answer from these facts alone:\n${facts}`;
    return new Plan(Prompt.chat(system, request.text), { tokenBudget: request.maxTokens ?? 48 });
  }
}

/** What the service says, if it says something, and no more of it than the prompt has room for. */
function asked(question: string): string | undefined {
  const url = config.require("url") + encodeURIComponent(question);
  const answer = get(url, { authorization: `Bearer ${secrets.get("lookup-key")}` });
  if (answer.status !== 200) {
    log.warn(`the service answered with status ${answer.status}`);
    return undefined;
  }
  const tokens = tokenizer.encode(answer.text());
  return tokens.length > FACT_TOKENS_MAX ? tokenizer.decode(tokens.slice(0, FACT_TOKENS_MAX)) : answer.text();
}
