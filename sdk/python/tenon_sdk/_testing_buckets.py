"""Buckets as the harness has them: what they hold was put in by the test. Not here: limits."""

from __future__ import annotations

from . import _check
from .errors import HostError

S64_MAX = (1 << 63) - 1


class Contents:
    """What a bucket of the harness holds: every write makes another version of its key, also of the same value."""

    def __init__(self, values: dict[str, bytes]) -> None:
        self.values = values
        self._versions = dict.fromkeys(values, 0)
        self._last = 0

    def put(self, key: str, value: bytes) -> None:
        self._last += 1
        self.values[key], self._versions[key] = value, self._last

    def remove(self, key: str) -> None:
        self.values.pop(key, None)
        self._versions.pop(key, None)

    def version(self, key: str) -> int | None:
        return self._versions.get(key)


class FakeSnapshot:
    """The state of a key."""

    def __init__(self, contents: Contents, key: str) -> None:
        self._contents = contents
        self._key = key
        self._version = contents.version(key)
        self.value = contents.values.get(key)

    def swap(self, value: bytes) -> FakeSnapshot | None:
        _check.data("the value of a key", value)
        if self._contents.version(self._key) != self._version:
            return FakeSnapshot(self._contents, self._key)
        self._contents.put(self._key, value)
        return None


class FakeBucket:
    """A bucket of the harness."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents

    def get(self, key: str) -> bytes | None:
        _check.text("a key", key)
        return self._contents.values.get(key)

    def set(self, key: str, value: bytes) -> None:
        _check.text("a key", key)
        _check.data("the value of a key", value)
        self._contents.put(key, value)

    def delete(self, key: str) -> None:
        _check.text("a key", key)
        self._contents.remove(key)

    def keys(self) -> list[str]:
        return sorted(self._contents.values, key=str.encode)

    def increment(self, key: str, delta: int) -> int:
        _check.text("a key", key)
        _check.s64("delta", delta)
        try:
            total = int(self._contents.values.get(key, b"0")) + delta
        except ValueError:
            raise HostError("failed", "the value is no number") from None
        if not -S64_MAX - 1 <= total <= S64_MAX:
            raise HostError("failed", "the sum has over 64 bits")
        self._contents.put(key, str(total).encode())
        return total

    def snapshot(self, key: str) -> FakeSnapshot:
        _check.text("a key", key)
        return FakeSnapshot(self._contents, key)
