"""Tool results that arrive in pieces: computed while they come, in the session only once they are whole."""

from __future__ import annotations

import asyncio

from agentmem.chat import Chat
from agentmem.conversing import ResultPiece
from agentmem.engine.run import Run
from agentmem.errors import InvalidInput, SessionBusy
from agentmem.events import PieceEvent
from agentmem.sessions.generation import Generator
from agentmem.sessions.inputs import check_length, common_start, encode_input
from agentmem.sessions.session import Session
from agentmem.types import Message, RequestId, TurnInput

PROBES = ("x", "\n\n 0")  # what may come next: a token that neither changes has nothing to wait for
FIRST = 256  # characters that are waited for before anything is computed
GROWTH = 1.1  # from one computation to the next: the text is tokenized from its start each time


class Incoming:
    """The results of one request. Event loop only; from the first piece to the reply, or to ``leave``, the session is claimed.

    ``stream``: who sends them; a stream that takes them up takes them from the one before, which may not know yet that it is dead.
    ``ids``: tokens whose K and V are computed ahead; they stand in the session's branch beyond its chain, and in nothing else.
    """

    def __init__(self, generator: Generator, session: Session, request_id: RequestId) -> None:
        self.request_id = request_id
        self.messages: tuple[Message, ...] = ()  # the results that are whole
        self.received = 0  # characters
        self.ids: list[int] = []
        self.left_at = 0.0
        self.stream: object = None
        self._ended: set[tuple[str, int]] = set()  # the calls of results that are whole, and ``received`` at their ends
        self._generator = generator
        self._session = session
        self._header: ResultPiece | None = None  # the first piece of the result that is under way
        self._text = ""
        self._due = FIRST
        self._claimed = False
        self._busy = asyncio.Lock()
        self._run: Run | None = None

    @property
    def is_open(self) -> bool:
        """Whether a result is under way."""
        return self._header is not None

    async def take(self, piece: ResultPiece, stream: object) -> PieceEvent:
        """Add ``piece``, compute what is certain by now, and say how far it is. What the client has sent before is skipped.

        Raises InvalidInput for a piece that does not go on where the last one ended, SessionBusy when somebody else writes or another
        stream has taken over, and ContextTooLong as soon as the results are longer than the context.
        """
        async with self._busy:
            if self.stream is not stream:
                raise SessionBusy(f"another stream has taken up the results of request {self.request_id!r}")
            if not self._claimed:
                await self._session.claim("Converse")
                self._claimed, self.left_at = True, 0.0
            text = self._news(piece)
            if text is not None:
                self._add(piece, text)
                if len(self._text) >= self._due:
                    await self._compute()
            return PieceEvent(self.request_id, self.received, len(self.ids))

    def release(self) -> None:
        """Hand the claim over to the reply."""
        self._claimed = False

    async def leave(self, stream: object) -> None:
        """Let the next writer in, unless another stream has taken over; what has arrived waits for its client, without its K and V."""
        if self.stream is not stream:
            return
        if self._run is not None:
            self._generator.engine.cancel(self._run)
        async with self._busy:
            if self.stream is not stream:
                return
            self.left_at = asyncio.get_running_loop().time()
            if not self._claimed:
                return
            self._claimed = False
            self.ids, self._due = [], FIRST
            try:
                await self._generator.cut_ahead(self._session, 0)
            finally:
                self._session.unclaim()

    def _news(self, piece: ResultPiece) -> str | None:
        """Return what of ``piece`` is new; None if nothing is, not even its end."""
        known = self.received - piece.offset
        if known < 0:
            raise InvalidInput(f"piece.offset is {piece.offset}, but only {self.received} characters have arrived", reason="PIECE_MISSING")
        if known > len(piece.text):
            return None
        if known == len(piece.text) and (piece.tool_call_id, self.received) in self._ended:
            return None  # the end of a result that has ended; others, of no characters, may have come after it
        return piece.text[known:]

    def _add(self, piece: ResultPiece, text: str) -> None:
        header = self._header or piece
        if header.tool_call_id != piece.tool_call_id:
            raise InvalidInput(f"piece is of call {piece.tool_call_id!r}, but the result of call {header.tool_call_id!r} has not ended")
        self._header = header
        self._text += text
        self.received += len(text)
        if piece.last:
            self.messages = (*self.messages, self._message(self._text))
            self._ended.add((piece.tool_call_id, self.received))
            self._header, self._text, self._due = None, "", FIRST

    def _message(self, text: str) -> Message:
        header = self._header
        if header is None:
            raise InvalidInput("no result is under way")
        return Message("tool", text, header.name, header.tool_call_id)

    async def _compute(self) -> None:
        """Have K and V computed of what the text that has come so far makes certain, whatever comes next."""
        self._due = int(len(self._text) * GROWTH) + FIRST
        if self._session.old_memory is not None:
            return  # the reply goes on over a memory with holes, where nothing stands beyond the end
        messages = [[*self.messages, self._message(self._text + probe)] for probe in PROBES]
        ids = await asyncio.to_thread(certain_ids, self._generator.chat, self._session, messages)
        check_length(self._session, len(ids), self._generator.limits, reply=True)
        if ids[: len(self.ids)] != self.ids:  # the tokenizer has thought better of it
            self.ids = common_start(self.ids, ids)
            await self._generator.cut_ahead(self._session, len(self.ids))
        if len(ids) > len(self.ids):
            self._run = await self._generator.submit_ahead(self._session, ids)
            try:
                await self._generator.follow_ahead(self._session, self._run)
            finally:
                self._run = None
            self.ids = ids


def certain_ids(chat: Chat, session: Session, variants: list[list[Message]]) -> list[int]:
    """Return the tokens that all ``variants`` begin with, the last one left out: it might merge with what comes."""
    ids = [encode_input(chat, session, TurnInput(tuple(messages)), reply=False) for messages in variants]
    return common_start(*ids)[:-1]
