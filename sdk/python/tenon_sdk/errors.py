"""What a plugin raises, and what the host refuses."""

from typing import Literal


class Error(Exception):
    """A fault of the function, in words: the caller sees it with status 502. To refuse a request, return `Reject` from
    `route` instead. Any other exception is told the same way, and its traceback goes to the function's log."""


class HostError(Error):
    """Why a host function did not do what was asked; `kind` says which sort, `what` the name of it."""

    def __init__(self, kind: Literal["denied", "unsupported", "limit", "failed"], what: str) -> None:
        super().__init__(f"over the limit {what}" if kind == "limit" else f"{kind}: {what}")
        self.kind = kind
        self.what = what
