"""Sessions as the harness has them: what is generated was put in by the test. Not here: limits, but those that the test says."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from . import _check
from .agent import Bounds, Generated, Opening
from .errors import HostError
from .types import Chunk, FinishReason, MessagesPrompt, Prompt, Sampling, TemplatePrompt, TextPrompt, Token, Usage


@dataclass
class Said:
    """What one generation says: text, and the log-probability of each of its tokens."""

    text: str
    logprob: float


@dataclass
class Engine:
    """What generations say, in order; what came of it."""

    said: list[Said | HostError]
    granted: list[str]
    prompts: list[str] = field(default_factory=list)
    open: int = 0

    def opened(self, opening: Opening) -> FakeSession:
        """A session that begins so."""
        _check.opening(opening)
        for entry in opening.composition:
            if entry.adapter not in self.granted:
                raise HostError("denied", f"the adapter `{entry.adapter}`: the manifest does not grant it")
        return FakeSession(self, text_of(opening.prompt), opening.sampling)

    def next(self, held: str) -> Said:
        """What the next generation says."""
        self.prompts.append(held)
        if not self.said:
            raise HostError("failed", "the test has no more to say; see `Harness.says`")
        said = self.said.pop(0)
        if isinstance(said, HostError):
            raise said
        return said


class FakeSession:
    """Holds text; each character counts as a token, and each word is a chunk."""

    def __init__(self, engine: Engine, held: str, sampling: Sampling) -> None:
        self._engine = engine
        self._held = held
        self._sampling = sampling
        self._under_way: list[Chunk | Usage] = []
        engine.open += 1

    def tokens(self) -> int:
        return len(self._held)

    def append(self, text: str) -> int:
        _check.text("a text", text)
        self._idle()
        self._held += text
        return self.tokens()

    def generate(self, bounds: Bounds) -> Generated:
        self.start(bounds)
        text, tokens = "", list[Token]()
        while True:
            match self.next():
                case Chunk() as chunk:
                    text += chunk.text
                    tokens += chunk.tokens
                case Usage() as usage:
                    return Generated(text, tokens, usage)

    def start(self, bounds: Bounds) -> None:
        _check.bounds(bounds)
        self._idle()
        said = self._engine.next(self._held)
        text = said.text[: bounds.max_tokens]
        asked = (bounds.sampling or self._sampling).logprobs is not None
        finish = FinishReason.STOP if text == said.text else FinishReason.LENGTH
        logprob = said.logprob if asked else None
        words = re.findall(r"\S+\s*|\s+", text)
        chunks = [Chunk(word, [Token(ord(character), logprob) for character in word]) for word in words]
        self._under_way = [*chunks, Usage(self.tokens(), len(text), finish)]

    def next(self) -> Chunk | Usage:
        if not self._under_way:
            raise HostError("failed", "nothing is being generated in this session; `start` it first")
        step = self._under_way.pop(0)
        if isinstance(step, Chunk):
            self._held += step.text
        return step

    def stop(self) -> None:
        self._under_way = []

    def fork(self) -> FakeSession:
        self._idle()
        return FakeSession(self._engine, self._held, self._sampling)

    def close(self) -> None:
        self._engine.open -= 1

    def _idle(self) -> None:
        if self._under_way:
            raise HostError("failed", "this session generates; read it to its end, or `stop` it, first")


def text_of(prompt: Prompt) -> str:
    """A prompt as the harness's sessions hold it: what the messages say, one after the other."""
    match prompt:
        case TextPrompt():
            return prompt.text
        case MessagesPrompt():
            return "".join(message.content for message in prompt.messages)
        case TemplatePrompt():
            return prompt.name
