"""Lets nothing out but whole, valid JSON. The answer of an adapter that writes JSON is held back until it is a document; then
that is sent, in one piece and without spaces, and the generation ends. Where it is none, an error object goes out in its
place: `{"error": {"code", "message"}}`, its code `invalid_json`, `missing_key` or `too_long`. The receipt's claim `json` says
`valid` or that code.

Configuration: `adapter` (required) and `system`, the prompt that it was trained with; `required`, the keys that the document,
then an object, must have, separated by commas.
"""

import json

from tenon_sdk import (
    Action,
    Chunk,
    Ending,
    Hold,
    Plan,
    Policy,
    PostProcessor,
    Replace,
    Request,
    Stop,
    Usage,
    chat,
    config,
    export_policy,
)

TOKENS_DEFAULT = 96
DOCUMENT_BYTES_MAX = 64 << 10
# A document is complete with one of these, or with the end of the output.
ENDS = ("}", "]", '"')


class Guard(PostProcessor):
    """The document so far."""

    def __init__(self, required: list[str]) -> None:
        """Before its first byte."""
        self.required = required
        self.document = ""
        self.verdict = ""

    def chunk(self, chunk: Chunk) -> list[Action]:
        """Holds, until it is a document."""
        self.document += chunk.text
        if len(self.document.encode()) > DOCUMENT_BYTES_MAX:
            return [self.refuse("too_long", f"the output is longer than {DOCUMENT_BYTES_MAX} bytes"), Stop()]
        if not any(end in chunk.text for end in ENDS):
            return [Hold()]
        try:
            value, _ = json.JSONDecoder().raw_decode(self.document.lstrip())
        except json.JSONDecodeError:
            return [Hold()]
        return [self.judge(value), Stop()]

    def finish(self, usage: Usage) -> Ending:
        """Says what it came to."""
        actions: list[Action] = []
        if not self.verdict:
            try:
                actions = [self.judge(json.loads(self.document))]
            except json.JSONDecodeError as error:
                actions = [self.refuse("invalid_json", f"the output is not JSON: {error.msg}")]
        said = {"json": self.verdict}
        return Ending(actions, metadata=said, claims=dict(said))

    def judge(self, value: object) -> Action:
        """The document, or an error in its place."""
        for key in self.required:
            if not isinstance(value, dict) or key not in value:
                return self.refuse("missing_key", f"the document has no `{key}`")
        self.verdict = "valid"
        return Replace(json.dumps(value, ensure_ascii=False, separators=(",", ":")))

    def refuse(self, code: str, message: str) -> Action:
        """An error in place of the document."""
        self.verdict = code
        return Replace(json.dumps({"error": {"code": code, "message": message}}, ensure_ascii=False))


@export_policy
class JsonGuard(Policy):
    """An adapter that writes JSON, watched."""

    def compose(self, request: Request) -> Plan:
        """Asks as it was trained."""
        system = config.get("system")
        prompt = request.prompt() if system is None or request.messages else chat(system, request.text)
        budget = TOKENS_DEFAULT if request.max_tokens is None else request.max_tokens
        return Plan(prompt, token_budget=budget).adapter(config.require("adapter"), 1.0).post_processed()

    def post_processor(self, request: Request) -> PostProcessor:
        """With the keys of the configuration."""
        required = (config.get("required") or "").split(",")
        return Guard([key.strip() for key in required if key.strip()])
