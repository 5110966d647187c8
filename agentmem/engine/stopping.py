"""The text of a reply while it is made: stop strings are found in it and never shown."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol


class TextStream(Protocol):
    """Ids to text, incrementally."""

    def push(self, token_id: int) -> str:
        """Return the text that became certain with ``token_id``."""

    def finish(self) -> str:
        """Return the text that was held back."""


class StopScanner:
    """Passes text on until one of the ``stop`` strings has appeared; the text is cut before it. Not thread safe.

    The stop string that is complete first wins; of those that end at the same character, the one that began first. So
    the result doesn't depend on how the text was split into pieces. Text that may begin a stop string is held back.
    """

    __slots__ = ("_held", "_stop", "stopped")

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Return what can be shown now that ``text`` has arrived; "" after a stop string."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        split = len(text) - self._undecided(text)
        self._held = text[split:]
        return text[:split]

    def finish(self) -> str:
        """Return what was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Return the length of the longest end of ``text`` that begins a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0


class ReplyText:
    """The text of one reply: ids through a detokenizer, its text through a StopScanner. One per reply, not thread safe.

    ``hidden_token_ids``: ids that end the reply and have no part in its text, such as the request's stop tokens.
    """

    __slots__ = ("_hidden", "_scanner", "_stream")

    def __init__(self, stream: TextStream, stop: Sequence[str] = (), hidden_token_ids: Collection[int] = ()) -> None:
        self._stream = stream
        self._scanner = StopScanner(stop)
        self._hidden = frozenset(hidden_token_ids)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has appeared."""
        return self._scanner.stopped

    def push(self, token_id: int) -> str:
        """Return the text that became certain with ``token_id``; "" while a stop string or a character may be incomplete."""
        return "" if token_id in self._hidden else self._scanner.push(self._stream.push(token_id))

    def finish(self) -> str:
        """Return what was held back, "" after a stop string. A stop string may appear in it, as ``stopped`` then tells."""
        return self._scanner.push(self._stream.finish()) + self._scanner.finish()
