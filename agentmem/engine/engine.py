"""The engine: one thread that owns the device, one step after the other, for all sessions."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from agentmem import faults
from agentmem.engine.batch import Work, build_batch
from agentmem.engine.replies import finish_of, sample_each
from agentmem.engine.restore import Restored, Restorer
from agentmem.engine.run import EngineRequest, Run, RunState
from agentmem.engine.runner import Runner
from agentmem.engine.sampling import Sampler
from agentmem.engine.scheduler import Limits, Scheduler
from agentmem.errors import AgentMemError, ContextTooLong, Draining, InternalError, Overloaded
from agentmem.memory.pool import KVPool, PoolFull
from agentmem.memory.segment import Branch
from agentmem.types import BlockHash, FinishReason, MissReason, Tier

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(slots=True)
class EngineStats:
    """Counters since start; tokens and steps."""

    steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    failed_steps: int = 0
    computed: int = 0  # tokens of prompts that had to be computed
    reused: dict[Tier, int] = field(default_factory=lambda: dict.fromkeys(Tier, 0))


class Engine:
    """Callers on an event loop ``submit`` requests and follow their runs; the thread does everything else.

    All books (pool, scheduler) belong to the thread; ``call`` runs a function there between two steps. ``threads`` are torch's
    threads for the engine thread (0: leave torch's default). It should be the only thread of the process with more than one:
    OpenMP puts idle threads to sleep at once where a process has more of them than cores, and waking them takes
    milliseconds of every step (measured: 20 instead of 14 ms a token).
    """

    def __init__(self, runner: Runner, pool: KVPool, restorer: Restorer, limits: Limits, threads: int = 0) -> None:
        self.runner = runner
        self.sampler = Sampler()
        self.pool = pool
        self.restorer = restorer
        self.scheduler = Scheduler(pool, limits)
        self.stats = EngineStats()
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._threads = threads
        self._ready = threading.Event()
        self._stopping = False
        self._gate = threading.Lock()  # between the last look into the inbox and what is put there
        self._ended = False

    # -- any thread ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the engine thread; returns when it has its threads, so that others may set theirs."""
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Cancel what runs, end the thread and the loader's threads. Blocks until they are gone."""
        self._inbox.put(self._stop)
        self._thread.join()
        self.restorer.close()

    async def submit(self, request: EngineRequest) -> Run:
        """Accept ``request`` and return its run. Raises Overloaded when the queue is full, ContextTooLong when it can never fit."""
        run = Run(request, asyncio.get_running_loop())
        try:
            await self.call(self._accept, run)
        except asyncio.CancelledError:  # it may have been accepted all the same, and nobody would ever follow it
            self.cancel(run)
            raise
        return run

    async def call(self, function: Callable[..., T], *args: Any) -> T:  # noqa: ANN401 - the function's own arguments
        """Run ``function(*args)`` on the engine thread between two steps and return what it returns or raises.

        Raises Draining once the engine has stopped.
        """
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*args))
            except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is
                future.set_exception(error)

        with self._gate:
            if self._ended:
                raise Draining("the engine has stopped")
            self._inbox.put(work)
        return await asyncio.wrap_future(future)

    def cancel(self, run: Run, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Ask for ``run`` to end before the next step; what it has generated stays."""
        run.cancel_reason = reason
        self._inbox.put(lambda: None)

    # -- engine thread ------------------------------------------------------------------------------------------------

    def _accept(self, run: Run) -> None:
        if self._stopping:
            raise Draining("the server is shutting down", retry_after=1.0)
        if run.prompt_length >= run.request.max_length and run.request.sampling is not None:
            limit = run.request.max_length
            raise ContextTooLong(f"the context would be {run.prompt_length} tokens and leave no room for a reply; the limit is {limit}")
        self.scheduler.enqueue(run)
        for impossible, n_bytes in self.scheduler.impossible():
            if impossible is run:
                self.scheduler.drop(run)
                budget = self.pool.budget_bytes
                raise ContextTooLong(f"the context and its reply need {n_bytes} bytes of KV memory; the budget is {budget}")

    def _stop(self) -> None:
        self._stopping = True
        for run in [*self.scheduler.waiting(), *self.scheduler.active]:
            run.cancel_reason = FinishReason.CANCELLED

    def _loop(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)
        torch.get_num_threads()  # binds the number to this thread; later calls of set_num_threads elsewhere leave it alone
        self._ready.set()
        busy = False
        while not (self._stopping and not self.scheduler.active):
            try:
                self._drain_inbox(block=not busy)
                busy = self._turn()
            except Exception as error:
                # A bug in the books: the runs that they list end with it, the thread and the memory of other sessions live on.
                log.exception("engine turn failed")
                busy = False
                for run in [*self.scheduler.waiting(), *self.scheduler.active]:
                    self._fail(run, error)
        with self._gate:
            self._ended = True
        self._drain_inbox(block=False)

    def _turn(self) -> bool:
        """End, admit and step what there is; return whether the next turn may find something to do without news."""
        for run, reason in self.scheduler.expired(time.monotonic()):
            if run.state is RunState.RESTORING:
                run.cancel_reason = reason  # the loader asks before each block, and the rows stay claimed until it is done
            else:
                self._finish(run, reason)
        admitted = self.scheduler.admit()
        for run in admitted:
            self._restore_or_begin(run)
        step = self.scheduler.plan()
        if step:
            self._step(step)
        return bool(admitted or step)

    def _drain_inbox(self, *, block: bool) -> None:
        """Do what other threads asked for; with ``block``, wait for it or for the next deadline."""
        while True:
            deadline = self.scheduler.next_deadline() if block else None
            timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                work = self._inbox.get(block=block, timeout=timeout)
            except queue.Empty:
                return
            work()
            block = False

    def _restore_or_begin(self, run: Run) -> None:
        """Start loading what the archive has of the run's prompt; with nothing to load, let the run begin."""
        branch = self._branch(run)
        size = self.pool.block_tokens
        usable = (run.prompt_length - (run.request.sampling is not None)) // size
        first = branch.length // size
        names = run.chain.hashes[first:usable]
        aligned = branch.length % size == 0
        expected = aligned and (first + 1) * size <= run.request.computed_before
        if not (names and aligned and (expected or self.restorer.archive.contains(names[0]))):
            self._begin(run, Restored())
            return
        run.state = RunState.RESTORING
        run.started = time.monotonic()
        segment, row = self.pool.append(branch, len(names) * size, expect=self.scheduler.rows_ahead(run))
        self.restorer.start(
            names,
            segment,
            row,
            wanted=lambda: run.cancel_reason is None,
            done=lambda result: self._inbox.put(lambda: self._restored(run, first, names, result)),
        )

    def _restored(self, run: Run, first: int, names: Sequence[BlockHash], result: Restored) -> None:
        if run.done:
            return
        branch = self._branch(run)
        if result.num_blocks < len(names):
            self.pool.truncate(branch, (first + result.num_blocks) * self.pool.block_tokens)
            self.pool.reserve(branch, self.scheduler.rows_ahead(run))  # fits in what the cut gave back
        self.pool.publish(branch, run.chain.hashes, first)
        self.scheduler.landed(run, names[: result.num_blocks])
        for tier, count in result.tokens.items():
            run.reused[tier] += count
        self._begin(run, result)

    def _begin(self, run: Run, restored: Restored) -> None:
        """Let ``run`` take part in steps, or end it where nothing is left to do."""
        self._explain(run, restored)
        self.scheduler.begin(run)
        if run.cancel_reason is not None:
            self._finish(run, run.cancel_reason)
        elif not run.pending:  # only K and V were asked for, and all of them were found
            self._finish(run, FinishReason.STOP)

    def _explain(self, run: Run, restored: Restored) -> None:
        """Work out why the first token that must be computed was not read from somewhere."""
        have, before = self._branch(run).length, run.request.computed_before
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
        for tier, count in run.reused.items():
            self.stats.reused[tier] += count
        self.stats.computed += run.prompt_length - sum(run.reused.values())
        run.wake_threadsafe()

    def _step(self, step: Sequence[tuple[Run, Work]]) -> None:
        runs = [run for run, _ in step]
        try:
            batch = build_batch(self.pool, [work for _, work in step], self.pool.shape.device)
            logits = self.runner.forward(batch)
            faults.point("engine.step")
            self._publish(runs)
            finished = self._emit([run for run, work in step if work.logits], logits)
        except Exception as error:
            log.exception("step failed for %d runs", len(runs))
            self.stats.failed_steps += 1
            for run in runs:
                self._fail(run, error)
            return
        finished += [(run, FinishReason.STOP) for run in runs if run.request.sampling is None and not run.pending]
        for run in runs:
            run.num_steps += 1
        for run, reason in finished:
            self._finish(run, reason)
        for run in runs:
            run.wake_threadsafe()
        self._count(step)

    def _count(self, step: Sequence[tuple[Run, Work]]) -> None:
        decoded = sum(len(work.logits) for _, work in step)
        self.stats.steps += 1
        self.stats.decode_tokens += decoded
        self.stats.prefill_tokens += sum(len(work.token_ids) for _, work in step if len(work.token_ids) > 1)

    def _emit(self, runs: Sequence[Run], logits: Tensor) -> list[tuple[Run, FinishReason]]:
        """Sample one token for each of ``runs`` from its row of ``logits`` and return the runs that end with it.

        A run whose row cannot be sampled fails alone.
        """
        finished = []
        for run, output in zip(runs, sample_each(self.sampler, runs, logits), strict=True):
            if isinstance(output, Exception):
                self._fail(run, output)
                continue
            if not run.outputs:
                run.first_token = time.monotonic()
            run.outputs.append(output)
            run.chain.extend([output.token_id])
            reason = finish_of(run)
            if reason is not None:
                finished.append((run, reason))
        return finished

    def _publish(self, runs: Sequence[Run]) -> None:
        """Make the blocks that this step completed findable by other sessions."""
        size = self.pool.block_tokens
        for run in runs:
            branch = self._branch(run)
            first = run.num_published
            last = branch.length // size
            if last <= first:
                continue
            self.pool.publish(branch, run.chain.hashes, first)
            run.num_published = last
            self.scheduler.landed(run, run.chain.hashes[first:last])

    def _finish(self, run: Run, reason: FinishReason) -> None:
        self.scheduler.drop(run)
        if run.branch is not None and run.branch.alive:
            self.pool.set_idle(run.branch)
        if run.reply_text is not None and reason is not FinishReason.STOP_STRING:
            run.tail_text = run.reply_text.finish()
        run.finish_reason = reason
        run.finished = time.monotonic()
        run.state = RunState.DONE
        run.wake_threadsafe()

    def _fail(self, run: Run, error: Exception) -> None:
        """End ``run`` with an error; its K and V may be half written, so the branch goes and will be recomputed."""
        self.scheduler.drop(run)
        if run.branch is not None:
            self.pool.release(run.branch)
        if isinstance(error, AgentMemError):
            run.error = error
        elif isinstance(error, (MemoryError, PoolFull, torch.OutOfMemoryError)):
            run.error = Overloaded("the device ran out of memory", reason="OUT_OF_MEMORY", retry_after=1.0)
        else:
            run.error = InternalError(f"the step failed: {type(error).__name__}: {error}")
        run.finished = time.monotonic()
        run.state = RunState.DONE
        run.wake_threadsafe()

    def _branch(self, run: Run) -> Branch:
        if run.branch is None:
            raise InternalError("a run takes part in a step without a branch")
        return run.branch
