"""The data of a mail as its template may see it: JSON values, of bounded size, that a template cannot change.

The engine reaches into Python objects, so a plain list would offer the template its `extend`, and a plain dict its
`update`: a way to change the data for the next attempt, or to grow it without end. The types here hide them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

DEPTH_MAX = 20
NODES_MAX = 20_000
INT_MAX = (1 << 63) - 1


class DataRefused(ValueError):
    """This data cannot be rendered; the message names the place and the reason."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self._problem = problem
        self._path: list[str] = []

    def within(self, key: object) -> None:
        """Say that the place is inside `key`; called from the inside out, so that only a refusal pays for paths."""
        self._path.insert(0, str(key)[:40])

    def __str__(self) -> str:
        return ascii(".".join(["data", *self._path])[:120])[1:-1] + ": " + self._problem


class _Hidden:
    """An attribute that templates do not find."""

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        raise AttributeError("mail templates cannot call this; use a filter")


class Row(list[Any]):
    """A list that offers a template its items only."""

    __slots__ = ()
    append = clear = copy = count = extend = index = insert = pop = remove = reverse = sort = _Hidden()


class Record(dict[str, Any]):
    """A dict that offers a template its entries, and `items`, `keys`, `values`, `get` as methods."""

    __slots__ = ()
    clear: ClassVar[Any] = _Hidden()
    copy: ClassVar[Any] = _Hidden()
    fromkeys: ClassVar[Any] = _Hidden()
    pop: ClassVar[Any] = _Hidden()
    popitem: ClassVar[Any] = _Hidden()
    setdefault: ClassVar[Any] = _Hidden()
    update: ClassVar[Any] = _Hidden()

    def items(self) -> Any:
        return Row(Row(pair) for pair in dict.items(self))

    def keys(self) -> Any:
        return Row(self)

    def values(self) -> Any:
        return Row(dict.values(self))

    def get(self, key: str, default: Any = None) -> Any:
        return dict.get(self, key, default)


_PLAIN = frozenset([str, float, bool, type(None)])


def frozen(data: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `data` for the engine; raises DataRefused for what is not JSON, too deep or too much."""
    if not isinstance(data, Mapping):
        raise DataRefused(f"must be an object, not {type(data).__name__}")
    return _entries({}, data, 0, [NODES_MAX])


def _entries(into: dict[str, Any], data: Mapping[str, Any], depth: int, left: list[int]) -> dict[str, Any]:
    key: object = ""
    try:
        for key, item in data.items():
            if type(key) is not str:
                raise DataRefused(f"the key is {type(key).__name__}, not a string")
            into[key] = item if type(item) in _PLAIN else _freeze(item, depth + 1, left)
    except DataRefused as error:
        error.within(key)
        raise
    return into


def _freeze(value: Any, depth: int, left: list[int]) -> Any:
    kind = type(value)
    if kind is int:
        if -INT_MAX <= value <= INT_MAX:
            return value
        raise DataRefused("an integer beyond 64 bits; send it as a string")
    if depth > DEPTH_MAX:
        raise DataRefused(f"nested deeper than {DEPTH_MAX}")
    if kind is dict:
        _count(left, len(value))
        return _entries(Record(), value, depth, left)
    if kind is list or kind is tuple:
        _count(left, len(value))
        return Row([item if type(item) in _PLAIN else _freeze(item, depth + 1, left) for item in value])
    raise DataRefused(f"{kind.__name__} is no JSON value")


def _count(left: list[int], nodes: int) -> None:
    left[0] -= nodes
    if left[0] < 0:
        raise DataRefused(f"more than {NODES_MAX} values; a mail does not show so many")
