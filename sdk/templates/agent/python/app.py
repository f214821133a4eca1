"""{{name}}: an agent that answers an empty text by itself, and otherwise has the model answer twice from one prompt and sends the longer
answer, under the adapter that the configuration's `adapter` names, if any.
"""

from tenon_sdk import Request, Sampling, config, random
from tenon_sdk.agent import Agent, Answer, Opening, Session, export_agent

TOKENS = 64


@export_agent
class Plugin(Agent):
    """Drives its own generations."""

    def run(self, request: Request) -> Answer:
        """The longer of two answers."""
        if not request.text.strip():
            return Answer("Say something.")
        opening = Opening(request.prompt())
        adapter = config.get("adapter")
        if adapter is not None:
            opening.adapter(adapter, 1.0)
        tokens = TOKENS if request.max_tokens is None else request.max_tokens
        texts: list[str] = []
        with Session.open(opening) as start:
            for _ in range(2):
                # Each has a fork of the one session, whose prompt is computed once.
                with start.fork() as fork:
                    sampling = Sampling(temperature=0.8, seed=random.next())
                    texts.append(fork.generate(max_tokens=tokens, sampling=sampling).text)
        return Answer(max(texts, key=len))
