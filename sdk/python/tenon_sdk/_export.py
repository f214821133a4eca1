"""What a module exports: a policy, or an agent. Not here: tying it to the component's exports, which is `_component_policy.py` and
`_component_agent.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

from .policy import Policy

if TYPE_CHECKING:
    from .agent import Agent

P = TypeVar("P", bound=Policy)
A = TypeVar("A", bound="Agent")

exported: list[type[Policy]] = []
exported_agents: list[type[Agent]] = []


def export_policy(policy: type[P]) -> type[P]:
    """Makes this module a plugin whose policy is the given class. A decorator; use it once."""
    exported.append(policy)
    return policy


def export_agent(agent: type[A]) -> type[A]:
    """Makes this module a plugin that is the given agent. A decorator; use it once."""
    exported_agents.append(agent)
    return agent


def the_world() -> Literal["policy", "agent"]:
    """Which world the plugin is of. Raises `TypeError` unless one class was exported."""
    if len(exported) + len(exported_agents) != 1:
        names = ", ".join(one.__name__ for one in [*exported, *exported_agents]) or "none"
        raise TypeError(f"a plugin exports one policy with @export_policy or one agent with @export_agent; this one exports {names}")
    return "policy" if exported else "agent"


def the_policy() -> Policy:
    """An instance of the policy that was exported. Raises `TypeError` unless that is all, complete and without arguments."""
    if the_world() != "policy":
        raise TypeError(f"{exported_agents[0].__name__} is an agent, no policy")
    return exported[0]()


def the_agent() -> Agent:
    """An instance of the agent that was exported. Raises `TypeError` unless that is all, complete and without arguments."""
    if the_world() != "agent":
        raise TypeError(f"{exported[0].__name__} is a policy, no agent")
    return exported_agents[0]()
