"""Names of files below ``blocks/``, and the books of how large they are."""

from __future__ import annotations

from collections.abc import Mapping

from agentmem.errors import InvalidInput
from agentmem.types import BlockHash

SUFFIX = ".safetensors"
NAME_DIGITS = 32  # of a result's name
_HEX = frozenset("0123456789abcdef")


def file_name(block_hash: BlockHash, name: str = "") -> str:
    """Return the name of the block's file, or of its result ``name``. Raises InvalidInput unless that is 32 hex digits."""
    if name and not _is_hex(name, NAME_DIGITS):
        raise InvalidInput(f"result name {name!r} is not {NAME_DIGITS} hex digits")
    return f"{block_hash.hex()}.{name}{SUFFIX}" if name else block_hash.hex() + SUFFIX


def parse_name(file: str) -> tuple[BlockHash, str] | None:
    """Return block and result name ("" for the block itself) of what ``file_name`` made, None for any other name."""
    stem = file.removesuffix(SUFFIX)
    block, dot, name = stem.partition(".")
    if stem == file or not _is_hex(block, 64) or (dot and not _is_hex(name, NAME_DIGITS)):
        return None
    return BlockHash(bytes.fromhex(block)), name


def _is_hex(text: str, digits: int) -> bool:
    return len(text) == digits and set(text) <= _HEX


class FileSizes:
    """Bytes of blocks and of results by file name, with totals. Not thread safe."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes: dict[str, int] = {}
        self.num_blocks = self.block_bytes = self.result_bytes = 0
        for name, size in sizes.items():
            self.put(name, size)

    def put(self, name: str, size: int | None) -> None:
        """Note that the file has ``size`` bytes, or, with None, that it is gone. Names that ``parse_name`` refuses are passed over."""
        named = parse_name(name)
        if named is None:
            return
        before = self._sizes.pop(name, None)
        if size is not None:
            self._sizes[name] = size
        change = (size or 0) - (before or 0)
        if named[1]:
            self.result_bytes += change
        else:
            self.block_bytes += change
            self.num_blocks += (size is not None) - (before is not None)

    def check_integrity(self, real: Mapping[str, int]) -> list[str]:
        """Return how the books differ from the ``real`` sizes. Other processes may add and remove results; their sizes must agree."""
        mine, theirs = FileSizes(self._sizes), FileSizes(real)
        found = []
        if (self.num_blocks, self.block_bytes) != (theirs.num_blocks, theirs.block_bytes):
            found.append(f"block files count {self.block_bytes} bytes and use {theirs.block_bytes}")
        if self.result_bytes != mine.result_bytes:
            found.append(f"results count {self.result_bytes} bytes, their sizes sum up to {mine.result_bytes}")
        wrong = [name for name, size in self._sizes.items() if real.get(name, size) != size]
        return found + [f"file {name} counts {self._sizes[name]} bytes and uses {real[name]}" for name in wrong]
