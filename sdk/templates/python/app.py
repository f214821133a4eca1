"""{{name}}: answers an empty text by itself; the rest is served on the base, or under the adapter that the configuration's
`adapter` names.
"""

from tenon_sdk import Answer, Decision, Plan, Policy, Request, Serve, config, export_policy


@export_policy
class Plugin(Policy):
    """Decides what is generated."""

    def route(self, request: Request) -> Decision:
        """Serves what has a text."""
        return Serve() if request.text.strip() else Answer("Say something.")

    def compose(self, request: Request) -> Plan:
        """The conversation, under the configured adapter."""
        plan = Plan(request.prompt(), token_budget=request.max_tokens)
        adapter = config.get("adapter")
        return plan if adapter is None else plan.adapter(adapter, 1.0)
