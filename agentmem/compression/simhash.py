"""SimHash codes of keys and queries: the signs of random projections.

Two vectors at angle a differ in a bit with probability a / pi, so the Hamming distance of their codes ranks keys by their cosine to a
query (Charikar 2002, doi:10.1145/509907.509965).
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from agentmem.errors import InvalidInput

_SEED = 0x51D4A5  # changing it makes all stored codes foreign: raise Recipe.version then


@functools.cache
def projection(layer: int, dim: int, bits: int) -> Tensor:
    """Return the Gaussian directions of one layer, fp32 ``[bits, dim]`` on the CPU: the same on every machine, whatever torch's seed.

    Made once in a process and shared, so never write to them. Raises InvalidInput when ``bits`` is not a positive multiple of 8.
    """
    if bits < 8 or bits % 8:
        raise InvalidInput(f"bits is {bits}; allowed: positive multiples of 8")
    noise = np.random.Generator(np.random.Philox(key=np.array([_SEED, layer], dtype=np.uint64)))
    return torch.from_numpy(noise.standard_normal((bits, dim)).astype(np.float32))


def encode(x: Tensor, directions: Tensor) -> Tensor:
    """Return the codes of ``x`` ``[..., dim]``, any float dtype, as uint8 ``[..., bits / 8]`` on its device.

    ``directions`` fp32 ``[bits, dim]`` of ``projection``. Bit j is 1 where x.directions[j] > 0; it lies in byte j // 8, the lowest bits
    first (numpy's ``packbits(bitorder="little")``). A vector of zeros has the code 0. Keys are centred by their mean before; for queries
    that changes no ranking, since q.(k - mean) differs from q.k by the same for all keys.
    """
    positive = torch.matmul(x.float(), directions.to(x.device).T) > 0
    place = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=x.device)
    return (positive.view(*x.shape[:-1], len(directions) // 8, 8) * place).sum(dim=-1, dtype=torch.uint8)
