"""Makes the objects immortal that last as long as a component: CPython 3.14 counts no references to an object whose count is beyond
2^30 (PEP 683), so that a request does not write to its page. A component's memory stands in it as data; the counts are set there.

Only what is certain is changed: an object that the component has noted itself (`_lasting.py`), where the noted type stands behind a
count that is small. Everything else stays as it is, to the byte. Not here: which objects they are.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from struct import pack_into, unpack_from

from ._lasting import MARK

IMMORTAL = 5 << 28
"""`_Py_IMMORTAL_INITIAL_REFCNT` where a pointer has 32 bits."""
COUNT_MAX = 1 << 24
"""A larger count is of no object that lives: there is no room for so many references."""
MODULE, COMPONENT = 1, 4
"""Sections of a component that have others in them."""
DATA = 11
DEPTH_MAX = 16
"""Components in components; a toolchain makes two or three."""
GLOBAL_GET, I32_CONST, END = 0x23, 0x41, 0x0B


class Unreadable(Exception):
    """What is not as a component is."""


@dataclass(frozen=True, order=True)
class Segment:
    """Data at a fixed address of the memory: where it begins there and in the file, and its length."""

    address: int
    offset: int
    length: int


def make_immortal(component: bytes) -> tuple[bytes, int]:
    """The component with its lasting objects immortal and their table blank, and how many they are. Raises `Unreadable`."""
    image = bytearray(component)
    segments = sorted(of_memory(component, 0, len(component)))
    table = table_of(component, segments)
    count = 0
    for address, its_type in zip(*(iter(table.objects),) * 2, strict=True):
        offset = offset_of(segments, address, 8)
        if offset is None:
            continue
        references, type_address = unpack_from("<iI", image, offset)
        if type_address == its_type and 0 < references < COUNT_MAX:
            pack_into("<i", image, offset, IMMORTAL)
            count += 1
    image[table.begin : table.end] = bytes(table.end - table.begin)
    return bytes(image), count


@dataclass(frozen=True)
class Table:
    """Addresses of objects, each with its type's, and where this stands in the file."""

    objects: tuple[int, ...]
    begin: int
    end: int


def table_of(component: bytes, segments: list[Segment]) -> Table:
    """The one table that is whole and in the memory. Raises `Unreadable` if there is none."""
    begin = component.find(MARK)
    while begin >= 0:
        rows = begin + len(MARK) + 4
        if rows <= len(component):
            (count,) = unpack_from("<I", component, rows - 4)
            end = rows + 8 * count
            is_whole = component[end : end + len(MARK)] == MARK[::-1]
            if is_whole and any(one.offset <= begin and end <= one.offset + one.length for one in segments):
                return Table(unpack_from(f"<{2 * count}I", component, rows), begin, end)
        begin = component.find(MARK, begin + 1)
    raise Unreadable("it has no table of lasting objects")


def offset_of(segments: list[Segment], address: int, length: int) -> int | None:
    """Where these bytes of the memory stand in the file, if they stand there together."""
    place = bisect_right(segments, address, key=lambda one: one.address) - 1
    if place < 0:
        return None
    one = segments[place]
    return one.offset + address - one.address if address + length <= one.address + one.length else None


def of_memory(binary: bytes, begin: int, end: int, depth: int = 0) -> Iterator[Segment]:
    """The data of all modules in a component, or of a module. Raises `Unreadable`."""
    if depth > DEPTH_MAX or end - begin < 8 or binary[begin : begin + 4] != b"\0asm":
        raise Unreadable("something in it is neither a module nor a component, or lies too deep")
    is_module = binary[begin + 4 : begin + 8] == b"\1\0\0\0"
    at = begin + 8
    while at < end:
        number, (length, content) = binary[at], unsigned(binary, at + 1, end)
        at = content + length
        if at > end:
            raise Unreadable("a section is longer than what it is in")
        if is_module and number == DATA:
            yield from data(binary, content, at)
        elif not is_module and number in (MODULE, COMPONENT):
            yield from of_memory(binary, content, at, depth + 1)


def data(binary: bytes, at: int, end: int) -> Iterator[Segment]:
    """The segments of one section that lie at a fixed address."""
    count, at = unsigned(binary, at, end)
    for _ in range(count):
        kind, at = unsigned(binary, at, end)
        if kind > 2:
            raise Unreadable("it has data of an unknown kind")
        if kind == 2:
            _, at = unsigned(binary, at, end)
        address = None
        if kind != 1:
            address, at = constant(binary, at, end)
        length, at = unsigned(binary, at, end)
        if at + length > end:
            raise Unreadable("data is longer than its section")
        if address is not None:
            yield Segment(address, at, length)
        at += length


def constant(binary: bytes, at: int, end: int) -> tuple[int | None, int]:
    """The number that an expression is, or none if another module says it, and what follows. Raises `Unreadable`."""
    number, follows = unsigned(binary, at + 1, end)
    if binary[at] not in (I32_CONST, GLOBAL_GET) or binary[follows : follows + 1] != bytes([END]):
        raise Unreadable("data lies at an address that is no simple constant")
    if binary[at] == GLOBAL_GET:
        return None, follows + 1
    # Addresses have 32 bits without sign; the last byte of a constant says its sign.
    sign = -1 << 7 * (follows - at - 1) if binary[follows - 1] & 0x40 else 0
    return (number | sign) & 0xFFFF_FFFF, follows + 1


def unsigned(binary: bytes, at: int, end: int) -> tuple[int, int]:
    """A number in LEB128, and what follows."""
    number = 0
    for place in range(5):
        if at + place >= end:
            break
        byte = binary[at + place]
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, at + place + 1
    raise Unreadable("a number has no end")
