"""No drafts: one token a step. The control of every comparison."""

from __future__ import annotations

from collections.abc import Sequence

from agentmem.speculation.port import DRAFTERS, Context, Draft


@DRAFTERS.register("none")
class NoDrafter:
    """Proposes nothing; not even what a grammar forces is taken ahead."""

    def draft(self, context: Context, after: Sequence[int], limit: int) -> Draft:
        """Return nothing."""
        return Draft()
