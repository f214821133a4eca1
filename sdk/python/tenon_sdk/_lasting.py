"""Notes which objects last as long as the component, for the build to make them immortal (PEP 683). Loaded inside a component only.

A request begins with a copy-on-write image of the memory as it is when the component is built. To count a reference is to write to
the object's page, so most pages that a request touches are copied, for objects that nothing will ever free. Not here: what the
build makes of it (`_image.py`).
"""

import gc
import struct
import sys
from array import array
from types import CodeType
from typing import Any

MARK = b"tenon lasting objects v1"
"""How the table begins: then come their number, the addresses of each and of its type, and the same backwards."""
ROOM_BYTES = (1 << 22, 1 << 20, 1 << 18, 1 << 16)
"""Sizes that fill what the search leaves behind."""

kept: list[Any] = []
"""They must live: what is freed leaves its place to something else."""
table = b""


def note_all() -> None:
    """Fills the table with everything that the collector knows, and what can be reached from there. Called last."""
    global table
    gc.collect()
    if sys.implementation.name != "cpython" or sys.version_info[:2] != (3, 14) or struct.calcsize("P") != 4:
        return
    kept.append(found())
    rows = array("I")
    for known in kept[0]:
        rows.append(id(known))
        rows.append(id(type(known)))
    table = MARK + len(kept[0]).to_bytes(4, "little") + rows.tobytes() + MARK[::-1]
    del rows
    # Where the search had its notes there are zeros now, which take no room in the component.
    for size in ROOM_BYTES:
        bytearray(size)


def found() -> list[Any]:
    """Every object that is reached, once."""
    seen: dict[int, Any] = {}
    rest = gc.get_objects()
    own = {id(seen), id(rest), id(sys._getframe())}
    while rest:
        one = rest.pop()
        if id(one) in seen or id(one) in own:
            continue
        seen[id(one)] = one
        rest.extend(gc.get_referents(one))
        if isinstance(one, CodeType):
            # The collector does not look into code.
            rest += [one.co_consts, one.co_names, one.co_name, one.co_qualname, one.co_filename, one.co_linetable]
            rest += [one.co_exceptiontable, *one.co_consts, *one.co_names, *one.co_varnames, *one.co_freevars, *one.co_cellvars]
    return list(seen.values())
