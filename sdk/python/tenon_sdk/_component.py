"""Ties the exported policy to the bindings that componentize-py makes of `wit/`. Loaded inside a component only. Not here:
anything that a plugin's author calls.
"""

import gc
import traceback
from collections.abc import Callable
from typing import Literal, NoReturn, TypeVar

from componentize_py_types import Err
from wit_world.imports import catalog, clock, config, functions, log, random
from wit_world.imports import types as wit

from . import _check, types
from ._export import the_policy
from ._host import current
from .errors import Error, HostError
from .policy import PassThrough, PostProcessor as Processor

T = TypeVar("T")

policy = the_policy()


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


    def call_function(self, function: str, kind: str, value: str, max_tokens: int | None) -> types.Reply:
        """`functions.call`."""
        _check.text("the name of a function", function)
        _check.text("what a function is asked", value)
        _check.maybe_u32("max_tokens", max_tokens)
        asked = functions.Input_Text(value) if kind == "text" else functions.Input_Json(value)
        reply = lent(lambda: functions.call(function, asked, max_tokens))
        finish = types.FinishReason[reply.usage.finish.name]
        usage = types.Usage(reply.usage.prompt_tokens, reply.usage.completion_tokens, finish)
        metadata = {pair.name: pair.value for pair in reply.metadata}
        return types.Reply(reply.text, reply.function, reply.version, usage, metadata, reply.receipt)


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


def hosted(call: Callable[[], T]) -> T:
    """What the policy answers, with the host at hand; what it raises becomes the function's fault."""
    current.set(HOST)
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


class Hooks:
    """The exported functions."""

    def route(self, request: wit.Request) -> wit.Decision:
        """Asks the policy."""

        def call() -> wit.Decision:
            decision = policy.route(lift_request(request))
            _check.decision(decision)
            return lower_decision(decision)

        return hosted(call)

    def compose(self, request: wit.Request) -> wit.Plan:
        """Asks the policy."""

        def call() -> wit.Plan:
            plan = policy.compose(lift_request(request))
            _check.plan(plan)
            return lower_plan(plan)

        return hosted(call)


class PostProcessor:
    """The exported resource. Its constructor cannot fail in the contract: what it raised is said at the first call."""

    def __init__(self, request: wit.Request) -> None:
        current.set(HOST)
        self.failed: Exception | None = None
        self.processor: Processor = PassThrough()
        try:
            self.processor = policy.post_processor(lift_request(request))
        except Exception as error:
            self.failed = error

    def chunk(self, chunk: wit.Chunk) -> list[wit.Action]:
        """Asks the post-processor."""

        def call() -> list[wit.Action]:
            if self.failed is not None:
                raise self.failed
            tokens = [types.Token(token.id, token.logprob) for token in chunk.tokens]
            actions = self.processor.chunk(types.Chunk(chunk.text, tokens))
            _check.actions(actions)
            return [lower_action(action) for action in actions]

        return hosted(call)

    def finish(self, usage: wit.Usage) -> wit.Ending:
        """Asks the post-processor."""

        def call() -> wit.Ending:
            if self.failed is not None:
                raise self.failed
            finish = types.FinishReason[usage.finish.name]
            ending = self.processor.finish(types.Usage(usage.prompt_tokens, usage.completion_tokens, finish))
            _check.ending(ending)
            actions = [lower_action(action) for action in ending.actions]
            return wit.Ending(actions, lower_pairs(ending.metadata), lower_pairs(ending.claims))

        return hosted(call)


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


def lower_decision(decision: types.Decision) -> wit.Decision:
    """Ours as the generated class."""
    match decision:
        case types.Serve():
            return wit.Decision_Serve()
        case types.HandOver():
            return wit.Decision_HandOver(decision.function)
        case types.Answer():
            return wit.Decision_Answer(decision.text)
        case types.Reject():
            return wit.Decision_Reject(wit.Rejection(decision.code, decision.reason))


def lower_plan(plan: types.Plan) -> wit.Plan:
    """Ours as the generated class."""
    sampling, stop = plan.sampling, plan.stop
    return wit.Plan(
        prompt=lower_prompt(plan.prompt),
        composition=lower_composition(plan.composition),
        sampling=wit.Sampling(
            temperature=float(sampling.temperature),
            top_k=sampling.top_k,
            top_p=float(sampling.top_p),
            min_p=float(sampling.min_p),
            repetition_penalty=float(sampling.repetition_penalty),
            presence_penalty=float(sampling.presence_penalty),
            frequency_penalty=float(sampling.frequency_penalty),
            seed=sampling.seed,
            logprobs=sampling.logprobs,
        ),
        stop=wit.StopConditions(stop.strings, stop.token_ids, stop.ignore_eos),
        constraint=lower_constraint(plan.constraint),
        cold=lower_cold(plan.cold),
        deadline_ms=plan.deadline_ms,
        token_budget=plan.token_budget,
        prefetch=plan.prefetch,
        post_process=plan.post_process,
    )


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


def lower_action(action: types.Action) -> wit.Action:
    """Ours as the generated class."""
    match action:
        case types.Pass():
            return wit.Action_Pass()
        case types.Replace():
            return wit.Action_Replace(action.text)
        case types.Hold():
            return wit.Action_Hold()
        case types.Emit():
            return wit.Action_Emit(action.text)
        case types.Stop():
            return wit.Action_Stop()
        case types.SwitchComposition():
            return wit.Action_SwitchComposition(lower_composition(action.composition))


def lower_pairs(pairs: dict[str, str]) -> list[wit.Pair]:
    """Names with values, in their order."""
    return [wit.Pair(name, value) for name, value in pairs.items()]


def warm_up() -> None:
    """Runs what each request runs, but for the policy, while the component is built: the interpreter keeps what it learned
    about this code, and each request begins with it.
    """
    asked = wit.Request("", "", 1, "", "null", [wit.Message("user", "")], [wit.Pair("", "")], False, 1)
    plan = types.Plan(types.chat("", ""), composition=[types.CompositionEntry("", 1.0)])
    decisions: list[types.Decision] = [types.Answer(""), types.Serve()]
    actions: list[types.Action] = [types.Hold(), types.Pass(), types.Replace(""), types.Stop()]
    for _ in range(WARM_UP_ROUNDS):
        lift_request(asked).prompt()
        for decision in decisions:
            _check.decision(decision)
            hosted(lambda: lower_decision(decision))
        _check.plan(plan)
        lower_plan(plan)
        _check.actions(actions)
        for action in actions:
            lower_action(action)
    # What is there now lives as long as the component: nothing is gained by looking through it in a request.
    gc.collect()
    gc.freeze()


WARM_UP_ROUNDS = 32

warm_up()
