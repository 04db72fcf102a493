"""Which changes of a schema are refused: those after which records written before, or rows of older code, break.

Compared are two JSON Schemas as pydantic makes them. A removed field, a new required one, another type, fewer values
or tighter bounds are incompatible. What is only wider is told apart: readers of the older code refuse the new values,
so it must be rolled out to readers first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["removed", "required", "changed", "narrowed", "widened"]
Schema = Mapping[str, Any]
_LOWER_BOUNDS = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER_BOUNDS = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")


@dataclass(frozen=True, slots=True)
class Change:
    """One difference, at `path` within the record."""

    kind: Kind
    path: str
    detail: str

    @property
    def compatible(self) -> bool:
        return self.kind == "widened"

    def __str__(self) -> str:
        return f"{self.path}: {self.kind}: {self.detail}"


def changes(old: Schema, new: Schema) -> tuple[Change, ...]:
    """What differs in meaning; descriptions, titles, defaults and the order of fields do not count."""
    return tuple(_compare(_inlined(old, old), _inlined(new, new), "record"))


def _compare(old: Schema, new: Schema, path: str) -> Iterator[Change]:
    before, after = _alternatives(old), _alternatives(new)
    gone, fresh = before.keys() - after.keys(), after.keys() - before.keys()
    if gone and not (before.keys() & after.keys()):
        yield Change("changed", path, f"{_names(before)} became {_names(after)}")
        return
    if gone and "any" not in after:
        yield Change("narrowed", path, f"no longer {_names(gone)}")
    if fresh:
        yield Change("widened" if "any" not in before else "narrowed", path, f"now also {_names(fresh)}")
    for kind in sorted(before.keys() & after.keys()):
        yield from _compare_kind(before[kind], after[kind], path)


def _compare_kind(old: Schema, new: Schema, path: str) -> Iterator[Change]:
    yield from _values(old, new, path)
    yield from _bounds(old, new, path)
    for word in ("format", "pattern", "contentEncoding"):
        if old.get(word) != new.get(word):
            kind: Kind = "narrowed" if word not in old else ("widened" if word not in new else "changed")
            yield Change(kind, path, f"{word}: {old.get(word)} became {new.get(word)}")
    if isinstance(old.get("items"), Mapping) and isinstance(new.get("items"), Mapping):
        yield from _compare(old["items"], new["items"], f"{path}[]")
    if "properties" in old or "properties" in new:
        yield from _fields(old, new, path)
    yield from _others(old.get("additionalProperties", True), new.get("additionalProperties", True), path)


def _fields(old: Schema, new: Schema, path: str) -> Iterator[Change]:
    before, after = old.get("properties", {}), new.get("properties", {})
    demanded, demands = set(old.get("required", ())), set(new.get("required", ()))
    for name in before:
        if name not in after:
            yield Change("removed", f"{path}.{name}", "a field of earlier records is gone")
        else:
            yield from _compare(before[name], after[name], f"{path}.{name}")
    for name in sorted(demands - demanded):
        why = "earlier records do not have it" if name not in before else "it could be left out before"
        yield Change("required", f"{path}.{name}", why)
    for name in sorted((demanded - demands) & after.keys()):
        yield Change("widened", f"{path}.{name}", "may be left out now")


def _others(old: Any, new: Any, path: str) -> Iterator[Change]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        yield from _compare(old, new, f"{path}.*")
    elif new is False and old is not False:
        yield Change("narrowed", path, "unknown fields are refused now")
    elif isinstance(new, Mapping) and new and old is True:
        yield Change("narrowed", f"{path}.*", "values are bound to a type now")


def _values(old: Schema, new: Schema, path: str) -> Iterator[Change]:
    before, after = _allowed(old), _allowed(new)
    if after is not None and (before is None or before - after):
        gone = "any value" if before is None else ", ".join(sorted(before - after))
        yield Change("narrowed", path, f"no longer {gone}")
    if before is not None and (after is None or after - before):
        fresh = "any value" if after is None else ", ".join(sorted(after - before))
        yield Change("widened", path, f"now also {fresh}")


def _allowed(schema: Schema) -> set[str] | None:
    if "const" in schema:
        return {repr(schema["const"])}
    return {repr(value) for value in schema["enum"]} if "enum" in schema else None


def _bounds(old: Schema, new: Schema, path: str) -> Iterator[Change]:
    for word in _LOWER_BOUNDS + _UPPER_BOUNDS:
        before, after = old.get(word), new.get(word)
        if before == after:
            continue
        tighter = before is None or (after is not None and (after > before) == (word in _LOWER_BOUNDS))
        yield Change("narrowed" if tighter else "widened", path, f"{word}: {before} became {after}")


def _alternatives(schema: Schema) -> dict[str, Schema]:
    """The kinds of value that a schema allows, each with its own schema."""
    options = schema.get("anyOf") or schema.get("oneOf") or [schema]
    found: dict[str, Schema] = {}
    for option in options:
        if "anyOf" in option or "oneOf" in option:
            found.update(_alternatives(option))
            continue
        kinds = option.get("type", "any")
        for kind in [kinds] if isinstance(kinds, str) else kinds:
            name = kind
            while name in found:  # two of one kind: told apart by their order
                name += "'"
            found[name] = option
    return found


def _names(kinds: Any) -> str:
    return " or ".join(sorted(kinds))


def _inlined(node: Any, root: Schema) -> Any:
    """The schema with every $ref replaced by what it points to."""
    if isinstance(node, Mapping):
        if "$ref" in node:
            target: Any = root
            for part in str(node["$ref"]).removeprefix("#/").split("/"):
                target = target[part]
            return _inlined({**target, **{k: v for k, v in node.items() if k != "$ref"}}, root)
        return {k: _inlined(v, root) for k, v in node.items() if k != "$defs"}
    if isinstance(node, list):
        return [_inlined(item, root) for item in node]
    return node
