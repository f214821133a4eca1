"""The SDK itself, natively: builders, the harness, what is refused before it crosses, the build command's errors."""

import tempfile
import unittest
from pathlib import Path
from typing import Any

from tenon_sdk import (
    Action,
    Answer,
    Chunk,
    ColdFallback,
    ColdWait,
    CompositionEntry,
    Decision,
    Emit,
    Error,
    FinishReason,
    Grammar,
    Hold,
    HostError,
    LayerRange,
    Message,
    MessagesPrompt,
    Modules,
    OutputFromSpan,
    OutputSpan,
    Pass,
    PassThrough,
    Plan,
    Policy,
    PostProcessor,
    Replace,
    Request,
    Serve,
    Stop,
    SwitchComposition,
    TemplatePrompt,
    TextPrompt,
    _check,
    _export,
    catalog,
    chat,
    clock,
    config,
    export_policy,
    functions,
    log,
    random,
)
from tenon_sdk.build import BuildError, build, contract
from tenon_sdk.testing import Harness, _Output, request


class Shout(PostProcessor):
    """Holds words back until a full stop, shouts the first sentence and stops there."""

    def __init__(self) -> None:
        self.text = ""

    def chunk(self, chunk: Chunk) -> list[Action]:
        self.text += chunk.text
        sentence, stop, _ = self.text.partition(".")
        return [Replace(sentence.upper()), Stop()] if stop else [Hold()]


class FirstSentence(Policy):
    """Uses all that the host lends."""

    def compose(self, request: Request) -> Plan:
        log.info(f"at {clock.elapsed_ms()} ms")
        weight = request.parameter_as("weight", float)
        plan = Plan(request.prompt(), token_budget=request.max_tokens).post_processed().stop_at("###")
        for adapter in catalog.adapters():
            plan.adapter(adapter.alias, 0.5 if weight is None else weight)
        plan.sampling.seed = random.next()
        plan.deadline_ms = int(config.require("deadline"))
        catalog.prefetch(["later"])
        return plan

    def post_processor(self, request: Request) -> PostProcessor:
        return Shout()


class TestHarness(unittest.TestCase):
    """What a test's host lends."""

    def test_a_plan_uses_what_the_host_lends(self) -> None:
        harness = Harness().adapter("a").adapter("b").config("deadline", "900").seed(7).elapsed_ms(19)
        plan = harness.compose(FirstSentence, request("hi", parameters={"weight": "0.25"}))
        self.assertEqual([(entry.adapter, entry.weight) for entry in plan.composition], [("a", 0.25), ("b", 0.25)])
        self.assertEqual(plan.deadline_ms, 900)
        self.assertEqual((harness.lines(), harness.prefetched()), (["at 10 ms"], ["later"]))
        again = harness.compose(FirstSentence(), request("hi"))
        self.assertEqual(plan.sampling.seed, again.sampling.seed, "seeded, so repeatable")
        self.assertEqual(plan.sampling.seed, (7 * 1_664_525 + 1_013_904_223) % 2**32, "the Rust harness draws the same")

    def test_errors_say_what_is_wrong(self) -> None:
        with self.assertRaisesRegex(Error, "`deadline`"):
            Harness().compose(FirstSentence, request("hi"))
        with self.assertRaisesRegex(Error, "`weight`"):
            Harness().compose(FirstSentence, request("hi", parameters={"weight": "heavy"}))

    def test_without_a_host_nothing_is_lent(self) -> None:
        with self.assertRaisesRegex(Error, "there is no host here"):
            clock.elapsed_ms()
        Harness().route(FirstSentence, request())
        with self.assertRaisesRegex(Error, "there is no host here"):
            config.all()

    def test_randomness_has_the_hosts_limit(self) -> None:
        class Draws(Policy):
            def compose(self, request: Request) -> Plan:
                drawn = random.bytes(65_536)
                assert len(drawn) == 65_536
                random.bytes(1)
                raise AssertionError("over the limit")

        with self.assertRaisesRegex(HostError, "over the limit random_bytes_max"):
            Harness().compose(Draws, request())

    def test_actions_mean_what_they_mean_to_the_host(self) -> None:
        def sent(*rounds: tuple[str, list[Action]]) -> str:
            output = _Output()
            for chunk, actions in rounds:
                output.apply(chunk, actions)
            return output.sent

        self.assertEqual(sent(("a", [Hold()]), ("b", [])), "ab", "what nothing settled is passed")
        self.assertEqual(sent(("a", [Emit("<")])), "<a")
        self.assertEqual(sent(("a", [Stop()])), "a")
        self.assertEqual(sent(("a", [Replace("x"), Pass()])), "x", "a chunk is settled once")
        self.assertEqual(sent(("a", [Hold()]), ("b", [Hold()]), ("c", [Pass()])), "abc")

    def test_held_text_is_replaced_or_sent_at_the_end(self) -> None:
        text, _ = Harness().post_process(FirstSentence, request(), ["one ", "two. three", "four"])
        self.assertEqual(text, "ONE TWO")
        text, _ = Harness().post_process(FirstSentence, request(), ["never ", Chunk("ends")])
        self.assertEqual(text, "never ends")
        self.assertEqual(FinishReason("stopped-by-plugin"), FinishReason.STOPPED_BY_PLUGIN)


class TestRequest(unittest.TestCase):
    """What the caller asked for."""

    def test_it_is_read_by_name(self) -> None:
        asked = request("hi", input_json='{"text": "hi", "n": 3}', parameters={"n": "3"})
        self.assertEqual((asked.parameter("n"), asked.parameter("m")), ("3", None))
        self.assertEqual((asked.parameter_as("n", int), asked.parameter_as("m", int)), (3, None))
        self.assertEqual(asked.json(), {"text": "hi", "n": 3})
        self.assertEqual(asked.prompt(), MessagesPrompt([Message("user", "hi")]))
        chatted = request("now?", messages=[Message("system", "Brief."), Message("user", "now?")])
        self.assertEqual(len(chatted.conversation()), 2)


class TestCheck(unittest.TestCase):
    """What may cross, and what would end a component without a word."""

    def test_whatever_is_typed_may_cross(self) -> None:
        plan = Plan(chat("a", "b"), constraint=Grammar("start: x"), cold=ColdWait(10), prefetch=["a"])
        plan.entry(CompositionEntry("a", 1, Modules.Q_PROJ | Modules.DOWN_PROJ, LayerRange(0, 4), OutputSpan(1, 2)))
        plan.entry(CompositionEntry("a", -0.5, span=OutputFromSpan(3)))
        _check.plan(plan)
        plan.cold = ColdFallback(plan.composition)
        plan.prompt = TemplatePrompt("t", {"x": "ü"})
        _check.plan(plan)

    def test_a_wrong_type_is_named(self) -> None:
        any_: Any = None

        def plan(**fields: Any) -> Plan:
            made = Plan(TextPrompt("x"))
            for name, value in fields.items():
                setattr(made, name, value)
            return made

        cases: list[tuple[Any, str]] = [
            (None, "a Plan"),
            (plan(prompt="x"), r"plan\.prompt"),
            (plan(prompt=TextPrompt(any_)), r"plan\.prompt\.text"),
            (plan(prompt=TextPrompt("\ud800")), "surrogate"),
            (plan(prompt=MessagesPrompt([any_])), r"plan\.prompt\.messages"),
            (plan(composition=["a"]), r"plan\.composition"),
            (plan(composition=[CompositionEntry("a", any_)]), "weight"),
            (plan(token_budget=-1), r"plan\.token_budget must be a whole number from 0"),
            (plan(token_budget=True), "token_budget"),
            (plan(deadline_ms=2**32), "deadline_ms"),
            (plan(prefetch="abc"), "a list"),
            (plan(post_process=1), "a bool"),
            (plan(constraint="x"), "constraint"),
            (plan(cold=ColdWait(any_)), "wait_ms"),
        ]
        for value, said in cases:
            with self.assertRaisesRegex(Error, said):
                _check.plan(value)
        with self.assertRaisesRegex(Error, "what route returns"):
            _check.decision(any_)
        with self.assertRaisesRegex(Error, "an action must be"):
            _check.actions([any_])
        with self.assertRaisesRegex(Error, "SwitchComposition"):
            _check.actions([SwitchComposition([any_])])


class TestExport(unittest.TestCase):
    """One policy to a module."""

    def tearDown(self) -> None:
        _export.exported.clear()

    def test_exactly_one_is_exported(self) -> None:
        with self.assertRaisesRegex(TypeError, "none"):
            _export.the_policy()
        self.assertIs(export_policy(FirstSentence), FirstSentence)
        policy = _export.the_policy()
        self.assertIsInstance(policy.route(request()), Serve)
        export_policy(FirstSentence)
        with self.assertRaisesRegex(TypeError, "FirstSentence, FirstSentence"):
            _export.the_policy()

    def test_a_policy_passes_everything_unless_it_says_more(self) -> None:
        class Least(Policy):
            def compose(self, request: Request) -> Plan:
                return Plan(request.prompt())

        self.assertIsInstance(Least().post_processor(request()), PassThrough)
        self.assertEqual(Harness().post_process(Least, request(), ["a", "b"])[0], "ab")


class TestFunctions(unittest.TestCase):
    """Calls of other functions, as the harness answers them."""

    def test_what_another_function_says(self) -> None:
        class Asks(Policy):
            def route(self, request: Request) -> Decision:
                return Answer(functions.call("facts", request.text).text + functions.call_json("facts", {"a": [1]}).text)

            def compose(self, request: Request) -> Plan:
                return Plan(request.prompt())

        harness = Harness().reply("facts", "Wet.")
        self.assertEqual(harness.route(Asks, request("Is it?")), Answer("Wet.Wet."))
        self.assertEqual(harness.calls(), [("facts", "Is it?"), ("facts", '{"a": [1]}')])
        with self.assertRaisesRegex(Error, "grants.calls"):
            Harness().route(Asks, request("Is it?"))

    def test_what_cannot_be_asked(self) -> None:
        class Asks(Policy):
            def compose(self, request: Request) -> Plan:
                functions.call_json("facts", {1, 2})
                return Plan(request.prompt())

        with self.assertRaisesRegex(Error, "cannot be said in JSON"):
            Harness().reply("facts", "").compose(Asks, request())


class TestBuild(unittest.TestCase):
    """What the build command refuses before it begins. That it builds is checked in sdk/check.py."""

    def test_the_contract_is_at_hand(self) -> None:
        self.assertIn("world policy", (contract() / "policy.wit").read_text())

    def test_names_that_cannot_be(self) -> None:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            for name, said in (("app.txt", "not a Python file"), ("my-app.py", "call it app.py"), ("hooks.py", "call it app.py")):
                (folder / name).write_text("")
                with self.assertRaisesRegex(BuildError, said):
                    build(folder / name, folder / "x.wasm")
            (folder / "app.py").write_text("")
            with self.assertRaisesRegex(BuildError, "hooks.py is a name"):
                build(folder / "app.py", folder / "x.wasm")
            with self.assertRaisesRegex(BuildError, "not a Python file that is there"):
                build(folder / "none.py", folder / "x.wasm")


if __name__ == "__main__":
    unittest.main()
