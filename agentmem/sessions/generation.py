"""Append and Generate: from what a call adds to a committed turn."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace

from agentmem.chat import Chat
from agentmem.engine.engine import Engine
from agentmem.engine.run import Run
from agentmem.engine.stopping import ReplyText
from agentmem.errors import AgentMemError, Cancelled, Draining, InternalError, InvalidInput, StaleOwner
from agentmem.events import FinishEvent, GenerationEvent
from agentmem.memory.segment import Branch
from agentmem.output import FREE, OutputSpec
from agentmem.sessions.forgetting import drop_stale
from agentmem.sessions.inputs import ModelLimits, check_input, check_length, common_start, digest_of, encode_input
from agentmem.sessions.loss import note_lost
from agentmem.sessions.replay import replay
from agentmem.sessions.reply import Reply
from agentmem.sessions.reports import with_exact_report
from agentmem.sessions.requests import engine_request
from agentmem.sessions.reuse import reuse_of
from agentmem.sessions.sealer import Sealer
from agentmem.sessions.session import Session
from agentmem.sessions.shaping import UNSHAPED, CallIds, Shaped, as_quoted, parsed_reply, parser_of, shape_of
from agentmem.sessions.stale import cut
from agentmem.sessions.tasks import Tasks
from agentmem.sessions.turns import appended, extended, same_request, seed_of
from agentmem.types import Fidelity, FinishReason, Message, RequestId, ReuseReport, SamplingParams, Turn, TurnInput, TurnState, Usage
from agentmem.views import AppendResult, ChangeKind

log = logging.getLogger(__name__)
MAX_REPLIES = 16  # finished replies that a session keeps for their request ids; older ones are replayed from the ledger


@dataclass(frozen=True, slots=True)
class Asked:
    """One Generate call: what to add, how to sample, under which name, until when (``time.monotonic``).

    ``digest`` identifies the call as the client made it, before a resent history was matched. ``fidelity`` None: the policy's.
    ``ahead``: the caller has claimed the session and had these first tokens of what is added computed; it hands both over.
    """

    given: TurnInput
    params: SamplingParams
    digest: str
    request_id: RequestId | None = None
    resume_after: int = 0
    deadline: float | None = None
    fidelity: Fidelity | None = None
    output: OutputSpec = FREE
    ahead: tuple[int, ...] | None = None


class Generator:
    """Drives replies. Event loop only; each reply has one task, which outlives its readers."""

    def __init__(self, engine: Engine, chat: Chat, sealer: Sealer, limits: ModelLimits, resume_seconds: float) -> None:
        self.engine = engine
        self.chat = chat
        self.sealer = sealer
        self.limits = limits
        self.resume_seconds = resume_seconds
        self.draining = False
        self.on_reply: Callable[[Usage, ReuseReport], None] = lambda _usage, _reuse: None  # once for each reply, replays apart
        self.tasks = Tasks()

    # -- Append -------------------------------------------------------------------------------------------------------

    async def append(self, session: Session, given: TurnInput, request_id: RequestId | None) -> AppendResult:
        """Add ``given`` to the open turn, compute its K and V, commit. The session is unchanged when anything raises."""
        return await self.tasks.finish(self._append(session, given, request_id))

    async def _append(self, session: Session, given: TurnInput, request_id: RequestId | None) -> AppendResult:
        self.refuse_when_draining()
        check_input(session, given, self.limits)
        if not (given.messages or given.text or given.token_ids):
            raise InvalidInput("nothing to append: messages, text and token_ids are empty")
        digest = digest_of(given, None)
        async with session.writing("Append"):
            done = appended(session, request_id, digest)
            if done is not None:
                return done
            added = await asyncio.to_thread(encode_input, self.chat, session, given, reply=False)
            check_length(session, len(added), self.limits, reply=False)
            run = await self._submit(session, added, None, request_id)
            while not run.done:
                await run.news.wait()
            if run.error is not None or run.finish_reason is not FinishReason.STOP:
                await self._step_back(session, run)
                raise run.error or Cancelled("cancelled; the session is unchanged")
            usage = Usage(input_tokens=len(added), context_tokens=len(run.chain))
            turn = replace(extended(session, given, added, request_id, digest), usage=usage, fidelity=run.request.fidelity)
            await self._adopt(session, run, turn)
            durable = await self.sealer.commit(session)
            session.notify(ChangeKind.APPENDED, turn.index)
        return AppendResult(turn.index, len(added), len(session.chain), durable)

    # -- Generate -----------------------------------------------------------------------------------------------------

    async def generate(self, session: Session, asked: Asked) -> AsyncGenerator[GenerationEvent]:
        """Yield the events of a new reply, of one under way with the same ``request_id``, or of one in the ledger."""
        if session.knows(asked.request_id) and asked.request_id is not None:
            events = self.follow(session, asked.request_id, asked.resume_after, asked.params.stop, asked.digest)
        else:
            reply = await self._started(session, asked)
            events = reply.events(self.engine, after=asked.resume_after, keep_alone=asked.request_id is not None)
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    async def follow(
        self, session: Session, request_id: RequestId, after: int, stop: Sequence[str], digest: str = ""
    ) -> AsyncGenerator[GenerationEvent]:
        """Yield the events of a reply that the session knows, from its token ``after`` on. Raises InvalidInput for another ``digest``.

        ``stop``: the request's stop strings.
        """
        known = session.replies.get(request_id)
        if known is not None:
            if digest:
                same_request(known.digest, digest)
            events = known.events(self.engine, after=after, keep_alone=True)
            async with contextlib.aclosing(events):
                async for event in events:
                    yield event
            return
        turn = next(turn for turn in session.turns if turn.request_id == request_id and turn.reply_start is not None)
        if digest:
            same_request(turn.input_digest, digest)
        for event in replay(session, turn, self.chat, after, stop):
            yield event

    async def _started(self, session: Session, asked: Asked) -> Reply:
        start = self.tasks.spawn(self._start(session, asked))
        try:
            return await asyncio.shield(start)
        except asyncio.CancelledError:
            if asked.request_id is None:
                start.add_done_callback(self._cancel_started)
            raise

    def _cancel_started(self, start: asyncio.Task[Reply]) -> None:
        if not start.cancelled() and start.exception() is None:
            self.engine.cancel(start.result().run)

    async def _start(self, session: Session, asked: Asked) -> Reply:
        """Check everything, claim the session and hand the work to the engine. The session is unchanged when this raises."""
        if asked.ahead is None:
            self.refuse_when_draining()
            check_input(session, asked.given, self.limits)
            await session.claim("Generate")
        try:
            added = await asyncio.to_thread(encode_input, self.chat, session, asked.given, reply=True)
            check_length(session, len(added), self.limits, reply=True)
            if asked.ahead is not None:
                await self.cut_ahead(session, len(common_start(asked.ahead, added)))
            shaped = await asyncio.to_thread(shape_of, self.chat, session, asked.output)
            name = asked.request_id or RequestId(secrets.token_hex(8))
            run = await self._submit(session, added, asked, name, shaped)
        except BaseException:
            if asked.ahead is not None:
                await self.cut_ahead(session, 0)
            session.unclaim()
            raise
        turn_index = session.open_turn.index if session.open_turn else len(session.turns)
        reply = Reply(
            run,
            session_id=session.record.id,
            request_id=name,
            digest=asked.digest,
            turn_index=turn_index,
            input_tokens=len(added),
            parser=parser_of(self.chat, session, CallIds(session.record.id, name)),
        )
        session.replies[name] = reply
        while len(session.replies) > MAX_REPLIES:
            session.replies.popitem(last=False)
        self.tasks.spawn(self._drive(session, reply, asked, added, shaped))
        session.notify(ChangeKind.GENERATING, turn_index)
        return reply

    async def _drive(self, session: Session, reply: Reply, asked: Asked, added: list[int], shaped: Shaped) -> None:
        """Follow one reply to its end, commit its turn, free the session. The task that nobody has to wait for."""
        finish: FinishEvent | None = None
        error: AgentMemError | None = None
        held = list(session.chain.hashes)
        self.sealer.archive.hold(held)  # nobody may evict what this reply may have to read back
        try:
            await reply.run_to_end()
            finish = await self._seal(session, reply, asked, added, shaped)
        except AgentMemError as raised:
            error = raised
            session.closed |= isinstance(raised, StaleOwner)
            await self._step_back(session, reply.run)
            session.replies.pop(reply.request_id, None)  # nothing was generated: the same request may be tried again
        except Exception as raised:
            log.exception("reply %s of session %s broke", reply.request_id, session.record.id)
            error = InternalError(f"the reply broke: {type(raised).__name__}")
        finally:
            session.unclaim()
            reply.close(finish, error)
            self.sealer.archive.release(held)

    async def _seal(self, session: Session, reply: Reply, asked: Asked, added: list[int], shaped: Shaped) -> FinishEvent:
        run = reply.run
        text = reply.text()
        generated = [output.token_id for output in run.outputs]
        parsed = parsed_reply(self.chat, session, CallIds(session.record.id, reply.request_id), generated, text)
        message = parsed.message
        reason = run.finish_reason or FinishReason.STOP
        if message.tool_calls and reason is FinishReason.STOP:
            reason = FinishReason.TOOL_CALLS
        given = replace(asked.given, messages=(*asked.given.messages, message))
        turn = extended(session, given, added, asked.request_id, reply.digest)
        turn = replace(
            turn,
            token_ids=(*turn.token_ids, *generated),
            reply_start=len(turn.token_ids),
            state=TurnState.SEALED,
            finish_reason=reason,
            usage=reply.usage(),
            reuse=reuse_of(run),
            fidelity=run.request.fidelity,
        )
        await self._adopt(session, run, turn)
        durable = await self.sealer.commit(session)
        self.on_reply(turn.usage, turn.reuse)
        self.tasks.spawn(self._remember(session, asked.given.messages, message, generated))
        session.notify(ChangeKind.GENERATED, turn.index)
        return FinishEvent(
            turn_index=turn.index,
            finish_reason=reason,
            message=None if session.is_raw else message,
            text=text,
            usage=turn.usage,
            reuse=turn.reuse,
            fidelity=turn.fidelity,
            durable=durable,
            detail="" if durable else f"not durable yet: {next(iter(session.unsaved.values()), '')}",
            partial=parsed.partial,
            problems=(*shaped.problems, *parsed.problems),
        )

    async def _remember(self, session: Session, given: Sequence[Message], reply: Message, generated: list[int]) -> None:
        """Let later replies of the tenant draft from this turn's tool call and from the results it read, unless they are gone by now."""
        for message in (*given, reply):
            texts = [generated] if message is reply and reply.tool_calls else []
            if message.role == "tool":
                texts = await asyncio.to_thread(as_quoted, self.chat, message.content)
            for text in texts:
                if not session.closed and message in session.messages:
                    await self.engine.call(self.engine.speculator.remember, session.record.tenant, text)

    async def _submit(
        self, session: Session, added: list[int], asked: Asked | None, name: RequestId | None, shaped: Shaped = UNSHAPED
    ) -> Run:
        """Have the engine compute ``added`` after the session's tokens and, where something was ``asked``, reply."""
        chain = session.chain.copy()
        chain.extend(added)
        sampling = asked.params if asked else None
        longest = min(len(chain) + (sampling.max_tokens if sampling else 0), self.limits.max_context)
        fidelity = await self._fidelity(session, asked.fidelity if asked else None, longest)
        request = replace(
            engine_request(session, chain, fidelity),
            request_id=name or RequestId(""),
            sampling=sampling,
            seed=seed_of(session, sampling, asked.request_id if asked else None),
            end_token_ids=self.chat.eos_token_ids,
            reply_text=(lambda: ReplyText(self.chat.detokenizer(), sampling.stop)) if sampling else None,
            max_length=self.limits.max_context,
            hint=session.hint,
            deadline=asked.deadline if asked else None,
            guide=shaped.guide,
        )
        holed = session.memory_with_holes(asked.fidelity if asked else None)
        if holed is not None and len(holed.tokens) + len(added) < self.limits.max_context:
            request = holed.request(request, added)
        return await self.engine.submit(request)

    async def _fidelity(self, session: Session, asked: Fidelity | None, tokens: int) -> Fidelity:
        """Return what a call with a context of up to ``tokens`` runs with; AUTO gives way to RECALL where memory is short."""
        chosen = session.fidelity_for(asked, tokens)
        is_auto = (asked or session.record.policy.fidelity) is Fidelity.AUTO
        if chosen is not Fidelity.EXACT or not is_auto or session.sealed is None:
            return chosen
        pool = self.engine.pool
        if pool.used_bytes + tokens * session.row_bytes <= pool.budget_bytes:
            return chosen  # whatever else happens meanwhile: no need to ask the engine's thread
        fits = await self.engine.call(lambda: pool.fits(tokens, spill=True))
        return chosen if fits else Fidelity.RECALL

    # -- ahead of a turn ------------------------------------------------------------------------------------------------

    async def submit_ahead(self, session: Session, ids: list[int]) -> Run:
        """Start computing K and V of tokens that will probably be added to the session, which the caller has claimed."""
        return await self._submit(session, ids, None, None)

    async def follow_ahead(self, session: Session, run: Run) -> None:
        """Wait for what ``submit_ahead`` started. The rows stand in the session's branch, beyond its chain. Raises what went wrong."""
        while not run.done:
            await run.news.wait()
        if run.error is not None or run.finish_reason is not FinishReason.STOP:
            await self._step_back(session, run)
            raise run.error or Cancelled("cancelled; the session is unchanged")
        session.branch = run.branch

    async def cut_ahead(self, session: Session, tokens: int) -> None:
        """Keep so many of the tokens that were computed ahead, or all there are if they are fewer."""
        branch = session.branch
        if branch is not None and branch.alive and branch.length > len(session.chain) + tokens:
            await self.engine.call(cut, self.engine.pool, branch, len(session.chain) + tokens)

    # -- both ---------------------------------------------------------------------------------------------------------

    async def _adopt(self, session: Session, run: Run, turn: Turn) -> None:
        """Make what ``run`` did the session's state."""
        branch: Branch | None = run.branch
        if run.request.holes and session.stale is not None and branch is not None:
            session.chain.extend(session.stale.grow(branch, run.chain.tokens))
        else:
            session.branch = branch
            session.chain = run.chain
            session.computed = branch.length if branch is not None and branch.alive else max(0, len(run.chain) - 1)
            note_lost(session, run)
            session.hint = None
            await drop_stale(session, self.engine)
        session.evidence.add_turn(turn.index, run.request.policy, run.decoded)
        session.put_turn(turn)
        session.turns[-1] = with_exact_report(session.turns, session.record.policy)

    async def _step_back(self, session: Session, run: Run) -> None:
        """Take the memory back from a run that came to nothing, without the rows that the session does not know of."""
        branch, length = run.branch, len(session.chain)
        if run.request.holes and session.stale is not None:
            length = len(session.stale.tokens)
            session.stale = replace(session.stale, branch=branch) if branch is not None else None
        else:
            session.branch = branch
        if branch is not None:
            await self.engine.call(cut, self.engine.pool, branch, length)

    def refuse_when_draining(self) -> None:
        """Raise Draining once the server is shutting down."""
        if self.draining:
            raise Draining("the server is shutting down", retry_after=1.0)

    async def drain(self, seconds: float, sessions: list[Session]) -> None:
        """Take no new work; wait up to ``seconds`` for replies to end, then cancel them, which commits what they have."""
        self.draining = True
        await self.tasks.wait(seconds)
        for session in sessions:
            for reply in session.replies.values():
                if not reply.run.done:
                    self.engine.cancel(reply.run)
        await self.tasks.wait(None)

    def forget_replies(self, session: Session, now: float) -> None:
        """Drop finished replies that nobody came back for in time (loop time ``now``), and end those that nobody follows any more."""
        for name, reply in list(session.replies.items()):
            if reply.num_readers or now - reply.left_at <= self.resume_seconds:
                continue
            if reply.closed_at is None:
                self.engine.cancel(reply.run)
            elif now - reply.closed_at > self.resume_seconds:
                del session.replies[name]
        for request, pieces in list(session.left_pieces.items()):
            if pieces.left_at and now - pieces.left_at > self.resume_seconds:
                del session.left_pieces[request]
