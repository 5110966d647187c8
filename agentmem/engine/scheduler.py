"""Who runs, who waits: admission by memory, fairness across tenants, single-flight prefixes, and the plan of each step."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from agentmem.engine.background import background_work
from agentmem.engine.batch import Work
from agentmem.engine.run import EngineRequest, Run, RunState
from agentmem.errors import Overloaded
from agentmem.memory.pool import KVPool, PoolFull
from agentmem.memory.segment import Branch
from agentmem.types import BlockHash, Fidelity, FinishReason, TenantId, Tier


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the engine takes on: runs at once, runs waiting, tokens of prefill in a step (more when nobody decodes)."""

    max_running: int = 64
    max_queue: int = 256
    max_batch_tokens: int = 512
    idle_batch_tokens: int = 2048


class Scheduler:
    """Bookkeeping only: no tensors, no threads. Engine thread only. ``draft`` gives decoding runs the drafts of their next step."""

    def __init__(self, pool: KVPool, limits: Limits, draft: Callable[[Sequence[Run]], None] = lambda _decoding: None) -> None:
        self.pool = pool
        self.limits = limits
        self._draft = draft
        self.running: list[Run] = []
        self.restoring: set[Run] = set()  # admitted, with blocks on their way back from the archive
        self._queues: OrderedDict[TenantId, deque[Run]] = OrderedDict()
        self.refused: list[Run] = []  # background runs for which there is no memory, to be ended by the engine
        self._flights: dict[BlockHash, Run] = {}

    # -- queue --------------------------------------------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        """Runs that were accepted and not yet started."""
        return sum(len(queue) for queue in list(self._queues.values()))  # a snapshot: others ask while the engine works

    @property
    def active(self) -> list[Run]:
        """Runs that hold memory: running or restoring."""
        return [*self.running, *self.restoring]

    def enqueue(self, run: Run) -> None:
        """Put ``run`` at the end of its tenant's queue. Raises Overloaded when too many wait."""
        waiting = self.num_waiting
        if waiting >= self.limits.max_queue:
            raise Overloaded(f"{waiting} requests wait, the limit is {self.limits.max_queue}", reason="QUEUE_FULL", retry_after=1.0)
        self._queues.setdefault(run.request.tenant, deque()).append(run)

    def requeue(self, run: Run) -> None:
        """Put an admitted run back to the front of its tenant's queue: what it was admitted with has turned out to be less."""
        self.drop(run)
        run.state = RunState.WAITING
        self._queues.setdefault(run.request.tenant, deque()).appendleft(run)

    def waiting(self) -> Iterator[Run]:
        """Yield waiting runs in the order of admission: one of each tenant in turn, background runs last."""
        for background in (False, True):
            yield from self._turns(background=background)

    def _turns(self, *, background: bool) -> Iterator[Run]:
        queues = [iter([run for run in queue if run.request.background is background]) for queue in self._queues.values()]
        while queues:
            for queue in list(queues):
                run = next(queue, None)
                if run is None:
                    queues.remove(queue)
                else:
                    yield run

    def drop(self, run: Run) -> None:
        """Take ``run`` out of whatever list it is in and end its flights."""
        queue = self._queues.get(run.request.tenant)
        if queue is not None and run in queue:
            queue.remove(run)
            if not queue:
                del self._queues[run.request.tenant]
        if run in self.running:
            self.running.remove(run)
        self.restoring.discard(run)
        for name in [name for name, owner in self._flights.items() if owner is run]:
            del self._flights[name]

    # -- admission ----------------------------------------------------------------------------------------------------

    def admit(self) -> list[Run]:
        """Start every waiting run that fits and return them; each holds its branch and its reserve.

        A run whose next block another run is computing is HELD and passed over. The first that lacks memory ends the round,
        so that large requests are not starved by small ones.
        """
        admitted = []
        for run in self.waiting():
            if len(self.running) + len(self.restoring) >= self.limits.max_running:
                break
            self._match(run)
            if self._flight_of(run) is not None:
                run.state = RunState.HELD
                self.pool.set_idle(self._branch(run))  # what waits must not keep memory from what could run
                continue
            if not self._reserve(run):
                run.state = RunState.WAITING
                if run.request.background:
                    self.refused.append(run)
                    continue
                break
            self._start(run)
            admitted.append(run)
        return admitted

    def _reserve(self, run: Run) -> bool:
        """Reserve all that ``run`` may write and return whether it fits."""
        if self._fits(run):
            return True
        if run.request.background:
            return False
        if run.source is not None and run.source.alive:  # a tail that cannot be copied is computed again
            self.pool.release(run.source)
            if self._fits(run):
                return True
        if self.active:
            return False
        # Nobody is left to wait for: what is in the way is unused room in the past that the run holds on to. Without it every
        # idle session can be spilled, and the past is restored or computed again.
        self.pool.release(self._branch(run))
        run.branch = None
        if run.request.holes:
            run.fall_back()
            self._match(run)
        return self._fits(run)

    def _fits(self, run: Run) -> bool:
        if run.request.background and not self.pool.fits(self._missing_rows(run), spill=False):
            return False
        if run.source is not None and run.source.alive:
            self.pool.set_busy(run.source)
        try:
            if run.memory is not None and run.compacts and run.branch is None:
                run.branch = self.pool.compact(run.memory.length, run.memory.kept)
            self.pool.reserve(self._branch(run), self.rows_ahead(run))
        except PoolFull:
            self._unreserve(run)
            return False
        return True

    def _unreserve(self, run: Run) -> None:
        if run.branch is not None and run.compacts and run.branch.root is not None and run.branch.root.compact is None:
            self.pool.release(run.branch)
            run.branch = None
        for branch in (run.branch, run.source):
            if branch is not None and branch.alive:
                self.pool.set_idle(branch)

    def _missing_rows(self, run: Run) -> int:
        """Return how many rows beyond those of its branch ``run`` may take."""
        if run.memory is not None and run.compacts and run.branch is None:
            return run.memory.kept + self._total_rows(run) - run.memory.length
        return self.rows_ahead(run)

    def impossible(self) -> list[tuple[Run, int]]:
        """Return the waiting runs that could never fit, with the bytes each needs, were every other branch gone."""
        row = self.pool.shape.row_bytes
        return [(run, n * row) for run in self.waiting() if (n := self._least_rows(run)) * row > self.pool.budget_bytes]

    def _least_rows(self, run: Run) -> int:
        request = run.request.instead or run.request  # what it may fall back on must fit
        return _rows_of(request, len(request.chain)) - _spared(request)

    def _branch(self, run: Run) -> Branch:
        if run.branch is None:
            run.branch = self.pool.match([])
        return run.branch

    def _match(self, run: Run) -> None:
        """Give ``run`` the longest resident prefix: its session's own branch or one that another session left."""
        if run.branch is not None and not run.branch.alive:
            run.branch = None
        if run.request.holes and run.branch is None:
            run.fall_back()
            self._match(run)
            return
        if run.compacts:
            self._match_compact(run)
            return
        if run.branch is not None and run.branch.covers:  # only some of its rows are here, and all are asked for
            self.pool.release(run.branch)
            run.branch = None
        usable = run.reusable
        own = run.branch.length if run.branch is not None else 0
        first = own // self.pool.block_tokens
        if first < len(run.chain.hashes) and (run.branch is None or self.pool.holds(run.chain.hashes[first])):
            found = self.pool.match(run.chain.hashes)
            if found.length > own:
                if run.branch is not None:
                    self.pool.release(run.branch)
                run.branch = found
            else:
                self.pool.release(found)
        branch = self._branch(run)
        if branch.length > usable:
            self.pool.truncate(branch, usable)

    def _match_compact(self, run: Run) -> None:
        """Keep the session's branch where it is compact in just this way; else it is the source of the one to make."""
        branch = run.branch
        if branch is None:
            return
        root = branch.root
        if root is None or root.compact is None or run.memory is None or not run.memory.is_same(root.compact.sealed):
            run.source, run.branch = branch, None
            return
        if branch.length > run.reusable:
            self.pool.truncate(branch, run.reusable)

    def _flight_of(self, run: Run) -> Run | None:
        if run.compacts:
            return None
        index = self._branch(run).length // self.pool.block_tokens
        if index >= len(run.chain.hashes):
            return None
        owner = self._flights.get(run.chain.hashes[index])
        return owner if owner is not run else None

    def rows_ahead(self, run: Run) -> int:
        """Return how many more rows ``run`` may write: the rest of its prompt and the longest reply it may give."""
        return self._total_rows(run) - self._branch(run).length

    def _total_rows(self, run: Run) -> int:
        return _rows_of(run.request, run.prompt_length)

    def _start(self, run: Run) -> None:
        queue = self._queues[run.request.tenant]
        queue.remove(run)
        if queue:
            self._queues.move_to_end(run.request.tenant)
        else:
            del self._queues[run.request.tenant]
        root = self._branch(run).root
        run.reused[Tier.DEVICE] = 0 if root is not None and root.compact is None else self._branch(run).length
        for name in () if run.compacts else run.chain.hashes[self._branch(run).length // self.pool.block_tokens :]:
            self._flights.setdefault(name, run)
        self.restoring.add(run)

    # -- steps --------------------------------------------------------------------------------------------------------

    def begin(self, run: Run) -> None:
        """Let an admitted (or restored) run take part in steps."""
        self.restoring.discard(run)
        run.state = RunState.RUNNING
        run.num_published = self._branch(run).length // self.pool.block_tokens
        run.started = run.started or time.monotonic()
        self.running.append(run)

    def landed(self, run: Run, names: Iterable[BlockHash]) -> None:
        """Note that blocks are published: runs held for them may start."""
        for name in names:
            if self._flights.get(name) is run:
                del self._flights[name]

    def plan(self) -> list[tuple[Run, Work]]:
        """Choose the next step's tokens: every decoding run first, then prefill chunks up to the token budget.

        Background runs come in only where nobody else has anything to do, one at a time and with a small chunk, so that whoever
        comes next waits for one short step at most.
        """
        foreground = [run for run in self.running if not run.request.background]
        if not foreground:
            return self._plan_background()
        decoding = [run for run in foreground if run.by_token or len(run.chain) - self._branch(run).length == 1]
        self._draft(decoding)
        step = [(run, self._work(run, 1)) for run in decoding]
        prefilling = [run for run in foreground if not run.by_token and len(run.chain) - self._branch(run).length > 1]
        budget = self.limits.max_batch_tokens if decoding else self.limits.idle_batch_tokens
        left = len(prefilling)
        for run in prefilling:
            share = max(1, budget // left)
            missing = len(run.chain) - self._branch(run).length
            count = min(missing, share)
            step.append((run, self._work(run, count)))
            budget -= count
            left -= 1
            if budget <= 0:
                break
        if prefilling:  # whoever was cut off comes first next time
            self.running.remove(prefilling[0])
            self.running.append(prefilling[0])
        return step

    def _work(self, run: Run, count: int) -> Work:
        start = self._branch(run).length
        observed = bool(run.request.observe) and start >= run.reusable
        if run.request.observe and not observed:
            count = min(count, run.reusable - start)
        last = start + count == len(run.chain) and run.request.sampling is not None
        draft = run.draft.token_ids if last else ()
        expect = len(run.chain) - start + 1 if count > 1 else 0
        return Work(
            self._branch(run),
            [*run.chain.tokens[start : start + count], *draft],
            range(count - 1, count + len(draft)) if last else (),
            expect,
            compact=run.compacts and not run.request.holes and (run.by_token or start >= run.prompt_length),
            recall=run.recall,
            dense_layers=run.request.policy.dense_layers if run.recall is not None else 0,
            observer=run.request.observer if observed else None,
            holes=run.request.holes,
        )

    def _plan_background(self) -> list[tuple[Run, Work]]:
        for run in list(self.running):
            work = background_work(run, self._branch(run))
            if work is not None:
                self.running.remove(run)
                self.running.append(run)
                return [(run, work)]
        return []

    def expired(self, now: float) -> list[tuple[Run, FinishReason]]:
        """Return the runs that were cancelled or whose deadline has passed, with the reason."""
        ended = []
        for run in [*self.waiting(), *self.active]:
            if run.cancel_reason is not None:
                ended.append((run, run.cancel_reason))
            elif run.request.deadline is not None and now >= run.request.deadline:
                ended.append((run, FinishReason.DEADLINE))
        return ended

    def next_deadline(self) -> float | None:
        """Return the earliest deadline that has yet to be noticed, ``time.monotonic`` seconds."""
        ahead = (run.request.deadline for run in [*self.waiting(), *self.active] if run.cancel_reason is None)
        return min((deadline for deadline in ahead if deadline is not None), default=None)


def _rows_of(request: EngineRequest, prompt_length: int) -> int:
    """Return the tokens of the prompt and of the longest reply that ``request`` may get."""
    if request.sampling is None:
        return prompt_length
    return min(prompt_length + request.sampling.max_tokens, request.max_length)


def _spared(request: EngineRequest) -> int:
    """Return how many tokens have no row of their own because they are sealed."""
    if request.memory is None or request.fidelity is Fidelity.EXACT:
        return 0
    return request.memory.length - request.memory.kept
