"""Runs the model once per step for all sessions of the step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from agentmem.engine import attention_seam
from agentmem.engine.batch import StepBatch


class Runner:
    """Holds a causal LM whose attention goes through the seam. Engine thread only."""

    def __init__(self, model: PreTrainedModel) -> None:
        attention_seam.register()
        self.model: Any = model  # transformers decorates what it calls without types
        self.model.set_attn_implementation(attention_seam.NAME)

    @torch.inference_mode()
    def forward(self, batch: StepBatch) -> Tensor:
        """Write K and V of every token of ``batch`` and return logits ``[len(batch.logits_rows), vocab]`` in fp32."""
        out = self.model(
            input_ids=batch.token_ids,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=batch.logits_rows,
            step=batch,
        )
        logits: Tensor = out.logits[0]
        return logits.float()
