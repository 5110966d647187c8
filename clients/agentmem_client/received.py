"""Which tokens of a reply have come, over however many streams."""

from __future__ import annotations

from agentmem.errors import InternalError
from agentmem.events import TokenEvent


class ReceivedTokens:
    """``count``: tokens received so far; a new stream is asked for those after them."""

    def __init__(self, count: int = 0) -> None:
        self.count = count
        self._has_tail = False

    def adds(self, event: TokenEvent) -> bool:
        """Count ``event``; False when an earlier stream already delivered it. Raises InternalError when tokens are missing."""
        end = event.index + len(event.token_ids)
        if event.index < self.count and end <= self.count:
            return False
        if event.index != self.count:
            raise InternalError(f"the server sent token {event.index} of a reply of which {self.count} tokens were received")
        self.count = end
        had_tail, self._has_tail = self._has_tail, not event.token_ids  # text that was held back to the end comes without tokens
        return not had_tail
