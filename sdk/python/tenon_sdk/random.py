"""Random numbers, repeatable from the seed in the receipt. Python's own `random` says the same in every request of a
component, as its seed was taken when it was built: give it one, `random.Random(tenon_sdk.random.next())`.
"""

import builtins

from ._host import host


def bytes(count: int) -> builtins.bytes:
    """Random bytes, at most 65536 in one request, over all calls."""
    return host().random_bytes(count)


def next() -> int:
    """Uniform over all values of 32 bits."""
    return host().random_next()
