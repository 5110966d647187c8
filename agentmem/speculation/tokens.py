"""Token ids as an array that grows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class TokenBuffer:
    """Token ids as a growing array, so that looking through a long context needs no copy of it. Not thread safe."""

    __slots__ = ("_array", "_length")

    def __init__(self, token_ids: Sequence[int] = ()) -> None:
        self._array = np.empty(max(64, 2 * len(token_ids)), np.int32)
        self._length = 0
        self.extend(token_ids)

    def extend(self, token_ids: Sequence[int]) -> None:
        """Add ``token_ids`` at the end."""
        stop = self._length + len(token_ids)
        if stop > len(self._array):
            self._array = np.concatenate([self._array[: self._length], np.empty(max(stop, self._length), np.int32)])
        self._array[self._length : stop] = token_ids
        self._length = stop

    def __len__(self) -> int:
        return self._length

    @property
    def array(self) -> NDArray[np.int32]:
        """The ids, ``[len]`` int32: a view that the next ``extend`` may leave behind."""
        return self._array[: self._length]
