"""The agent, natively."""

import unittest

from app import Plugin
from tenon_sdk.testing import Harness, request


class TestPlugin(unittest.TestCase):
    """What it sends."""

    def test_the_longer_of_two_answers_is_sent(self) -> None:
        """And each session is given back."""
        harness = Harness().says("short").says("a longer one")
        self.assertEqual(harness.run(Plugin, request("hello"))[0], "a longer one")
        self.assertEqual((len(harness.prompts()), harness.sessions()), (2, 0))

    def test_nothing_is_answered_by_itself(self) -> None:
        """Without the model."""
        self.assertEqual(Harness().run(Plugin, request(" "))[0], "Say something.")


if __name__ == "__main__":
    unittest.main()
