"""Which policy a module exports. Not here: tying it to the component's exports, which is `_component.py`."""

from typing import TypeVar

from .policy import Policy

P = TypeVar("P", bound=Policy)

exported: list[type[Policy]] = []


def export_policy(policy: type[P]) -> type[P]:
    """Makes this module a plugin whose policy is the given class. A decorator; use it once."""
    exported.append(policy)
    return policy


def the_policy() -> Policy:
    """An instance of what was exported. Raises `TypeError` unless that is one class, complete and without arguments."""
    if len(exported) != 1:
        names = ", ".join(policy.__name__ for policy in exported) or "none"
        raise TypeError(f"a plugin exports one policy with @export_policy; this one exports {names}")
    return exported[0]()
