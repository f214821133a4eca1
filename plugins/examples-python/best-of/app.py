"""An agent: draws several answers from one prompt and sends the one that the model itself finds likeliest, by the mean log-probability of
its tokens. The prompt is computed once: each draw is a fork of one session. Configuration: `draws` (4), `tokens` (48), and if you like
`adapter` and `system`.
"""

from dataclasses import replace

from tenon_sdk import Error, Request, Sampling, chat, config, random
from tenon_sdk.agent import Agent, Answer, Generated, Opening, Session, export_agent

DRAWS = 4
TOKENS = 48


@export_agent
class BestOf(Agent):
    """The likeliest of several."""

    def run(self, request: Request) -> Answer:
        sampling = Sampling(temperature=0.8, logprobs=0)
        opening = Opening(chat(config.get("system") or "Answer the question.", request.text), sampling=sampling)
        adapter = config.get("adapter")
        if adapter is not None:
            opening.adapter(adapter, 1.0)
        draws = max(number("draws", DRAWS), 1)
        tokens = number("tokens", TOKENS)
        tokens = tokens if request.max_tokens is None else min(request.max_tokens, tokens)
        drawn: list[Generated] = []
        with Session.open(opening) as start:
            for _ in range(draws):
                # Each draw is its own, and can be had again by the seed in the receipt.
                with start.fork() as fork:
                    drawn.append(fork.generate(max_tokens=tokens, sampling=replace(sampling, seed=random.next())))
        best = max(drawn, key=Generated.mean_logprob)
        thousandths = int(best.mean_logprob() * 1000)
        return Answer(best.text, metadata={"draws": str(draws), "mean_logprob_thousandths": str(thousandths)})


def number(name: str, default: int) -> int:
    """A number of the configuration."""
    text = config.get(name)
    if text is None:
        return default
    if not text.isdecimal():
        raise Error(f"`{name}` in the configuration is no such number: {text}")
    return int(text)
