"""The function's configuration, from its manifest."""

from ._host import host
from .errors import Error


def get(name: str) -> str | None:
    """The value of this name, if there is one."""
    return host().config_get(name)


def require(name: str) -> str:
    """The value of this name. Raises an `Error` that names it."""
    value = get(name)
    if value is None:
        raise Error(f"the function's configuration has no `{name}`; set it in the manifest")
    return value


def all() -> dict[str, str]:
    """Every name and value."""
    return host().config_all()
