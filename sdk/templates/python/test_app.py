"""The plugin, natively."""

import unittest

from app import Plugin
from tenon_sdk import Answer, Serve
from tenon_sdk.testing import Harness, request


class TestPlugin(unittest.TestCase):
    """What it decides."""

    def test_nothing_is_answered_by_itself(self) -> None:
        """And the rest is served."""
        self.assertIsInstance(Harness().route(Plugin, request(" ")), Answer)
        self.assertIsInstance(Harness().route(Plugin, request("hello")), Serve)

    def test_the_adapter_is_the_configured_one(self) -> None:
        """If there is one."""
        plan = Harness().config("adapter", "manners").compose(Plugin, request("hello"))
        self.assertEqual([entry.adapter for entry in plan.composition], ["manners"])
        self.assertEqual(Harness().compose(Plugin, request("hello")).composition, [])


if __name__ == "__main__":
    unittest.main()
