"""Key-value buckets that the manifest grants (`grants.kv`).

    seen = kv.open("seen")
    if seen.increment(request.parameters["user"]) > 100:
        return Reject("too_many", "come back tomorrow")

What is denied or fails is raised as `HostError`. Not here: the limits of buckets, which the host has.
"""

from collections.abc import Callable

from ._host import HostBucket, HostSnapshot, host
from .errors import Error

UPDATE_ATTEMPTS_MAX = 16
"""Times that `Bucket.update` tries again because someone came between."""


class Snapshot:
    """The state of a key, to be swapped against."""

    def __init__(self, snapshot: HostSnapshot) -> None:
        self._snapshot = snapshot
        self.value: bytes | None = snapshot.value
        """The value that the key had."""

    def swap(self, value: bytes) -> "Snapshot | None":
        """Gives the key a value if it is still in this state. If not, nothing is done and its state is returned. Use it once."""
        newer = self._snapshot.swap(value)
        return None if newer is None else Snapshot(newer)


class Bucket:
    """An open bucket; `open` makes one."""

    def __init__(self, bucket: HostBucket) -> None:
        self._bucket = bucket

    def get(self, key: str) -> bytes | None:
        """The value of a key, if it has one."""
        return self._bucket.get(key)

    def get_text(self, key: str) -> str | None:
        """The same as text. Raises an `Error` if it is none."""
        value = self.get(key)
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError:
            raise Error(f"the value of `{key}` is no text") from None

    def set(self, key: str, value: bytes | str) -> None:
        """Gives a key a value."""
        self._bucket.set(key, value.encode() if isinstance(value, str) else value)

    def delete(self, key: str) -> None:
        """Takes the value away, if there is one."""
        self._bucket.delete(key)

    def keys(self) -> list[str]:
        """Every key, in order of their bytes."""
        return self._bucket.keys()

    def increment(self, key: str, delta: int = 1) -> int:
        """Adds to a number, which is 0 before; what it is then."""
        return self._bucket.increment(key, delta)

    def snapshot(self, key: str) -> Snapshot:
        """A key's state now."""
        return Snapshot(self._bucket.snapshot(key))

    def update(self, key: str, change: Callable[[bytes | None], bytes]) -> bytes:
        """Changes a value by what it was, again and again until nobody came between; what it is then."""
        snapshot = self.snapshot(key)
        for _ in range(UPDATE_ATTEMPTS_MAX):
            value = change(snapshot.value)
            newer = snapshot.swap(value)
            if newer is None:
                return value
            snapshot = newer
        raise Error(f"others change `{key}` all the time")


def open(name: str) -> Bucket:
    """The bucket of this name. Raises `HostError` if it is not granted."""
    return Bucket(host().bucket(name))
