"""What is sent of which output, and what the receipt claims."""

import json
import unittest

from app import DOCUMENT_BYTES_MAX, JsonGuard
from tenon_sdk import Error
from tenon_sdk.testing import Harness, request


class TestJsonGuard(unittest.TestCase):
    """Natively."""

    def guarded(self, *chunks: str, required: str = "") -> tuple[str, str]:
        """What the caller reads, and the claim."""
        harness = Harness().config("adapter", "sentiment-json").config("required", required)
        text, ending = harness.post_process(JsonGuard, request(), list(chunks))
        self.assertEqual(ending.metadata, ending.claims)
        return text, ending.claims["json"]

    def test_a_document_is_sent_whole_and_nothing_after_it(self) -> None:
        """However it is cut."""
        self.assertEqual(self.guarded(' {"a', '": [1, ', '2]} and', " more"), ('{"a":[1,2]}', "valid"))
        self.assertEqual(self.guarded('"so', 'ö"'), ('"soö"', "valid"))
        self.assertEqual(self.guarded("4", "2"), ("42", "valid"))

    def test_anything_else_becomes_an_error(self) -> None:
        """With a code."""
        cases: dict[str, tuple[tuple[str, ...], str]] = {
            "invalid_json": (('{"a": ', "1"), ""),
            "missing_key": (('{"label": "x"}',), "label, score"),
            "too_long": (("[", '"' + "x" * DOCUMENT_BYTES_MAX), ""),
        }
        for code, (chunks, required) in cases.items():
            text, claim = self.guarded(*chunks, required=required)
            self.assertEqual((json.loads(text)["error"]["code"], claim), (code, code))

    def test_it_needs_an_adapter(self) -> None:
        """And says so."""
        with self.assertRaisesRegex(Error, "`adapter`"):
            Harness().compose(JsonGuard, request("hi"))
        plan = Harness().config("adapter", "a").config("system", "JSON.").compose(JsonGuard, request("hi"))
        self.assertEqual([entry.adapter for entry in plan.composition], ["a"])


if __name__ == "__main__":
    unittest.main()
