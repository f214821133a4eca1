"""The tenant's secrets that the manifest grants (`grants.secrets`), each read by its name."""

from ._host import host


def get(name: str) -> str:
    """What the secret of this name holds. Raises `HostError` if it is not granted."""
    return host().secret(name)
