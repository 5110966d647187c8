"""Recall of whole pages by an upper bound of their scores (Quest; Tang et al. 2024, arXiv:2406.10774)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentmem.memory.recall.port import Found, Recallable, recallers

PAGE = 16  # tokens, as in the paper


def _bounds(keys: Tensor, resident: Tensor) -> tuple[Tensor, Tensor]:
    """Return the elementwise minimum and maximum of each page's keys, residents apart, ``[kv_heads, pages, dim]`` in the keys' dtype."""
    limit = torch.finfo(keys.dtype).max
    spare = -keys.shape[1] % PAGE
    hidden = torch.nn.functional.pad(resident, (0, spare), value=True).reshape(len(keys), -1, PAGE, 1)
    paged = torch.nn.functional.pad(keys, (0, 0, 0, spare)).reshape(len(keys), -1, PAGE, keys.shape[2])
    full = hidden.all(2)  # pages without a token of their own are never taken; zeros keep the products finite
    low, high = paged.masked_fill(hidden, limit).amin(2), paged.masked_fill(hidden, -limit).amax(2)
    return low.masked_fill(full, 0), high.masked_fill(full, 0)


@recallers.register("pages")
class PageRecall:
    """Takes the pages of ``PAGE`` tokens whose keys could score highest, whole ones but for the last, which ends at the limit."""

    def __init__(self, memory: Recallable) -> None:
        self._memory = memory
        self._bounds = [_bounds(memory.rows.keys(layer), torch.tensor(memory.resident[layer])) for layer in range(memory.rows.layers)]
        spare = -memory.rows.length % PAGE
        free = np.pad(~memory.resident, ((0, 0), (0, 0), (0, spare)))
        self._free: NDArray[np.int64] = free.reshape(*free.shape[:2], -1, PAGE).sum(-1)  # tokens that a page would bring

    @property
    def host_bytes(self) -> int:
        """Private bytes of the bounds."""
        return sum(low.nbytes + high.nbytes for low, high in self._bounds) + self._free.nbytes

    def find(self, layer: int, query: NDArray[np.float32], limit: int) -> Found:
        """Return the tokens of the best pages; of a group's queries the one that a page suits best decides, as in ``Ranking``."""
        kv_heads = self._memory.rows.kv_heads
        low, high = (bound.float().transpose(1, 2) for bound in self._bounds[layer])
        q = torch.from_numpy(query).reshape(kv_heads, -1, query.shape[1])
        score = q.clamp(min=0) @ high + q.clamp(max=0) @ low  # per channel the larger of q * low and q * high
        rank = (score - score.amax(2, keepdim=True)).amax(1).numpy()
        found = Found(np.empty((kv_heads, limit), np.int32), np.zeros(kv_heads, np.int64))
        for head in range(kv_heads):
            order = np.argsort(-rank[head], kind="stable")
            order = order[: np.searchsorted(self._free[layer, head, order].cumsum(), limit) + 1]
            tokens = (order[:, None] * PAGE + np.arange(PAGE)).ravel()
            tokens = tokens[tokens < self._memory.rows.length]
            tokens = tokens[~self._memory.resident[layer, head, tokens]][:limit]
            found.ids[head, : len(tokens)] = tokens
            found.counts[head] = len(tokens)
        return found

    def again(self, layer: int, query: NDArray[np.float32], limit: int, last: Found, away: NDArray[np.bool_]) -> Found:
        """Choose pages anew: bounds are cheap, and the paper does so in every step."""
        return self.find(layer, query, limit)
