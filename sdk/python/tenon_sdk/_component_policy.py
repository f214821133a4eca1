"""Ties the exported policy to the component's exports. Loaded inside a component of world `policy` only. Not here: anything that a
plugin's author calls.
"""

import gc

from wit_world.imports import tenon_plugin_types as wit

from . import _check, _lasting, types
from ._component import (
    HOST,
    hosted,
    lift_request,
    lift_tokens,
    lift_usage,
    lower_cold,
    lower_composition,
    lower_constraint,
    lower_pairs,
    lower_prompt,
    lower_sampling,
    lower_stop,
)
from ._export import the_policy
from ._host import current
from .policy import PassThrough, PostProcessor as Processor

policy = the_policy()


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
            actions = self.processor.chunk(types.Chunk(chunk.text, lift_tokens(chunk.tokens)))
            _check.actions(actions)
            return [lower_action(action) for action in actions]

        return hosted(call)

    def finish(self, usage: wit.Usage) -> wit.Ending:
        """Asks the post-processor."""

        def call() -> wit.Ending:
            if self.failed is not None:
                raise self.failed
            ending = self.processor.finish(lift_usage(usage))
            _check.ending(ending)
            actions = [lower_action(action) for action in ending.actions]
            return wit.Ending(actions, lower_pairs(ending.metadata), lower_pairs(ending.claims))

        return hosted(call)


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
    return wit.Plan(
        prompt=lower_prompt(plan.prompt),
        composition=lower_composition(plan.composition),
        sampling=lower_sampling(plan.sampling),
        stop=lower_stop(plan.stop),
        constraint=lower_constraint(plan.constraint),
        cold=lower_cold(plan.cold),
        deadline_ms=plan.deadline_ms,
        token_budget=plan.token_budget,
        prefetch=plan.prefetch,
        post_process=plan.post_process,
    )


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
    _lasting.note_all()
    gc.freeze()


WARM_UP_ROUNDS = 32

warm_up()
