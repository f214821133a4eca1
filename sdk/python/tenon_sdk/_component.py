"""Ties the SDK to the bindings that componentize-py makes of `wit/`: what the worlds have in common. Loaded inside a component only.
Not here: the exports (`_component_policy.py`, `_component_agent.py`), and anything that a plugin's author calls.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NoReturn, TypeVar

from componentize_py_types import Err
from wit_world.imports import catalog, clock, config, functions, log, random, secrets, tokenizer, tools
from wit_world.imports import tenon_plugin_types as wit

from . import _check, _wasi, types
from ._host import HostBucket, HostSession, current
from .errors import Error, HostError

if TYPE_CHECKING:
    from .agent import Opening

T = TypeVar("T")


class ComponentHost:
    """The host behind the component's imports."""

    def adapters(self) -> list[types.Adapter]:
        """`catalog.adapters`."""
        return [
            types.Adapter(found.alias, found.digest, found.rank, types.Residency[found.residency.name])
            for found in lent(catalog.adapters)
        ]

    def prefetch(self, adapters: list[str]) -> None:
        """`catalog.prefetch`."""
        _check.texts("prefetch", adapters)
        lent(lambda: catalog.prefetch(adapters))

    def write(self, level: str, message: str) -> None:
        """`log.write`."""
        log.write(log.Level[level.upper()], message.encode(errors="replace").decode())

    def elapsed_ms(self) -> int:
        """`clock.elapsed-ms`."""
        return clock.elapsed_ms()

    def unix_seconds(self) -> float:
        """`clock.unix-seconds`."""
        return clock.unix_seconds()

    def random_bytes(self, count: int) -> bytes:
        """`random.bytes`."""
        _check.u32("count", count)
        return lent(lambda: random.bytes(count))

    def random_next(self) -> int:
        """`random.next`."""
        return random.next()

    def config_get(self, name: str) -> str | None:
        """`config.get`."""
        _check.text("the name of a configuration value", name)
        return config.get(name)

    def config_all(self) -> dict[str, str]:
        """`config.all`."""
        return dict(config.all())

    def secret(self, name: str) -> str:
        """`secrets.get`."""
        _check.text("the name of a secret", name)
        return lent(lambda: secrets.get(name))

    def encode(self, text: str) -> list[int]:
        """`tokenizer.encode`."""
        _check.text("a text", text)
        return list(lent(lambda: tokenizer.encode(text)))

    def decode(self, tokens: list[int]) -> str:
        """`tokenizer.decode`."""
        for token in _check.sequence("tokens", tokens):
            _check.u32("a token", token)
        return lent(lambda: tokenizer.decode(tokens))

    def count(self, text: str) -> int:
        """`tokenizer.count`."""
        _check.text("a text", text)
        return lent(lambda: tokenizer.count(text))

    def bucket(self, name: str) -> HostBucket:
        """`wasi:keyvalue/store.open`."""
        return _wasi.ComponentBucket(name)

    def http(
        self, method: str, url: str, headers: list[tuple[str, str]], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """`wasi:http/outgoing-handler.handle`."""
        _check.request(method, url, headers, body)
        return _wasi.send(method, url, headers, body)

    def tool_list(self, server: str) -> list[types.Tool]:
        """`tools.list`."""
        _check.text("the name of a server", server)
        found = lent(lambda: tools.list(server))
        return [types.Tool(tool.name, tool.description, tool.input_schema) for tool in found]

    def tool_call(self, server: str, tool: str, arguments: str) -> types.ToolOutcome:
        """`tools.call`."""
        _check.text("the name of a server", server)
        _check.text("the name of a tool", tool)
        outcome = lent(lambda: tools.call(server, tool, arguments))
        return types.ToolOutcome(outcome.text, outcome.structured, outcome.is_error)

    def call_function(self, function: str, kind: str, value: str, max_tokens: int | None) -> types.Reply:
        """`functions.call`."""
        _check.text("the name of a function", function)
        _check.text("what a function is asked", value)
        _check.maybe_u32("max_tokens", max_tokens)
        asked = functions.Input_Text(value) if kind == "text" else functions.Input_Json(value)
        reply = lent(lambda: functions.call(function, asked, max_tokens))
        metadata = {pair.name: pair.value for pair in reply.metadata}
        return types.Reply(reply.text, reply.function, reply.version, lift_usage(reply.usage), metadata, reply.receipt)

    def open_session(self, opening: Opening) -> HostSession:
        """World `agent` has them."""
        raise HostError("denied", "generations: only a plugin of world `agent` has sessions of its own")

    def write_output(self, text: str) -> None:
        """World `agent` has it."""
        raise HostError("denied", "output: only a plugin of world `agent` writes it")


HOST = ComponentHost()


def lent(call: Callable[[], T]) -> T:
    """What an import answers; its error as `HostError`."""
    try:
        return call()
    except Err as refused:
        kinds: dict[type, Literal["denied", "unsupported", "limit", "failed"]] = {
            wit.HostError_Denied: "denied",
            wit.HostError_Unsupported: "unsupported",
            wit.HostError_Limit: "limit",
        }
        raise HostError(kinds.get(type(refused.value), "failed"), refused.value.value) from None


def hosted(call: Callable[[], T], host: ComponentHost = HOST) -> T:
    """What the plugin answers, with the host at hand; what it raises becomes the function's fault."""
    current.set(host)
    try:
        return call()
    except Exception as error:
        fail(error)


def fail(error: Exception) -> NoReturn:
    """Raises the fault that the host understands; what was not foreseen also goes to the log, with its traceback."""
    if isinstance(error, Error):
        said = str(error)
    else:
        said = f"{type(error).__name__}: {error}"
        HOST.write("error", "".join(traceback.format_exception(error)))
    raise Err(said.encode(errors="replace").decode()) from None


def lift_request(request: wit.Request) -> types.Request:
    """The generated class as ours."""
    return types.Request(
        id=request.id,
        function=request.function,
        version=request.version,
        text=request.text,
        input_json=request.input_json,
        messages=[types.Message(message.role, message.content) for message in request.messages],
        parameters={pair.name: pair.value for pair in request.parameters},
        stream=request.stream,
        max_tokens=request.max_tokens,
    )


def lift_usage(usage: wit.Usage) -> types.Usage:
    """The generated class as ours."""
    return types.Usage(usage.prompt_tokens, usage.completion_tokens, types.FinishReason[usage.finish.name])


def lift_tokens(tokens: list[wit.Token]) -> list[types.Token]:
    """The generated classes as ours."""
    return [types.Token(token.id, token.logprob) for token in tokens]


def lower_sampling(sampling: types.Sampling) -> wit.Sampling:
    """Ours as the generated class."""
    return wit.Sampling(
        temperature=float(sampling.temperature),
        top_k=sampling.top_k,
        top_p=float(sampling.top_p),
        min_p=float(sampling.min_p),
        repetition_penalty=float(sampling.repetition_penalty),
        presence_penalty=float(sampling.presence_penalty),
        frequency_penalty=float(sampling.frequency_penalty),
        seed=sampling.seed,
        logprobs=sampling.logprobs,
    )


def lower_stop(stop: types.StopConditions) -> wit.StopConditions:
    """Ours as the generated class."""
    return wit.StopConditions(stop.strings, stop.token_ids, stop.ignore_eos)


def lower_prompt(prompt: types.Prompt) -> wit.Prompt:
    """Ours as the generated class."""
    match prompt:
        case types.TextPrompt():
            return wit.Prompt_Text(prompt.text)
        case types.MessagesPrompt():
            return wit.Prompt_Messages([wit.Message(message.role, message.content) for message in prompt.messages])
        case types.TemplatePrompt():
            return wit.Prompt_Template(wit.Template(prompt.name, lower_pairs(prompt.arguments)))


def lower_composition(entries: list[types.CompositionEntry]) -> list[wit.CompositionEntry]:
    """Ours as the generated classes."""
    return [
        wit.CompositionEntry(
            adapter=entry.adapter,
            weight=float(entry.weight),
            modules=None if entry.modules is None else wit.Modules(entry.modules.value),
            layers=None if entry.layers is None else wit.LayerRange(entry.layers.first, entry.layers.end),
            span=lower_span(entry.span),
        )
        for entry in entries
    ]


def lower_span(span: types.Span) -> wit.Span:
    """Ours as the generated class."""
    match span:
        case types.WholeSpan():
            return wit.Span_Whole()
        case types.OutputSpan():
            return wit.Span_Output(wit.LayerRange(span.first, span.end))
        case types.OutputFromSpan():
            return wit.Span_OutputFrom(span.first)


def lower_constraint(constraint: types.Constraint | None) -> wit.Constraint | None:
    """Ours as the generated class."""
    match constraint:
        case None:
            return None
        case types.JsonSchema():
            return wit.Constraint_JsonSchema(constraint.schema)
        case types.Regex():
            return wit.Constraint_Regex(constraint.regex)
        case types.Grammar():
            return wit.Constraint_Grammar(constraint.grammar)


def lower_cold(cold: types.ColdPolicy | None) -> wit.ColdPolicy | None:
    """Ours as the generated class."""
    match cold:
        case None:
            return None
        case types.ColdWait():
            return wit.ColdPolicy_Wait(cold.wait_ms)
        case types.ColdBase():
            return wit.ColdPolicy_Base()
        case types.ColdFallback():
            return wit.ColdPolicy_Fallback(lower_composition(cold.composition))
        case types.ColdRefuse():
            return wit.ColdPolicy_Refuse()


def lower_pairs(pairs: dict[str, str]) -> list[wit.Pair]:
    """Names with values, in their order."""
    return [wit.Pair(name, value) for name, value in pairs.items()]
