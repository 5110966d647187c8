"""The computation of a seal job: blocks in, index lists and codes out. Runs in any thread or process; all state is in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from agentmem.compression.compressor import Compressor, Observe, SealedSegment, compressors
from agentmem.compression.recipe import SealJob
from agentmem.compression.selection import select
from agentmem.compression.simhash import encode, projection
from agentmem.errors import InvalidInput
from agentmem.stores import BlockUnavailable
from agentmem.types import BlockHash, MissReason

Shapes = Mapping[str, tuple[torch.dtype, tuple[int | None, ...]]]


class SealFiles(Protocol):
    """What a job needs of ``agentmem.stores.seal_files.SealFiles``, which says what each raises."""

    def block(self, block_hash: BlockHash, first_token: int) -> tuple[Tensor, Tensor]:
        """Return K and V ``[layers, kv_heads, tokens, head_dim]`` of a block. Raises BlockUnavailable."""
        ...

    def write(self, block_hash: BlockHash, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Store a result beside a block, durably; a sound one that exists is kept."""
        ...

    def read(self, block_hash: BlockHash, name: str, shapes: Shapes) -> dict[str, Tensor]:
        """Return a result, maybe memory-mapped. Raises BlockUnavailable."""
        ...


class SealInputMissing(InvalidInput):
    """What a job was to read besides its blocks is not there: the recorded queries, or the result of the session's first unit."""


class SealedUnitTensors(NamedTuple):
    """A unit's result, never to be written to.

    ``keep`` int32 ``[layers, kv_heads, kept]``: session positions, ascending; ``codes`` uint8 ``[layers, kv_heads, tokens, bits / 8]``.
    """

    keep: Tensor
    codes: Tensor


def run_seal_job(job: SealJob, files: SealFiles) -> None:
    """Compute the job's result and store it; where a sound one exists, do nothing. Uses CUDA where there is some.

    Raises BlockUnavailable for a block that cannot be read, SealInputMissing for another input, InvalidInput for what can never work
    (unknown compressor, keys that give no finite score). Holds the unit's K and V, and one layer of them in fp32.
    """
    if not job.blocks:
        raise InvalidInput("a seal job names no blocks")
    try:
        _read(job.block, job.name, job.recipe.bits, files)
    except BlockUnavailable:
        files.write(job.block, job.name, _compute(job, files))


def load_unit(job: SealJob, files: SealFiles) -> SealedUnitTensors:
    """Return the job's stored result. Raises BlockUnavailable when there is none, or none that is sound."""
    result = _read(job.block, job.name, job.recipe.bits, files)
    keep, codes = result["keep"], result["codes"]
    # Kernels gather rows by these positions without asking again. A file that is sound and says so all the same is a bug: it stays refused.
    if int(keep.amin()) < job.start or int(keep.amax()) >= job.start + codes.shape[2] or keep.shape[:2] != codes.shape[:2]:
        raise BlockUnavailable(MissReason.CORRUPT, f"result {job.name} keeps tokens that its unit does not hold")
    return SealedUnitTensors(keep, codes)


def _read(block: BlockHash, name: str, bits: int | None, files: SealFiles) -> dict[str, Tensor]:
    """Return a result whose codes have ``bits`` bits; None: any number."""
    shapes = {
        "keep": (torch.int32, (None, None, None)),
        "codes": (torch.uint8, (None, None, None, bits and bits // 8)),
        "mean": (torch.float32, (None, None, None)),
    }
    return files.read(block, name, shapes)


def _compute(job: SealJob, files: SealFiles) -> dict[str, Tensor]:
    compressor = compressors.get(job.recipe.compressor)()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    k, v = _blocks(job, files, device)
    mean = _mean(job, files, k)
    queries, positions = _queries(job, compressor, k)
    scores = compressor.score(SealedSegment(job.start, k, v, queries, positions, job.scale))
    keep = select(scores, job.recipe.keep, start=job.start, protect=job.protect, beside=job.beside)
    codes = torch.stack([_codes(keys, mean[layer], layer, job.recipe.bits) for layer, keys in enumerate(k)])
    return {"keep": keep.cpu(), "codes": codes.cpu(), "mean": mean.cpu()}


def _blocks(job: SealJob, files: SealFiles, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return K and V of all blocks, ``[layers, kv_heads, tokens, head_dim]`` on ``device``, copied block by block."""
    k, v = files.block(job.blocks[0], job.start)
    size = k.shape[2]
    whole = (*k.shape[:2], size * len(job.blocks), k.shape[3])
    keys, values = (torch.empty(whole, dtype=k.dtype, device=device) for _ in "kv")
    for index, block_hash in enumerate(job.blocks):
        if index:
            k, v = files.block(block_hash, job.start + index * size)
        keys[:, :, index * size : (index + 1) * size] = k
        values[:, :, index * size : (index + 1) * size] = v
    return keys, values


def _mean(job: SealJob, files: SealFiles, k: Tensor) -> Tensor:
    """Return the key that centres the codes, fp32 ``[layers, kv_heads, head_dim]``: the anchor's; in the first unit the mean of ``k``."""
    if job.anchor is None:
        return torch.stack([keys.float().mean(dim=1) for keys in k])
    try:
        mean = _read(*job.anchor, None, files)["mean"]
    except BlockUnavailable as error:
        raise SealInputMissing(f"the result of the session's first unit cannot be read: {error}") from error
    if mean.shape != (*k.shape[:2], k.shape[3]):
        raise InvalidInput(f"the first unit's mean key is {list(mean.shape)}, the keys are {list(k.shape)}")
    return mean.to(k.device)


def _queries(job: SealJob, compressor: Compressor, k: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the recorded queries ``[layers, heads, n, head_dim]`` and their positions ``[n]``; None for a compressor that needs none."""
    if compressor.observes is Observe.NONE:
        return None, None
    try:
        file = safetensors.torch.load_file(job.queries)
        queries, positions = file["queries"], file["positions"]
    except (OSError, SafetensorError, KeyError) as error:
        raise SealInputMissing(f"{job.recipe.compressor} observes queries, and {job.queries or 'no file'} has none: {error}") from error
    _check_queries(queries.shape, positions, k.shape)
    return queries, positions


def _check_queries(shape: Sequence[int], positions: Tensor, keys: Sequence[int]) -> None:
    layers, kv_heads, _, dim = keys
    fits = len(shape) == 4 and shape[0] == layers and shape[3] == dim and shape[1] % kv_heads == 0 and min(shape) > 0
    if not fits or positions.shape != (shape[2],):
        raise InvalidInput(f"recorded queries {list(shape)} at {list(positions.shape)} positions do not fit keys {list(keys)}")


def _codes(keys: Tensor, mean: Tensor, layer: int, bits: int) -> Tensor:
    """Return codes ``[kv_heads, tokens, bits / 8]`` of one layer's keys ``[kv_heads, tokens, head_dim]``."""
    return encode(keys.float() - mean[:, None], projection(layer, keys.shape[-1], bits))
