"""What a plugin implements."""

from abc import ABC, abstractmethod

from .types import Action, Chunk, Decision, Ending, Pass, Plan, Request, Serve, Usage


class Policy(ABC):
    """A plugin of world `policy`. The host calls `route`, and `compose` if that said `Serve`.

    Made once, without arguments, when the component is built; each request has a fresh copy of it, so that `self` holds
    what `__init__` prepared and nothing of other requests.
    """

    def route(self, request: Request) -> Decision:
        """Serve here (unless overridden), hand over, answer directly, or reject."""
        return Serve()

    @abstractmethod
    def compose(self, request: Request) -> Plan:
        """Prompt, adapters, sampling."""

    def post_processor(self, request: Request) -> "PostProcessor":
        """Made for each request whose plan has `post_process` set."""
        return PassThrough()


class PostProcessor(ABC):
    """Sees an answer as it is decoded."""

    @abstractmethod
    def chunk(self, chunk: Chunk) -> list[Action]:
        """Called with text as it is decoded, in order. The actions are applied in order."""

    def finish(self, usage: Usage) -> Ending:
        """Called once, after the last chunk. Ends by sending what is held back, unless overridden."""
        return Ending()


class PassThrough(PostProcessor):
    """Sends everything as it comes."""

    def chunk(self, chunk: Chunk) -> list[Action]:
        """Passes."""
        return [Pass()]
