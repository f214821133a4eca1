"""Write a plugin that drives its own generations: subclass `Agent`, export it.

    from tenon_sdk import Request, chat
    from tenon_sdk.agent import Agent, Answer, Opening, Session, export_agent, write

    @export_agent
    class Corrector(Agent):
        def run(self, request: Request) -> Answer:
            with Session.open(Opening(chat("Be brief.", request.text))) as draft:
                draft.generate(max_tokens=64)
                draft.append("<|im_end|>\\n<|im_start|>user\\nCorrect it.<|im_end|>\\n<|im_start|>assistant\\n")
                for chunk in draft.stream(max_tokens=64):
                    write(chunk.text)
            return Answer()

The manifest must set `grants.generations`. What is denied, and a budget that is used up, is raised as `HostError`. Not here: plugins that
only decide (`policy.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Self

from ._export import export_agent
from ._host import HostSession, host
from .errors import Error
from .types import (
    Chunk,
    ColdPolicy,
    CompositionEntry,
    Constraint,
    Prompt,
    Request,
    Sampling,
    StopConditions,
    Token,
    Usage,
)

__all__ = ["Agent", "Answer", "Bounds", "Generated", "Opening", "Session", "Stream", "export_agent", "write"]


@dataclass
class Answer:
    """The agent's last word."""

    text: str = ""
    """Sent after what was written."""
    metadata: dict[str, str] = field(default_factory=dict, kw_only=True)
    """Added to the answer."""
    claims: dict[str, str] = field(default_factory=dict, kw_only=True)
    """Written into the receipt as the plugin's own claims."""


class Agent(ABC):
    """A plugin of world `agent`. Made once, without arguments, when the component is built; each request has a fresh copy of it."""

    @abstractmethod
    def run(self, request: Request) -> Answer:
        """Called once for each request. What it wrote with `write` goes out first, then the answer's text."""


@dataclass
class Opening:
    """How a session begins, and what its generations have that say nothing else. With a prompt alone: greedy, on the base.

    What follows the prompt is given by name, or set later; the methods add to it and return the opening itself.
    """

    prompt: Prompt
    composition: list[CompositionEntry] = field(default_factory=list, kw_only=True)
    sampling: Sampling = field(default_factory=Sampling, kw_only=True)
    stop: StopConditions = field(default_factory=StopConditions, kw_only=True)
    cold: ColdPolicy | None = field(default=None, kw_only=True)

    def adapter(self, adapter: str, weight: float) -> Self:
        """Adds an adapter, by alias or digest, over all its modules and layers."""
        return self.entry(CompositionEntry(adapter, weight))

    def entry(self, entry: CompositionEntry) -> Self:
        """Adds any composition entry."""
        self.composition.append(entry)
        return self

    def stop_at(self, text: str) -> Self:
        """Stops before this text appears."""
        self.stop.strings.append(text)
        return self


@dataclass
class Bounds:
    """One generation, as `generate` and `stream` take it by name. What is `None` is the session's."""

    max_tokens: int | None = None
    """Tokens at most; the function's default if `None`, and never more than the request has left."""
    sampling: Sampling | None = None
    stop: StopConditions | None = None
    constraint: Constraint | None = None


@dataclass
class Generated:
    """What a generation gave."""

    text: str
    tokens: list[Token]
    """With log-probabilities, if the sampling asked."""
    usage: Usage

    def mean_logprob(self) -> float:
        """The mean log-probability of its tokens. Raises `Error` if the sampling did not ask for any."""
        logprobs = [token.logprob for token in self.tokens if token.logprob is not None]
        if len(logprobs) != len(self.tokens):
            raise Error("no log-probabilities: set `logprobs` in the sampling")
        return sum(logprobs) / max(len(logprobs), 1)


class Session:
    """A prompt under a composition, which grows by what is appended and generated. Use it in a `with` statement, or `close` it: that gives
    back what it holds, and a request may have a few at once."""

    def __init__(self, session: HostSession) -> None:
        """Not to be called: see `open`."""
        self._held: HostSession | None = session

    @classmethod
    def open(cls, opening: Opening) -> Session:
        """A session that begins so."""
        return cls(host().open_session(opening))

    @property
    def tokens(self) -> int:
        """Tokens that it holds: the prompt, what was appended, what was generated."""
        return self._session().tokens()

    def append(self, text: str) -> int:
        """Adds text, special tokens included; how many tokens it holds then."""
        return self._session().append(text)

    def generate(
        self,
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: StopConditions | None = None,
        constraint: Constraint | None = None,
    ) -> Generated:
        """Generates to the end. What was generated stays in the session: of a stop string only a token that begins before it, and of an
        end token nothing. What is not given is the session's."""
        return self._session().generate(Bounds(max_tokens, sampling, stop, constraint))

    def stream(
        self,
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: StopConditions | None = None,
        constraint: Constraint | None = None,
    ) -> Stream:
        """The same, chunk by chunk as it is decoded. Until its end, or `stop`, nothing else can be done with the session."""
        session = self._session()
        session.start(Bounds(max_tokens, sampling, stop, constraint))
        return Stream(self)

    def stop(self) -> None:
        """Ends a stream that was not read to its end; what was read of it stays in the session."""
        self._session().stop()

    def fork(self) -> Session:
        """Another session that holds the same. What both begin with is computed once."""
        return Session(self._session().fork())

    def close(self) -> None:
        """Gives back what it holds, and ends what it generates."""
        held, self._held = self._held, None
        if held is not None:
            held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _session(self) -> HostSession:
        if self._held is None:
            raise Error("this session is closed")
        return self._held


class Stream:
    """The chunks of a generation, in order; `Session.stream` makes one. Left before its end, it stops."""

    def __init__(self, session: Session) -> None:
        """Not to be called: see `Session.stream`."""
        self._session: Session | None = session
        self.usage: Usage | None = None
        """What was read and generated, once it has ended."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        if self._session is None:
            raise StopIteration
        try:
            step = self._session._session().next()
        except BaseException:
            self._session = None
            raise
        if isinstance(step, Chunk):
            return step
        self._session, self.usage = None, step
        raise StopIteration

    def stop(self) -> None:
        """Ends it; what was read stays in the session."""
        session, self._session = self._session, None
        if session is not None and session._held is not None:
            session._held.stop()

    def __del__(self) -> None:
        self.stop()


def write(text: str) -> None:
    """Sends text to the caller now. Waits while the caller is slow to read."""
    host().write_output(text)
