"""Looks at what a plugin returned before it crosses to the host: there, a value of a wrong type would end the component
without a word. Called by the component and by the harness alike. Not here: grants and limits, which are the host's to check.
"""

from collections.abc import Sequence
from typing import Any, Never

from . import agent
from .errors import Error
from .types import (
    Action,
    Answer,
    ColdBase,
    ColdFallback,
    ColdRefuse,
    ColdWait,
    CompositionEntry,
    Decision,
    Emit,
    Ending,
    Grammar,
    HandOver,
    Hold,
    JsonSchema,
    LayerRange,
    Message,
    MessagesPrompt,
    Modules,
    OutputFromSpan,
    OutputSpan,
    Pass,
    Plan,
    Regex,
    Reject,
    Replace,
    Sampling,
    Serve,
    Stop,
    StopConditions,
    SwitchComposition,
    TemplatePrompt,
    TextPrompt,
    WholeSpan,
)

U32_MAX = 0xFFFF_FFFF


def decision(value: Decision) -> None:
    """Raises `Error` unless `route` may return this."""
    match value:
        case Serve():
            pass
        case HandOver():
            text("HandOver.function", value.function)
        case Answer():
            text("Answer.text", value.text)
        case Reject():
            text("Reject.code", value.code)
            text("Reject.reason", value.reason)
        case _:
            wrong("what route returns", "Serve, HandOver, Answer or Reject", value)


def plan(value: Plan) -> None:
    """Raises `Error` unless `compose` may return this."""
    if not isinstance(value, Plan):
        wrong("what compose returns", "a Plan", value)
    _prompt("plan.prompt", value.prompt)
    composition("plan.composition", value.composition)
    _sampling("plan.sampling", value.sampling)
    _stop("plan.stop", value.stop)
    _constraint("plan.constraint", value.constraint)
    _cold("plan.cold", value.cold)
    maybe_u32("plan.deadline_ms", value.deadline_ms)
    maybe_u32("plan.token_budget", value.token_budget)
    texts("plan.prefetch", value.prefetch)
    boolean("plan.post_process", value.post_process)


def actions(values: Sequence[Action]) -> None:
    """Raises `Error` unless these may be applied to a chunk."""
    for value in sequence("actions", values):
        match value:
            case Pass() | Hold() | Stop():
                pass
            case Replace(text=sent) | Emit(text=sent):
                text(f"{type(value).__name__}.text", sent)
            case SwitchComposition(composition=entries):
                composition("SwitchComposition.composition", entries)
            case _:
                wrong("an action", "Pass, Replace, Hold, Emit, Stop or SwitchComposition", value)


def ending(value: Ending) -> None:
    """Raises `Error` unless `finish` may return this."""
    if not isinstance(value, Ending):
        wrong("what finish returns", "an Ending", value)
    actions(value.actions)
    pairs("Ending.metadata", value.metadata)
    pairs("Ending.claims", value.claims)


def opening(value: agent.Opening) -> None:
    """Raises `Error` unless a session may begin so."""
    if not isinstance(value, agent.Opening):
        wrong("what a session is opened with", "an Opening", value)
    _prompt("opening.prompt", value.prompt)
    composition("opening.composition", value.composition)
    _sampling("opening.sampling", value.sampling)
    _stop("opening.stop", value.stop)
    _cold("opening.cold", value.cold)


def bounds(value: agent.Bounds) -> None:
    """Raises `Error` unless a generation may have these."""
    maybe_u32("max_tokens", value.max_tokens)
    if value.sampling is not None:
        _sampling("sampling", value.sampling)
    if value.stop is not None:
        _stop("stop", value.stop)
    _constraint("constraint", value.constraint)


def answer(value: agent.Answer) -> None:
    """Raises `Error` unless `run` may return this."""
    if not isinstance(value, agent.Answer):
        wrong("what run returns", "an Answer of tenon_sdk.agent", value)
    text("Answer.text", value.text)
    pairs("Answer.metadata", value.metadata)
    pairs("Answer.claims", value.claims)


def _prompt(name: str, value: Any) -> None:
    match value:
        case TextPrompt():
            text(f"{name}.text", value.text)
        case MessagesPrompt():
            for message in sequence(f"{name}.messages", value.messages):
                if not isinstance(message, Message):
                    wrong(f"{name}.messages", "Messages", message)
                text("a message's role", message.role)
                text("a message's content", message.content)
        case TemplatePrompt():
            text(f"{name}.name", value.name)
            pairs(f"{name}.arguments", value.arguments)
        case _:
            wrong(name, "TextPrompt, MessagesPrompt or TemplatePrompt", value)


def _sampling(name: str, value: Any) -> None:
    if not isinstance(value, Sampling):
        wrong(name, "a Sampling", value)
    for part in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
        number(f"{name}.{part}", getattr(value, part))
    u32(f"{name}.top_k", value.top_k)
    maybe_u32(f"{name}.seed", value.seed)
    maybe_u32(f"{name}.logprobs", value.logprobs)


def _stop(name: str, value: Any) -> None:
    if not isinstance(value, StopConditions):
        wrong(name, "StopConditions", value)
    texts(f"{name}.strings", value.strings)
    for token in sequence(f"{name}.token_ids", value.token_ids):
        u32(f"{name}.token_ids", token)
    boolean(f"{name}.ignore_eos", value.ignore_eos)


def _constraint(name: str, value: Any) -> None:
    match value:
        case None:
            pass
        case JsonSchema(schema=source) | Regex(regex=source) | Grammar(grammar=source):
            text(name, source)
        case _:
            wrong(name, "JsonSchema, Regex, Grammar or None", value)


def _cold(name: str, value: Any) -> None:
    match value:
        case None | ColdBase() | ColdRefuse():
            pass
        case ColdWait(wait_ms=wait_ms):
            u32(f"{name}.wait_ms", wait_ms)
        case ColdFallback(composition=entries):
            composition(f"{name}.composition", entries)
        case _:
            wrong(name, "ColdWait, ColdBase, ColdFallback, ColdRefuse or None", value)


def composition(name: str, entries: Any) -> None:
    """Raises `Error` unless these are entries of a composition."""
    for entry in sequence(name, entries):
        if not isinstance(entry, CompositionEntry):
            wrong(name, "CompositionEntry values", entry)
        text(f"{name}.adapter", entry.adapter)
        number(f"{name}.weight", entry.weight)
        if entry.modules is not None and not isinstance(entry.modules, Modules):
            wrong(f"{name}.modules", "Modules or None", entry.modules)
        if isinstance(entry.layers, LayerRange):
            _range(f"{name}.layers", entry.layers)
        elif entry.layers is not None:
            wrong(f"{name}.layers", "a LayerRange or None", entry.layers)
        match entry.span:
            case WholeSpan():
                pass
            case OutputSpan():
                _range(f"{name}.span", entry.span)
            case OutputFromSpan():
                u32(f"{name}.span.first", entry.span.first)
            case _:
                wrong(f"{name}.span", "WholeSpan, OutputSpan or OutputFromSpan", entry.span)


def _range(name: str, value: LayerRange | OutputSpan) -> None:
    u32(f"{name}.first", value.first)
    u32(f"{name}.end", value.end)


def text(name: str, value: Any) -> None:
    """Raises `Error` unless this is text that can be encoded."""
    if not isinstance(value, str):
        wrong(name, "a str", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Error(f"{name} holds half of a surrogate pair, which no encoding can send") from None


def texts(name: str, values: Any) -> None:
    """Raises `Error` unless these are texts."""
    for value in sequence(name, values):
        text(name, value)


def pairs(name: str, values: Any) -> None:
    """Raises `Error` unless this maps names to texts."""
    if not isinstance(values, dict):
        wrong(name, "a dict", values)
    for key, value in values.items():
        text(f"a name in {name}", key)
        text(f"{name}[{key!r}]", value)


def sequence(name: str, values: Any) -> Sequence[Any]:
    """Raises `Error` unless these are a list."""
    if not isinstance(values, list):
        wrong(name, "a list", values)
    return values


def number(name: str, value: Any) -> None:
    """Raises `Error` unless this is a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        wrong(name, "a number", value)


def boolean(name: str, value: Any) -> None:
    """Raises `Error` unless this is `True` or `False`."""
    if not isinstance(value, bool):
        wrong(name, "a bool", value)


def u32(name: str, value: Any) -> None:
    """Raises `Error` unless this is a whole number of 32 bits without sign."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= U32_MAX:
        wrong(name, f"a whole number from 0 to {U32_MAX}", value)


def maybe_u32(name: str, value: Any) -> None:
    """The same, or `None`."""
    if value is not None:
        u32(name, value)


def wrong(name: str, wanted: str, value: Any) -> Never:
    """Raises `Error`."""
    said = repr(value)
    raise Error(f"{name} must be {wanted}; it is {said if len(said) <= 80 else said[:77] + '...'}")


def data(name: str, value: Any) -> None:
    """Raises `Error` unless it is bytes."""
    if not isinstance(value, bytes):
        wrong(name, "bytes", value)


def s64(name: str, value: Any) -> None:
    """Raises `Error` unless it is a whole number of 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int) or not -(1 << 63) <= value < 1 << 63:
        wrong(name, "a whole number of 64 bits", value)


def request(method: Any, url: Any, headers: list[tuple[Any, Any]], body: Any) -> None:
    """Raises `Error` unless this can be sent."""
    text("a request's method", method)
    text("a request's URL", url)
    for name, value in headers:
        text("a header's name", name)
        text(f"the header `{name}`", value)
    data("a request's body", body)
