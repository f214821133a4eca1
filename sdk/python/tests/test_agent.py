"""Agents natively: sessions and their streams, what is written, what is refused before it crosses, which world a module is of. That they
build is checked in sdk/check.py, that they run on a host in sdk/newcomer.py.
"""

import os
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from tenon_sdk import (
    ColdWait,
    Error,
    FinishReason,
    HostError,
    Plan,
    Policy,
    Regex,
    Request,
    Sampling,
    StopConditions,
    TextPrompt,
    Usage,
    _check,
    _export,
    export_policy,
)
from tenon_sdk.agent import Agent, Answer, Bounds, Generated, Opening, Session, export_agent, write
from tenon_sdk.build import BuildError, build, world_of
from tenon_sdk.testing import Harness, request


def agent_of(work: Callable[[Session], Answer | None]) -> Agent:
    """An agent that opens a session with the text of the request."""

    class Works(Agent):
        def run(self, request: Request) -> Answer:
            with Session.open(Opening(TextPrompt(request.text))) as session:
                return work(session) or Answer()

    return Works()


class TestSession(unittest.TestCase):
    """What a session holds."""

    def test_what_it_was_opened_with_what_was_appended_and_what_was_generated(self) -> None:
        def work(session: Session) -> Answer:
            self.assertEqual((session.tokens, session.append("!")), (2, 3))
            made = session.generate(max_tokens=5)
            self.assertEqual((made.text, made.usage), ("so it", Usage(3, 5, FinishReason.LENGTH)))
            self.assertEqual(session.tokens, 8)
            with session.fork() as fork:
                fork.append("?")
                fork.generate()
            self.assertIs(session.generate().usage.finish, FinishReason.STOP)
            return Answer("end", metadata={"a": "b"}, claims={"c": "d"})

        harness = Harness().says("so it goes").says("fork").says("")
        text, answer = harness.run(agent_of(work), request("hi"))
        self.assertEqual((text, answer.metadata, answer.claims), ("end", {"a": "b"}, {"c": "d"}))
        self.assertEqual(harness.prompts(), ["hi!", "hi!so it?", "hi!so it"])
        self.assertEqual(harness.sessions(), 0)

    def test_it_is_closed_once_and_then_of_no_use(self) -> None:
        def work(session: Session) -> None:
            session.close()
            with self.assertRaisesRegex(Error, "closed"):
                session.append("x")

        harness = Harness()
        harness.run(agent_of(work), request("hi"))
        self.assertEqual(harness.sessions(), 0)
        kept: list[Session] = []
        harness.run(agent_of(lambda session: kept.append(session.fork())), request("hi"))
        self.assertEqual(harness.sessions(), 1, "one that is not closed is seen")

    def test_log_probabilities_are_there_if_the_sampling_asks(self) -> None:
        def work(session: Session) -> None:
            with self.assertRaisesRegex(Error, "set `logprobs`"):
                session.generate().mean_logprob()
            self.assertEqual(session.generate(sampling=Sampling(logprobs=0)).mean_logprob(), -0.5)

        Harness().says("a").says("bc", -0.5).run(agent_of(work), request("hi"))
        self.assertEqual(Generated("", [], Usage(1, 0, FinishReason.STOP)).mean_logprob(), 0.0)

    def test_budgets_and_grants_are_host_errors_that_an_agent_may_catch(self) -> None:
        seen: list[str] = []

        def work(session: Session) -> None:
            try:
                session.generate()
            except HostError as error:
                seen.extend([error.kind, error.what])

        harness = Harness().refuses("limit", "generations_max of 0")
        harness.run(agent_of(work), request("hi"))
        self.assertEqual(seen, ["limit", "generations_max of 0"])

        def adapted(_: Session) -> None:
            with Session.open(Opening(TextPrompt("")).adapter("caps", 1.0)):
                pass

        with self.assertRaisesRegex(HostError, "denied: the adapter `caps`"):
            harness.run(agent_of(adapted), request())
        Harness().adapter("caps").run(agent_of(adapted), request())


class TestStream(unittest.TestCase):
    """Text as it is decoded."""

    def test_it_is_written_as_it_comes(self) -> None:
        def work(session: Session) -> None:
            stream = session.stream()
            for chunk in stream:
                write(chunk.text)
            self.assertEqual(stream.usage, Usage(2, 9, FinishReason.STOP))
            self.assertEqual(list(stream), [], "there is nothing more")
            stream.stop()

        harness = Harness().says("one two 3")
        self.assertEqual(harness.run(agent_of(work), request("hi"))[0], "one two 3")
        self.assertEqual(harness.written(), ["one ", "two ", "3"])

    def test_one_that_is_left_early_stops_and_what_was_read_stays(self) -> None:
        def work(session: Session) -> None:
            for _ in session.stream():
                break
            self.assertEqual(session.append("|"), len("hione |"))
            stream = session.stream()
            next(stream)
            with self.assertRaisesRegex(HostError, "`stop` it"):
                session.fork()
            session.stop()
            session.fork().close()
            session.generate()
            self.assertIsNone(stream.usage)

        harness = Harness().says("one two").says("three four").says("five")
        harness.run(agent_of(work), request("hi"))
        self.assertEqual(harness.prompts(), ["hi", "hione |", "hione |three "])
        self.assertEqual(harness.sessions(), 0)


class TestCheck(unittest.TestCase):
    """What may cross."""

    def test_whatever_is_typed_may_cross(self) -> None:
        _check.opening(Opening(TextPrompt("x"), cold=ColdWait(1)).adapter("a", 1).stop_at("."))
        _check.bounds(Bounds(1, Sampling(seed=1), StopConditions(["."]), Regex("a+")))
        _check.answer(Answer("x", claims={"a": "b"}))

    def test_a_wrong_type_is_named(self) -> None:
        any_: Any = None
        text: Any = "x"
        cases: list[tuple[Callable[[Any], None], Any, str]] = [
            (_check.answer, "text", "an Answer of tenon_sdk.agent"),
            (_check.answer, Answer(any_), r"Answer\.text"),
            (_check.answer, Answer("\ud800"), "surrogate"),
            (_check.answer, Answer(metadata={"a": any_}), r"Answer\.metadata"),
            (_check.opening, TextPrompt("x"), "an Opening"),
            (_check.opening, Opening(any_), r"opening\.prompt"),
            (_check.opening, Opening(TextPrompt("x"), sampling=any_), r"opening\.sampling must be a Sampling"),
            (_check.bounds, Bounds(-1), "max_tokens must be a whole number"),
            (_check.bounds, Bounds(stop=StopConditions([any_])), r"stop\.strings"),
            (_check.bounds, Bounds(constraint=text), "constraint"),
        ]
        for check, value, said in cases:
            with self.assertRaisesRegex(Error, said):
                check(value)


class Decides(Policy):
    """A policy."""

    def compose(self, request: Request) -> Plan:
        return Plan(request.prompt())


class Drives(Agent):
    """An agent."""

    def run(self, request: Request) -> Answer:
        return Answer(request.text)


class TestWorld(unittest.TestCase):
    """One policy or one agent to a module."""

    def tearDown(self) -> None:
        _export.exported.clear()
        _export.exported_agents.clear()

    def test_what_is_exported_says_it(self) -> None:
        self.assertIs(export_agent(Drives), Drives)
        self.assertEqual(_export.the_world(), "agent")
        self.assertEqual(Harness().run(_export.the_agent(), request("hi"))[0], "hi")
        with self.assertRaisesRegex(TypeError, "Drives is an agent"):
            _export.the_policy()
        export_policy(Decides)
        with self.assertRaisesRegex(TypeError, "this one exports Decides, Drives"):
            _export.the_world()
        _export.exported_agents.clear()
        with self.assertRaisesRegex(TypeError, "Decides is a policy"):
            _export.the_agent()

    def test_the_build_finds_out(self) -> None:
        policy = "from tenon_sdk import Policy, export_policy\n@export_policy\nclass P(Policy): ...\n"
        agent = "from tenon_sdk.agent import Agent, export_agent\n@export_agent\nclass A(Agent): ...\n"
        with tempfile.TemporaryDirectory() as made, mock.patch.dict(os.environ):
            os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
            folder = Path(made)
            (folder / "elsewhere.py").write_text(agent)
            app = folder / "app.py"
            for source, world in (
                (policy, "policy"),
                (f"print('loaded')\n{agent}", "agent"),
                ("from elsewhere import A\n", "agent"),
                (f"import only_in_a_component\n{agent}", "agent"),
                (f"import only_in_a_component\n{policy}", "policy"),
            ):
                app.write_text(source)
                self.assertEqual(world_of(app), world, source)
            for source, said in ((policy + agent, "exports P, A"), ("", "exports none")):
                app.write_text(source)
                with self.assertRaisesRegex(BuildError, f"app.py: a plugin exports one policy .* or one agent .*{said}"):
                    build(app, folder / "x.wasm")
            self.assertFalse((folder / "__pycache__").exists(), "nothing is left beside the module")


if __name__ == "__main__":
    unittest.main()
