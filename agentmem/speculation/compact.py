"""Self-drafting: the same weights over the compressed memory propose, over all of it they verify.

As in TriForce (Sun et al. 2024, arXiv:2404.11912) and MagicDec (Chen et al. 2024, arXiv:2408.11049). A drafted token costs all of the
model's weights and little of its attention, so it pays where attention is most of a step: at long contexts.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentmem.speculation.ahead import read_ahead
from agentmem.speculation.port import DRAFTERS, Context, Draft


@DRAFTERS.register("compact")
class CompactDrafter:
    """Reads on over residents and tail; nothing while no sealed memory is on the device."""

    def draft(self, context: Context, after: Sequence[int], limit: int) -> Draft:
        """Return what the compressed memory makes of what comes next."""
        return read_ahead("compact", context, after, limit)
