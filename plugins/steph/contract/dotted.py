"""Dotted paths into JSON: `results.*.acc,none`, where `*` stands for any one name. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping


def values_at(value: object, path: str) -> tuple[object, ...]:
    """All values at a path, in the file's order; a key that has dots itself is found whole.

    A part that is a number also counts the items of a list, from 0.
    """
    return tuple(_values(value, path.split(".") if path else []))


def value_at(value: object, path: str | None) -> object:
    """The first value at a path, None where there is none or no path."""
    return next(iter(values_at(value, path)), None) if path is not None else None


def _values(value: object, parts: list[str]) -> Iterator[object]:
    if not parts:
        yield value
        return
    if isinstance(value, Mapping):
        if parts[0] == "*":
            for child in value.values():
                yield from _values(child, parts[1:])
            return
        for length in range(len(parts), 0, -1):
            key = ".".join(parts[:length])
            if key in value:
                yield from _values(value[key], parts[length:])
                return
    elif isinstance(value, list):
        if parts[0] == "*":
            for child in value:
                yield from _values(child, parts[1:])
        elif parts[0].isdigit() and int(parts[0]) < len(value):
            yield from _values(value[int(parts[0])], parts[1:])
