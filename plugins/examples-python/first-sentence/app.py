"""Shows post-processing: the answer is held back until its first sentence is complete; then that is sent, in one piece, and
the generation ends.
"""

import re

from tenon_sdk import Action, Chunk, Ending, Hold, Plan, Policy, PostProcessor, Replace, Request, Stop, Usage, export_policy

END = re.compile("[.!?]")


class Held(PostProcessor):
    """What was read so far."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.text = ""

    def chunk(self, chunk: Chunk) -> list[Action]:
        """Holds, until the sentence ends."""
        self.text += chunk.text
        end = END.search(self.text)
        return [Replace(self.text[: end.end()]), Stop()] if end else [Hold()]

    def finish(self, usage: Usage) -> Ending:
        """Sends what is left, and says how much was read."""
        read = {"tokens-read": str(usage.completion_tokens)}
        return Ending(metadata=read, claims=dict(read))


@export_policy
class FirstSentence(Policy):
    """The base, cut short."""

    def compose(self, request: Request) -> Plan:
        """Asks as it was asked."""
        return Plan(request.prompt(), token_budget=request.max_tokens).post_processed()

    def post_processor(self, request: Request) -> PostProcessor:
        """One for each answer."""
        return Held()
