"""Runs a policy or an agent natively, with a host that the test describes: tests need no WebAssembly.

    from tenon_sdk.testing import Harness, request

    plan = Harness().adapter("manners").config("tone", "warm").compose(Polite, request("hello"))
    assert plan.composition[0].adapter == "manners"

    text, answer = Harness().says("Wet.").run(Corrector, request("The sea?"))
    assert text == "Wet."

What crosses to the host in a component is checked here as there, so that a wrong type fails a test.
"""

from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass
from typing import Literal, Self, TypeVar

from . import _check
from ._host import current
from ._testing_agents import Engine, FakeSession, Said
from ._testing_buckets import Contents, FakeBucket
from .agent import Agent, Answer, Opening
from .errors import HostError
from .http import HttpResponse
from .policy import Policy
from .types import (
    Action,
    Adapter,
    Chunk,
    Decision,
    Emit,
    Ending,
    FinishReason,
    Hold,
    Message,
    Pass,
    Plan,
    Replace,
    Reply,
    Request,
    Residency,
    Stop,
    Tool,
    ToolOutcome,
    Usage,
)

T = TypeVar("T")

RANDOM_BYTES_MAX = 65_536
ADAPTER_RANK = 8
EPOCH_SECONDS = 1_767_225_600.0


def request(
    text: str = "",
    *,
    input_json: str = "null",
    messages: list[Message] | None = None,
    parameters: dict[str, str] | None = None,
    stream: bool = False,
    max_tokens: int | None = None,
) -> Request:
    """A request with this text and nothing else, unless it is said."""
    return Request(
        id="test",
        function="test",
        version=1,
        text=text,
        input_json=input_json,
        messages=list(messages or []),
        parameters=dict(parameters or {}),
        stream=stream,
        max_tokens=max_tokens,
    )


@dataclass
class HttpRequest:
    """A request as a policy sent it."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes


class Harness:
    """A host made for one test. Each call begins as it was described, with an empty log."""

    def __init__(self) -> None:
        """No adapters, no configuration."""
        self._adapters: list[Adapter] = []
        self._config: dict[str, str] = {}
        self._replies: dict[str, str] = {}
        self._tools: list[tuple[str, str, str]] = []
        self._seed = 0
        self._elapsed_ms = 0
        self._secrets: dict[str, str] = {}
        self._buckets: dict[str, Contents] = {}
        self._answers: dict[str, HttpResponse] = {}
        self._said: list[Said | HostError] = []
        self._last = _Fake(self)

    def adapter(self, alias: str) -> Self:
        """Grants an adapter of this alias."""
        digest = f"{len(self._adapters) + 1:064x}"
        self._adapters.append(Adapter(alias, digest, ADAPTER_RANK, Residency.MEMORY))
        return self

    def config(self, name: str, value: str) -> Self:
        """Sets a value of the manifest's configuration."""
        self._config[name] = value
        return self

    def reply(self, function: str, text: str) -> Self:
        """Grants calls of a function, which answers this."""
        self._replies[function] = text
        return self

    def tool(self, server: str, name: str, text: str) -> Self:
        """Grants a tool of a server, which answers every call with this text."""
        self._tools.append((server, name, text))
        return self

    def secret(self, name: str, value: str) -> Self:
        """Grants a secret."""
        self._secrets[name] = value
        return self

    def bucket(self, name: str, values: Mapping[str, bytes | str] | None = None) -> Self:
        """Grants a bucket, with these values. What a call writes is there for the next one."""
        pairs = (values or {}).items()
        self._buckets[name] = Contents({key: value.encode() if isinstance(value, str) else value for key, value in pairs})
        return self

    def answer(self, url: str, status: int = 200, body: bytes | str = b"", headers: dict[str, str] | None = None) -> Self:
        """Grants requests to URLs that begin with this one, and answers them so; of several the longest counts."""
        content = body.encode() if isinstance(body, str) else body
        self._answers[url] = HttpResponse(status, dict(headers or {}), content)
        return self

    def says(self, text: str, logprob: float = -1.0) -> Self:
        """Has the next generation of an agent say this, each token with this log-probability. Without more, generations fail."""
        self._said.append(Said(text, logprob))
        return self

    def refuses(self, kind: Literal["denied", "unsupported", "limit", "failed"], what: str) -> Self:
        """Has the next generation of an agent refused, as a budget refuses it: `.refuses("limit", "generations_max")`."""
        self._said.append(HostError(kind, what))
        return self

    def seed(self, seed: int) -> Self:
        """Seeds the random numbers."""
        self._seed = seed
        return self

    def elapsed_ms(self, elapsed_ms: int) -> Self:
        """Sets what the clock shows."""
        self._elapsed_ms = elapsed_ms
        return self

    def route(self, policy: Policy | type[Policy], request: Request) -> Decision:
        """Calls `route`."""
        decision = self._with(lambda: _made(policy).route(request))
        _check.decision(decision)
        return decision

    def compose(self, policy: Policy | type[Policy], request: Request) -> Plan:
        """Calls `compose`."""
        plan = self._with(lambda: _made(policy).compose(request))
        _check.plan(plan)
        return plan

    def post_process(
        self, policy: Policy | type[Policy], request: Request, chunks: list[str | Chunk]
    ) -> tuple[str, Ending]:
        """Feeds the post-processor these chunks and returns what the caller would read, and the ending."""

        def call() -> tuple[str, Ending]:
            processor = _made(policy).post_processor(request)
            output = _Output()
            finish = FinishReason.STOP
            for given in chunks:
                chunk = Chunk(given) if isinstance(given, str) else given
                output.apply(chunk.text, processor.chunk(chunk))
                if output.stopped:
                    finish = FinishReason.STOPPED_BY_PLUGIN
                    break
            ending = processor.finish(Usage(1, len(chunks), finish))
            _check.ending(ending)
            output.apply("", ending.actions)
            return output.sent, ending

        return self._with(call)

    def run(self, agent: Agent | type[Agent], request: Request) -> tuple[str, Answer]:
        """Calls `run` and returns all that the caller would read, and the answer."""
        answer = self._with(lambda: _made(agent).run(request))
        _check.answer(answer)
        return "".join(self._last.written) + answer.text, answer

    def prompts(self) -> list[str]:
        """What sessions held when the last call had them generate, in order."""
        return list(self._last.engine.prompts)

    def written(self) -> list[str]:
        """What the last call wrote before its answer, in the pieces in which it did."""
        return list(self._last.written)

    def sessions(self) -> int:
        """How many sessions the last call left open."""
        return self._last.engine.open

    def lines(self) -> list[str]:
        """What the last call has logged."""
        return list(self._last.lines)

    def prefetched(self) -> list[str]:
        """Which adapters the last call asked to be fetched ahead."""
        return list(self._last.prefetched)

    def calls(self) -> list[tuple[str, str]]:
        """The functions that the last call asked, each with what it was asked."""
        return list(self._last.calls)

    def tool_calls(self) -> list[tuple[str, str, str]]:
        """The tools that the last call called: server, tool, arguments as JSON."""
        return list(self._last.tool_calls)

    def values(self, bucket: str) -> dict[str, bytes]:
        """What a bucket holds now."""
        return dict(self._buckets[bucket].values)

    def requests(self) -> list[HttpRequest]:
        """What the last call has sent."""
        return list(self._last.requests)

    def _with(self, call: Callable[[], T]) -> T:
        self._last = _Fake(self)

        def hosted() -> T:
            current.set(self._last)
            return call()

        return copy_context().run(hosted)


def _made(plugin: T | type[T]) -> T:
    return plugin() if isinstance(plugin, type) else plugin


class _Fake:
    """The host of one call, as the harness describes it."""

    def __init__(self, harness: Harness) -> None:
        self._adapters = list(harness._adapters)
        self._config = dict(harness._config)
        self._random = harness._seed
        self._elapsed_ms = harness._elapsed_ms
        self._bytes_left = RANDOM_BYTES_MAX
        self._secrets = dict(harness._secrets)
        self._buckets = harness._buckets
        self._answers = dict(harness._answers)
        self.lines: list[str] = []
        self.prefetched: list[str] = []
        self.calls: list[tuple[str, str]] = []
        self._replies = dict(harness._replies)
        self.tool_calls: list[tuple[str, str, str]] = []
        self._tools = list(harness._tools)
        self.requests: list[HttpRequest] = []
        self.engine = Engine(list(harness._said), [adapter.alias for adapter in harness._adapters])
        self.written: list[str] = []

    def adapters(self) -> list[Adapter]:
        return list(self._adapters)

    def prefetch(self, adapters: list[str]) -> None:
        _check.texts("prefetch", adapters)
        self.prefetched += adapters

    def write(self, level: str, message: str) -> None:
        self.lines.append(message)

    def elapsed_ms(self) -> int:
        return self._elapsed_ms // 10 * 10

    def unix_seconds(self) -> float:
        return EPOCH_SECONDS + self.elapsed_ms() / 1000

    def random_bytes(self, count: int) -> bytes:
        _check.u32("count", count)
        if count > self._bytes_left:
            raise HostError("limit", "random_bytes_max")
        self._bytes_left -= count
        return bytes(self.random_next() >> 24 for _ in range(count))

    def random_next(self) -> int:
        self._random = (self._random * 1_664_525 + 1_013_904_223) & _check.U32_MAX
        return self._random

    def config_get(self, name: str) -> str | None:
        return self._config.get(name)

    def config_all(self) -> dict[str, str]:
        return dict(self._config)

    def call_function(self, function: str, kind: str, value: str, max_tokens: int | None) -> Reply:
        _check.text("the name of a function", function)
        _check.text("what a function is asked", value)
        _check.maybe_u32("max_tokens", max_tokens)
        if function not in self._replies:
            raise HostError("denied", f"the function `{function}`: the manifest's grants.calls does not name it")
        self.calls.append((function, value))
        return Reply(self._replies[function], function, 1, Usage(1, 1, FinishReason.STOP))

    def tool_list(self, server: str) -> list[Tool]:
        _check.text("the name of a server", server)
        found = [Tool(name, "", '{"type":"object"}') for of, name, _ in self._tools if of == server]
        if not found:
            raise HostError("denied", f"the tool server `{server}`; see the manifest's grants.tools")
        return found

    def tool_call(self, server: str, tool: str, arguments: str) -> ToolOutcome:
        _check.text("the name of a server", server)
        _check.text("the name of a tool", tool)
        for of, name, text in self._tools:
            if (of, name) == (server, tool):
                self.tool_calls.append((server, tool, arguments))
                return ToolOutcome(text)
        raise HostError("denied", f"the tool `{tool}` of `{server}`; see the manifest's grants.tools")

    def secret(self, name: str) -> str:
        _check.text("the name of a secret", name)
        if name not in self._secrets:
            raise HostError("denied", f"the secret `{name}`; see the manifest's grants.secrets")
        return self._secrets[name]

    def encode(self, text: str) -> list[int]:
        _check.text("a text", text)
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        for token in _check.sequence("tokens", tokens):
            _check.u32("a token", token)
        return bytes(token & 0xFF for token in tokens).decode(errors="replace")

    def count(self, text: str) -> int:
        return len(self.encode(text))

    def bucket(self, name: str) -> FakeBucket:
        _check.text("the name of a bucket", name)
        if name not in self._buckets:
            raise HostError("denied", f"the bucket `{name}`; see the manifest's grants.kv")
        return FakeBucket(self._buckets[name])

    def http(
        self, method: str, url: str, headers: list[tuple[str, str]], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        _check.request(method, url, headers, body)
        self.requests.append(HttpRequest(method, url, dict(headers), body))
        known = max((start for start in self._answers if url.startswith(start)), key=len, default=None)
        if known is None:
            raise HostError("denied", f"{method} {url}; see the manifest's grants.http")
        found = self._answers[known]
        return found.status, list(found.headers.items()), found.body

    def open_session(self, opening: Opening) -> FakeSession:
        return self.engine.opened(opening)

    def write_output(self, text: str) -> None:
        _check.text("what is written", text)
        self.written.append(text)


class _Output:
    """What the host does with actions (see `wit/types.wit`): what neither pass, replace nor hold settled is passed."""

    def __init__(self) -> None:
        self.held = ""
        self.sent = ""
        self.stopped = False

    def apply(self, text: str, actions: list[Action]) -> None:
        _check.actions(actions)
        chunk: str | None = text
        for action in actions:
            match action:
                case Pass():
                    self.sent += self.held + (chunk or "")
                    self.held, chunk = "", None
                case Replace():
                    self.sent += action.text
                    self.held, chunk = "", None
                case Hold():
                    self.held += chunk or ""
                    chunk = None
                case Emit():
                    self.sent += action.text
                case Stop():
                    self.stopped = True
        if chunk is not None:
            self.sent += self.held + chunk
            self.held = ""
