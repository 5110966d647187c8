"""What happens to a session while nobody writes (DESIGN 7): exact re-encode, report, archive, compress, swap in, bring back.

Each step looks at the session alone to see whether there is anything to do, so work that was cut short goes on where it stopped, and a
restarted server finds what is missing. After every step everything is as good as before: a turn may come at any time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from agentmem.compression.recipe import Recipe, SealJob
from agentmem.compression.sealing import SealFiles, load_unit
from agentmem.engine.run import EngineRequest, Run
from agentmem.errors import SealFailed
from agentmem.memory.sealed import SealedMemory, SealedUnit
from agentmem.sessions import budgets
from agentmem.sessions.forgetting import drop_stale
from agentmem.sessions.loss import first_lost, note_lost
from agentmem.sessions.observing import Recordings, Repetition, observation_of
from agentmem.sessions.pipeline import Pipeline
from agentmem.sessions.reports import report_of
from agentmem.sessions.requests import approximate_from, background_request, is_current
from agentmem.sessions.sealer import Sealer
from agentmem.sessions.session import Session
from agentmem.sessions.tasks import Tasks
from agentmem.sessions.units import UnitShape, jobs_of, units_of
from agentmem.stores.records import BlockUnavailable
from agentmem.types import Fidelity, FinishReason, TurnState
from agentmem.views import ChangeKind

log = logging.getLogger(__name__)
MAX_TRIES = 3  # of a seal job whose result never becomes readable
PREFETCH_SECONDS = 2.0  # before a tool is expected to answer
OPENED_SECONDS = 0.2  # a session that was opened for a call at once is not worth the trouble


@dataclass(frozen=True, slots=True)
class SealingRules:
    """What sealing depends on beside the session.

    ``shape`` cuts blocks into units, ``scale`` multiplies q.k in the model, ``reference`` is what reports call the past that a re-encode
    attended to. Without ``prefetch`` memory comes back when a call needs it.
    """

    shape: UnitShape
    scale: float
    repetition: Repetition
    reference: str = "full cache"
    prefetch: bool = True


@dataclass(slots=True)
class SealingStats:
    """Seal jobs since the start."""

    done: int = 0
    parked: int = 0


class Sealing:
    """What the pipelines of all sessions do. Event loop only."""

    def __init__(self, sealer: Sealer, files: SealFiles, recordings: Recordings, rules: SealingRules) -> None:
        self.engine = sealer.engine
        self.sealer = sealer
        self.files = files
        self.recordings = recordings
        self.rules = rules
        self.stats = SealingStats()
        self.under_way = Tasks()  # jobs: they go on when their session goes
        self._put_off: set[Pipeline] = set()  # what had no memory, no place in the queue or no disk, and shall try again
        self._tries: dict[SealJob, int] = {}  # of jobs without a result; MAX_TRIES: given up until a restart

    def attach(self, session: Session) -> None:
        """Give a session that became live its pipeline, and start it."""
        session.background = Pipeline(session, self.engine, self._advance)
        session.background.poke()

    def expect(self, session: Session, seconds: float) -> None:
        """Have the session's memory back when its next call comes in about ``seconds`` seconds, without taking anybody else's."""
        if self.rules.prefetch and isinstance(session.background, Pipeline):
            session.background.want(max(OPENED_SECONDS, seconds - PREFETCH_SECONDS))

    async def retry(self) -> None:
        """Look once more at the sessions whose work was refused for want of memory or disk."""
        put_off, self._put_off = self._put_off, set()
        for pipeline in put_off:
            pipeline.poke()

    async def settle(self, session: Session) -> None:
        """Return when all that can be sealed is. What the archive lacks is computed again where the device has room."""
        pipeline = session.background
        if isinstance(pipeline, Pipeline):
            stop = max((unit.stop for unit in units_of(session.turns, self.rules.shape)), default=0)
            pipeline.wanted |= self.sealer.keep_blocks and session.num_saved_blocks < stop
            await pipeline.settle()

    def jobs(self, session: Session) -> list[SealJob]:
        """Return the seal jobs of everything in the session that may be compressed by now."""
        policy = budgets.effective(session.record.policy, session.turns)
        recipe = Recipe(policy.compressor, policy.keep, policy.bits)
        return jobs_of(session.turns, session.chain.hashes, self.rules.shape, recipe, self.rules.scale)

    def is_parked(self, job: SealJob) -> bool:
        """Return whether ``job`` was given up."""
        return self._tries.get(job, 0) >= MAX_TRIES

    async def _advance(self, pipeline: Pipeline) -> bool:
        return (
            await self._reread(pipeline)
            or await self._reencode(pipeline)
            or await self._report(pipeline)
            or await self._archive(pipeline)
            or await self._seal(pipeline)
            or await self._swap(pipeline)
            or await self._bring_back(pipeline)
        )

    # -- exact again --------------------------------------------------------------------------------------------------

    async def _reread(self, pipeline: Pipeline) -> bool:
        """Compute what came after a forgotten message as if that had never been read; return whether the old memory went."""
        session = pipeline.session
        async with pipeline.alone() as free:
            if not free or session.stale is None:
                return False
            if session.old_memory is not None:
                run = await self._run(pipeline, background_request(session))
                if run is None or run.finish_reason is not FinishReason.STOP:
                    return False
                session.hint = None
            await drop_stale(session, self.engine)
            session.notify(ChangeKind.UPDATED)
            return True

    async def _reencode(self, pipeline: Pipeline) -> bool:
        """Replace approximate K and V by exact ones; return whether it came further."""
        session = pipeline.session
        async with pipeline.alone() as free:
            before = approximate_from(session)
            if not free or before is None or not session.record.policy.reencode:
                return False
            request = replace(background_request(session), reencode=True, decoded=dict(session.evidence.decoded))
            run = await self._run(pipeline, request)
            if run is None:
                return False
            session.evidence.add_compared(run.comparisons)
            after = approximate_from(session)
            return after is None or after > before

    async def _report(self, pipeline: Pipeline) -> bool:
        """Give every turn that is exact by now its report, and write it to the ledger; return whether there was one."""
        session = pipeline.session
        async with pipeline.alone() as free:
            due = self._due(session) if free else []
            for index in due:
                policy = session.record.policy
                exact = policy.reencode or approximate_from(session) is None
                report = report_of(session.turns, index, policy, session.evidence, reencoded=exact, reference=self.rules.reference)
                session.turns[index] = replace(session.turns[index], report=report)
                start = session.length_at(index) - len(session.turns[index].token_ids)
                session.evidence.forget(start, session.length_at(index))
                session.evidence.policies.pop(index, None)
            if due:
                await self.sealer.archive_some(session, due)
                session.notify(ChangeKind.SEALED, due[-1])
            return bool(due)

    def _due(self, session: Session) -> list[int]:
        """Return the turns whose report can be made: all of them is exact. No turn is while replies go around what was forgotten."""
        if session.stale is not None:
            return []
        limit = approximate_from(session)
        if limit is None or not session.record.policy.reencode:
            limit = len(session.chain)
        due, end = [], 0
        for turn in session.turns:
            end += len(turn.token_ids)
            wants = turn.report is None and turn.state is TurnState.SEALED and turn.fidelity is not Fidelity.EXACT
            if wants and end <= limit:
                due.append(turn.index)
        return due

    async def _archive(self, pipeline: Pipeline) -> bool:
        """Archive a few blocks that became exact; return whether there were any."""
        session = pipeline.session
        async with pipeline.alone() as free:
            if not free or not self.sealer.has_more(session):
                return False
            before = session.num_saved_blocks
            if not await self.sealer.archive_some(session, ()):
                self._put_off.add(pipeline)
            return session.num_saved_blocks > before

    # -- compressed ---------------------------------------------------------------------------------------------------

    async def _seal(self, pipeline: Pipeline) -> bool:
        """Make or read the result of one more unit, else take over what is there; return whether anything changed."""
        session, size = pipeline.session, self.rules.shape.block_tokens
        known = dict(zip(session.sealed_by, session.sealed.units if session.sealed else (), strict=True)) | pipeline.units
        ready: list[SealJob] = []
        for job in self.jobs(session):
            if job.start // size + len(job.blocks) > session.num_saved_blocks:
                break
            if job not in known:
                if not self.is_parked(job) and await self._unit(pipeline, job):
                    return True
                break
            ready.append(job)
        return self._adopt(pipeline, ready, [known[job] for job in ready])

    async def _unit(self, pipeline: Pipeline, job: SealJob) -> bool:
        """Read the result of ``job``, or have it made; return whether anything came of it."""
        try:
            found = await self.sealer.executor.run(partial(load_unit, job, self.files))
        except BlockUnavailable:
            # Sessions that share a prefix have its unit made at the same time: only who finds nothing again has tried in vain.
            if job in pipeline.made:
                self._tries[job] = self._tries.get(job, 0) + 1
                if self.is_parked(job):
                    return False
            return await self._make(pipeline, job)
        pipeline.made.discard(job)
        stop = job.start + len(job.blocks) * self.rules.shape.block_tokens
        pipeline.units[job] = SealedUnit(job.start, stop, found.keep, found.codes)
        self._tries.pop(job, None)
        return True

    async def _make(self, pipeline: Pipeline, job: SealJob) -> bool:
        """Have the job done, once; return False when a writer came in before it could begin, or memory was short."""
        recorded = await self._observe(pipeline, job)
        if recorded is None:
            return False
        try:
            await self.under_way.finish(self._done(recorded))
            pipeline.made.add(job)
        except SealFailed as error:
            await self._failed(pipeline, job, error)
        return True

    async def _done(self, job: SealJob) -> None:
        """Have the job done. Its blocks stay until then, also those of a session that is deleted, so that no result outlives its block."""
        archive = self.sealer.archive
        archive.hold(job.blocks)
        try:
            await self.sealer.executor.seal(job)
            self.stats.done += 1
        finally:
            archive.release(job.blocks)
            self.recordings.remove(job)

    async def _failed(self, pipeline: Pipeline, job: SealJob, error: SealFailed) -> None:
        """Blocks that are gone will be archived again; a first unit that is gone is made again; any other job is given up."""
        session = pipeline.session
        if error.reason != SealFailed.default_reason:  # not parked: what it reads was not there
            self._tries[job] = self._tries.get(job, 0) + 1
            first = job.start // self.rules.shape.block_tokens
            lost = await self.sealer.executor.run(partial(first_lost, self.sealer.archive, job.blocks))
            if lost is None and job.anchor is not None:
                await self._make(pipeline, self.jobs(session)[0])
            if lost is not None and tuple(session.chain.hashes[first : first + len(job.blocks)]) == job.blocks:
                session.keep_saved(first + lost[0], lost[1:])
            return
        self._tries[job] = MAX_TRIES
        self.stats.parked += 1
        log.warning("session %s: tokens from %d on are not compressed: %s", session.record.id, job.start, error.message)

    async def _observe(self, pipeline: Pipeline, job: SealJob) -> SealJob | None:
        """Return ``job`` with the queries that its compressor wants to see; None when a writer came in or memory was short."""
        session = pipeline.session
        async with pipeline.alone() as free:
            wish = observation_of(session, job, self.rules.shape.block_tokens, self.rules.repetition)
            if wish is None:
                return job
            run = None
            if free:
                run = await self._run(pipeline, wish.request, ours=wish.ours)
        if run is None:
            return None
        if not wish.ours and run.branch is not None:
            await self.engine.call(self.engine.pool.release, run.branch)
        if run.finish_reason is not FinishReason.STOP:
            return None
        return await self.sealer.executor.run(partial(self.recordings.save, job, wish.recorder))

    def _adopt(self, pipeline: Pipeline, jobs: Sequence[SealJob], units: Sequence[SealedUnit]) -> bool:
        """Let the session attend to ``units`` where they are news and reach as far as what it has; return whether it does."""
        session = pipeline.session
        old = session.sealed.length if session.sealed is not None else 0
        if not units or tuple(jobs) == session.sealed_by or units[-1].stop < old:
            return False
        blocks = session.chain.hashes[: units[-1].stop // self.rules.shape.block_tokens]
        session.sealed, session.sealed_by = SealedMemory(tuple(blocks), tuple(units)), tuple(jobs)
        pipeline.units.clear()
        return True

    # -- on the device ------------------------------------------------------------------------------------------------

    async def _swap(self, pipeline: Pipeline) -> bool:
        """Give a session that attends to compressed memory the newest of it; return whether it has it now."""
        session = pipeline.session
        async with pipeline.alone() as free:
            if not free or is_current(session):
                return False
            run = await self._run(pipeline, background_request(session))
            return run is not None and is_current(session)

    async def _bring_back(self, pipeline: Pipeline) -> bool:
        """Restore or compute what a session that expects a call has not on the device; return whether all of it is there now."""
        session = pipeline.session
        async with pipeline.alone() as free:
            if not free or not pipeline.wanted:
                return False
            pipeline.wanted = False
            if _has_all(session):
                return False
            return await self._run(pipeline, background_request(session)) is not None and _has_all(session)

    async def _run(self, pipeline: Pipeline, request: EngineRequest, *, ours: bool = True) -> Run | None:
        """Have the engine do ``request`` in the background; inside ``alone``. Where it works on the session's memory, take that back."""
        session = pipeline.session
        run = await pipeline.run(request)
        if run is None or (run.finish_reason is FinishReason.CANCELLED and pipeline.may_work):
            self._put_off.add(pipeline)
        if run is None or not ours:
            return run
        if run.error is not None:
            log.warning("session %s: background work failed: %s", session.record.id, run.error.message)
        session.branch = run.branch
        if run.branch is not None:
            session.computed = max(session.computed, run.branch.length)
        note_lost(session, run)
        return run


def _has_all(session: Session) -> bool:
    branch = session.branch
    return branch is not None and branch.alive and branch.length >= session.computed
