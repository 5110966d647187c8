"""Looking into a session's memory: what a text attends to, and where the session's own attention goes (DESIGN 9).

Both read a few tokens after a fork of the session under full attention and look at their queries as they pass. Nothing of it is kept.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import takewhile

import torch

from agentmem.chat import Chat
from agentmem.engine.engine import Engine
from agentmem.errors import Cancelled, InvalidInput, TemplateNotAppendable
from agentmem.memory.attention_map import AttentionMap, shares
from agentmem.memory.hashing import Chain
from agentmem.memory.segment import Branch
from agentmem.sessions.branching import fork_branch
from agentmem.sessions.inputs import ModelLimits, chat_context, check_length
from agentmem.sessions.requests import background_request
from agentmem.sessions.session import Session
from agentmem.sessions.spans import Memory, spans_of
from agentmem.stores.archive import Archive
from agentmem.types import Fidelity, Message, Prefill
from agentmem.views import RecalledSpan

LAST_TOKENS = 32  # whose attention ``attention`` measures
MAX_QUERIES = 128  # last tokens of a recalled text that are looked at: of a longer one the end asks


@dataclass(frozen=True, slots=True)
class Query:
    """Tokens to read after a session, and which of them ask: offsets among ``token_ids``."""

    token_ids: list[int]
    asking: range


class Recollection:
    """Event loop only. A session that somebody writes to is looked at as it was before."""

    def __init__(self, engine: Engine, archive: Archive, chat: Chat, limits: ModelLimits) -> None:
        self.engine = engine
        self.archive = archive
        self.chat = chat
        self.limits = limits

    async def recall(self, session: Session, text: str, k: int) -> list[RecalledSpan]:
        """Return up to ``k`` spans that ``text`` attends to, the heaviest first. A weight is the span's share of all that was found.

        ``text`` is read as a user's message would be, where the template takes one. Raises ContextTooLong, and what the engine raises.
        """
        chain, turns = session.chain.copy(), list(session.turns)
        if not chain.tokens:
            return []
        query = await asyncio.to_thread(query_of, self.chat, session, text)
        check_length(session, len(query.token_ids), self.limits, reply=False)
        read = chain.copy()
        read.extend(query.token_ids)
        seen = self._map(len(chain), range(len(chain) + query.asking.start, len(chain) + query.asking.stop))
        await self._observe(session, read, range(len(chain), len(read)), seen)
        memory = Memory(chain.tokens, [len(turn.token_ids) for turn in turns])
        return await asyncio.to_thread(spans_of, memory, shares(seen.peaks), self.chat, k)

    async def attention(self, session: Session) -> list[float]:
        """Return for each turn its share of the attention of the session's last tokens, up to LAST_TOKENS: the mean over layers and heads.

        The sinks, the session's first tokens, are left out: they would take nearly all. The shares sum to 1, or are 0 where there is
        nothing else. Returns [] for a session without tokens. Raises what the engine raises.
        """
        chain, turns = session.chain.copy(), list(session.turns)
        if not chain.tokens:
            return []
        last = range(max(0, len(chain) - LAST_TOKENS), len(chain))
        seen = self._map(len(chain), last)
        await self._observe(session, chain, last, seen)
        weights = torch.split(shares(seen.mean), [len(turn.token_ids) for turn in turns])
        return [float(each.sum()) for each in weights]

    def _map(self, length: int, asking: range) -> AttentionMap:
        return AttentionMap(length, asking, self.engine.runner.heads.scale, self.engine.runner.windows)

    async def _observe(self, session: Session, chain: Chain, last: range, seen: AttentionMap) -> None:
        """Compute ``chain``, most of which the session may have, and let ``seen`` look at the positions ``last``, its end."""
        names = list(chain.hashes)
        self.archive.hold(names)  # nobody may evict what may have to be read back
        branch: Branch | None = None
        try:
            if session.branch is not None:
                async with session.background.resting() if session.background is not None else nullcontext():
                    branch = await self.engine.call(fork_branch, self.engine.pool, session.branch, last.start)
            request = background_request(session)
            exact = request.fidelity is Fidelity.EXACT
            run = await self.engine.submit(
                replace(
                    request,
                    chain=chain,
                    branch=branch,
                    max_length=len(chain),
                    fidelity=Fidelity.EXACT if exact else Fidelity.COMPACT,
                    policy=replace(request.policy, prefill=Prefill.EXACT),
                    background=False,
                    observe=(last,),
                    observer=seen,
                )
            )
            while not run.done:
                await run.news.wait()
            branch = run.branch
            if run.error is not None:
                raise run.error
            if run.cancel_reason is not None:
                raise Cancelled("the server stopped before the session was looked at")
        finally:
            if branch is not None:
                await self.engine.call(self.engine.pool.release, branch)
            self.archive.release(names)


def query_of(chat: Chat, session: Session, text: str) -> Query:
    """Return what must be read for ``text`` to ask: in a CHAT session a user's message, whose own tokens ask, of a long one the last."""
    if session.is_raw:
        return _whole(chat.encode_text(text))
    context = chat_context(session, session.messages)
    other = next(letter for letter in "abc" if letter not in (text[:1], text[-1:]))
    try:
        ids, probe = (chat.encode(context, (Message("user", each),), reply=False) for each in (text, other))
    except (InvalidInput, TemplateNotAppendable):  # the template takes no user's message here; the text can ask without one
        return _whole(chat.encode_text(text))
    before = _num_equal(ids, probe)
    after = _num_equal(ids[before:][::-1], probe[before:][::-1])
    if before + after == len(ids):  # the template left nothing of the text
        return _whole(ids)
    return Query(ids, range(max(before, len(ids) - after - MAX_QUERIES), len(ids) - after))


def _whole(ids: list[int]) -> Query:
    return Query(ids, range(max(0, len(ids) - MAX_QUERIES), len(ids)))


def _num_equal(one: list[int], other: list[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
