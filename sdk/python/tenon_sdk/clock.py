"""A coarse clock; in a component, `time.time()` and `datetime.now()` show it too."""

from ._host import host


def elapsed_ms() -> int:
    """Milliseconds since this request began, in steps of 10."""
    return host().elapsed_ms()


def unix_seconds() -> float:
    """Seconds since 1970-01-01 UTC."""
    return host().unix_seconds()
