"""Runs a policy natively, with a host that the test describes: tests need no WebAssembly.

    from tenon_sdk.testing import Harness, request

    plan = Harness().adapter("manners").config("tone", "warm").compose(Polite, request("hello"))
    assert plan.composition[0].adapter == "manners"

What crosses to the host in a component is checked here as there, so that a wrong type fails a test.
"""

from collections.abc import Callable
from contextvars import copy_context
from typing import Self, TypeVar

from . import _check
from ._host import current
from .errors import HostError
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


class Harness:
    """A host made for one test. Each call begins as it was described, with an empty log."""

    def __init__(self) -> None:
        """No adapters, no configuration."""
        self._adapters: list[Adapter] = []
        self._config: dict[str, str] = {}
        self._replies: dict[str, str] = {}
        self._seed = 0
        self._elapsed_ms = 0
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

    def lines(self) -> list[str]:
        """What the last call has logged."""
        return list(self._last.lines)

    def prefetched(self) -> list[str]:
        """Which adapters the last call asked to be fetched ahead."""
        return list(self._last.prefetched)

    def calls(self) -> list[tuple[str, str]]:
        """The functions that the last call asked, each with what it was asked."""
        return list(self._last.calls)

    def _with(self, call: Callable[[], T]) -> T:
        self._last = _Fake(self)

        def hosted() -> T:
            current.set(self._last)
            return call()

        return copy_context().run(hosted)


def _made(policy: Policy | type[Policy]) -> Policy:
    return policy() if isinstance(policy, type) else policy


class _Fake:
    """The host of one call, as the harness describes it."""

    def __init__(self, harness: Harness) -> None:
        self._adapters = list(harness._adapters)
        self._config = dict(harness._config)
        self._random = harness._seed
        self._elapsed_ms = harness._elapsed_ms
        self._bytes_left = RANDOM_BYTES_MAX
        self.lines: list[str] = []
        self.prefetched: list[str] = []
        self.calls: list[tuple[str, str]] = []
        self._replies = dict(harness._replies)

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
