"""From admission to the first step: bringing back what the archive has, as full rows or as a compact branch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from agentmem.engine.background import is_complete
from agentmem.engine.compacting import Compacted, Heads, copy_tail, load_compact, make_recaller
from agentmem.engine.restore import Restored, Restorer
from agentmem.engine.run import Run, RunState, branch_of
from agentmem.engine.scheduler import Scheduler
from agentmem.engine.stats import EngineStats
from agentmem.errors import InternalError
from agentmem.memory.recall.state import RecallState
from agentmem.memory.segment import Segment
from agentmem.types import BlockHash, FinishReason, MissReason, Tier

log = logging.getLogger(__name__)


class Starter:
    """Engine thread only. ``post`` runs a function on it, from any thread; ``end`` and ``fail`` end a run."""

    def __init__(
        self,
        scheduler: Scheduler,
        restorer: Restorer,
        heads: Heads,
        stats: EngineStats,
        *,
        post: Callable[[Callable[[], None]], None],
        end: Callable[[Run, FinishReason], None],
        fail: Callable[[Run, Exception], None],
    ) -> None:
        self.scheduler = scheduler
        self.pool = scheduler.pool
        self.restorer = restorer
        self.heads = heads
        self.stats = stats
        self._post = post
        self._end = end
        self._fail = fail

    def start(self, run: Run) -> None:
        """Start loading what the archive has of the run's prompt; with nothing to load, let the run begin."""
        if run.compacts:
            self._compact_or_begin(run)
        else:
            self._restore_or_begin(run, Restored())

    def _restore_or_begin(self, run: Run, so_far: Restored) -> None:
        """Start loading the blocks that the archive has of what follows the branch; with nothing to load, let the run begin.

        ``so_far`` says what was unavailable before; of two reasons the first is reported.
        """
        branch = branch_of(run)
        size = self.pool.block_tokens
        usable = run.reusable // size
        first = branch.length // size
        names = run.chain.hashes[first:usable]
        aligned = branch.length % size == 0
        expected = aligned and (first + 1) * size <= run.request.computed_before
        if not (names and aligned and (expected or self.restorer.archive.contains(names[0]))):
            self._begin(run, so_far)
            return
        run.state = RunState.RESTORING
        run.started = run.started or time.monotonic()
        segment, row = self.pool.append(branch, len(names) * size, expect=self.scheduler.rows_ahead(run))
        self.restorer.start(
            names,
            segment,
            row,
            wanted=lambda: run.cancel_reason is None,
            done=lambda result: self._post(lambda: self._restored(run, first, names, result, so_far)),
        )

    def _restored(self, run: Run, first: int, names: Sequence[BlockHash], result: Restored, so_far: Restored) -> None:
        if run.done:
            return
        branch = branch_of(run)
        if result.num_blocks < len(names):
            self.pool.truncate(branch, (first + result.num_blocks) * self.pool.block_tokens)
            self.pool.reserve(branch, self.scheduler.rows_ahead(run))  # fits in what the cut gave back
        self.pool.publish(branch, run.chain.hashes, first)
        self.scheduler.landed(run, names[: result.num_blocks])
        for tier, count in result.tokens.items():
            run.reused[tier] += count
        self._begin(run, result if so_far.reason is MissReason.NONE else so_far)

    def _compact_or_begin(self, run: Run) -> None:
        """Start reading the residents of a new compact branch, or an index that is not there yet; else let the run begin."""
        root, memory = branch_of(run).root, run.memory
        if root is None or memory is None:
            raise InternalError("a run attends to sealed tokens without a compact branch")
        policy = run.request.policy
        method = policy.recall if run.recalls else None
        compact, archive, heads = root.compact, self.restorer.archive, self.heads
        if compact is not None and (method is None or method in compact.searchers):
            self._restore_or_begin(run, Restored())
            return
        run.state = RunState.RESTORING
        run.started = time.monotonic()

        def work() -> Compacted:
            if compact is None or method is None:
                return load_compact(archive, memory, root, heads, method)
            make_recaller(compact, method, root)
            return Compacted(compact, {}, memory)

        self.restorer.run(work, lambda result: self._post(lambda: self._compacted(run, root, result)))

    def _compacted(self, run: Run, root: Segment, result: Compacted | Exception) -> None:
        if run.done:
            return
        if isinstance(result, Exception):
            log.error("a compact branch could not be made", exc_info=result)
            self._fail(run, result)
            return
        branch = branch_of(run)
        if result.rows is None:  # what can be read of the past is shorter; the rest is computed again
            self.pool.release(branch)
            run.branch, run.memory, run.miss = None, result.usable, (result.reason, result.detail)
            self.scheduler.requeue(run)
            return
        root.compact = result.rows
        if run.source is not None:
            first = branch.length
            copy_tail(self.pool, run.source, branch, run.reusable)
            run.reused[Tier.DEVICE] += branch.length - first
            self.pool.release(run.source)
            run.source = None
        for tier, count in result.tokens.items():
            run.reused[tier] += count
        self._restore_or_begin(run, Restored(reason=run.miss[0], detail=run.miss[1]))

    def _begin(self, run: Run, restored: Restored) -> None:
        """Let ``run`` take part in steps, or end it where nothing is left to do."""
        self._explain(run, restored)
        self.scheduler.begin(run)
        root, policy = branch_of(run).root, run.request.policy
        if run.recalls and root is not None and root.compact is not None:
            recaller, heads = root.compact.recaller(policy.recall), self.heads
            kv_heads = self.pool.shape.kv_heads
            run.recall = RecallState(
                recaller, root.compact.rows, self.pool.shape, heads.group * kv_heads, policy.recall_tokens, policy.stride
            )
        if run.cancel_reason is not None:
            self._end(run, run.cancel_reason)
        elif is_complete(run, branch_of(run)):  # only K and V were asked for, and all of them were found
            self._end(run, FinishReason.STOP)

    def _explain(self, run: Run, restored: Restored) -> None:
        """Work out why the first token that must be computed was not read from somewhere."""
        have, before = branch_of(run).length, run.request.computed_before
        if restored.reason not in (MissReason.NONE, MissReason.NEW):
            run.miss = (restored.reason, restored.detail)
        elif run.request.hint is not None:
            run.miss = run.request.hint
        elif have >= before:
            run.miss = (MissReason.NEW if before == 0 and have == 0 else MissReason.NONE, "")
        elif have >= before - before % self.pool.block_tokens:
            run.miss = (MissReason.PARTIAL_BLOCK, f"{before - have} tokens after the last full block")
        else:
            run.miss = (MissReason.EVICTED, f"from token {have} on")
        run.explained = True
        run.wake_threadsafe()
        if run.request.background:  # no prompt of anybody's
            return
        for tier, count in run.reused.items():
            self.stats.reused[tier] += count
        self.stats.computed += run.prompt_length - sum(run.reused.values())
