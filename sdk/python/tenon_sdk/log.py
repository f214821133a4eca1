"""Lines for the function's log; what goes over the limit on bytes is dropped."""

from ._host import host


def debug(message: str) -> None:
    """For the plugin's author."""
    host().write("debug", message)


def info(message: str) -> None:
    """Ordinary."""
    host().write("info", message)


def warn(message: str) -> None:
    """Worth a look."""
    host().write("warn", message)


def error(message: str) -> None:
    """Something failed."""
    host().write("error", message)
