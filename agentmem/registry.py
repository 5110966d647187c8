"""A name-to-thing table whose error names what is known."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from agentmem.errors import InvalidInput

T = TypeVar("T")


class Registry(Generic[T]):
    """Strategies by name. Not thread safe; filled at import time of the strategy's one file."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under ``name``. Raises ValueError when the name is taken."""

        def add(item: T) -> T:
            if name in self._items:
                message = f"{self.kind} {name!r} is registered twice"
                raise ValueError(message)
            self._items[name] = item
            return item

        return add

    def get(self, name: str) -> T:
        """Return what is filed under ``name``. Raises InvalidInput naming the known names and the nearest."""
        if name in self._items:
            return self._items[name]
        near = difflib.get_close_matches(name, self._items, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidInput(f"unknown {self.kind} {name!r}; known: {', '.join(sorted(self._items))}{hint}")

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def __contains__(self, name: object) -> bool:
        return name in self._items
