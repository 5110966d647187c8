"""The judge of exactness: the same weights in transformers' own code, reading everything at once, with no cache of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

NEAR_TIE = 1e-3  # logits closer than this may be ordered either way by another order of additions


class Judge:
    """Holds the model in fp32; ``directory`` as ``agentmem.engine.resolve.resolve`` returns it."""

    def __init__(self, directory: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()

    @torch.inference_mode()
    def first_wrong(self, ids: Sequence[int], replies: Sequence[range]) -> int | None:
        """Return the position of the first token in ``replies`` (ranges of ``ids``) that greedy decoding would not choose, or None."""
        positions = torch.tensor([position for reply in replies for position in reply])
        logits = self._model(torch.tensor([ids]), use_cache=False, logits_to_keep=positions - 1).logits[0]
        chosen = logits.gather(1, torch.tensor(ids)[positions, None])[:, 0]
        wrong = positions[logits.max(dim=1).values - chosen > NEAR_TIE]
        return int(wrong[0]) if len(wrong) else None
