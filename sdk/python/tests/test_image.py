"""What the build does to a component's memory: made up here as a module with some data, in a component."""

import random
import unittest
from struct import pack, unpack_from

from tenon_sdk._image import IMMORTAL, Segment, Unreadable, make_immortal, of_memory
from tenon_sdk._lasting import MARK, found

OBJECTS, TYPE = 0x9000, 0x1234
"""Where the made-up objects lie, and where their type does."""


def leb(number: int) -> bytes:
    out = b""
    while number >= 0x80:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def section(number: int, content: bytes) -> bytes:
    return bytes([number]) + leb(len(content)) + content


def sleb(number: int) -> bytes:
    """Of an address, which is a number with a sign in a constant."""
    number -= (number & 1 << 31) << 1
    out = b""
    while not -0x40 <= number < 0x40:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number & 0x7F])


def at(address: int, content: bytes) -> bytes:
    return b"\0\x41" + sleb(address) + b"\x0b" + leb(len(content)) + content


def module(*segments: bytes) -> bytes:
    return b"\0asm\1\0\0\0" + section(11, leb(len(segments)) + b"".join(segments))


def component(*parts: bytes) -> bytes:
    return b"\0asm\x0d\0\1\0" + b"".join(section(1 if part[4] == 1 else 4, part) for part in parts)


def table(*rows: tuple[int, int]) -> bytes:
    return MARK + pack("<I", len(rows)) + b"".join(pack("<II", *row) for row in rows) + MARK[::-1]


def objects(*counts_and_types: tuple[int, int]) -> bytes:
    return b"".join(pack("<iI", count, its_type) + bytes(8) for count, its_type in counts_and_types)


class Immortal(unittest.TestCase):
    def test_only_what_is_certain_is_changed(self) -> None:
        cases = ((3, TYPE), (3, TYPE + 4), (0, TYPE), (-1, TYPE), (1 << 24, TYPE), (IMMORTAL, TYPE), (1, TYPE))
        there = objects(*cases)
        rows = [(OBJECTS + 16 * place, TYPE) for place in range(len(cases))]
        # One that is half outside of the data, and one in none.
        rows += [(OBJECTS + len(there) - 4, TYPE), (0x10, TYPE)]
        noted = table(*rows)
        # The mark alone stands in the code that has it as a constant.
        made = component(module(at(0x20, MARK + b"\1\0\0\0"), at(0xFFFF_0000, noted)), component(module(at(OBJECTS, there))))
        changed, count = make_immortal(made)
        begin = made.index(there)
        counts = [unpack_from("<i", changed, begin + 16 * place)[0] for place in range(len(cases))]
        self.assertEqual(counts, [IMMORTAL, 3, 0, -1, 1 << 24, IMMORTAL, IMMORTAL])
        self.assertEqual(count, 2)
        self.assertEqual(len(changed), len(made))
        # Beside the counts only the table differs, which is blank.
        place = made.index(noted)
        self.assertFalse(any(changed[place : place + len(noted) - len(MARK)]))
        same = bytearray(changed)
        same[place : place + len(noted)] = noted
        for which in (0, 6):
            same[begin + 16 * which : begin + 16 * which + 4] = made[begin + 16 * which : begin + 16 * which + 4]
        self.assertEqual(bytes(same), made)

    def test_what_is_no_component_is_told(self) -> None:
        whole = component(module(at(OBJECTS, objects((3, TYPE))), at(0x100, table((OBJECTS, TYPE)))))
        self.assertEqual(make_immortal(whole)[1], 1)
        for wrong in (b"", b"\0asm", b"PK\3\4" + bytes(40), component(module(at(OBJECTS, objects((3, TYPE))))), component()):
            with self.assertRaises(Unreadable):
                make_immortal(wrong)
        deep = module()
        for _ in range(3000):
            deep = component(deep)
        with self.assertRaises(Unreadable):
            make_immortal(deep)
        # A table that goes on in other data, or beyond the end, is none.
        cut = table((OBJECTS, TYPE))
        with self.assertRaises(Unreadable):
            make_immortal(component(module(at(0x100, cut[:-3]), at(0x200, cut[-3:]))))

    def test_cut_and_changed_components_are_told_or_stay_as_long(self) -> None:
        whole = component(module(at(OBJECTS, objects((3, TYPE))), at(0x100, table((OBJECTS, TYPE)))))
        dice = random.Random(1)
        wrong = [whole[:length] for length in range(len(whole))]
        for _ in range(2000):
            changed = bytearray(whole)
            for _ in range(dice.randint(1, 3)):
                changed[dice.randrange(len(changed))] = dice.randrange(256)
            wrong.append(bytes(changed))
        told = 0
        for one in wrong:
            try:
                self.assertEqual(len(make_immortal(one)[0]), len(one))
            except Unreadable:
                told += 1
        self.assertGreater(told, len(whole) // 2)

    def test_addresses_have_no_sign(self) -> None:
        made = module(at(0xFFFF_FFF0, b"a"), at(0x40, b"bc"), b"\1" + leb(3) + b"def", b"\0\x23\0\x0b" + leb(1) + b"g")
        segments = list(of_memory(made, 0, len(made)))
        self.assertEqual([(one.address, one.length) for one in segments], [(0xFFFF_FFF0, 1), (0x40, 2)])
        self.assertEqual(segments[0], Segment(0xFFFF_FFF0, made.index(b"a", 12), 1))


class Lasting(unittest.TestCase):
    def test_what_a_module_holds_is_found(self) -> None:
        reached = {id(one) for one in found()}
        for one in (MARK, found, found.__code__, found.__code__.co_consts, Lasting, self):
            self.assertIn(id(one), reached)
        self.assertNotIn(id(reached), reached)
