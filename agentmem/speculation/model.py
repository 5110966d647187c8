"""A smaller model with the same tokenizer proposes (Leviathan et al. 2023, arXiv:2211.17192). It is loaded beside the served one."""

from __future__ import annotations

from collections.abc import Sequence

from agentmem.speculation.ahead import read_ahead
from agentmem.speculation.port import DRAFTERS, Context, Draft


@DRAFTERS.register("model")
class ModelDrafter:
    """Reads the context with a model of its own; nothing where ``model.draft`` names none, and until it has caught up."""

    def draft(self, context: Context, after: Sequence[int], limit: int) -> Draft:
        """Return what the smaller model expects."""
        return read_ahead("model", context, after, limit)
