"""Other functions of the tenant, as far as the manifest's `grants.calls` names them."""

import json

from ._host import host
from .errors import Error
from .types import Reply


def call(function: str, text: str, *, max_tokens: int | None = None) -> Reply:
    """Asks another function with a text, and waits for its whole answer."""
    return host().call_function(function, "text", text, max_tokens)


def call_json(function: str, value: object, *, max_tokens: int | None = None) -> Reply:
    """The same with any value that JSON can say. Raises `Error` for one that it cannot."""
    try:
        said = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Error(f"the input of `{function}` cannot be said in JSON: {error}") from None
    return host().call_function(function, "json", said, max_tokens)
