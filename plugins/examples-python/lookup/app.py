"""Asks a service of the author's for facts about the question, with a secret key, and puts them before the model. Facts are kept in a
bucket, so that a question is asked once. Configuration: `url`, to which the text is added, and, if you like, `fact_tokens_max`. The
manifest grants the service in `grants.http`, the secret `lookup-key` and the bucket `facts`.
"""

from urllib.parse import quote

from tenon_sdk import Plan, Policy, Request, chat, config, export_policy, http, kv, log, secrets, tokenizer

FACT_TOKENS_MAX = 256
OUTPUT_TOKENS_MAX = 48
UNKNOWN = "Say that you do not know if you are not sure."


@export_policy
class Lookup(Policy):
    """Facts first."""

    def compose(self, request: Request) -> Plan:
        kept = kv.open("facts")
        facts = kept.get_text(request.text)
        if facts is None:
            facts = asked(request.text)
            if facts is not None:
                kept.set(request.text, facts)
        kept.increment("asked")
        # The function serves without its facts rather than not at all.
        system = UNKNOWN if facts is None else f"Answer from these facts alone:\n{facts}"
        budget = OUTPUT_TOKENS_MAX if request.max_tokens is None else request.max_tokens
        return Plan(chat(system, request.text), token_budget=budget)


def asked(question: str) -> str | None:
    """What the service says, if it says something, and no more of it than the prompt has room for."""
    url = config.require("url") + quote(question, safe="")
    answer = http.get(url, {"authorization": f"Bearer {secrets.get('lookup-key')}"})
    if answer.status != 200:
        log.warn(f"the service answered with status {answer.status}")
        return None
    tokens = tokenizer.encode(answer.text())
    most = int(config.get("fact_tokens_max") or FACT_TOKENS_MAX)
    return tokenizer.decode(tokens[:most]) if len(tokens) > most else answer.text()
