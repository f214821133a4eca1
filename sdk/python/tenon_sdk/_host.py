"""What the host lends, as one interface: the component's imports implement it, and so does the harness for tests."""

from contextvars import ContextVar
from typing import Protocol

from .errors import Error
from .types import Adapter, Reply


class Host(Protocol):
    """One method for each function that the contract imports; what it refuses is raised as `HostError`."""

    def adapters(self) -> list[Adapter]: ...
    def prefetch(self, adapters: list[str]) -> None: ...
    def write(self, level: str, message: str) -> None: ...
    def elapsed_ms(self) -> int: ...
    def unix_seconds(self) -> float: ...
    def random_bytes(self, count: int) -> bytes: ...
    def random_next(self) -> int: ...
    def config_get(self, name: str) -> str | None: ...
    def config_all(self) -> dict[str, str]: ...
    def call_function(self, function: str, kind: str, value: str, max_tokens: int | None) -> Reply: ...


current: ContextVar[Host] = ContextVar("tenon_host")


def host() -> Host:
    """The host of this call. Raises `Error` where there is none."""
    try:
        return current.get()
    except LookupError:
        raise Error(
            "there is no host here: ask it inside of route, compose and the post-processor, not while the module is "
            "loaded; in tests, call these through tenon_sdk.testing.Harness"
        ) from None
