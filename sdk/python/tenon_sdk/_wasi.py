"""Key-value buckets and outgoing requests behind the component's imports, which are the standard's own packages. Loaded inside a
component only. Not here: anything that a plugin's author calls.
"""

from collections.abc import Callable
from typing import Literal, NoReturn, TypeVar

from componentize_py_types import Err, Ok
from wit_world.imports import atomics, outgoing_handler
from wit_world.imports import streams, wasi_http_types as web, wasi_keyvalue_store as store

from . import _check
from .errors import HostError

T = TypeVar("T")

PIECE_BYTES = 4096
"""Bytes of one read or write: `blocking-write-and-flush` takes no more."""
METHODS: dict[str, Callable[[], web.Method]] = {
    "GET": web.Method_Get,
    "HEAD": web.Method_Head,
    "POST": web.Method_Post,
    "PUT": web.Method_Put,
    "DELETE": web.Method_Delete,
    "PATCH": web.Method_Patch,
    "OPTIONS": web.Method_Options,
}


def refused(error: store.Error, what: str) -> NoReturn:
    """The store's error as ours."""
    match error:
        case store.Error_AccessDenied():
            raise HostError("denied", f"{what}; see the manifest's grants.kv")
        case store.Error_NoSuchStore():
            raise HostError("failed", f"{what}: there is none")
        case _:
            raise HostError("failed", f"{what}: {error.value}")


def stored(what: str, call: Callable[[], T]) -> T:
    """What a bucket answers."""
    try:
        return call()
    except Err as error:
        refused(error.value, what)


class ComponentSnapshot:
    """`atomics.cas`."""

    def __init__(self, cas: atomics.Cas, what: str) -> None:
        self._cas = cas
        self._what = what
        self.value: bytes | None = stored(what, cas.current)

    def swap(self, value: bytes) -> "ComponentSnapshot | None":
        """`atomics.swap`."""
        _check.data("the value of a key", value)
        try:
            atomics.swap(self._cas, value)
        except Err as error:
            if isinstance(error.value, atomics.CasError_CasFailed):
                return ComponentSnapshot(error.value.value, self._what)
            refused(error.value.value, self._what)
        return None


class ComponentBucket:
    """`store.bucket`."""

    def __init__(self, name: str) -> None:
        _check.text("the name of a bucket", name)
        self._what = f"the bucket `{name}`"
        self._bucket = stored(self._what, lambda: store.open(name))

    def get(self, key: str) -> bytes | None:
        """`get`."""
        _check.text("a key", key)
        return stored(self._what, lambda: self._bucket.get(key))

    def set(self, key: str, value: bytes) -> None:
        """`set`."""
        _check.text("a key", key)
        _check.data("the value of a key", value)
        stored(self._what, lambda: self._bucket.set(key, value))

    def delete(self, key: str) -> None:
        """`delete`."""
        _check.text("a key", key)
        stored(self._what, lambda: self._bucket.delete(key))

    def keys(self) -> list[str]:
        """`list-keys`, page by page."""
        found: list[str] = []
        cursor: str | None = None
        while True:
            page = stored(self._what, lambda: self._bucket.list_keys(cursor))
            found += page.keys
            cursor = page.cursor
            if cursor is None:
                return found

    def increment(self, key: str, delta: int) -> int:
        """`atomics.increment`."""
        _check.text("a key", key)
        _check.s64("delta", delta)
        return stored(self._what, lambda: atomics.increment(self._bucket, key, delta))

    def snapshot(self, key: str) -> ComponentSnapshot:
        """`atomics.cas.new`."""
        _check.text("a key", key)
        return ComponentSnapshot(stored(self._what, lambda: atomics.Cas.new(self._bucket, key)), self._what)


def send(method: str, url: str, headers: list[tuple[str, str]], body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
    """A whole request and its whole answer."""
    what = f"{method} {'/'.join(url.split('/')[:3])}"
    try:
        return answered(outgoing(method, url, headers), body)
    except Err as error:
        code = error.value
        kind: Literal["denied", "failed"] = "failed"
        if isinstance(code, (web.ErrorCode_HttpRequestDenied, web.ErrorCode_DestinationIpProhibited)):
            kind = "denied"
        said = getattr(code, "value", None)
        word = type(code).__name__.partition("_")[2] or type(code).__name__
        raise HostError(kind, f"{what}: {word}{f' ({said})' if said else ''}") from None


def outgoing(method: str, url: str, headers: list[tuple[str, str]]) -> web.OutgoingRequest:
    """A request without its body."""
    scheme, is_url, rest = url.partition("://")
    if not is_url:
        raise HostError("failed", f"the URL `{url}` has no scheme")
    at = next((index for index, character in enumerate(rest) if character in "/?"), len(rest))
    authority, path = rest[:at], rest[at:]
    request = web.OutgoingRequest(web.Fields.from_list([(name, value.encode()) for name, value in headers]))
    request.set_method(METHODS[method]() if method in METHODS else web.Method_Other(method))
    schemes: dict[str, web.Scheme] = {"https": web.Scheme_Https(), "http": web.Scheme_Http()}
    request.set_scheme(schemes.get(scheme, web.Scheme_Other(scheme)))
    request.set_authority(authority)
    request.set_path_with_query(path if path.startswith("/") else f"/{path}")
    return request


def answered(request: web.OutgoingRequest, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
    """Sends it. Handles are given back in the order in which they were lent."""
    content = request.body()
    future = outgoing_handler.handle(request, None)
    if body:
        with content.write() as stream:
            for at in range(0, len(body), PIECE_BYTES):
                try:
                    stream.blocking_write_and_flush(body[at : at + PIECE_BYTES])
                except Err:
                    # Whoever does not take the body says why in the answer.
                    break
    try:
        web.OutgoingBody.finish(content, None)
    except Err:
        # One that is not whole fails in the answer too.
        pass
    with future.subscribe() as ready:
        ready.block()
    found = future.get()
    if not isinstance(found, Ok):
        raise HostError("failed", "there is no answer")
    inner = found.value
    if isinstance(inner, Err):
        raise inner
    response = inner.value
    with response.headers() as fields:
        headers = [(name, value.decode(errors="replace")) for name, value in fields.entries()]
    pieces: list[bytes] = []
    with response.consume() as incoming, incoming.stream() as stream_in:
        while True:
            try:
                pieces.append(stream_in.blocking_read(PIECE_BYTES))
            except Err as error:
                if isinstance(error.value, streams.StreamError_Closed):
                    break
                raise HostError("failed", "the answer broke off") from None
    return response.status(), headers, b"".join(pieces)
