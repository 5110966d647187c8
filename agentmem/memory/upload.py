"""Bringing rows from host memory to the device without holding up the steps that run there."""

from __future__ import annotations

import torch
from torch import Tensor


class Uploader:
    """Copies for one device; any thread, each with its own. On CUDA by way of pinned memory and a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._staged: list[Tensor] = []

    def copy(self, rows: Tensor, source: Tensor) -> None:
        """Copy ``source``, on the CPU, into ``rows`` of the same shape and dtype; the rows may be read after ``wait``."""
        if self._stream is None:
            rows.copy_(source)
            return
        # The memory of these rows may have belonged to something that a step under way still reads.
        self._stream.wait_stream(torch.cuda.current_stream(rows.device))
        staged = source if source.is_pinned() else source.contiguous().pin_memory()
        with torch.cuda.stream(self._stream):
            rows.copy_(staged, non_blocking=True)
        rows.record_stream(self._stream)
        self._staged.append(staged)

    def wait(self) -> None:
        """Return when every copy has arrived."""
        if self._stream is not None:
            self._stream.synchronize()
            self._staged.clear()
