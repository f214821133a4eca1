"""Outgoing HTTP requests to hosts that the manifest grants (`grants.http`). A request and its answer are whole; redirects are not
followed, and are answers. In tests the harness answers.

    answer = http.get("https://facts.example/v1?q=ocean", {"authorization": f"Bearer {secrets.get('facts')}"})
    if answer.status == 200:
        facts = answer.text()
"""

import builtins
import json as _json
from dataclasses import dataclass, field
from typing import Any

from ._host import host
from .errors import Error


@dataclass
class HttpResponse:
    """What was answered, whatever the status."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    """Names in lower case; of several values the last, as far as it is text."""
    body: builtins.bytes = b""

    def text(self) -> str:
        """The body as text. Raises an `Error` if it is none."""
        try:
            return self.body.decode()
        except UnicodeDecodeError:
            raise Error("the answer is no text") from None

    def json(self) -> Any:
        """The body as JSON. Raises an `Error` if it is none."""
        try:
            return _json.loads(self.body)
        except ValueError:
            raise Error("the answer is no JSON") from None


def send(method: str, url: str, headers: dict[str, str] | None = None, body: builtins.bytes | str = b"") -> HttpResponse:
    """Sends a request and waits for the whole answer. Raises `HostError` if there is none."""
    content = body.encode() if isinstance(body, str) else body
    status, found, answered = host().http(method, url, list((headers or {}).items()), content)
    return HttpResponse(status, {name.lower(): value for name, value in found}, answered)


def get(url: str, headers: dict[str, str] | None = None) -> HttpResponse:
    """`GET` of a URL."""
    return send("GET", url, headers)


def post(url: str, body: builtins.bytes | str, headers: dict[str, str] | None = None) -> HttpResponse:
    """`POST` to a URL."""
    return send("POST", url, headers, body)
