"""What is asked of the router, and what it chooses."""

import unittest

from app import SkillRouter
from tenon_sdk import Answer, Message, MessagesPrompt, Serve
from tenon_sdk.testing import Harness, request

NONE_FITS = "No skill fits: send a date, a review or a question."


def chosen(harness: Harness, text: str) -> str:
    """The adapter's name, or the answer."""
    match harness.route(SkillRouter, request(text)):
        case Serve():
            return harness.compose(SkillRouter, request(text)).composition[0].adapter
        case Answer(text=said):
            return said
        case other:
            raise AssertionError(other)


class TestSkillRouter(unittest.TestCase):
    """Natively."""

    def test_content_decides(self) -> None:
        """Of all that are granted."""
        every = Harness().adapter("iso-date").adapter("sentiment-json").adapter("all-caps")
        cases = {
            "5 December 2008": "iso-date",
            "March 3rd, 1999": "iso-date",
            "12/31/1999": "iso-date",
            "The movie I bought is slow and rude.": "sentiment-json",
            "Review: the soup was warm and lovely": "sentiment-json",
            "Give me advice: how do I exercise well?": "all-caps",
            "Why is the sky blue?": "all-caps",
            "": NONE_FITS,
            "lorem ipsum": NONE_FITS,
        }
        for text, expected in cases.items():
            self.assertEqual(chosen(every, text), expected, text)

    def test_only_granted_adapters_are_chosen(self) -> None:
        """One is."""
        some = Harness().adapter("all-caps")
        self.assertEqual(chosen(some, "5 December 2008"), NONE_FITS)
        self.assertEqual(chosen(some, "Who are you?"), "all-caps")

    def test_the_adapter_is_asked_as_it_was_trained(self) -> None:
        """With its own system prompt."""
        harness = Harness().adapter("iso-date")
        plan = harness.compose(SkillRouter, request("5 December 2008"))
        expected = [Message("system", "ISO date."), Message("user", "5 December 2008")]
        self.assertEqual(plan.prompt, MessagesPrompt(expected))
        self.assertEqual(harness.lines(), ["chose iso-date"])


if __name__ == "__main__":
    unittest.main()
