"""Tools of MCP servers, as far as the manifest's `grants.tools` names them. The host holds the addresses and the credentials."""

from __future__ import annotations

import json
from typing import Any

from ._host import host
from .errors import Error
from .types import Tool, ToolOutcome


def list_tools(server: str) -> list[Tool]:
    """The granted tools of a server, by the name that the manifest gives it."""
    return host().tool_list(server)


def call(server: str, tool: str, arguments: dict[str, Any] | None = None) -> ToolOutcome:
    """Calls one. That a tool fails is an outcome, no error."""
    try:
        said = json.dumps(arguments or {})
    except (TypeError, ValueError) as error:
        raise Error(f"the arguments of `{tool}` cannot be said in JSON: {error}") from None
    return host().tool_call(server, tool, said)
