"""What the function asks of others, and what it keeps."""

import unittest

from app import UNKNOWN, Lookup

from tenon_sdk import HostError, MessagesPrompt, Plan
from tenon_sdk.testing import Harness, request

URL = "https://facts.example/v1?q="


def harness() -> Harness:
    """With all that the manifest grants, but for an answer."""
    return Harness().config("url", URL).secret("lookup-key", "s3cret").bucket("facts")


def system(plan: Plan) -> str:
    """What is put before the question."""
    assert isinstance(plan.prompt, MessagesPrompt)
    return plan.prompt.messages[0].content


class TestLookup(unittest.TestCase):
    """Facts, with the key, once."""

    def test_facts_are_asked_for_once_with_the_key(self) -> None:
        host = harness().answer(URL, body="The sea is deep.")
        for times in (1, 2):
            plan = host.compose(Lookup, request("what is the sea?"))
            self.assertTrue(system(plan).endswith("\nThe sea is deep."))
            self.assertEqual(host.values("facts")["asked"], str(times).encode())
            sent = host.requests()
            self.assertEqual(len(sent), 1 if times == 1 else 0)
            if sent:
                self.assertEqual(sent[0].url, URL + "what%20is%20the%20sea%3F")
                self.assertEqual(sent[0].headers, {"authorization": "Bearer s3cret"})

    def test_no_facts_are_no_reason_to_fail(self) -> None:
        host = harness().answer(URL, 503)
        self.assertEqual(system(host.compose(Lookup, request("x"))), UNKNOWN)
        self.assertEqual(host.lines(), ["the service answered with status 503"])
        self.assertNotIn("x", host.values("facts"))

    def test_facts_have_a_length(self) -> None:
        host = harness().config("fact_tokens_max", "7").answer(URL, body="The sea is deep.")
        self.assertTrue(system(host.compose(Lookup, request("x"))).endswith("\nThe sea"))

    def test_what_is_not_granted_is_said(self) -> None:
        for host, said in (
            (Harness().config("url", URL), "grants.kv"),
            (Harness().config("url", URL).bucket("facts"), "grants.secrets"),
            (harness(), "grants.http"),
        ):
            with self.assertRaisesRegex(HostError, said):
                host.compose(Lookup, request("x"))


if __name__ == "__main__":
    unittest.main()
