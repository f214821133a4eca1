"""Ties the exported agent to the component's exports, and sessions to its imports. Loaded inside a component of world `agent` only. Not
here: anything that a plugin's author calls.
"""

import gc

from wit_world.exports import driver
from wit_world.imports import output, sessions
from wit_world.imports import tenon_plugin_types as wit

from . import _check, _lasting, types
from ._component import (
    ComponentHost,
    hosted,
    lent,
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
from ._export import the_agent
from .agent import Answer, Bounds, Generated, Opening

agent = the_agent()


class ComponentSession:
    """`sessions.session`."""

    def __init__(self, session: sessions.Session) -> None:
        self._session = session

    def tokens(self) -> int:
        """`tokens`."""
        return self._session.tokens()

    def append(self, text: str) -> int:
        """`append`."""
        _check.text("a text", text)
        return lent(lambda: self._session.append(text))

    def generate(self, bounds: Bounds) -> Generated:
        """`generate`."""
        _check.bounds(bounds)
        made = lent(lambda: self._session.generate(lower_bounds(bounds)))
        return Generated(made.text, lift_tokens(made.tokens), lift_usage(made.usage))

    def start(self, bounds: Bounds) -> None:
        """`start`."""
        _check.bounds(bounds)
        lent(lambda: self._session.start(lower_bounds(bounds)))

    def next(self) -> types.Chunk | types.Usage:
        """`next`."""
        step = lent(self._session.next)
        if isinstance(step, sessions.Step_Done):
            return lift_usage(step.value)
        return types.Chunk(step.value.text, lift_tokens(step.value.tokens))

    def stop(self) -> None:
        """`stop`."""
        self._session.stop()

    def fork(self) -> "ComponentSession":
        """`fork`."""
        return ComponentSession(lent(self._session.fork))

    def close(self) -> None:
        """Drops the handle."""
        self._session.__exit__(None, None, None)


class AgentHost(ComponentHost):
    """With what only agents have."""

    def open_session(self, opening: Opening) -> ComponentSession:
        """`sessions.session.open`."""
        _check.opening(opening)
        return ComponentSession(lent(lambda: sessions.Session.open(lower_opening(opening))))

    def write_output(self, text: str) -> None:
        """`output.write`."""
        _check.text("what is written", text)
        lent(lambda: output.write(text))


AGENT_HOST = AgentHost()


class Driver:
    """The exported function."""

    def run(self, request: wit.Request) -> driver.Answer:
        """Asks the agent."""

        def call() -> driver.Answer:
            answer = agent.run(lift_request(request))
            _check.answer(answer)
            return lower_answer(answer)

        return hosted(call, AGENT_HOST)


def lower_opening(opening: Opening) -> sessions.Opening:
    """Ours as the generated class."""
    return sessions.Opening(
        prompt=lower_prompt(opening.prompt),
        composition=lower_composition(opening.composition),
        sampling=lower_sampling(opening.sampling),
        stop=lower_stop(opening.stop),
        cold=lower_cold(opening.cold),
    )


def lower_bounds(bounds: Bounds) -> sessions.Bounds:
    """Ours as the generated class."""
    return sessions.Bounds(
        max_tokens=bounds.max_tokens,
        sampling=None if bounds.sampling is None else lower_sampling(bounds.sampling),
        stop=None if bounds.stop is None else lower_stop(bounds.stop),
        constraint=lower_constraint(bounds.constraint),
    )


def lower_answer(answer: Answer) -> driver.Answer:
    """Ours as the generated class."""
    return driver.Answer(answer.text, lower_pairs(answer.metadata), lower_pairs(answer.claims))


def warm_up() -> None:
    """Runs what each request runs, but for the agent and the host, while the component is built: the interpreter keeps what it learned
    about this code, and each request begins with it.
    """
    asked = wit.Request("", "", 1, "", "null", [wit.Message("user", "")], [wit.Pair("", "")], False, 1)
    for _ in range(WARM_UP_ROUNDS):
        opening = Opening(lift_request(asked).prompt()).adapter("", 1.0)
        _check.opening(opening)
        lower_opening(opening)
        bounds = Bounds(1, opening.sampling, opening.stop)
        _check.bounds(bounds)
        lower_bounds(bounds)
        answer = Answer("", metadata={"": ""})
        _check.answer(answer)
        hosted(lambda: lower_answer(answer), AGENT_HOST)
    # What is there now lives as long as the component: nothing is gained by looking through it in a request.
    _lasting.note_all()
    gc.freeze()


WARM_UP_ROUNDS = 32

warm_up()
