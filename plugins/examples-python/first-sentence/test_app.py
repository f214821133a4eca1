"""What is sent of which chunks."""

import unittest

from app import FirstSentence
from tenon_sdk.testing import Harness, request


class TestFirstSentence(unittest.TestCase):
    """Natively."""

    def test_one_sentence_is_enough(self) -> None:
        """However it is cut."""
        self.assertEqual(self.read("It ", "is. But ", "no."), "It is.")
        self.assertEqual(self.read("no ", "end"), "no end")

    def test_the_plan_asks_for_it(self) -> None:
        """Else nothing would be held."""
        plan = Harness().compose(FirstSentence, request("hi", max_tokens=5))
        self.assertTrue(plan.post_process)
        self.assertEqual(plan.token_budget, 5)

    def read(self, *chunks: str) -> str:
        """What the caller reads."""
        text, ending = Harness().post_process(FirstSentence, request(), list(chunks))
        self.assertEqual(ending.claims, {"tokens-read": str(len(chunks))})
        return text


if __name__ == "__main__":
    unittest.main()
