"""The contract's values as Python sees them (see `wit/types.wit`). Variants are unions of small classes: build one by its
name, tell them apart with `match` or `isinstance`. Not here: what checks them, which is `_check.py`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, Flag, auto
from typing import Any, Self, TypeVar

from .errors import Error

T = TypeVar("T")


@dataclass
class Message:
    """One turn of a conversation; `role` is `system`, `user`, `assistant` or `tool`."""

    role: str
    content: str


# What to prompt with.


@dataclass
class TextPrompt:
    """Taken as it is, special tokens included."""

    text: str


@dataclass
class MessagesPrompt:
    """Rendered through the base's chat template."""

    messages: list[Message]


@dataclass
class TemplatePrompt:
    """A template of the manifest, rendered with arguments."""

    name: str
    arguments: dict[str, str] = field(default_factory=dict)


Prompt = TextPrompt | MessagesPrompt | TemplatePrompt


def chat(system: str, user: str) -> MessagesPrompt:
    """A system prompt and one question."""
    return MessagesPrompt([Message("system", system), Message("user", user)])


@dataclass
class Request:
    """What the caller asked for."""

    id: str
    """Identifier of this invocation, also sent to the caller as `x-request-id`."""
    function: str
    version: int
    text: str
    """The input itself if it is a string, its member `text` if it is an object that has one, otherwise the content of the
    last user message; empty if there is none of these."""
    input_json: str = "null"
    """The whole input as JSON text; `json()` reads it."""
    messages: list[Message] = field(default_factory=list)
    """The conversation, if the call was chat-shaped."""
    parameters: dict[str, str] = field(default_factory=dict)
    """The scalar members of an input object, each as text."""
    stream: bool = False
    """Whether the caller reads a stream."""
    max_tokens: int | None = None
    """The caller's own limit on output tokens."""

    def parameter(self, name: str) -> str | None:
        """A scalar member of the input object, as text."""
        return self.parameters.get(name)

    def parameter_as(self, name: str, kind: Callable[[str], T]) -> T | None:
        """A scalar member of the input object, made a `kind` (`int`, `float`, …); `None` if it is not there.

        Raises `Error` if it is there and not valid.
        """
        text = self.parameters.get(name)
        if text is None:
            return None
        try:
            return kind(text)
        except ValueError:
            raise Error(f"the parameter `{name}` is not valid: {text}") from None

    def json(self) -> Any:
        """The whole input as JSON values."""
        return json.loads(self.input_json)

    def conversation(self) -> list[Message]:
        """The conversation if there is one, else the text as one user message."""
        return list(self.messages) if self.messages else [Message("user", self.text)]

    def prompt(self) -> MessagesPrompt:
        """`conversation` as a prompt."""
        return MessagesPrompt(self.conversation())


# What to do with a request.


@dataclass
class Serve:
    """Serve it here: `compose` is called next."""


@dataclass
class HandOver:
    """Hand it over to another function of the same tenant."""

    function: str


@dataclass
class Answer:
    """Answer with this text, without generating."""

    text: str


@dataclass
class Reject:
    """A refusal that the caller sees, with status 422; `code` is at most 64 lower-case letters, digits and `_`."""

    code: str
    reason: str


Decision = Serve | HandOver | Answer | Reject


# Which adapters, where.


class Modules(Flag):
    """Modules of a layer."""

    Q_PROJ = auto()
    K_PROJ = auto()
    V_PROJ = auto()
    O_PROJ = auto()
    GATE_PROJ = auto()
    UP_PROJ = auto()
    DOWN_PROJ = auto()


@dataclass
class LayerRange:
    """Layers (or tokens, in a span) `first .. end`, half open, counted from 0."""

    first: int
    end: int


@dataclass
class WholeSpan:
    """Prompt and output."""


@dataclass
class OutputSpan:
    """The output tokens `first .. end`, half open, counted from 0."""

    first: int
    end: int


@dataclass
class OutputFromSpan:
    """The output from this token on."""

    first: int


Span = WholeSpan | OutputSpan | OutputFromSpan


@dataclass
class CompositionEntry:
    """One term of y = Wx + sum of weight * scale * B(A x)."""

    adapter: str
    """An alias or a digest of an adapter that this function may use."""
    weight: float
    modules: Modules | None = None
    """Only these modules; all that the adapter has if `None`."""
    layers: LayerRange | None = None
    span: Span = field(default_factory=WholeSpan)


@dataclass
class Sampling:
    """How tokens are drawn; greedy unless set."""

    temperature: float = 0.0
    top_k: int = 0
    """0 is off."""
    top_p: float = 1.0
    """1 is off."""
    min_p: float = 0.0
    """0 is off."""
    repetition_penalty: float = 1.0
    """1 is off."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logprobs: int | None = None
    """How many alternatives to report for each token; chunks carry log-probabilities if it is set."""


@dataclass
class StopConditions:
    """Where the generation ends, beside the end of the sequence."""

    strings: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    """Go on after the end-of-sequence token."""


@dataclass
class JsonSchema:
    """The output matches this JSON schema, as text."""

    schema: str


@dataclass
class Regex:
    """The output matches this regular expression."""

    regex: str


@dataclass
class Grammar:
    """The output matches this Lark grammar."""

    grammar: str


Constraint = JsonSchema | Regex | Grammar


@dataclass
class ColdWait:
    """An adapter that is not resident is waited for, at most this long."""

    wait_ms: int


@dataclass
class ColdBase:
    """The base serves without the adapter."""


@dataclass
class ColdFallback:
    """This composition is used in its place."""

    composition: list[CompositionEntry]


@dataclass
class ColdRefuse:
    """The answer is 503 with `Retry-After`."""


ColdPolicy = ColdWait | ColdBase | ColdFallback | ColdRefuse


@dataclass
class Plan:
    """A value describing the generation, which the host checks. With a prompt alone: greedy, on the base, passed through.

    What follows the prompt is given by name, or set later; the methods add to it and return the plan itself.
    """

    prompt: Prompt
    composition: list[CompositionEntry] = field(default_factory=list, kw_only=True)
    sampling: Sampling = field(default_factory=Sampling, kw_only=True)
    stop: StopConditions = field(default_factory=StopConditions, kw_only=True)
    constraint: Constraint | None = field(default=None, kw_only=True)
    cold: ColdPolicy | None = field(default=None, kw_only=True)
    deadline_ms: int | None = field(default=None, kw_only=True)
    """Milliseconds from now in which the answer must be complete."""
    token_budget: int | None = field(default=None, kw_only=True)
    """How many tokens may be generated; the function's limit if `None`, which is also what the host applies on top."""
    prefetch: list[str] = field(default_factory=list, kw_only=True)
    """Adapters that later requests are likely to need."""
    post_process: bool = field(default=False, kw_only=True)

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

    def post_processed(self) -> Self:
        """Asks for the post-processor."""
        self.post_process = True
        return self


# What comes out.


@dataclass
class Token:
    """One generated token; `logprob` is there if the plan's sampling asked."""

    id: int
    logprob: float | None = None


@dataclass
class Chunk:
    """Text that was decoded since the last call, with the tokens that it came from."""

    text: str
    tokens: list[Token] = field(default_factory=list)


@dataclass
class Pass:
    """Send what is held back, then the chunk."""


@dataclass
class Replace:
    """Send this in place of what is held back and the chunk."""

    text: str


@dataclass
class Hold:
    """Keep the chunk back, behind what is held already."""


@dataclass
class Emit:
    """Send this as well."""

    text: str


@dataclass
class Stop:
    """End the generation."""


@dataclass
class SwitchComposition:
    """Go on with another composition."""

    composition: list[CompositionEntry]


Action = Pass | Replace | Hold | Emit | Stop | SwitchComposition
"""Applied in order; `Pass`, `Replace` and `Hold` settle the chunk, and what none of them settled is passed."""


class FinishReason(Enum):
    """Why the generation ended."""

    STOP = "stop"
    LENGTH = "length"
    STOPPED_BY_PLUGIN = "stopped-by-plugin"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


@dataclass
class Usage:
    """What was read and generated, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    finish: FinishReason


@dataclass
class Reply:
    """What another function answered."""

    text: str
    function: str
    """Who answered: another one than was called, if that one handed over."""
    version: int
    usage: Usage
    metadata: dict[str, str] = field(default_factory=dict)
    receipt: str = ""


@dataclass
class Ending:
    """The plugin's last word."""

    actions: list[Action] = field(default_factory=lambda: [Pass()])
    """Applied to what is still held back, as if it were a last, empty chunk."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Added to the answer."""
    claims: dict[str, str] = field(default_factory=dict)
    """Written into the receipt as the plugin's own claims."""


# What the host says about adapters.


class Residency(Enum):
    """Where an adapter lies: in a slot of the runner, in host memory, on storage."""

    DEVICE = "device"
    MEMORY = "memory"
    STORAGE = "storage"


@dataclass
class Adapter:
    """An adapter that is granted to this function."""

    alias: str
    digest: str
    """BLAKE3 of the canonical form, 64 hexadecimal digits."""
    rank: int
    residency: Residency
