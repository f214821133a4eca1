"""Which draw is sent, what each begins with, what is refused."""

import unittest

from app import BestOf

from tenon_sdk import Error, HostError
from tenon_sdk.testing import Harness, request


class TestBestOf(unittest.TestCase):
    """Natively."""

    def test_the_likeliest_draw_is_sent(self) -> None:
        harness = Harness().config("draws", "3").config("system", "S.")
        harness.says("so so", -1.5).says("good", -0.25).says("bad", -4.0)
        text, answer = harness.run(BestOf, request("Q?"))
        self.assertEqual(text, "good")
        self.assertEqual(answer.metadata, {"draws": "3", "mean_logprob_thousandths": "-250"})
        self.assertEqual(harness.prompts(), ["S.Q?"] * 3, "every draw begins with the same prompt")
        self.assertEqual(harness.sessions(), 0, "every session was given back")

    def test_the_caller_may_ask_for_less(self) -> None:
        harness = Harness().config("draws", "1").says("a long story")
        self.assertEqual(harness.run(BestOf, request("Q?", max_tokens=6))[0], "a long")

    def test_a_wrong_configuration_and_too_few_draws_are_told(self) -> None:
        for harness, said in (
            (Harness().config("draws", "many"), "`draws`"),
            (Harness().says("one"), "no more to say"),
            (Harness().config("adapter", "caps"), "denied: the adapter `caps`"),
        ):
            with self.assertRaisesRegex(Error, said):
                harness.run(BestOf, request("Q?"))

    def test_a_budget_ends_it_and_gives_everything_back(self) -> None:
        harness = Harness().says("one").refuses("limit", "generations_max of 1 generations in one request")
        with self.assertRaises(HostError) as raised:
            harness.run(BestOf, request("Q?"))
        self.assertEqual(raised.exception.kind, "limit")
        self.assertEqual(harness.sessions(), 0)


if __name__ == "__main__":
    unittest.main()
