// {{name}}: an agent that answers an empty text by itself, and otherwise has the model answer twice from one prompt and sends the longer
// answer, under the adapter that the configuration's `adapter` names, if any.

import { Sampling, config, random } from "tenon-sdk";
import { Agent, Answer, Opening, Session } from "tenon-sdk/agent";

const TOKENS = 64;

export default class Plugin extends Agent {
  /** @param {import("tenon-sdk").Request} request */
  run(request) {
    if (request.text.trim() === "") return Answer("Say something.");
    const opening = new Opening(request.prompt());
    const adapter = config.get("adapter");
    if (adapter !== undefined) opening.adapter(adapter, 1);
    const maxTokens = request.maxTokens ?? TOKENS;
    using start = Session.open(opening);
    let longer = "";
    for (let draw = 0; draw < 2; draw += 1) {
      // Each has a fork of the one session, whose prompt is computed once.
      using fork = start.fork();
      const { text } = fork.generate({ maxTokens, sampling: Sampling({ temperature: 0.8, seed: random.next() }) });
      if (text.length > longer.length) longer = text;
    }
    return Answer(longer);
  }
}
