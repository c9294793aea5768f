"""Write plain Python values as one line of JSON and read them back. Only such values may leave the sandbox.

Plain are values of exactly these types: None, bool, int, float, str, bytes, list, tuple, dict, set, frozenset, range,
Counter, deque, Decimal, Fraction, datetime, date and time. A built-in iterator (generator, zip, map, a dictionary's
keys) becomes an iterator over its items, and a NumPy scalar becomes Python's own. Subclasses are refused, so an `int`
with its own `__eq__` stays in the sandbox. Nothing is ever unpickled.

A child starts within milliseconds only if it imports very little. So this file imports nothing from the package, uses
the C part of `json` if there is one, and handles library types only if the child has loaded them.
"""

from __future__ import annotations

import math
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing `typing` alone takes milliseconds
    from typing import Any

try:
    from _json import encode_basestring_ascii, make_scanner
except ImportError:  # not CPython
    from json.encoder import encode_basestring_ascii  # type: ignore[assignment]
    from json.scanner import make_scanner  # type: ignore[assignment]

DEEPEST = 64
_MOST_BITS = 1 << 20  # of an integer
_SEQUENCES = {"list": "builtins", "tuple": "builtins", "set": "builtins", "frozenset": "builtins",
              "deque": "collections"}  # fmt: skip
_MAPPINGS = {"dict": "builtins", "Counter": "collections"}
_TEXTS = {"float": "builtins", "int": "builtins", "bytes": "builtins", "Decimal": "decimal", "Fraction": "fractions",
          "datetime": "datetime", "date": "datetime", "time": "datetime"}  # fmt: skip
_HOMES = {**_SEQUENCES, **_MAPPINGS, **_TEXTS}
_VIEWS: tuple = (type({}.keys()), type({}.values()), type({}.items()))
_OWN = ("builtins", "itertools", "enumerate")
_WRITERS = {"float": float.hex, "int": hex, "bytes": bytes.hex, "Decimal": str, "Fraction": str}


class NotPlain(Exception):
    """The value is not made of plain types only, or it is too large."""


def encode(value: Any, most: int = 1 << 20) -> str:
    """One line of ASCII for a plain value; raises NotPlain. `most` caps its length in characters."""
    parts: list[str] = []
    _write(value, 0, parts, [most], _types())
    return "".join(parts)


def decode(line: str) -> Any:
    """The value that `encode` wrote; raises NotPlain for any other text, because untrusted code can write the line."""
    try:
        found, end = _scan(line, 0)
        if line[end:].strip():
            raise ValueError
        return _read(found, 0)
    except (ValueError, TypeError, KeyError, IndexError, ArithmeticError, RecursionError, StopIteration) as error:
        raise NotPlain(f"not a plain value: {type(error).__name__}") from None


def _types() -> dict[type, str]:
    """The name of each type whose module is loaded."""
    loaded = {home: sys.modules[home] for home in set(_HOMES.values()) if home in sys.modules}
    return {getattr(loaded[home], name): name for name, home in _HOMES.items() if hasattr(loaded.get(home), name)}


def _make(name: str) -> Any:
    return getattr(__import__(_HOMES[name]), name)


def _write(value: Any, depth: int, parts: list[str], room: list[int], types: dict[type, str]) -> None:
    kind = type(value)
    if depth > DEEPEST:
        raise NotPlain(f"nested deeper than {DEEPEST}")
    if value is None or kind is bool:
        piece = "null" if value is None else "true" if value else "false"
    elif kind is str:
        piece = encode_basestring_ascii(value) if len(value) < room[0] else " " * (room[0] + 1)
    elif kind is int and value.bit_length() > _MOST_BITS:
        raise NotPlain("an integer of more than a million bits")
    else:
        name = types.get(kind)
        if kind is range:
            value, name = (value.start, value.stop, value.step), "range"
        elif name is None and (kind in _VIEWS or (kind.__module__ in _OWN and hasattr(kind, "__next__"))):
            name = "iter"
        if name is None and kind.__module__ == "numpy" and getattr(value, "ndim", 1) == 0:
            _write(value.item(), depth + 1, parts, room, types)
            return
        if name is None:
            raise NotPlain(f"of type {kind.__module__}.{kind.__qualname__}"[:200])
        piece = f'["{name}"'
        if name in _TEXTS:
            if name == "bytes" and len(value) > room[0]:
                raise NotPlain("too large")
            writer: Any = _WRITERS.get(name) or kind.isoformat
            piece += f',"{writer(value)}"]'
        else:
            parts.append(piece)
            items = (part for pair in list(value.items()) for part in pair) if name in _MAPPINGS else value
            for item in items:  # of a mapping: key, value, key, value, ...
                room[0] -= 1
                parts.append(",")
                _write(item, depth + 1, parts, room, types)
            piece = "]"
    room[0] -= len(piece)
    if room[0] < 0:
        raise NotPlain("too large")
    parts.append(piece)


def _read(found: Any, depth: int) -> Any:
    if found is None or type(found) in (bool, str):
        return found
    if type(found) is not list or depth > DEEPEST:
        raise ValueError
    name, *rest = found
    if name == "int":
        return int(rest[0], 16)
    if name in _TEXTS:
        kind = _make(name)
        return (getattr(kind, "fromhex", None) or getattr(kind, "fromisoformat", kind))(*rest)
    items = [_read(item, depth + 1) for item in rest]
    if name in ("range", "iter"):
        return range(*items) if name == "range" else iter(items)
    if name in _SEQUENCES:
        return _make(name)(items)
    return _make(name)(dict(zip(items[::2], items[1::2], strict=True)))


def _no_number(text: str) -> None:
    raise ValueError(f"a bare number: {text[:20]}")  # `encode` writes numbers as text


class _Plain:  # settings of the JSON scanner
    strict, object_hook, object_pairs_hook, memo = True, None, None, None
    parse_float = parse_int = parse_constant = staticmethod(_no_number)


_scan: Any = make_scanner(_Plain())  # type: ignore[arg-type]


def same(wanted: Any, found: Any) -> bool:
    """Whether two plain values agree in type and value, including everything in them.

    Floats agree within a relative 1e-9 (or 1e-12 near zero), and nan agrees with nan. `True` is not `1`, `1` is not
    `1.0`, and a list is not a tuple.
    """
    kind = type(wanted)
    if kind is not type(found):
        return False
    if kind is float:
        return math.isclose(wanted, found, rel_tol=1e-9, abs_tol=1e-12) or (wanted != wanted and found != found)
    if kind.__name__ in _MAPPINGS:
        types = {key: type(key) for key in found}  # 1 and True are one key
        return wanted.keys() == found.keys() and all(
            types[key] is type(key) and same(value, found[key]) for key, value in wanted.items()
        )
    if kind in (set, frozenset):
        return bool(wanted == found) and sorted(str(type(v)) for v in wanted) == sorted(str(type(v)) for v in found)
    if kind.__name__ in _SEQUENCES:
        return len(wanted) == len(found) and all(map(same, wanted, found))
    return bool(wanted == found)
