"""What a grammar leaves no choice about, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from agentmem.speculation.port import DRAFTERS, Context, Draft


@DRAFTERS.register("forced")
class ForcedDrafter:
    """Adds nothing to the forced tokens, which come first in everybody's draft (``after``). Without a grammar there are none."""

    def draft(self, context: Context, after: Sequence[int], limit: int) -> Draft:
        """Return nothing beyond ``after``."""
        return Draft()
