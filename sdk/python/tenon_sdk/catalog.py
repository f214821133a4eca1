"""The adapters that this function may use."""

from ._host import host
from .types import Adapter


def adapters() -> list[Adapter]:
    """Every adapter that is granted to this function."""
    return host().adapters()


def has(alias: str) -> bool:
    """Whether an adapter of this alias is granted."""
    return any(adapter.alias == alias for adapter in adapters())


def prefetch(adapters: list[str]) -> None:
    """Says that these will be needed soon. A hint: nothing waits for it."""
    host().prefetch(adapters)
