"""Random numbers, repeatable from the seed in the receipt. In a component, `os.urandom` and `secrets` draw from the host too; in
tests give Python's own generator a seed: `random.Random(tenon_sdk.random.next())`.
"""

import builtins

from ._host import host


def bytes(count: int) -> builtins.bytes:
    """Random bytes, at most 65536 in one request, over all calls."""
    return host().random_bytes(count)


def next() -> int:
    """Uniform over all values of 32 bits."""
    return host().random_next()
